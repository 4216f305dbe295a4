"""The plain GPT against a numpy transcription of nanoGPT, hand formulas and properties. Every run draws new inputs."""
import math

import numpy as np
import pytest
import torch
from models import random_weights

from looplm_kernels import rotate_halves
from model import GPT, MLP, CausalSelfAttention, GPTConfig, attention_weights
from model_loop import build, load_weights

V, T, C, NH = 13, 7, 18, 3


@pytest.fixture(autouse=True)
def _fresh_seed():
    print("seed", torch.seed())  # pytest shows it when a test fails


def make(**overrides):
    settings = {"vocab_size": V, "block_size": 11, "n_layer": 2, "n_head": NH, "n_embd": C} | overrides
    return random_weights(GPT(GPTConfig(**settings)))


def tokens(B=2, length=T):
    return torch.randint(V, (B, length))


def test_states_are_those_after_each_layer():
    model, idx = make(n_layer=3), tokens()
    states = list(model.states(idx))
    assert len(states) == 3
    torch.testing.assert_close(model.readout(states[-1]), model.logits(idx))
    for l in (1, 2):
        shorter = GPT(GPTConfig(**vars(model.config) | dict(n_layer=l))).double().eval()
        shorter.load_state_dict(model.state_dict(), strict=False)
        torch.testing.assert_close(list(shorter.states(idx))[-1], states[l - 1], rtol=0, atol=0)
        assert len(list(model.states(idx, l))) == l


def nanogpt_state(n_layer=2, block_size=11, bias=True, tied=True):
    """Random weights under the names and shapes of a nanoGPT checkpoint."""
    shapes = {"transformer.wte": (V, C), "transformer.wpe": (block_size, C), "transformer.ln_f": (C,),
              "lm_head": (V, C)}
    for i in range(n_layer):
        for name, shape in {"ln_1": (C,), "attn.c_attn": (3 * C, C), "attn.c_proj": (C, C), "ln_2": (C,),
                            "mlp.c_fc": (4 * C, C), "mlp.c_proj": (C, 4 * C)}.items():
            shapes[f"transformer.h.{i}.{name}"] = shape
    state = {f"{name}.weight": 0.4 * torch.randn(shape) for name, shape in shapes.items()}
    if bias:
        state |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()
                  if ".h." in name or name.endswith("ln_f")}
    if tied:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    return state


def plain_logits(state, idx, n_head):
    """Logits (T,V) of one row by the equations of nanoGPT: numpy, float64, one head at a time."""
    w = {name: x.double().numpy() for name, x in state.items()}

    def norm(x, name):
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        return x * w[name + ".weight"] + w.get(name + ".bias", 0)

    def linear(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)

    hs = C // n_head
    x = w["transformer.wte.weight"][idx] + w["transformer.wpe.weight"][:len(idx)]
    for i in range(sum(name.endswith("c_attn.weight") for name in w)):
        at = f"transformer.h.{i}."
        q, k, v = np.split(linear(norm(x, at + "ln_1"), at + "attn.c_attn"), 3, axis=1)
        heads = []
        for n in range(n_head):
            mine = slice(n * hs, (n + 1) * hs)
            e = np.exp(q[:, mine] @ k[:, mine].T / np.sqrt(hs)) * np.tri(len(idx))
            heads.append(e / e.sum(1, keepdims=True) @ v[:, mine])
        x = x + linear(np.concatenate(heads, 1), at + "attn.c_proj")
        u = linear(norm(x, at + "ln_2"), at + "mlp.c_fc")
        x = x + linear(u * 0.5 * (1 + np.vectorize(math.erf)(u / np.sqrt(2))), at + "mlp.c_proj")
    return linear(norm(x, "transformer.ln_f"), "lm_head")


# ---- the parts of a newer block

