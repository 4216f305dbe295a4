"""All loops of a sequence in one launch: kernel, its plan and its weights, operator; the reference is LoopGPT.think."""
import sys
import weakref

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import tile
from kernels.backend import operator, product_dtype, run, unsupported
from kernels.block import (
    LOOP_NORM,
    accumulate,
    attend_rows,
    frozen,
    inject,
    judge,
    layer_norm,
    linear,
    self_attention,
    share_rows,
    shifted,
    states_of,
    stepped,
    times,
    tokens,
)
from kernels.halt import CONFIDENCE, GATE, KL, NEEDS_LOGITS, RULES
from kernels.tile import NAN, Flag, Int, cast, ct, gelu, power


def arrive_and_wait(sync, at, add, target):
    """Barrier of target blocks: each adds 1 + 65536 * (has it active tokens) to sync[at], all go on once all have.

    Returns the count. It is read by atomics alone: a warp that only fetches tiles ahead may repeat a plain load, and
    would then see another value than the warps that compute.
    """
    ct.atomic_add(sync, at, add, memory_order=ct.MemoryOrder.ACQ_REL, memory_scope=ct.MemoryScope.DEVICE)
    count = 0
    while (count & 65535) < target:
        count = ct.atomic_add(sync, at, 0, memory_order=ct.MemoryOrder.ACQ_REL, memory_scope=ct.MemoryScope.DEVICE)
    return count


