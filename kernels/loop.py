"""All loops of a sequence in one launch: kernel, its sizes and weights, operator; the reference is LoopGPT.think.

Tokens halt and the loop ends on the device: nothing crosses to the host. A sequence of up to 64 tokens lives in one
block for all of its loops, its state in registers. Longer ones have a block for each 64 tokens, which exchange keys
and values once per loop, behind a barrier.
"""
import functools
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import tile
from kernels.backend import operator, product_dtype, run_or_fall_back, why_not_tensors
from kernels.block import (
    INJECTS,
    NORM_ROW,
    At,
    LoopSizes,
    Trace,
    Weights,
    accumulate,
    add_step_encoding,
    attend_rows,
    euler_step,
    inject,
    keep_halted,
    layer_norm,
    linear,
    load_block_states,
    load_tokens,
    publish_qkv,
    scale_channels,
    score_and_trace,
    self_attention,
)
from kernels.halt import KL, NUMBER, RULES, halts_on_tiles
from kernels.tile import NAN, Const, cast, constants, ct, gelu, next_power_of_2

LOOP_VOCABULARY = 128  # above it the readout of every loop is the head kernel's work


# kernel --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LoopTokens:
    """What the loop kernel reads and writes of the tokens, (B,T) each."""
    active: Any     # int32, 0 for pads
    threshold: Any  # float32
    limit: Any      # int32
    last: Any       # int32: what the readout of x0 says
    loops: Any      # int32 out: loops taken


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


