"""The plain GPT baseline, and Block with its parts, which LoopGPT (model_loop.py) shares.

After nanoGPT (github.com/karpathy/nanoGPT): the same architecture, the same names in the state dict, so that a
nanoGPT checkpoint loads. What is new here: Block can rotate queries and keys (rope), the head may be untied,
cross entropy knows label smoothing, and a Block may have newer parts: RMSNorm (Zhang & Sennrich 2019, 1910.07467),
gated units (Shazeer 2020, 2002.05202), normed queries and keys (Henry et al. 2020, 2010.04245), heads that share keys
and values (Ainslie et al. 2023, 2305.13245), a norm of what attention has seen, whose variance falls with length
(2504.02827).

B batch, T tokens, C width (n_embd), nh heads, nkv heads of keys and values, hs head size, V vocabulary.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import generate
from looplm_kernels import at_least_float32, attention, rotate_halves, split_heads
from think import MASK_FLOOR, log_scale

BLOCKS = dict(nanogpt=(), modern=("rms", "swiglu", "qk"))
GATES = dict(swiglu=F.silu, geglu=F.gelu)
PARTS = ("rms", *GATES, "qk", "after")  # what a block may have: after is a norm of what attention has seen


@dataclass
class GPTConfig:
    vocab_size: int = 50304     # >= 1: GPT-2's 50257 padded to a multiple of 64; train.py takes the dataset's own
    block_size: int = 256       # >= 1: longest sequence that learned positions can stand for
    n_layer: int = 6            # >= 1: distinct blocks
    n_head: int = 6             # >= 1: attention heads
    n_embd: int = 384           # >= 1: width C
    n_kv_head: int = 0          # >= 0: heads of keys and values, each for as many queries; 0: n_head
    block: str = "nanogpt"      # nanogpt; modern, which is rms+swiglu+qk; or parts: rms, swiglu or geglu, qk, after
    dropout: float = 0.0        # >= 0, < 1: 0 for large data, 0.1 and more for small
    bias: bool = False          # biases in Linear and LayerNorm; GPT-2 has them, without is a bit better and faster
    tie_weights: bool = True    # the head shares its weights with the token embedding
    label_smoothing: float = 0.0  # >= 0, < 1: of the training loss; validation never smooths

    log_scale, backend = 0, "auto"  # settings of LoopConfig, which a plain GPT does not have

    @property
    def kv_heads(self):
        return self.n_kv_head or self.n_head

    @property
    def parts(self):
        """Those of PARTS that a block has. ValueError if `block` names others."""
        parts = BLOCKS.get(self.block, self.block.split("+"))
        if not set(parts) <= {*PARTS} or {*GATES} <= {*parts}:
            raise ValueError(f"block {self.block!r} is none of {', '.join(BLOCKS)}, nor parts joined by +: "
                             f"{', '.join(PARTS)}, of swiglu and geglu one")
        return parts


def rope_angles(positions, hs, base=10000.0):
    """Rotary angles of positions (...) for heads of hs channels: (...,hs/2), float32. Su et al. 2021 (2104.09864)."""
    frequency = base ** (-torch.arange(0, hs, 2, device=positions.device, dtype=torch.float32) / hs)
    return positions[..., None].float() * frequency


def make_norm(config):
    """The norm of a width: (...,C) -> (...,C)."""
    if "rms" in config.parts:
        return nn.RMSNorm(config.n_embd, eps=1e-5)
    return nn.LayerNorm(config.n_embd, bias=config.bias)


class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd {config.n_embd} is not a multiple of n_head {config.n_head}")
        if config.n_head % config.kv_heads:
            raise ValueError(f"n_head {config.n_head} is not a multiple of n_kv_head {config.n_kv_head}")
        hs = config.n_embd // config.n_head
        self.n_head, self.n_kv_head, self.dropout = config.n_head, config.kv_heads, config.dropout
        self.widths = config.n_embd, self.n_kv_head * hs, self.n_kv_head * hs
        self.c_attn = nn.Linear(config.n_embd, sum(self.widths), bias=config.bias)  # q, k, v of all heads at once
        self.q_norm, self.k_norm = (nn.RMSNorm(hs, eps=1e-5) if "qk" in config.parts else None for _ in range(2))
        self.y_norm = make_norm(config) if "after" in config.parts else nn.Identity()
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.config = config  # its settings may change after training: backend, log_scale
        self.flash = True  # False takes the manual path: slower, but one can look at the attention weights

    def forward(self, x, q_angle=None, k_angle=None, cache=None, source=None):
        """What tokens x (B,T,C) see; source (B,T,C): what keys and values are of, if not of x."""
        T, C = x.shape[1:]
        qkv = self.project(x, source)  # (B,T,3C), less where heads share keys
        if 0 < self.config.log_scale < (T if cache is None else cache.longest):
            qkv = scale_queries_by_log_keys(qkv, C, self.config.log_scale, None if cache is None else cache.positions)
        if cache is not None:
            y = cache.attend(qkv, self.n_head, q_angle, k_angle)
        elif self.flash and not torch.is_grad_enabled() and not self.training:
            y = attention(qkv, self.n_head, q_angle, k_angle, self.config.backend, self.n_kv_head)
        else:
            y = self.with_gradients(qkv, q_angle, k_angle)
        return self.resid_dropout(self.c_proj(self.y_norm(y)))

    def with_gradients(self, qkv, q_angle, k_angle):
        """`attention` of the packed projection, with dropout in training."""
        q, k, v = split_heads(qkv, self.n_head, self.n_kv_head)  # (B,nh,T,hs), (B,nkv,T,hs) twice
        if q_angle is not None:
            q = rotate_halves(q, q_angle)
        if k_angle is not None:
            k = rotate_halves(k, k_angle)
        dropout = self.dropout if self.training else 0.0
        if self.flash:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True,
                                               enable_gqa=self.n_kv_head != self.n_head)
        else:
            k, v = (y.repeat_interleave(self.n_head // self.n_kv_head, 1) for y in (k, v))
            y = F.dropout(attention_weights(q, k), dropout) @ v
        return y.transpose(1, 2).flatten(2)

    def project(self, x, source=None):
        """Queries, keys and values (...,C + 2 nkv hs) of x (...,C), normed where the block does so, not rotated; keys
        and values of source (...,C) if there is one."""
        if source is None:
            qkv = self.c_attn(x)
        else:
            rows = self.c_attn.weight.split([self.widths[0], sum(self.widths[1:])])
            bias = (None, None) if self.c_attn.bias is None else self.c_attn.bias.split([len(w) for w in rows])
            qkv = torch.cat([F.linear(*given) for given in zip((x, source), rows, bias, strict=True)], -1)
        if self.q_norm is None:
            return qkv
        q, k, v = qkv.split(self.widths, -1)
        return torch.cat((norm_heads(q, self.q_norm), norm_heads(k, self.k_norm), v), -1)

    def keys_values(self, x):
        """The keys and values of `project` alone (...,2 nkv hs)."""
        C, bias = self.widths[0], self.c_attn.bias
        kv = F.linear(x, self.c_attn.weight[C:], bias if bias is None else bias[C:])
        if self.k_norm is None:
            return kv
        k, v = kv.chunk(2, -1)
        return torch.cat((norm_heads(k, self.k_norm), v), -1)


def norm_heads(x, norm):
    """x (...,heads hs) with each head normed by an RMSNorm of hs channels; its statistics in float32 or wider."""
    heads = at_least_float32(x.unflatten(-1, (-1, norm.weight.numel())))
    return F.rms_norm(heads, norm.normalized_shape, norm.weight.to(heads.dtype), norm.eps).flatten(-2).to(x.dtype)


def scale_queries_by_log_keys(qkv, C, trained_length, positions=None):
    """qkv (B,T,C + 2 nkv hs), its queries that see more than trained_length keys scaled by log(keys) /
    log(trained_length).

    Otherwise attention flattens with length (Chiang & Cholak 2022, 2202.12172). Causal: token t only uses t.
    positions (B,T): where the tokens stand; None: 0, 1, 2, ...
    """
    positions = torch.arange(qkv.size(1), device=qkv.device) if positions is None else positions
    scale = log_scale(positions, trained_length)  # (T) or (B,T)
    return torch.cat((qkv[..., :C] * scale.to(qkv.dtype)[..., None], qkv[..., C:]), -1)


def attention_weights(q, k):
    """Causal attention weights of q and k (B, nh, T, hs) -> (B, nh, T, T), each row sums to 1."""
    T = q.size(-2)
    score = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    return score.masked_fill(future, MASK_FLOOR).softmax(-1)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate = next((GATES[p] for p in config.parts if p in GATES), None)
        # a gate is a third matrix: 8/3 of the width, by eights, have the parameters of four times it
        hidden = 8 * max(1, round(config.n_embd / 3)) if self.gate else 4 * config.n_embd
        self.c_fc = nn.Linear(config.n_embd, 2 * hidden if self.gate else hidden, bias=config.bias)
        self.c_proj = nn.Linear(hidden, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        y = self.c_fc(x)
        if self.gate is None:
            return self.dropout(self.c_proj(F.gelu(y)))
        gate, y = y.chunk(2, -1)
        return self.dropout(self.c_proj(self.gate(gate) * y))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each added to its input. (B,T,C) -> (B,T,C)."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = make_norm(config)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = make_norm(config)
        self.mlp = MLP(config)

    def flops_per_token(self, T):
        """Training FLOPs per token at length T: 6 a weight, and attention. PaLM, appendix B (2204.02311)."""
        return 6 * sum(p.numel() for p in self.parameters()) + 12 * self.attn.config.n_embd * T

    def keys_values(self, x):
        """The keys and values (...,2 nkv hs) of what it reads, x (...,C), not rotated."""
        return self.attn.keys_values(self.ln_1(x))

    def forward(self, x, q_angle=None, k_angle=None, cache=None, source=None):
        x = x + self.attn(self.ln_1(x), q_angle, k_angle, cache, None if source is None else self.ln_1(source))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    learned_positions = True  # LoopGPT has other kinds too

    def __init__(self, config):
        super().__init__()
        self.config = config
        parts = dict(wte=nn.Embedding(config.vocab_size, config.n_embd))
        if self.learned_positions:
            parts.update(wpe=nn.Embedding(config.block_size, config.n_embd))
        parts.update(
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList(self.make_block(config) for _ in range(self.distinct_blocks(config))),
            ln_f=make_norm(config))
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.transformer.wte.weight = self.lm_head.weight
        self.apply(self._init_weights)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):  # so that the residual stream does not grow with depth (GPT-2)
                nn.init.normal_(p, mean=0.0, std=0.02 / math.sqrt(2 * len(self.transformer.h)))

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    make_block = staticmethod(Block)

    @staticmethod
    def distinct_blocks(config):
        """How many blocks there are."""
        return config.n_layer

    def get_num_params(self, non_embedding=True):
        """Number of parameters; positions are left out by default, token embeddings serve as the head and count."""
        n = sum(p.numel() for p in self.parameters())
        return n - self.transformer.wpe.weight.numel() if non_embedding and self.learned_positions else n

    def cache_slots(self):
        """How often a token's keys and values are computed: in so many loops, and so many times in each."""
        return 1, self.config.n_layer

    def positions(self, idx, cache=None):
        """What is added to the token embeddings: (T,C) or (B,T,C), or None. ValueError if they end before T."""
        if cache is not None and cache.positions is not None:
            return self.transformer.wpe(cache.positions)
        T = idx.size(1)
        if T > self.config.block_size:
            raise ValueError(f"{T} tokens, but the learned positions end at block_size {self.config.block_size}")
        return self.transformer.wpe(torch.arange(T, device=idx.device))

    def embed(self, idx, cache=None):
        """Tokens idx (B,T) int64 -> x0 (B,T,C). They follow those that the cache knows, a KVCache of generate.py."""
        x, p = self.transformer.wte(idx), self.positions(idx, cache)
        return self.transformer.drop(x if p is None else x + p)

    def readout(self, h):
        """State h (...,C) -> logits (...,V)."""
        return self.lm_head(self.transformer.ln_f(h))

    def loss(self, logits, targets):
        """Mean cross entropy in nats of logits (...,V) against targets (...); targets of -1 do not count."""
        smoothing = self.config.label_smoothing if self.training else 0.0
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-1, label_smoothing=smoothing)

    def states(self, idx, num_loops=None):
        """The states h_1 ... of tokens idx (B,T), one (B,T,C) after the other: after each layer, or the first num_loops
        of them, as LoopGPT's after each loop."""
        h = self.embed(idx)
        for block in self.transformer.h[:num_loops]:
            h = block(h)
            yield h

    def forward(self, idx, targets=None):
        """Logits and loss; without targets only the last token's logits (B,1,V), and None."""
        x = self.embed(idx)
        for block in self.transformer.h:
            x = block(x)
        if targets is None:
            return self.readout(x[:, [-1]]), None
        logits = self.readout(x)  # (B,T,V)
        return logits, self.loss(logits, targets)

    @torch.no_grad()
    def logits(self, idx):
        """Logits (B,T,V) of all tokens of idx (B,T), for inference."""
        return self(idx, torch.full_like(idx, -1))[0]

    def crop_block_size(self, block_size):
        """Shorten the context, for example to load a checkpoint of a longer one into less memory."""
        if block_size > self.config.block_size:
            raise ValueError(f"cannot crop block_size {self.config.block_size} to {block_size}")
        self.config.block_size = block_size
        if self.learned_positions:
            self.transformer.wpe.weight = nn.Parameter(self.transformer.wpe.weight[:block_size].detach().clone())
            self.transformer.wpe.num_embeddings = block_size

    def crop_vocabulary(self, vocab_size):
        """Leave out the padding of the vocabulary: ids that no token has are never drawn, and no probability counts
        them."""
        if vocab_size < self.config.vocab_size:
            self.config.vocab_size = vocab_size
            for module in (self.transformer.wte, self.lm_head):  # which may share their weights
                module.weight = nn.Parameter(module.weight[:vocab_size].detach().clone())
            if self.config.tie_weights:
                self.transformer.wte.weight = self.lm_head.weight
            self.transformer.wte.num_embeddings = self.lm_head.out_features = vocab_size
            self.train(self.training)  # LoopGPT forgets what kernels keep of its weights

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type, capturable=False):
        """Fused AdamW; matrices and embeddings decay, biases and norms do not. capturable: for CUDA graphs."""
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [{"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
                  {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0}]
        if capturable:  # a captured step reads the learning rate from this tensor
            learning_rate = torch.tensor(learning_rate, device=device_type)
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True, capturable=capturable)

    def flops_per_token(self, T, num_loops=1):
        """Training FLOPs per token at length T: of all loops, and 6 a weight of the head."""
        loop = sum(block.flops_per_token(T) for block in self.transformer.h[:self.config.n_layer])
        return num_loops * loop + 6 * self.lm_head.weight.numel()

    def estimate_mfu(self, sequences_per_iter, T, dt, peak_flops, num_loops=1):
        """Share of the GPU's peak (FLOP/s) that an iteration of dt seconds reaches."""
        return self.flops_per_token(T, num_loops) * T * sequences_per_iter / dt / peak_flops

    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, stop=None, reread=False):
        """generate.generate of this model."""
        return generate.generate(self, idx, max_new_tokens, temperature, top_k, stop, reread)
