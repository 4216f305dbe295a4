"""The readout and the halt update in one, without a buffer of logits: kernels, reference, operator, public function.

Three launches: layer norm of the states; the logits of M tokens over a split of the vocabulary, of which only softmax
statistics leave the block (their formulas stand in halt.py); and a small kernel that joins the splits and halts.
"""
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import tile
from kernels.backend import (
    at_least_float32,
    choose_backend,
    operator,
    run_or_fall_back,
    step_size,
    why_not_tensors,
    write_or_return,
)
from kernels.halt import (
    CONFIDENCE,
    ENTROPY,
    NUMBER,
    RULES,
    Tokens,
    halt_update_reference,
    load_for_halting,
    move_and_halt,
    score_without_logits,
    softmax_statistics,
    token_tensors,
)
from kernels.tile import (
    FLOOR,
    LN2,
    LOG2E,
    NAN,
    ZERO,
    Const,
    as_mma_operand,
    constants,
    ct,
    load_1d,
    next_power_of_2,
    store_1d,
)


# kernels -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class HeadSizes:
    """Constants of the head kernel."""
    TF32: bool     # float32 products in tfloat32, otherwise exact and slow
    PACKED: bool   # arg-maxes in the last bits of the logits, see head_step
    M: int         # tokens per block
    WV: int        # columns of the vocabulary per tile
    KT: int        # channels per tile
    NK: int        # tiles of channels
    LATENCY: int   # how far ahead tiles of the head are fetched


@dataclass(frozen=True)
class Splits:
    """Softmax statistics of each of NS splits of the vocabulary."""
    peak: Any      # (NS,N) float32, the largest logit
    total: Any     # (NS,N) float32
    weighted: Any  # (NS,N) float32
    best: Any      # (NS,N) int32, the column of the largest logit


@ct.kernel
def looplm_norm_kernel(
        x,            # (N,C) states
        weight,       # (C)
        bias,         # (C)
        out,          # (N,C) out
        eps,
        R: Const,     # tokens per block
        CW: Const):   # the power of two from C on
    """Layer norm, x -> (x - mean) / sqrt(variance + eps) * weight + bias. Grid (cdiv(N, R),)."""
    i, C = ct.bid(0), x.shape[1]
    row = ct.astype(ct.load(x, (i, 0), (R, CW), padding_mode=ZERO, allow_tma=False), ct.float32)
    inside = ct.arange(CW, dtype=ct.int32).reshape((1, CW)) < C
    row = ct.where(inside, row - ct.sum(row, 1, keepdims=True) / C, 0.0)
    row = row * ct.rsqrt(ct.sum(row * row, 1, keepdims=True) / C + eps)
    gain, shift = load_1d(weight, 0, CW).reshape((1, CW)), load_1d(bias, 0, CW).reshape((1, CW))
    row = row * ct.astype(gain, ct.float32) + ct.astype(shift, ct.float32)
    ct.store(out, (i, 0), ct.astype(row, out.dtype), allow_tma=False)


def logits_tile(tiles, head, j, p):
    """Logits (M,WV) of vocabulary tile j: normed states times head (V,C) transposed."""
    z = ct.zeros((p.M, p.WV), ct.float32)
    for k in ct.static_iter(range(p.NK)):
        w = ct.load(head, (k, j), (p.KT, p.WV), order=(1, 0), padding_mode=ZERO, latency=p.LATENCY)
        z = ct.mma(tiles[k], as_mma_operand(w, p.TF32), z)
    return z