@ct.kernel
def looplm_loop_kernel(x0, injected, h_out, wqkv, wproj, wfc, wout, vectors, steps, mix, head, gate_w, gate_s, gate_v,
                       active_in, loops_out, threshold, limit, last_in, stats, predictions, previous, qkv, sync,
                       L, groups, slices, V, min_loops, alpha, gate_b,
                       R: Int, S: Int, TP: Int, W: Int, C: Int, HS: Int, GW: Int, FT: Int, VT: Int, RULE: Int,
                       INJECT: Int, STEPS: Flag, EULER: Flag, NORM: Flag, ADAPT: Flag, TRACE: Flag, EXACT: Flag):
    """All L loops of S sequences of up to TP rows (R = 1), or of TP rows of one sequence with R blocks a sequence.

    x0, injected, h_out (B,T,C); active_in, loops_out, threshold, limit, last_in (B,T); the rest as loop_weights and
    launch_loop make it. W channels are a tile, GW of them the heads of one step of the attention, FT hidden units
    one step of the MLP, sized so that shared memory holds several tiles of weights ahead.
    """
    bid = ct.bid(0)
    if R > 1:  # blocks take tickets, so that those who wait for each other have started, whatever the order
        bid = ct.atomic_add(sync, x0.shape[0] * L, 1)
    b, r = bid // R, bid % R
    h = states_of(x0, b, r, S, TP, W, C)
    row = ct.arange(S * TP, dtype=ct.int32)
    allowed = (row[:, None] >= row[None, :]) & ((row // TP)[:, None] == (row // TP)[None, :])
    allowed = ct.reshape(allowed, (1, S * TP, S * TP))
    active = tokens(active_in, b, r, S, TP) != 0
    last, bound, most = (tokens(last_in, b, r, S, TP), tokens(threshold, b, r, S, TP), tokens(limit, b, r, S, TP))
    loops = ct.zeros((S * TP, 1), ct.int32)
    done, going = 0, ct.max(active.astype(ct.int32))
    # Blocks that share a sequence stop together, one loop after its last token halted: what they all know is who was
    # active when a loop began. The loops after that are skipped. With a break instead all blocks came as far, and some
    # launches never ended; one block a sequence may break, and its branch here folds
    alive = 1
    for l in range(0, L):
        if R == 1 or not ADAPT or alive > 0:
            u = inject(h, x0, injected, mix, vectors, l, b, r, INJECT, S, TP, W)
            if STEPS:
                u = shifted(u, steps, l)
            a = cast(layer_norm(u, C), wqkv.dtype)
            y = u
            if R == 1:
                y = self_attention(y, a, wqkv, wproj, allowed, groups, HS, GW)
            else:
                share_rows(a, wqkv, qkv, l, b, r, groups, TP, GW)
                count = arrive_and_wait(sync, b * L + l, 1 + 65536 * going, R)
                for n in range(0, groups):
                    y = accumulate(y, attend_rows(qkv, l % 2, b, r, n, allowed, HS, TP, GW), wproj, n)
            a = cast(layer_norm(y, C), wqkv.dtype)
            for j in range(0, slices):
                y = accumulate(y, gelu(linear(a, wfc, j, FT), EXACT).astype(wqkv.dtype), wout, j)
            if EULER:
                y = stepped(h, y, u, alpha)
            if NORM:
                y = times(layer_norm(y, C), vectors, LOOP_NORM)
            if ADAPT:
                score, last = judge(h, y, active, last, l, b, r, head, gate_w, gate_s, gate_v, gate_b, previous, stats,
                                    predictions, V, alpha, S, TP, C, VT, RULE, EULER, TRACE, EXACT)
                passes = score <= bound
                if ct.static_eval(RULE in (CONFIDENCE, GATE)):
                    passes = score >= bound
                h, loops, done = frozen(active, y, h), ct.where(active, l + 1, loops), l + 1
                active = active & ~((passes & (l + 1 >= min_loops)) | (l + 1 >= most))
                going = ct.max(active.astype(ct.int32))
                if R > 1:
                    alive = count // 65536
                elif going == 0:
                    break
            else:
                h = y
    for i in ct.static_iter(range(len(h))):
        ct.store(h_out, (b, r, i), ct.reshape(h[i].astype(h_out.dtype), (S, TP, W)))
    if ADAPT:
        ct.store(loops_out, (b, r), ct.reshape(loops, (S, TP)), allow_tma=False)
    if TRACE:
        for l in range(done, L):  # loops that no token took
            ct.store(predictions, (l, b, r), ct.reshape(last, (1, S, TP)), allow_tma=False)


LOOP_SIZES = ("R", "S", "TP", "W", "C", "HS", "GW", "FT", "VT", "RULE", "INJECT")  # as the kernel takes them, then
LOOP_FLAGS = ("STEPS", "EULER", "NORM", "ADAPT", "TRACE", "EXACT")
INJECTS = ("none", "add", "decay", "concat")  # as `inject` in the kernel counts them
started = set()  # variants of the loop kernel that were launched
prepared = weakref.WeakKeyDictionary()  # model -> what loop_weights made of it, and the CUDA graphs that read it
LOOP_VOCABULARY = 128  # above it the readout of every loop is the head kernel's work


def loop_cannot(model, x0, L, rule, trace):
    """What the loop kernel does not do of a model, its input x0 (B,T,C) and L loops, "" if it does all."""
    c, (_, T, C), hs = model.config, x0.shape, model.config.n_embd // model.config.n_head
    asks = {"n_layer above 1": c.n_layer > 1, "biases": c.bias,
            "more tokens than log_scale": 0 < c.log_scale < T, "rope": "rope" in (c.pos, c.step_encoding),
            f"heads of {hs} channels": hs & (hs - 1) or not 16 <= hs <= 128,
            f"n_embd {C}": C not in (64, 128, 256, 384), "more than 256 tokens": T > 256,
            "float16": torch.float16 in (x0.dtype, model.lm_head.weight.dtype),
            f"update {c.update!r}": c.update not in ("replace", "euler"), "Anderson acceleration": c.anderson > 0,
            "alpha 'gate'": c.alpha == "gate",
            "loops beyond the learned step encoding": c.step_encoding == "learned" and len(model.step_bias) < L,
            "training": model.training,
            "gradients": torch.is_grad_enabled() and any(p.requires_grad for p in model.parameters()),
            f"halting by the logits of {c.vocab_size} tokens": (
                (trace or rule in NEEDS_LOGITS) and c.vocab_size > LOOP_VOCABULARY)}
    return next((f"the loop kernel does not do {what}" for what, asked in asks.items() if asked), "") or unsupported(x0)


def loop_plan(c, T, rule, adapt, trace, w_dtype):
    """The constants of the kernel for a model's config, T tokens, the dtype of weights."""
    TP, C, V, hs = min(64, max(16, power(T))), c.n_embd, c.vocab_size, c.n_embd // c.n_head
    exact = w_dtype == torch.float32
    FT = 64 if C > 128 or exact else 128
    steps = c.step_encoding in ("learned", "sinusoid")
    VT = max(16, power(V)) if trace or rule in NEEDS_LOGITS else 16  # all of it, in one tile
    return dict(R=-(-T // TP), S=64 // TP, TP=TP, W=min(C, 128), C=C, HS=hs, GW=max(64, hs), FT=FT, VT=VT,
                RULE=RULES.index(rule), INJECT=INJECTS.index(c.inject), STEPS=steps,
                EULER=c.update == "euler", NORM=c.loop_norm, ADAPT=adapt, TRACE=trace, EXACT=exact)


@torch.no_grad()
def loop_weights(model, L, dtype):
    """What the kernel reads of a model: tensors, and two numbers; kept until the model's train or eval is
    called, or a weight or the rule is seen to change (a CUDA graph changes weights unseen)."""
    key = (L, dtype, model.config.halt, model.config.alpha, model.config.update,
           *((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()))
    if model in prepared and prepared[model][0] == key:
        return prepared[model][1:3]
    c, block, C = model.config, model.transformer.h[0], model.config.n_embd
    one = torch.ones(C, device=model.lm_head.weight.device)
    steps = [model.step_encoding(l) for l in range(1, L + 1)]
    steps = torch.stack(steps).float() if steps[0] is not None else 0 * one[None]
    concat, gate = c.inject == "concat", c.halt == "gate"
    head = model.lm_head.weight if c.vocab_size <= LOOP_VOCABULARY else one[None]
    mix = model.inject.mix.weight if concat else torch.cat((one, one))[None]
    read, out = (model.halt_head[0], model.halt_head[2]) if gate else (None, None)
    # a layer norm's weights go into the product that follows it: the kernel would load them in every loop
    wqkv, wfc, head = ((w.float() * norm.weight.float()).to(dtype) for w, norm in (
        (block.attn.c_attn.weight, block.ln_1), (block.mlp.c_fc.weight, block.ln_2), (head, model.transformer.ln_f)))
    made = dict(
        wqkv=wqkv, wproj=block.attn.c_proj.weight.to(dtype), wfc=wfc, wout=block.mlp.c_proj.weight.to(dtype),
        vectors=torch.stack([x.float() for x in (
            model.loop_norm.weight if c.loop_norm else one, model.inject.a.sigmoid() if c.inject == "decay" else one)]),
        steps=steps, mix=mix[:, :C].to(dtype), head=head,
        gate_w=read.weight[:, :C].to(dtype) if gate else one[None].to(dtype),
        gate_s=(steps.expand(L, C) @ read.weight[:, C:].float().T + read.bias.float()) if gate else one[None].clone(),
        gate_v=out.weight.float() if gate else one[None].clone())
    tensors = [x.detach().contiguous() for x in made.values()]
    numbers = (model.step_size.item() if c.alpha == "learned" else float(c.alpha), out.bias.item() if gate else 0.0)
    prepared[model] = key, tensors, numbers, {}
    return tensors, numbers


def injected_by(model, x0, dtype):
    """What x0 (B,T,C) contributes to the input of every loop from the second on, where that is not x0 itself."""
    if model.config.inject == "decay":
        return (model.inject.b * x0).to(x0.dtype).contiguous()
    if model.config.inject == "concat":
        weight = model.inject.mix.weight[:, x0.size(2):].to(dtype)
        return F.linear(x0.to(dtype), weight).to(x0.dtype).contiguous()
    return x0.new_empty(1, 1, 16)


def loop_outputs(x0, L, trace):
    """h (B,T,C), loops (B,T) int32, stats (L,4,B,T) float32 and predictions (L,B,T) int32, to be filled."""
    B, T, _ = x0.shape
    whole = (L, B, T) if trace else (1, 1, 1)
    return (torch.empty_like(x0), x0.new_zeros(B, T, dtype=torch.int32),
            x0.new_full((whole[0], 4, *whole[1:]), NAN, dtype=torch.float32), x0.new_zeros(whole, dtype=torch.int32))


def launch_loop(x0, injected, weights, active, threshold, limit, last, constants, numbers, L, min_loops, V):
    k, (B, T, C), dtype = dict(zip(LOOP_SIZES + LOOP_FLAGS, constants, strict=True)), x0.shape, weights[0].dtype
    h, loops, stats, predictions = loop_outputs(x0, L, k["TRACE"])
    previous = x0.new_empty((B, T, k["VT"]) if k["RULE"] == KL else (1, 1, 16), dtype=torch.float32)
    qkv = x0.new_empty((5, B, T, C) if k["R"] > 1 else (1, 1, 1, 16), dtype=dtype)
    sync = x0.new_zeros(B * L + 1 if k["R"] > 1 else 1, dtype=torch.int32)
    flags = (bool(k[name]) for name in LOOP_FLAGS)
    # one warp group: norms and softmaxes need no exchange. Wider states spill then, as do products without wgmma
    few = C <= 128 and k["R"] == 1 and not k["EXACT"] and tile.gpu(x0.device).major == 9
    tile.launch(looplm_loop_kernel, (-(-B // k["S"]) * k["R"],), (
        x0, injected, h, *weights, active.int(), loops, threshold, limit.int(), last, stats, predictions, previous, qkv,
        sync, L, C // k["GW"], 4 * C // k["FT"], V, min_loops, *numbers, *(k[name] for name in LOOP_SIZES), *flags),
        x0.device, num_worker_warps=4 if few else 8)
    return h, loops, stats, predictions


@operator("adaptive_loop", lambda x0, a, b, c, d, e, f, constants, n, L, m, v: loop_outputs(x0, L, constants[-2]))
def loop_op(x0: Tensor, injected: Tensor, weights: list[Tensor], active: Tensor, threshold: Tensor, limit: Tensor,
            last: Tensor, constants: list[int], numbers: list[float], L: int, min_loops: int,
            V: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All loops in one launch; constants: those of loop_plan; numbers: alpha and the bias of the halt head."""
    return launch_loop(x0, injected, weights, active, threshold, limit, last, constants, numbers, L, min_loops, V)


def kernel_path(model, x0, active, threshold, limit, L, rule, last, trace, forced):
    """adaptive_loop by looplm_loop_kernel, None if its launch fails and it is not forced."""
    dtype = product_dtype(model.lm_head.weight)
    adapt = trace or rule != "none" or isinstance(limit, Tensor)
    (B, T, _), V, x0 = x0.shape, model.config.vocab_size, x0.contiguous()
    k = loop_plan(model.config, T, rule, adapt, trace, dtype)
    weights, numbers = loop_weights(model, L, dtype)
    if (variant := (*k.values(), dtype, x0.dtype)) not in started and x0.is_cuda:
        print(f"kernels: the loop kernel for n_embd {k['C']}, {T} tokens, rule {rule}, {dtype} compiles, or comes from "
              "the disk; some seconds, in float32 up to a minute ...", file=sys.stderr)
        started.add(variant)
    last = active.new_zeros(B, T, dtype=torch.int32) if last is None else last.int()
    limit = limit if isinstance(limit, Tensor) else active.new_full((B, T), limit, dtype=torch.int32)
    out = run(f"loop of n_embd {k['C']}", forced, x0.device, lambda: loop_op(
        x0, injected_by(model, x0, dtype), weights, active, threshold, limit, last,
        [int(k[name]) for name in LOOP_SIZES + LOOP_FLAGS], list(numbers), L, model.config.min_loops, V), lambda: None)
    if out is None:
        return None
    h, loops, stats, predictions = out
    loops = loops.long() if adapt else torch.full_like(limit, L).long()
    if not trace:
        return h, loops, None
    named = dict(zip(("entropy", "confidence", "delta", "score"), stats.permute(1, 2, 3, 0), strict=True))
    return h, loops, dict(named, prediction=predictions.permute(1, 2, 0).long())