def visible(p):
    """Which rows of a block a row may attend to, (1,M,M): those not after it in its own sequence."""
    row = ct.arange(p.S * p.TP, dtype=ct.int32)
    allowed = (row[:, None] >= row[None, :]) & ((row // p.TP)[:, None] == (row // p.TP)[None, :])
    return ct.reshape(allowed, (1, p.S * p.TP, p.S * p.TP))


def one_loop(h, x0, injected, l, L, at, allowed, going, exchange, w, p):
    """Loop l + 1 of the states h: the new states, and what the barrier counted (0 with a block per sequence).

    exchange: qkv and sync, by which the blocks of a sequence see each other; going: has this block active tokens.
    """
    qkv, sync = exchange
    u = inject(h, x0, injected, l, at, w, p)
    if p.STEPS:
        u = add_step_encoding(u, w.steps, l)
    a = cast(layer_norm(u, p.C), w.wqkv.dtype)
    y = u
    count = 0
    if p.R == 1:
        y = self_attention(y, a, allowed, w, p)
    else:
        publish_qkv(a, qkv, l, at, w, p)
        count = arrive_and_wait(sync, at.b * L + l, 1 + 65536 * going, p.R)
        for n in range(0, w.groups):
            y = accumulate(y, attend_rows(qkv, l % 2, at, n, allowed, p), w.wproj, n)
    a = cast(layer_norm(y, p.C), w.wqkv.dtype)
    for j in range(0, w.slices):  # sized so that shared memory holds several tiles of weights ahead
        y = accumulate(y, gelu(linear(a, w.wfc, j, p.FT), p.EXACT).astype(w.wqkv.dtype), w.wout, j)
    if p.EULER:
        y = euler_step(h, y, u, w.alpha)
    if p.NORM:
        y = scale_channels(layer_norm(y, p.C), w.vectors, NORM_ROW)
    return y, count


@ct.kernel
def looplm_loop_kernel(
        x0,             # (B,T,C) embedded input
        injected,       # (B,T,C) what x0 contributes from loop 2 on, where that is not x0 itself
        h_out,          # (B,T,C) out: the final states
        weights,        # the eleven tensors of Weights
        tokens,         # the five tensors of LoopTokens
        trace,          # the three tensors of Trace
        qkv,            # (5,B,T,C) if R > 1: see publish_qkv
        sync,           # (B*L+1,) int32 zeros if R > 1: a counter for each barrier, and the tickets
        L,              # loops
        groups,         # C / GW; this and the next are no constants on purpose: loops of a known trip count are
        slices,         # 4C / FT; unrolled, and warp specialisation is lost
        V,              # vocabulary
        min_loops,
        alpha,          # step size of Euler
        gate_b,         # bias of the halt head's readout
        plan: Const):   # LoopSizes
    """All L loops of S sequences of up to TP tokens (R = 1), or of TP tokens of one sequence that R blocks share.

    Grid (cdiv(B, S) * R,). All R blocks of a sequence must be resident at once; tickets see to it that those who wait
    for each other have started.
    """
    p, w = LoopSizes(*plan), Weights(*weights, V, alpha, gate_b, groups, slices)
    t, record = LoopTokens(*tokens), Trace(*trace)
    bid = ct.bid(0)
    if p.R > 1:  # whatever the order in which blocks start
        bid = ct.atomic_add(sync, x0.shape[0] * L, 1)
    at = At(bid // p.R, bid % p.R)
    h, allowed = load_block_states(x0, at, p), visible(p)
    active, last = load_tokens(t.active, at, p) != 0, load_tokens(t.last, at, p)
    threshold, limit = load_tokens(t.threshold, at, p), load_tokens(t.limit, at, p)
    loops = ct.zeros((p.S * p.TP, 1), ct.int32)
    done, going = 0, ct.max(active.astype(ct.int32))
    # All blocks of a sequence must leave in the same loop. They share only who was active when a loop began, so they
    # leave one loop late, by skipping the body. Do not `break` there: launches then hung (docs/kernels.md). With one
    # block per sequence the test is a constant, and a break is fine.
    alive = 1
    for l in range(0, L):
        if p.R == 1 or not p.ADAPT or alive > 0:
            y, count = one_loop(h, x0, injected, l, L, at, allowed, going, (qkv, sync), w, p)
            if p.ADAPT:
                score, last = score_and_trace(h, y, active, last, l, at, w, record, p)
                h, loops, done = keep_halted(active, y, h), ct.where(active, l + 1, loops), l + 1
                active = active & ~halts_on_tiles(score, threshold, limit, l + 1, min_loops, p.RULE)
                going = ct.max(active.astype(ct.int32))
                if p.R > 1:
                    alive = count // 65536
                elif going == 0:
                    break
            else:
                h = y
    for i in ct.static_iter(range(len(h))):
        ct.store(h_out, (at.b, at.r, i), ct.reshape(h[i].astype(h_out.dtype), (p.S, p.TP, p.W)))
    if p.ADAPT:
        ct.store(t.loops, (at.b, at.r), ct.reshape(loops, (p.S, p.TP)), allow_tma=False)
    if p.TRACE:
        for l in range(done, L):  # loops that no token took
            ct.store(record.predictions, (l, at.b, at.r), ct.reshape(last, (1, p.S, p.TP)), allow_tma=False)


# what a model tells the kernels --------------------------------------------------------------------------------------
class LoopTensors(NamedTuple):
    """The weights of a looped model's block and readout as they are; None for what a model does not have."""
    ln_1: Tensor              # (C)
    qkv: Tensor               # (3C,C)
    proj: Tensor              # (C,C)
    ln_2: Tensor              # (C)
    fc: Tensor                # (4C,C)
    out: Tensor               # (C,4C)
    ln_f: Tensor              # (C)
    head: Tensor              # (V,C)
    steps: Tensor | None      # (L,C) step encodings
    alpha: Tensor | float     # step size
    loop_norm: Tensor | None  # (C)
    decay: Tensor | None      # (C), of the injection 'decay': a of a h + b x0
    mix: Tensor | None        # (C,2C), of the injection 'concat'
    gate: tuple | None        # weight (C,2C), bias (C), weight (1,C) and bias (1) of the halt head
    gate_steps: Tensor | None  # (L,C) what tells it the loop


class LoopSpec(NamedTuple):
    """A looped model as the kernels see it; LoopGPT.loop_spec makes it."""
    owner: object             # whose it is: packed weights and graphs are kept for it, and dropped with it
    config: object            # the settings of LoopConfig
    step_limit: float         # loops that have a step encoding, infinite if there is no end
    training: bool
    head: Tensor              # (V,C), for its dtype and device
    parameters: Callable      # () -> all weights
    tensors: Callable         # (L) -> LoopTensors
    injected: Callable        # (x0, dtype) -> (B,T,C) what x0 contributes from loop 2 on, None if it is x0 itself
    in_torch: Callable        # (x0, HaltingPlan) -> h, loops (None at a fixed depth): all L loops in torch


def beyond_kernels(spec, T, L):
    """{what no kernel of whole loops does: whether a model, T tokens and L loops ask for it}."""
    c, hs = spec.config, spec.config.n_embd // spec.config.n_head
    return {"n_layer above 1": c.n_layer > 1, "blocks of their own": not c.tie_loops, "biases": c.bias,
            f"block {c.block!r}": c.block != "nanogpt", "heads that share keys": c.kv_heads < c.n_head,
            "keys of x0": c.keys != "state", f"start {c.start!r}": c.start != "x0",
            "training": spec.training, "rope": "rope" in (c.pos, c.step_encoding),
            f"heads of {hs} channels": hs & (hs - 1) or not 16 <= hs <= 128,
            f"n_embd {c.n_embd}": c.n_embd not in (64, 128, 256, 384), "more than 256 tokens": T > 256,
            f"update {c.update!r}": c.update not in ("replace", "euler"), "Anderson acceleration": c.anderson > 0,
            "alpha 'gate'": c.alpha == "gate", "loops beyond the learned step encoding": L > spec.step_limit}


def why_not_loop_kernel(spec, x0, L, rule, trace):
    """What the loop kernel does not do of a model, its input x0 (B,T,C) and L loops, "" if it does all."""
    c, T = spec.config, x0.size(1)
    asks = beyond_kernels(spec, T, L) | {
        "more tokens than log_scale": 0 < c.log_scale < T, "float16": torch.float16 in (x0.dtype, spec.head.dtype),
        "gradients": torch.is_grad_enabled() and any(p.requires_grad for p in spec.parameters()),
        f"halting by the logits of {c.vocab_size} tokens": (
            (trace or RULES[rule].needs_logits) and c.vocab_size > LOOP_VOCABULARY)}
    what = next((what for what, asked in asks.items() if asked), "")
    return f"the loop kernel does not do {what}" if what else why_not_tensors(x0)


def loop_sizes(c, T, rule, adapt, trace, dtype):
    """The constants of the kernel for the settings of a model, T tokens, and the dtype of its weights."""
    TP, C, hs, exact = min(64, max(16, next_power_of_2(T))), c.n_embd, c.n_embd // c.n_head, dtype == torch.float32
    return LoopSizes(
        R=-(-T // TP), S=64 // TP, TP=TP, W=min(C, 128), C=C, HS=hs, GW=max(64, hs),
        FT=64 if C > 128 or exact else 128,
        VT=max(16, next_power_of_2(c.vocab_size)) if trace or RULES[rule].needs_logits else 16,
        RULE=NUMBER[rule], INJECT=INJECTS.index(c.inject), STEPS=c.step_encoding in ("learned", "sinusoid"),
        EULER=c.update == "euler", NORM=c.loop_norm, ADAPT=adapt, TRACE=trace, EXACT=exact)


class Packed(NamedTuple):
    """What is kept of a model's weights."""
    key: tuple       # by which a change is seen
    tensors: list    # those of Weights
    numbers: tuple   # alpha, and the bias of the halt head's readout
    graphs: dict     # the CUDA graphs that read these tensors
    sizes: dict      # the LoopSizes of the calls so far


packed_weights = weakref.WeakKeyDictionary()  # owner -> Packed


def forget_weights(owner):
    """Drop what is kept of a model's weights, which may have changed unseen (a CUDA graph changes them so)."""
    packed_weights.pop(owner, None)


@torch.no_grad()
def pack_weights(spec, L, dtype):
    """Packed: what the kernel reads of a model, kept until a weight or the rule is seen to change, or forgotten."""
    c = spec.config
    key = (L, dtype, c.halt, c.alpha, c.update,
           *((p.data_ptr(), 0 if p.is_inference() else p._version) for p in spec.parameters()))
    if spec.owner in packed_weights and packed_weights[spec.owner].key == key:
        return packed_weights[spec.owner]
    t, C = spec.tensors(L), c.n_embd
    one = torch.ones(C, device=spec.head.device)  # in the place of what is not read
    steps = 0 * one[None] if t.steps is None else t.steps.float()
    head = t.head if c.vocab_size <= LOOP_VOCABULARY else one[None]
    mix = torch.cat((one, one))[None] if t.mix is None else t.mix
    vectors = [one if x is None else x.float() for x in (t.loop_norm, t.decay)]
    # a layer norm's weights go into the product that follows it: the kernel would load them in every loop
    wqkv, wfc, head = ((w.float() * norm.float()).to(dtype)
                       for w, norm in ((t.qkv, t.ln_1), (t.fc, t.ln_2), (head, t.ln_f)))
    if t.gate is None:
        gate, gate_b = (one[None].to(dtype), one[None].clone(), one[None].clone()), 0.0
    else:
        read, bias, out, out_bias = t.gate
        told = 0 * one[None] if t.gate_steps is None else t.gate_steps.float()
        gate_s = told.expand(L, C) @ read[:, C:].float().T + bias.float()
        gate, gate_b = (read[:, :C].to(dtype), gate_s, out.float()), out_bias.item()
    made = (wqkv, t.proj.to(dtype), wfc, t.out.to(dtype), torch.stack(vectors), steps, mix[:, :C].to(dtype), head,
            *gate)
    alpha = t.alpha.item() if isinstance(t.alpha, Tensor) else float(t.alpha)
    packed_weights[spec.owner] = Packed(key, [x.detach().contiguous() for x in made], (alpha, gate_b), {}, {})
    return packed_weights[spec.owner]


# operator ------------------------------------------------------------------------------------------------------------
def sizes_from(numbers):
    """LoopSizes from its values as plain integers, which is how they pass through an operator."""
    return LoopSizes(*(field.type(x) for field, x in zip(fields(LoopSizes), numbers, strict=True)))


known_sizes = functools.cache(sizes_from)  # of a tuple: a launch costs the host enough


def loop_outputs(x0, L, trace):
    """h (B,T,C), loops (B,T) int32, stats (L,4,B,T) float32 and predictions (L,B,T) int32, to be filled."""
    B, T, _ = x0.shape
    whole = (L, B, T) if trace else (1, 1, 1)
    return (torch.empty_like(x0), x0.new_zeros(B, T, dtype=torch.int32),
            x0.new_full((whole[0], 4, *whole[1:]), NAN, dtype=torch.float32), x0.new_zeros(whole, dtype=torch.int32))


def launch_loop(x0, injected, weights, active, threshold, limit, last, sizes, numbers, L, min_loops, V):
    """loop_op by the kernel."""
    p, (B, T, C), dtype = known_sizes(tuple(sizes)), x0.shape, weights[0].dtype
    h, loops, stats, predictions = loop_outputs(x0, L, p.TRACE)
    previous = x0.new_empty((B, T, p.VT) if p.RULE == KL else (1, 1, 16), dtype=torch.float32)
    qkv = x0.new_empty((5, B, T, C) if p.R > 1 else (1, 1, 1, 16), dtype=dtype)
    sync = x0.new_zeros(B * L + 1 if p.R > 1 else 1, dtype=torch.int32)
    # one warp group: norms and softmaxes need no exchange. Wider states spill then, as do products without wgmma
    narrow = C <= 128 and p.R == 1 and not p.EXACT and tile.gpu(x0.device).major == 9
    tokens = active.int(), threshold, limit.int(), last, loops
    tile.launch(looplm_loop_kernel, (-(-B // p.S) * p.R,), (
        x0, injected, h, tuple(weights), tokens, (stats, predictions, previous), qkv, sync, L, C // p.GW,
        4 * C // p.FT, V, min_loops, *numbers, constants(p)), x0.device, num_worker_warps=4 if narrow else 8)
    return h, loops, stats, predictions


def loop_fake(x0, injected, weights, active, threshold, limit, last, sizes, numbers, L, min_loops, V):
    return loop_outputs(x0, L, sizes_from(sizes).TRACE)


@operator("adaptive_loop", loop_fake)
def loop_op(x0: Tensor, injected: Tensor, weights: list[Tensor], active: Tensor, threshold: Tensor, limit: Tensor,
            last: Tensor, sizes: list[int], numbers: list[float], L: int, min_loops: int,
            V: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All loops in one launch: the tensors of loop_outputs.

    weights, numbers: of Packed; sizes: the values of LoopSizes; the tokens' tensors (B,T) as LoopTokens has them.
    """
    return launch_loop(x0, injected, weights, active, threshold, limit, last, sizes, numbers, L, min_loops, V)


# one call ------------------------------------------------------------------------------------------------------------
compiled_variants = set()  # variants of the loop kernel that were launched


def announce(sizes, dtypes, T, rule):
    """Say once that a variant of the loop kernel takes a while."""
    if (sizes, dtypes) not in compiled_variants:
        print(f"kernels: the loop kernel for n_embd {sizes.C}, {T} tokens, rule {rule}, {dtypes[0]} compiles, or comes "
              "from the disk; some seconds, in float32 up to a minute ...", file=sys.stderr)
        compiled_variants.add((sizes, dtypes))


def loop_name(x0):
    """Under which the loop kernel's launch fails, if it does."""
    return f"loop of n_embd {x0.size(2)}"


def kernel_path(spec, x0, plan, last=None, trace=False, forced=False):
    """adaptive_loop by looplm_loop_kernel, None if its launch fails and it is not forced."""
    c, (B, T, _), x0, dtype = spec.config, x0.shape, x0.contiguous(), product_dtype(spec.head)
    adapt = trace or plan.rule != "none" or not plan.fixed
    packed, call = pack_weights(spec, plan.L, dtype), (T, plan.rule, adapt, trace)
    if call not in packed.sizes:  # made once: a call costs the host more than all loops cost the GPU
        packed.sizes[call] = loop_sizes(c, *call, dtype)
    sizes = packed.sizes[call]
    if x0.is_cuda:
        announce(sizes, (dtype, x0.dtype), T, plan.rule)
    injected = spec.injected(x0, dtype)
    injected = x0.new_empty(1, 1, 16) if injected is None else injected.to(x0.dtype).contiguous()
    last = plan.active.new_zeros(B, T, dtype=torch.int32) if last is None else last.int()
    limit = plan.active.new_full((B, T), plan.limit, dtype=torch.int32) if plan.fixed else plan.limit
    out = run_or_fall_back(loop_name(x0), forced, x0.device, lambda: loop_op(
        x0, injected, packed.tensors, plan.active, plan.threshold, limit, last, [int(k) for k in constants(sizes)],
        list(packed.numbers), plan.L, c.min_loops, c.vocab_size), lambda: None)
    if out is None:
        return None
    h, loops, stats, predictions = out  # loops and predictions as int32, stats with the loop first
    loops = loops.long() if adapt else torch.full_like(limit, plan.L).long()
    if not trace:
        return h, loops, None
    named = dict(zip(("entropy", "confidence", "delta", "score"), stats.permute(1, 2, 3, 0), strict=True))
    return h, loops, dict(named, prediction=predictions.permute(1, 2, 0).long())