def head_step(z, j, inside, state, MASKED, p):
    """Take logits z (M,WV) of vocabulary tile j into the rows' statistics, (M,1) each: peak, total, weighted, best.

    PACKED stores the column index in the low mantissa bits, so that one max gives value and arg-max. peak is then off
    by up to 2**-16 of itself, as are total and weighted, consistently.
    """
    peak, total, weighted, best = state
    column = ct.arange(p.WV, dtype=ct.int32).reshape((1, p.WV))
    if MASKED:
        z = ct.where(column < inside, z, FLOOR)
    if p.PACKED:
        top = ct.max(ct.bitcast((ct.bitcast(z, ct.int32) & -p.WV) | column, ct.float32), 1, keepdims=True)
        where = ct.bitcast(top, ct.int32) & (p.WV - 1)
    else:
        top = ct.max(z, 1, keepdims=True)
        where = ct.min(ct.where(z == top, column, p.WV), 1, keepdims=True)
    best = ct.where(top > peak, where + j * p.WV, best)
    higher = ct.maximum(peak, top)
    down = (peak - higher) * LOG2E
    shrink = ct.exp2(down, flush_to_zero=True)
    t = z * LOG2E - higher * LOG2E  # one multiply-add per logit
    e = ct.exp2(t, flush_to_zero=True)
    weighted = shrink * (weighted + total * down) + ct.sum(e * t, 1, keepdims=True)
    total = total * shrink + ct.sum(e, 1, keepdims=True)
    return higher, total, weighted, best


@ct.kernel
def looplm_head_kernel(
        states,         # (N,C) normed
        active,         # (N,) bool
        head,           # (V,C)
        splits,         # the four tensors of Splits, out
        share,          # vocabulary tiles per split
        plan: Const):   # HeadSizes
    """Softmax statistics of the logits of M tokens over one split of the vocabulary. Grid (row tiles, NS).

    No logit leaves the block. The states come normed, by a kernel of their own, because tiles that were computed here
    would live in registers, where those that TMA brought stay in shared memory.
    """
    p, out = HeadSizes(*plan), Splits(*splits)
    i, s = ct.bid(0), ct.bid(1)
    act = load_1d(active, i, p.M)
    if ct.max(ct.astype(act, ct.int32)) == 0:
        return
    tiles = ()
    for k in ct.static_iter(range(p.NK)):
        tiles += (as_mma_operand(ct.load(states, (i, k), (p.M, p.KT), padding_mode=ZERO), p.TF32),)
    V = head.shape[0]
    first, full = s * share, V // p.WV
    state = (ct.full((p.M, 1), 2 * FLOOR, ct.float32), ct.zeros((p.M, 1), ct.float32),
             ct.zeros((p.M, 1), ct.float32), ct.zeros((p.M, 1), ct.int32))
    for j in range(first, min(first + share, full)):
        state = head_step(logits_tile(tiles, head, j, p), j, p.WV, state, False, p)
    for j in range(max(first, full), min(first + share, ct.cdiv(V, p.WV))):  # the partial tile, if it is in this split
        state = head_step(logits_tile(tiles, head, j, p), j, V - j * p.WV, state, True, p)
    peak, total, weighted, best = state
    ct.store(out.peak, (s, i), peak.reshape((1, p.M)), allow_tma=False)
    ct.store(out.total, (s, i), total.reshape((1, p.M)), allow_tma=False)
    ct.store(out.weighted, (s, i), weighted.reshape((1, p.M)), allow_tma=False)
    ct.store(out.best, (s, i), best.reshape((1, p.M)), allow_tma=False)


def join_splits(splits, i, R, SPLITS):
    """Confidence, entropy and arg-max, (R,) each, of the R tokens from R*i on, from the statistics of all splits."""
    at = (ct.arange(SPLITS, dtype=ct.int32).reshape((SPLITS, 1)), R * i + ct.arange(R, dtype=ct.int32).reshape((1, R)))
    peak, total = ct.gather(splits.peak, at, padding_value=3 * FLOOR), ct.gather(splits.total, at)
    weighted, best = ct.gather(splits.weighted, at), ct.gather(splits.best, at)
    top = ct.max(peak, 0, keepdims=True)
    chosen = ct.min(ct.where(peak == top, best, 2 ** 30), 0)  # of equal logits the first column, as torch's argmax
    down = (peak - top) * LOG2E
    shrink = ct.exp2(down, flush_to_zero=True)
    weighted, total = ct.sum(shrink * (weighted + total * down), 0), ct.sum(total * shrink, 0)
    return 1.0 / total, LN2 * (ct.log2(total) - weighted / total), chosen