def plain_modern(model, idx):
    """Logits (T,V) of one row, head by head, by the formulas of the parts that the model's config names."""
    c, t = model.config, model.transformer
    parts = {"modern": "rms+swiglu+qk"}.get(c.block, c.block).split("+")
    hs, n = c.n_embd // c.n_head, c.n_kv_head or c.n_head

    def rms(x, w):
        return x / (x.square().sum(-1, keepdim=True) / x.size(-1) + 1e-5).sqrt() * w

    def norm(x, layer):
        if "rms" in parts:
            return rms(x, layer.weight)
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + (
            layer.bias if c.bias else 0)

    x = t.wte.weight[idx] + t.wpe.weight[:len(idx)]
    for block in t.h:
        a, heads = block.attn, []
        qkv = norm(x, block.ln_1) @ a.c_attn.weight.T + (a.c_attn.bias if c.bias else 0)
        q, k, v = (y.split(hs, -1) for y in qkv.split([c.n_embd, n * hs, n * hs], -1))
        for head in range(c.n_head):
            shared = head * n // c.n_head
            q_h, k_h = q[head], k[shared]
            if "qk" in parts:
                q_h, k_h = rms(q_h, a.q_norm.weight), rms(k_h, a.k_norm.weight)
            e = (q_h @ k_h.T / math.sqrt(hs)).exp().tril()
            heads.append(e / e.sum(1, keepdim=True) @ v[shared])
        heads = torch.cat(heads, 1)
        heads = norm(heads, a.y_norm) if "after" in parts else heads
        x = x + heads @ a.c_proj.weight.T + (a.c_proj.bias if c.bias else 0)
        u, m = norm(x, block.ln_2) @ block.mlp.c_fc.weight.T + (block.mlp.c_fc.bias if c.bias else 0), block.mlp
        if "swiglu" in parts or "geglu" in parts:
            gate, u = u.split(u.size(-1) // 2, -1)
            u = u * gate * (1 / (1 + (-gate).exp()) if "swiglu" in parts else (1 + torch.erf(gate / 2 ** 0.5)) / 2)
        else:
            u = u * (1 + torch.erf(u / 2 ** 0.5)) / 2
        x = x + u @ m.c_proj.weight.T + (m.c_proj.bias if c.bias else 0)
    return norm(x, t.ln_f) @ model.lm_head.weight.T


@pytest.mark.parametrize("n_kv_head", [0, 1, 2])
@pytest.mark.parametrize("block", ["nanogpt", "rms", "swiglu", "geglu", "qk", "after", "modern", "geglu+rms+after"])
def test_parts_of_a_block_against_their_formulas(block, n_kv_head):
    """As in training, at inference, and through the manual attention; by chance with biases."""
    model = make(block=block, n_kv_head=n_kv_head, n_head=4, n_embd=24, bias=bool(torch.randint(2, ())))
    idx = tokens()
    expected = torch.stack([plain_modern(model, row) for row in idx])
    torch.testing.assert_close(model(idx, idx)[0], expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(model.logits(idx), expected, rtol=1e-9, atol=1e-10)
    for layer in model.transformer.h:
        layer.attn.flash = False
    torch.testing.assert_close(model(idx, idx)[0], expected, rtol=1e-9, atol=1e-10)


def test_a_gated_block_has_the_parameters_of_the_old_one():
    """Without biases; exactly where the width is a multiple of 24, else to 2%."""
    for C, tolerance in ((384, 0), (48, 0), (128, 0.02), (256, 0.02)):
        old, new = (sum(p.numel() for p in MLP(GPTConfig(n_embd=C, block=block)).parameters())
                    for block in ("nanogpt", "swiglu"))
        assert abs(new - old) <= tolerance * old
    assert sum(p.numel() for p in MLP(GPTConfig(n_embd=2, n_head=1, block="geglu")).parameters()) > 0


@pytest.mark.parametrize(("settings", "words"), [
    (dict(block="llama"), "block 'llama'.*modern.*rms"), (dict(block="rms+"), "block 'rms.'"),
    (dict(block="swiglu+geglu"), "of swiglu and geglu one"), (dict(n_head=4, n_embd=24, n_kv_head=3), "n_kv_head 3")])
def test_parts_that_there_are_not_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        make(**settings)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("marks", ["", "_orig_mod."])
def test_nanogpt_weights_give_nanogpt_logits(marks, bias, tied):
    """Also with the prefix of torch.compile and with the mask buffers of old checkpoints."""
    state = nanogpt_state(bias=bias, tied=tied)
    stored = {marks + name: x for name, x in state.items()}
    stored |= {f"{marks}transformer.h.{i}.attn.bias": torch.ones(11, 11).tril()[None, None] for i in range(2)}
    args = {"n_layer": 2, "n_head": NH, "n_embd": C, "block_size": 11, "bias": bias, "vocab_size": V, "dropout": 0.0}
    model = build(args | {"tie_weights": tied}).double().eval()
    load_weights(model, stored)
    idx = tokens()
    logits, _ = model(idx, idx)
    for row in range(2):
        expected = plain_logits(state, idx[row].numpy(), NH)
        np.testing.assert_allclose(logits[row].detach(), expected, rtol=1e-8, atol=1e-9)


def test_missing_or_unknown_weights_are_an_error():
    state = nanogpt_state()
    with pytest.raises(ValueError, match="ln_f"):
        load_weights(make(bias=True), {k: v for k, v in state.items() if "ln_f" not in k})
    with pytest.raises(ValueError, match="c_attn.bias"):
        load_weights(make(bias=False), state)


def test_flash_and_manual_attention_agree():
    model, idx = make(bias=True), tokens()
    fast, _ = model(idx, idx)
    for block in model.transformer.h:
        block.attn.flash = False
    slow, _ = model(idx, idx)
    torch.testing.assert_close(slow, fast, rtol=1e-9, atol=1e-10)


def test_attention_weights_are_causal_and_sum_to_one():
    """Also with scores so large that a mask which merely subtracts something would leak."""
    weights = attention_weights(1e4 * torch.randn(2, NH, T, 6), torch.randn(2, NH, T, 6))
    assert weights.triu(1).eq(0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, NH, T))


@pytest.mark.parametrize("flash", [True, False])
def test_dropout_acts_in_training_only(flash):
    """Attention weights are dropped too: with the dropout modules off, training still differs from eval."""
    model, idx = make(dropout=0.5), tokens()
    for block in model.transformer.h:
        block.attn.flash = flash
    still = model(idx, idx)[0]
    torch.testing.assert_close(model(idx, idx)[0], still, rtol=0, atol=0)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    assert not torch.allclose(model(idx, idx)[0], still)


def test_initial_weights():
    """0.02 everywhere, 0.02 / sqrt(2 n_layer) where a sublayer writes to the residual stream; biases 0, norms 1."""
    n_layer = 3
    model = GPT(GPTConfig(vocab_size=997, block_size=64, n_layer=n_layer, n_head=2, n_embd=64, bias=True))
    for name, p in model.named_parameters():
        if p.dim() < 2:
            assert torch.equal(p, torch.full_like(p, float(name.endswith("weight")))), name
            continue
        std = 0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 0.02
        sigma = 1 / math.sqrt(2 * p.numel())  # of an estimated standard deviation, relative
        assert p.std().item() == pytest.approx(std, rel=6 * sigma), name
        assert abs(p.mean().item()) < 6 * std / math.sqrt(p.numel()), name


def test_forward_without_targets_gives_the_last_logits():
    model, idx = make(), tokens()
    full, last = model(idx, idx)[0], model(idx)
    assert last[1] is None
    torch.testing.assert_close(last[0], full[:, -1:], rtol=1e-10, atol=1e-10)


def test_too_many_tokens_is_an_error():
    with pytest.raises(ValueError, match="block_size 11"):
        make()(tokens(length=12))


def test_crop_block_size():
    model, idx = make(), tokens()
    before = model(idx, idx)[0]
    model.crop_block_size(T)
    assert model.transformer.wpe.weight.shape == (T, C)
    assert model.config.block_size == T
    torch.testing.assert_close(model(idx, idx)[0], before, rtol=0, atol=0)
    with pytest.raises(ValueError, match=f"block_size {T}"):
        model(tokens(length=T + 1))
    with pytest.raises(ValueError, match="crop"):
        model.crop_block_size(T + 1)


def test_optimizer_decays_matrices_and_embeddings_only():
    """Every parameter stands in one group, and the decay is what AdamW then does to a weight without gradient."""
    model = make(bias=True)
    optimizer = model.configure_optimizers(0.1, 0.01, (0.8, 0.9), "cpu")
    names = {p: name for name, p in model.named_parameters()}
    grouped = [{names[p] for p in group["params"]} for group in optimizer.param_groups]
    plain = {name for name in names.values() if name.endswith(".bias") or "ln_" in name}
    assert grouped == [set(names.values()) - plain, plain]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert all(g["betas"] == (0.8, 0.9) and g["lr"] == 0.01 for g in optimizer.param_groups)
    before = {name: p.detach().clone() for p, name in names.items()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, name in names.items():
        torch.testing.assert_close(p.detach(), before[name] * (1 if name in plain else 1 - 0.01 * 0.1))


def test_optimizer_leaves_frozen_weights_out():
    model = make()
    model.transformer.wte.requires_grad_(False)
    groups = model.configure_optimizers(0.1, 0.01, (0.9, 0.95), "cpu").param_groups
    assert not any(p is model.lm_head.weight for g in groups for p in g["params"])


@pytest.mark.parametrize("training", [True, False])
def test_loss_against_the_formula(training):
    """Targets of -1 do not count; label smoothing mixes in the mean over all tokens, in training only."""
    e = 0.2
    model = make(label_smoothing=e).train(training)
    logits, targets = 3 * torch.randn(2, T, V).double(), tokens()
    targets[0, 2:5] = targets[1, 0] = -1
    terms = []
    for z, y in zip(logits.flatten(0, 1).tolist(), targets.flatten().tolist(), strict=True):
        nll = [math.log(sum(map(math.exp, z))) - zi for zi in z]
        terms += [(1 - e) * nll[y] + e * sum(nll) / V if training else nll[y]] if y >= 0 else []
    assert len(terms) == 2 * T - 4
    assert model.loss(logits, targets).item() == pytest.approx(sum(terms) / len(terms), rel=1e-9)


def test_forward_returns_that_loss():
    model, idx, targets = make(), tokens(), tokens()
    logits, loss = model(idx, targets)
    p = logits.softmax(-1).gather(-1, targets[..., None])
    assert loss.item() == pytest.approx(-p.log().mean().item(), rel=1e-9)


def greedy(model, idx, n):
    """Arg-max continuation; a context of block_size tokens loses its first half when it is full."""
    start = 0
    for _ in range(n):
        while idx.size(1) - start > model.config.block_size:
            start += model.config.block_size // 2
        context = idx[:, start:]
        idx = torch.cat((idx, model(context, context)[0][:, -1:].argmax(-1)), 1)
    return idx


@pytest.mark.parametrize("reread", [False, True])
def test_generate_arg_max_also_beyond_the_block_size(reread):
    model, idx = make(block_size=9), tokens(3)
    expected = greedy(model, idx, 8)
    assert torch.equal(model.generate(idx, 8, temperature=0, reread=reread), expected)
    assert torch.equal(model.generate(idx, 8, top_k=1, reread=reread), expected)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_generate_ends_once_every_row_has_had_the_stop_token(temperature):
    """A row goes on until the last one has it; each row alone ends at its own; a stop token in the prompt is none."""
    script = torch.stack([torch.randperm(V), torch.randperm(V)])

    class Scripted(GPT):
        def forward(self, idx, targets=None):
            said = torch.nn.functional.one_hot(script[:len(idx), idx.size(1) - T], V)
            return 1e4 * said[:, None].float(), None

    model = Scripted(GPTConfig(vocab_size=V, block_size=T + V, n_layer=1, n_head=NH, n_embd=C))
    idx = torch.arange(T).expand(2, T)
    for stop in range(V):
        at = (script == stop).int().argmax(1) + 1
        for rows in (1, 2):
            n = int(at[:rows].max())
            expected = torch.cat((idx, script[:, :n]), 1)[:rows]
            assert torch.equal(model.generate(idx[:rows], V, temperature, stop=stop, reread=True), expected)
    assert model.generate(idx, 4, temperature=temperature).size(1) == T + 4


@pytest.mark.parametrize("top_k", [None, 4, 99])
def test_generate_draws_from_the_tempered_distribution(top_k):
    N, temperature = 4000, 1.7
    model, idx = make(), tokens(1, 3)
    z = model(idx)[0][0, -1].detach() / temperature
    if top_k == 4:
        z[z.argsort()[:-4]] = -torch.inf
    p = z.softmax(0)
    drawn = model.generate(idx.expand(N, -1), 1, temperature=temperature, top_k=top_k)[:, -1]
    share = drawn.bincount(minlength=V) / N
    assert share[p == 0].eq(0).all()
    assert ((share - p).abs() < 6 * (p * (1 - p) / N).sqrt() + 3 / N).all()


def test_weight_tying_shares_storage():
    tied, untied = make(), make(tie_weights=False)
    load_weights(tied, nanogpt_state(bias=False))
    assert tied.lm_head.weight is tied.transformer.wte.weight
    assert untied.lm_head.weight.data_ptr() != untied.transformer.wte.weight.data_ptr()
    assert untied.get_num_params() - tied.get_num_params() == V * C
    assert tied.get_num_params(non_embedding=False) - tied.get_num_params() == 11 * C


@pytest.mark.parametrize("bias", [True, False])
def test_flops_and_mfu_against_a_hand_count(bias):
    """6 FLOPs a weight and token, forward and backward; attention: q.k and weights.v, 2 FLOPs each, 3 times."""
    model, loops, n_layer = make(bias=bias), 3, 2
    block = 3 * C * C + C * C + 4 * C * C + 4 * C * C + 2 * C + bias * (3 * C + C + 4 * C + C + 2 * C)
    attention = 3 * 2 * 2 * NH * (C // NH) * T
    expected = loops * n_layer * (6 * block + attention) + 6 * V * C
    assert model.flops_per_token(T, loops) == expected
    assert model.estimate_mfu(5, T, 0.25, 1e9, loops) == pytest.approx(expected * T * 5 / 0.25 / 1e9)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="n_head"):
        make(n_head=4)


@pytest.mark.parametrize("q_rows", [1, 11])
def test_training_and_inference_rotate_alike_in_bfloat16(q_rows):
    """Rotations are rounded once, from float32: with angles, training's attention equals inference's to the bit."""
    attention = CausalSelfAttention(GPTConfig(n_head=2, n_embd=64)).bfloat16().eval()
    x = torch.randn(3, 11, 64).bfloat16()
    q_angle, k_angle = 9 * torch.randn(q_rows, 16), 9 * torch.randn(11, 16)
    trained = attention(x, q_angle, k_angle)
    with torch.no_grad():
        assert torch.equal(attention(x, q_angle, k_angle), trained)
    q = torch.randn(3, 2, 11, 32).bfloat16()
    exact = torch.view_as_real(torch.complex(*q.double().chunk(2, -1)) * torch.polar(torch.ones(11, 16), k_angle))
    differs = rotate_halves(q, k_angle) != torch.cat(exact.unbind(-1), -1).float().bfloat16()
    assert differs.float().mean() < 0.01  # a float32 next to a rounding edge; with cosines in bfloat16 half of them
