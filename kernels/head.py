"""Readout and halt update in one, without a buffer of logits: kernels, reference, operator, public function."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import tile
from kernels.backend import choose_backend, operator, run, settle, step_size, unsupported, wide
from kernels.halt import (
    CONFIDENCE,
    ENTROPY,
    HALTS_ABOVE,
    RULES,
    halt_update_reference,
    plain_score,
    softmax_statistics,
    token_arguments,
    tokens_halt,
    tokens_need,
)
from kernels.tile import FLOOR, LN2, LOG2E, NAN, ZERO, Flag, Int, ct, operand, power, put, take


@ct.kernel
def looplm_norm_kernel(x, weight, bias, out, eps, R: Int, CW: Int):
    """Layer norm of R tokens a block: x, out (N,C), weight, bias (C); CW the power of two from C on."""
    i, C = ct.bid(0), x.shape[1]
    row = ct.astype(ct.load(x, (i, 0), (R, CW), padding_mode=ZERO, allow_tma=False), ct.float32)
    inside = ct.arange(CW, dtype=ct.int32).reshape((1, CW)) < C
    row = ct.where(inside, row - ct.sum(row, 1, keepdims=True) / C, 0.0)
    row = row * ct.rsqrt(ct.sum(row * row, 1, keepdims=True) / C + eps)
    gain, shift = take(weight, 0, CW).reshape((1, CW)), take(bias, 0, CW).reshape((1, CW))
    row = row * ct.astype(gain, ct.float32) + ct.astype(shift, ct.float32)
    ct.store(out, (i, 0), ct.astype(row, out.dtype), allow_tma=False)


def logits_tile(tiles, head, j, TF32, M, WV, KT, NK, LATENCY):
    """Logits (M,WV) of vocabulary tile j: normed states times head (V,C) transposed."""
    z = ct.zeros((M, WV), ct.float32)
    for k in ct.static_iter(range(NK)):
        w = ct.load(head, (k, j), (KT, WV), order=(1, 0), padding_mode=ZERO, latency=LATENCY)
        z = ct.mma(tiles[k], operand(w, TF32), z)
    return z


def head_step(z, j, inside, peak, total, mixed, best, PACKED, MASKED, WV):
    """Takes logits z (M,WV) of vocabulary tile j into the rows' statistics (M,1).

    peak: the largest logit; total: sum exp2(t), t = (z - peak) * log2(e); mixed: sum exp2(t) * t; best: its column.
    PACKED: the column stands in the last bits of the number that the maximum is taken of, which spares the search for
    it; peak is then off by up to 2**-16 of itself, as are total and mixed, consistently.
    """
    column = ct.arange(WV, dtype=ct.int32).reshape((1, WV))
    if MASKED:
        z = ct.where(column < inside, z, FLOOR)
    if PACKED:
        top = ct.max(ct.bitcast((ct.bitcast(z, ct.int32) & -WV) | column, ct.float32), 1, keepdims=True)
        where = ct.bitcast(top, ct.int32) & (WV - 1)
    else:
        top = ct.max(z, 1, keepdims=True)
        where = ct.min(ct.where(z == top, column, WV), 1, keepdims=True)
    best = ct.where(top > peak, where + j * WV, best)
    higher = ct.maximum(peak, top)
    down = (peak - higher) * LOG2E
    shrink = ct.exp2(down, flush_to_zero=True)
    t = z * LOG2E - higher * LOG2E
    e = ct.exp2(t, flush_to_zero=True)
    mixed = shrink * (mixed + total * down) + ct.sum(e * t, 1, keepdims=True)
    total = total * shrink + ct.sum(e, 1, keepdims=True)
    return higher, total, mixed, best


@ct.kernel
def looplm_head_kernel(states, active, head, peaks, totals, mixes, bests, share, TF32: Flag, PACKED: Flag,
                       M: Int, WV: Int, KT: Int, NK: Int, LATENCY: Int):
    """Softmax statistics of the logits of M tokens over one split of the vocabulary; no logit leaves the block.

    states (N,C), normed; active (N,) bool; head (V,C); peaks, totals, mixes (NS,N) float32 and bests (NS,N) int32 out;
    share: vocabulary tiles a split. Grid (row tiles, NS). The states come normed, by a kernel of their own, because
    tiles that were computed here would live in registers, where those that TMA brought stay in shared memory.
    """
    i, s = ct.bid(0), ct.bid(1)
    act = take(active, i, M)
    if ct.max(ct.astype(act, ct.int32)) == 0:
        return
    tiles = ()
    for k in ct.static_iter(range(NK)):
        tiles += (operand(ct.load(states, (i, k), (M, KT), padding_mode=ZERO), TF32),)
    V = head.shape[0]
    first, full = s * share, V // WV
    peak, total = ct.full((M, 1), 2 * FLOOR, ct.float32), ct.zeros((M, 1), ct.float32)
    mixed, best = ct.zeros((M, 1), ct.float32), ct.zeros((M, 1), ct.int32)
    for j in range(first, min(first + share, full)):
        z = logits_tile(tiles, head, j, TF32, M, WV, KT, NK, LATENCY)
        peak, total, mixed, best = head_step(z, j, WV, peak, total, mixed, best, PACKED, False, WV)
    for j in range(max(first, full), min(first + share, ct.cdiv(V, WV))):  # the partial tile, if it is in this split
        z = logits_tile(tiles, head, j, TF32, M, WV, KT, NK, LATENCY)
        peak, total, mixed, best = head_step(z, j, V - j * WV, peak, total, mixed, best, PACKED, True, WV)
    ct.store(peaks, (s, i), peak.reshape((1, M)), allow_tma=False)
    ct.store(totals, (s, i), total.reshape((1, M)), allow_tma=False)
    ct.store(mixes, (s, i), mixed.reshape((1, M)), allow_tma=False)
    ct.store(bests, (s, i), best.reshape((1, M)), allow_tma=False)


@ct.kernel
def looplm_head_halt_kernel(h, new, active, loops, scores, threshold, limit, gate, alpha, step, loop, min_loops,
                            peaks, totals, mixes, bests, confidence, entropy, prediction, RULE: Int,
                            ABOVE: Flag, R: Int, SPLITS: Int, CW: Int):
    """Joins the splits' statistics of R tokens a block and halts as looplm_halt_update_kernel does.

    confidence, entropy (N,) float32 out, NaN for halted tokens; prediction (N,) int, which halted tokens keep.
    SPLITS: the power of two from NS on.
    """
    i = ct.bid(0)
    act = take(active, i, R)
    if ct.max(ct.astype(act, ct.int32)) == 0:
        nothing = ct.full((R,), NAN, ct.float32)
        put(scores, i, nothing)
        put(confidence, i, nothing)
        put(entropy, i, nothing)
        return
    at = (ct.arange(SPLITS, dtype=ct.int32).reshape((SPLITS, 1)), R * i + ct.arange(R, dtype=ct.int32).reshape((1, R)))
    peak, total = ct.gather(peaks, at, padding_value=3 * FLOOR), ct.gather(totals, at)
    mixed, best = ct.gather(mixes, at), ct.gather(bests, at)
    top = ct.max(peak, 0, keepdims=True)
    chosen = ct.min(ct.where(peak == top, best, 2 ** 30), 0)
    down = (peak - top) * LOG2E
    shrink = ct.exp2(down, flush_to_zero=True)
    mixed, total = ct.sum(shrink * (mixed + total * down), 0), ct.sum(total * shrink, 0)
    certain, unsure = 1.0 / total, LN2 * (ct.log2(total) - mixed / total)
    put(confidence, i, ct.where(act, certain, NAN))
    put(entropy, i, ct.where(act, unsure, NAN))
    put(prediction, i, ct.where(act, ct.astype(chosen, prediction.dtype), take(prediction, i, R)))
    if RULE == CONFIDENCE:
        score = certain
    elif RULE == ENTROPY:
        score = unsure
    else:
        score = plain_score(RULE, i, h, new, gate, alpha, step, R, CW)
    tokens_halt(i, score, act, tokens_need(i, h, new, loops, threshold, limit, R, CW), h, new, active, loops, scores,
                loop, min_loops, ABOVE, R, CW)


def head_halt_reference(rule, h, new, active, loops, loop, threshold, limit, head, weight, bias=None, min_loops=1,
                        eps=1e-5, gate=None, alpha=1.0, prediction=None):
    x = wide(new)
    x = F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), None if bias is None else bias.to(x.dtype), eps)
    logits = F.linear(x.to(head.dtype), head)  # (...,V)
    out = halt_update_reference(rule, h, new, active, loops, loop, threshold, limit, min_loops, logits=logits,
                                gate=gate, alpha=alpha)
    _, confidence, entropy = softmax_statistics(logits)
    said = torch.where(active, logits.argmax(-1), 0 if prediction is None else prediction)
    return *out, confidence.masked_fill(~active, torch.nan), entropy.masked_fill(~active, torch.nan), said


def head_plan(dtype, tf32, device):
    """Tile sizes of the head, M, WV and KT, whether arg-maxes are packed, the latency of loads, and worker warps."""
    if dtype == torch.float32:  # tf32, or exact products on the CUDA cores, for tests
        return (64, 64, 32, False, 2, 4) if tf32 else (16, 32, 32, False, 4, 4)
    if tile.gpu(device).major not in (9, 10):  # less shared memory a block, no wgmma
        return 64, 64, 64, True, 6, 4
    return 128, 128, 64, True, 6, 8


def launch_head(new, active, head, weight, bias, eps):
    """Splits' statistics of the logits head @ layer_norm(new): peaks, totals, mixes (NS,N) and bests (NS,N)."""
    (V, C), N, device = head.shape, active.numel(), new.device
    tf32 = head.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    M, WV, KT, packed, latency, warps = head_plan(head.dtype, tf32, device)
    tiles, row_tiles = -(-V // WV), -(-N // M)
    share = -(-tiles // max(1, min(tiles, tile.gpu(device).multi_processor_count // row_tiles)))  # a block an SM
    NS = -(-tiles // share)
    peaks, totals, mixes = torch.empty(3, NS, N, device=device)
    bests = torch.empty(NS, N, dtype=torch.int32, device=device)
    normed = torch.empty(N, -(-C // 16) * 16, dtype=head.dtype, device=device)[:, :C]  # rows that TMA can fetch
    bias = torch.zeros_like(weight) if bias is None else bias
    R = max(1, 2048 // power(C))
    tile.launch(looplm_norm_kernel, (-(-N // R),), (new.reshape(N, C), weight, bias, normed, eps, R, power(C)), device)
    tile.launch(looplm_head_kernel, (row_tiles, NS), (
        normed, active.view(N), head, peaks, totals, mixes, bests, share, tf32, packed, M, WV, KT, -(-C // KT),
        latency), device, occupancy=1, num_worker_warps=warps)
    return peaks, totals, mixes, bests


@operator("head_halt", lambda *args: None,
          ("h", "active", "loops", "scores", "confidence", "entropy", "prediction"))
def head_halt_op(rule: str, h: Tensor, new: Tensor, active: Tensor, loops: Tensor, scores: Tensor, threshold: Tensor,
                 limit: Tensor, head: Tensor, weight: Tensor, bias: Tensor | None, confidence: Tensor,
                 entropy: Tensor, prediction: Tensor, gate: Tensor | None, alpha: Tensor | None, step: float,
                 loop: int, min_loops: int, eps: float, forced: bool) -> None:
    """head_halt in place, its outputs too."""
    def kernels():
        N, statistics = active.numel(), launch_head(new, active, head, weight, bias, eps)
        R, splits = 16 if len(statistics[0]) <= 64 else 4, power(len(statistics[0]))
        tile.launch(looplm_head_halt_kernel, (-(-N // R),), (
            *token_arguments(rule, h, new, active, loops, scores, threshold, limit, gate, alpha, step, loop, min_loops),
            *statistics, confidence.view(N), entropy.view(N), prediction.view(N), RULES.index(rule),
            rule in HALTS_ABOVE, R, splits, 128), h.device, occupancy=2)

    def reference():
        out = head_halt_reference(rule, h, new, active, loops, loop, threshold, limit, head, weight, bias, min_loops,
                                  eps, gate, step if alpha is None else alpha * step, prediction)
        settle((h, active, loops, scores, confidence, entropy, prediction), out)

    if active.numel():
        run("head_halt", forced, h.device, kernels, reference)


def head_halt(rule, h, new, active, loops, loop, threshold, limit, head, weight, bias=None, min_loops=1,
              backend="auto", inplace=False, eps=1e-5, gate=None, alpha=1.0, prediction=None):
    """The readout head @ layer_norm(new) and the halt update that follows it, without a buffer of logits.

    As halt_update, but for rule kl, which needs the readout before as well; and besides
    head          (V,C) whose dtype the products have; float32 ones are exact unless torch's float32 matrix products
                  are set to less ("high")
    weight, bias  (C) of the layer norm, bias or None; eps its epsilon
    prediction    (...) int64, what tokens that had halted said, 0 if None; in place if h is

    Returns h, active, loops, score, and for the trace confidence, entropy (...) float32, NaN for tokens that had
    halted, and prediction (...) int64, the arg-max.
    """
    if rule not in RULES or rule == "kl":
        raise ValueError(f"halting rule {rule!r} is none of {', '.join(r for r in RULES if r != 'kl')}")
    if choose_backend(backend, h.device, unsupported(h, new, head, weight, bias, gate, alpha)) == "torch":
        out = head_halt_reference(rule, h, new, active, loops, loop, threshold, limit, head, weight, bias, min_loops,
                                  eps, gate, alpha, prediction)
        return settle((h, active, loops, None, None, None, prediction), out, inplace)
    prediction = torch.zeros_like(loops) if prediction is None else prediction
    if not inplace:
        h, active, loops, prediction = (x.clone(memory_format=torch.contiguous_format)
                                        for x in (h, active, loops, prediction))
    scores, confidence, entropy = (torch.empty(active.shape, device=h.device) for _ in range(3))
    alpha, step = step_size(alpha if rule == "delta" else 1.0, h, active)
    head_halt_op(rule, h, new, active, loops, scores, threshold, limit, head, weight, bias, confidence, entropy,
                 prediction, gate, alpha, step, loop, min_loops, eps, backend == "cutile")
    return h, active, loops, scores, confidence, entropy, prediction