@ct.kernel
def looplm_head_halt_kernel(
        tokens,          # the nine tensors of Tokens
        step,            # delta is divided by it
        loop,            # number of the loop, from 1
        min_loops,
        splits,          # the four tensors of Splits
        confidence,      # (N,) float32 out, NaN for tokens that had halted
        entropy,         # (N,) float32 out, likewise
        prediction,      # (N,) int, overwritten but for tokens that had halted
        RULE: Const,
        R: Const,        # tokens per block
        SPLITS: Const,   # the power of two from NS on
        CW: Const):      # channels per tile of states
    """Join the splits' statistics of R tokens per block, and halt as the halt update does. Grid (cdiv(N, R),)."""
    t = Tokens(*tokens, step, loop, min_loops)
    i = ct.bid(0)
    act = load_1d(t.active, i, R)
    if ct.max(ct.astype(act, ct.int32)) == 0:
        nothing = ct.full((R,), NAN, ct.float32)
        store_1d(t.scores, i, nothing)
        store_1d(confidence, i, nothing)
        store_1d(entropy, i, nothing)
        return
    certain, unsure, chosen = join_splits(Splits(*splits), i, R, SPLITS)
    store_1d(confidence, i, ct.where(act, certain, NAN))
    store_1d(entropy, i, ct.where(act, unsure, NAN))
    store_1d(prediction, i, ct.where(act, ct.astype(chosen, prediction.dtype), load_1d(prediction, i, R)))
    if RULE == CONFIDENCE:
        score = certain
    elif RULE == ENTROPY:
        score = unsure
    else:
        score = score_without_logits(t, i, RULE, R, CW)
    move_and_halt(t, i, score, act, load_for_halting(t, i, R, CW), RULE, R, CW)


# torch reference -----------------------------------------------------------------------------------------------------
def head_halt_reference(rule, h, new, active, loops, loop, threshold, limit, head, weight, bias=None, min_loops=1,
                        eps=1e-5, gate=None, alpha=1.0, prediction=None):
    """head_halt in torch, never in place."""
    x = at_least_float32(new)
    x = F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), None if bias is None else bias.to(x.dtype), eps)
    logits = F.linear(x.to(head.dtype), head)  # (...,V)
    out = halt_update_reference(rule, h, new, active, loops, loop, threshold, limit, min_loops, logits=logits,
                                gate=gate, alpha=alpha)
    _, confidence, entropy = softmax_statistics(logits)
    said = torch.where(active, logits.argmax(-1), 0 if prediction is None else prediction)
    return *out, confidence.masked_fill(~active, torch.nan), entropy.masked_fill(~active, torch.nan), said


# operator ------------------------------------------------------------------------------------------------------------
def head_plan(dtype, tf32, C, device):
    """The sizes of the head kernel, and its worker warps."""
    if dtype == torch.float32:  # tf32, or exact products on the CUDA cores, for tests
        M, WV, KT, packed, latency, warps = (64, 64, 32, False, 2, 4) if tf32 else (16, 32, 32, False, 4, 4)
    elif tile.gpu(device).major not in (9, 10):  # less shared memory a block, no wgmma
        M, WV, KT, packed, latency, warps = 64, 64, 64, True, 6, 4
    else:
        M, WV, KT, packed, latency, warps = 128, 128, 64, True, 6, 8
    return HeadSizes(tf32, packed, M, WV, KT, -(-C // KT), latency), warps


def launch_head(new, active, head, weight, bias, eps):
    """Splits' statistics of the logits head @ layer_norm(new): the four tensors of Splits."""
    (V, C), N, device = head.shape, active.numel(), new.device
    tf32 = head.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    plan, warps = head_plan(head.dtype, tf32, C, device)
    tiles, row_tiles = -(-V // plan.WV), -(-N // plan.M)
    # as many splits as give every SM a block, and no more
    share = -(-tiles // max(1, min(tiles, tile.gpu(device).multi_processor_count // row_tiles)))
    NS = -(-tiles // share)
    peak, total, weighted = torch.empty(3, NS, N, device=device)
    splits = peak, total, weighted, torch.empty(NS, N, dtype=torch.int32, device=device)
    normed = torch.empty(N, -(-C // 16) * 16, dtype=head.dtype, device=device)[:, :C]  # rows that TMA can fetch
    bias = torch.zeros_like(weight) if bias is None else bias
    CW = next_power_of_2(C)
    R = max(1, 2048 // CW)
    tile.launch(looplm_norm_kernel, (-(-N // R),), (new.reshape(N, C), weight, bias, normed, eps, R, CW), device)
    tile.launch(looplm_head_kernel, (row_tiles, NS), (normed, active.view(N), head, splits, share, constants(plan)),
                device, occupancy=1, num_worker_warps=warps)
    return splits


@operator("head_halt", lambda *args: None,
          ("h", "active", "loops", "scores", "confidence", "entropy", "prediction"))
def head_halt_op(rule: str, h: Tensor, new: Tensor, active: Tensor, loops: Tensor, scores: Tensor, threshold: Tensor,
                 limit: Tensor, head: Tensor, weight: Tensor, bias: Tensor | None, confidence: Tensor,
                 entropy: Tensor, prediction: Tensor, gate: Tensor | None, alpha: Tensor | None, step: float,
                 loop: int, min_loops: int, eps: float, forced: bool) -> None:
    """head_halt in place, its outputs too."""
    def kernels():
        N, splits = active.numel(), launch_head(new, active, head, weight, bias, eps)
        R, SPLITS = 16 if len(splits[0]) <= 64 else 4, next_power_of_2(len(splits[0]))
        tile.launch(looplm_head_halt_kernel, (-(-N // R),), (
            token_tensors(rule, h, new, active, loops, scores, threshold, limit, gate, alpha), step, loop, min_loops,
            splits, confidence.view(N), entropy.view(N), prediction.view(N), NUMBER[rule], R, SPLITS, 128),
            h.device, occupancy=2)

    def reference():
        out = head_halt_reference(rule, h, new, active, loops, loop, threshold, limit, head, weight, bias, min_loops,
                                  eps, gate, step if alpha is None else alpha * step, prediction)
        write_or_return((h, active, loops, scores, confidence, entropy, prediction), out)

    if active.numel():
        run_or_fall_back("head_halt", forced, h.device, kernels, reference)


# public function -----------------------------------------------------------------------------------------------------
def head_halt(rule, h, new, active, loops, loop, threshold, limit, head, weight, bias=None, min_loops=1,
              backend="auto", inplace=False, eps=1e-5, gate=None, alpha=1.0, prediction=None):
    """The readout head @ layer_norm(new) and the halt update that follows it, without a buffer of logits.

    As halt_update, but for rule kl, which needs the readout before as well; and besides
    head          (V,C) whose dtype the products have; float32 ones are exact unless torch's float32 matrix products
                  are set to less ("high")
    weight, bias  (C) of the layer norm, bias or None; eps its epsilon
    prediction    (...) int64, what tokens that had halted said, 0 if None; in place if h is

    Returns h, active, loops, score, and for the trace confidence, entropy (...) float32, NaN for tokens that had
    halted, and prediction (...) int64, the arg-max. ValueError for rule kl or one that is none.
    """
    if rule not in RULES or rule == "kl":
        raise ValueError(f"halting rule {rule!r} is none of {', '.join(r for r in RULES if r != 'kl')}")
    if choose_backend(backend, h.device, why_not_tensors(h, new, head, weight, bias, gate, alpha)) == "torch":
        out = head_halt_reference(rule, h, new, active, loops, loop, threshold, limit, head, weight, bias, min_loops,
                                  eps, gate, alpha, prediction)
        return write_or_return((h, active, loops, None, None, None, prediction), out, inplace)
    prediction = torch.zeros_like(loops) if prediction is None else prediction
    if not inplace:
        h, active, loops, prediction = (x.clone(memory_format=torch.contiguous_format)
                                        for x in (h, active, loops, prediction))
    scores, confidence, entropy = (torch.empty(active.shape, device=h.device) for _ in range(3))
    alpha, step = step_size(alpha if rule == "delta" else 1.0, h, active)
    head_halt_op(rule, h, new, active, loops, scores, threshold, limit, head, weight, bias, confidence, entropy,
                 prediction, gate, alpha, step, loop, min_loops, eps, backend == "cutile")
    return h, active, loops, scores, confidence, entropy, prediction
