"""The halting rules, and the halt update after every loop: kernel, torch reference, operator, public function."""

import torch
from torch import Tensor

from kernels import tile
from kernels.backend import blanks, choose_backend, operator, run, settle, step_size, unsupported, wide
from kernels.tile import FLOOR, INF, LN2, LOG2E, NAN, Flag, Int, ct, finite, power, put, state_tile, take

RULES = ("none", "confidence", "entropy", "delta", "kl", "gate")
NEEDS_LOGITS = ("confidence", "entropy", "kl")
HALTS_ABOVE = ("confidence", "gate")  # these halt at score >= threshold, the others at score <= threshold
NONE, CONFIDENCE, ENTROPY, DELTA, KL, GATE = range(len(RULES))  # the rules as the kernels know them


def tokens_need(i, h, new, loops, threshold, limit, R, CW):
    """What tokens_halt reads of the R tokens from R * i on, all asked for at once."""
    return (take(threshold, i, R), take(limit, i, R), take(loops, i, R), state_tile(new, i, 0, R, CW),
            state_tile(h, i, 0, R, CW))


def tokens_halt(i, score, act, need, h, new, active, loops, scores, loop, min_loops, ABOVE, R, CW):
    """What follows the scoring of the R tokens from R * i on: score, act (R,) tiles; need: what tokens_need returned;
    the rest as halt_update has it."""
    bound, last, before, moved, still = need
    if ABOVE:
        passes = score >= bound  # a NaN passes nothing
    else:
        passes = score <= bound
    halted = (passes & (loop >= min_loops)) | (last <= loop)
    put(scores, i, ct.where(act, score, NAN))
    put(active, i, act & ~halted)
    put(loops, i, ct.where(act, ct.full((R,), loop, loops.dtype), before))
    if R > 1:  # a block of one token is here only if that one is active
        moved = ct.where(act.reshape((R, 1)), moved, still)
    ct.store(h, (i, 0), moved, allow_tma=False)
    for c in range(1, ct.num_tiles(h, 1, (R, CW))):
        moved = state_tile(new, i, c, R, CW)
        if R > 1:
            moved = ct.where(act.reshape((R, 1)), moved, state_tile(h, i, c, R, CW))
        ct.store(h, (i, c), moved, allow_tma=False)


def state_change(i, h, new, R, CW):
    """norm(new - h) / norm(h) of the R tokens from R * i on, (R,)."""
    change, size = ct.zeros((R,), ct.float32), ct.zeros((R,), ct.float32)
    for c in range(ct.num_tiles(h, 1, (R, CW))):
        old = ct.astype(state_tile(h, i, c, R, CW), ct.float32)
        step = ct.astype(state_tile(new, i, c, R, CW), ct.float32) - old
        change, size = change + ct.sum(step * step, 1), size + ct.sum(old * old, 1)
    return ct.sqrt(change) / ct.maximum(ct.sqrt(size), 1e-20)


def softmax_step(tiles, best, peak, total, mixed, WITH_ENTROPY):
    """Takes some tiles of logits into running statistics that every lane keeps for itself.

    best: the largest logit, in the dtype of the logits; peak: the same, float32 and finite; total: sum exp2(t),
    t = (z - peak) * log2(e); mixed: sum exp2(t) * t. Nothing here crosses lanes, and one correction serves all tiles.
    """
    for z in ct.static_iter(tiles):
        best = ct.maximum(best, z)  # of two bf16 at once, before they widen
    higher = ct.maximum(ct.astype(best, ct.float32), FLOOR)
    down = (peak - higher) * LOG2E
    shrink = ct.exp2(down, flush_to_zero=True)
    if WITH_ENTROPY:
        mixed = shrink * (mixed + total * down)
    total = total * shrink
    for z in ct.static_iter(tiles):
        z = ct.astype(z, ct.float32)
        if WITH_ENTROPY:
            z = finite(z)  # 0 * -inf would be NaN
        t = (z - higher) * LOG2E
        e = ct.exp2(t, flush_to_zero=True)
        total = total + e
        if WITH_ENTROPY:
            mixed = mixed + e * t
    return best, higher, total, mixed


def columns(x, i, j, R, W, MASKED):
    """Columns W * j and on of the R rows from R * i on of x (N,V), (R,W); -inf beyond V if MASKED.

    A gather and not a load: its lanes read 16 bytes at once where the row stride allows it, those of a load 2.
    """
    row = R * i + ct.arange(R, dtype=ct.int32).reshape((R, 1))
    column = W * j + ct.arange(W, dtype=ct.int32).reshape((1, W))
    if R > 1:
        return ct.gather(x, (row, column), padding_value=-INF, latency=1)
    if MASKED:
        return ct.gather(x, (row, column), mask=column < x.shape[1], padding_value=-INF, check_bounds=False,
                         latency=1)
    return ct.gather(x, (row, column), check_bounds=False, latency=1)


def softmax_rows(logits, i, only, WITH_ENTROPY, R, W, K):
    """Running statistics of the R rows from R * i on, K tiles of W columns at a time: total, mixed, each (R,).

    only: where R > 1, the one tile that holds all columns.
    """
    V = logits.shape[1]
    best, peak = ct.full((R, W), -INF, logits.dtype), ct.full((R, W), FLOOR, ct.float32)
    total, mixed = ct.zeros((R, W), ct.float32), ct.zeros((R, W), ct.float32)
    if R > 1:
        best, peak, total, mixed = softmax_step((only,), best, peak, total, mixed, WITH_ENTROPY)
    else:
        strides = V // (W * K)
        for j in range(strides):
            tiles = ()
            for k in ct.static_iter(range(K)):
                tiles += (columns(logits, i, j * K + k, R, W, False),)
            best, peak, total, mixed = softmax_step(tiles, best, peak, total, mixed, WITH_ENTROPY)
        for j in range(strides * K, ct.cdiv(V, W)):
            tile = columns(logits, i, j, R, W, True)
            best, peak, total, mixed = softmax_step((tile,), best, peak, total, mixed, WITH_ENTROPY)
    top = ct.max(peak, 1, keepdims=True)
    down = (peak - top) * LOG2E
    shrink = ct.exp2(down, flush_to_zero=True)
    mixed = ct.sum(shrink * (mixed + total * down), 1)
    total = ct.sum(total * shrink, 1)
    floored = top.reshape((R,)) <= FLOOR  # a row of -inf alone is uniform
    return ct.where(floored, ct.astype(V, ct.float32), total), ct.where(floored, 0.0, mixed)


def divergence_step(p, q, inside, p_top, q_top, p_sum, q_sum, mixed):
    """Takes a tile of both logits into running statistics of each lane: largest logits, sums of exp2, and mixed, the
    sum of p's exp2 times the difference of the exponents. inside: the columns that count."""
    p, q = finite(ct.astype(p, ct.float32)), finite(ct.astype(q, ct.float32))
    p_new, q_new = ct.maximum(p_top, p), ct.maximum(q_top, q)
    p_down, q_down = (p_top - p_new) * LOG2E, (q_top - q_new) * LOG2E
    p_shrink = ct.exp2(p_down, flush_to_zero=True)
    s, t = (p - p_new) * LOG2E, (q - q_new) * LOG2E
    e = ct.where(inside, ct.exp2(s, flush_to_zero=True), 0.0)  # columns beyond V are no part of a row of -inf
    mixed = p_shrink * (mixed + p_sum * (p_down - q_down)) + e * (s - t)
    p_sum = p_sum * p_shrink + e
    q_sum = q_sum * ct.exp2(q_down, flush_to_zero=True) + ct.where(inside, ct.exp2(t, flush_to_zero=True), 0.0)
    return p_new, q_new, p_sum, q_sum, mixed


def divergence_rows(logits, previous, i, only, R, W):
    """KL of the softmax of logits from that of previous, nats, of the R rows from R * i on, (R,).

    only: where R > 1, the tiles of both that hold all columns.
    """
    V = logits.shape[1]
    p_top, q_top = ct.full((R, W), FLOOR, ct.float32), ct.full((R, W), FLOOR, ct.float32)
    p_sum, q_sum, mixed = ct.zeros((R, W), ct.float32), ct.zeros((R, W), ct.float32), ct.zeros((R, W), ct.float32)
    column = ct.arange(W, dtype=ct.int32).reshape((1, W))
    if R > 1:
        p, q = only
        p_top, q_top, p_sum, q_sum, mixed = divergence_step(p, q, column < V, p_top, q_top, p_sum, q_sum, mixed)
    else:
        for j in range(V // W):
            p, q = columns(logits, i, j, R, W, False), columns(previous, i, j, R, W, False)
            p_top, q_top, p_sum, q_sum, mixed = divergence_step(p, q, True, p_top, q_top, p_sum, q_sum, mixed)
        for j in range(V // W, ct.cdiv(V, W)):
            p, q = columns(logits, i, j, R, W, True), columns(previous, i, j, R, W, True)
            p_top, q_top, p_sum, q_sum, mixed = divergence_step(p, q, column < V - j * W, p_top, q_top, p_sum, q_sum,
                                                                mixed)
    p_down = (p_top - ct.max(p_top, 1, keepdims=True)) * LOG2E
    q_down = (q_top - ct.max(q_top, 1, keepdims=True)) * LOG2E
    p_shrink = ct.exp2(p_down, flush_to_zero=True)
    mixed = ct.sum(p_shrink * (mixed + p_sum * (p_down - q_down)), 1)
    p_sum, q_sum = ct.sum(p_sum * p_shrink, 1), ct.sum(q_sum * ct.exp2(q_down, flush_to_zero=True), 1)
    return LN2 * (mixed / p_sum - ct.log2(p_sum) + ct.log2(q_sum))


def plain_score(RULE, i, h, new, gate, alpha, step, R, CW):
    """The score (R,) of a rule that reads no logits, NaN for rule none."""
    score = ct.full((R,), NAN, ct.float32)
    if RULE == DELTA:
        size = ct.astype(take(alpha, i, R), ct.float32)
        score = state_change(i, h, new, R, CW) / (size * step)
    if RULE == GATE:
        score = ct.astype(take(gate, i, R), ct.float32)
    return score


@ct.kernel
def looplm_halt_update_kernel(h, new, active, loops, scores, threshold, limit, logits, previous, gate, alpha,
                              step, loop, min_loops, RULE: Int, ABOVE: Flag, R: Int, W: Int,
                              K: Int, CW: Int):
    """Scores R tokens a block, moves the active ones in place, lets those that pass halt.

    h, new (N,C); active (N,) bool, loops (N,) int, scores (N,) float32, threshold (N,) float32, limit (N,) int;
    logits, previous (N,V); gate, alpha (N,); step, by which delta is divided beside alpha; loop, min_loops.
    What a rule does not read may be any tensor of the rank. Where R > 1, W columns are all that is read.
    """
    i = ct.bid(0)
    act = take(active, i, R)
    p = q = ct.zeros((R, W), logits.dtype)
    if R > 1:  # a small block waits for memory, not for bandwidth: it asks for all before it waits for anything
        need = tokens_need(i, h, new, loops, threshold, limit, R, CW)
        p, q = columns(logits, i, 0, R, W, True), columns(previous, i, 0, R, W, True)
    if ct.max(ct.astype(act, ct.int32)) == 0:  # all have halted: nothing moves
        put(scores, i, ct.full((R,), NAN, ct.float32))
        return
    if RULE == CONFIDENCE:
        score = 1.0 / softmax_rows(logits, i, p, False, R, W, K)[0]
    elif RULE == ENTROPY:
        total, mixed = softmax_rows(logits, i, p, True, R, W, K)
        score = LN2 * (ct.log2(total) - mixed / total)
    elif RULE == KL:
        score = divergence_rows(logits, previous, i, (p, q), R, W)
    else:
        score = plain_score(RULE, i, h, new, gate, alpha, step, R, CW)
    if R == 1:
        need = tokens_need(i, h, new, loops, threshold, limit, R, CW)
    tokens_halt(i, score, act, need, h, new, active, loops, scores, loop, min_loops, ABOVE, R, CW)


def softmax_statistics(logits):
    """log p (N,V), the largest probability (N,) and the entropy in nats (N,), float32 or wider, of logits (N,V).

    The largest probability is 1 / sum exp(z - z_max): its own numerator is exp(0). Logits of -inf count as FLOOR, so
    that 0 * log 0 is 0 and not NaN.
    """
    z = wide(logits).clamp(min=FLOOR)
    z = z - z.max(-1, keepdim=True).values
    total = z.exp().sum(-1, keepdim=True)
    logp = z - total.log()
    return logp, 1 / total.squeeze(-1), -(logp.exp() * logp).sum(-1)


def relative_change(new, h):
    """delta = norm(new - h) / norm(h) of each token; states (...,C) -> (...), float32 or wider."""
    new, h = wide(new), wide(h)
    return (new - h).norm(dim=-1) / h.norm(dim=-1).clamp(min=1e-20)


def halt_score(rule, h, new, logits=None, previous=None, gate=None, alpha=1.0):
    """The score (...) of a rule after a loop that took the states h (...,C) to new, NaN where it has none yet.

    logits, previous (...,V): the readout of new and of h (None before loop 1); gate (...): the halt head's
    probability; alpha: the step size of euler, heun and rk4, by which delta is divided.
    """
    if rule == "confidence":
        return softmax_statistics(logits)[1]
    if rule == "entropy":
        return softmax_statistics(logits)[2]
    if rule == "delta":
        return relative_change(new, h) / alpha
    if rule == "gate":
        return gate.float()
    if rule == "kl" and previous is not None:
        logp, logq = softmax_statistics(logits)[0], softmax_statistics(previous)[0]
        return (logp.exp() * (logp - logq)).sum(-1)
    return torch.full(h.shape[:-1], torch.nan, device=h.device)  # rule none, and kl before loop 2


def halt_update_reference(rule, h, new, active, loops, loop, threshold, limit, min_loops=1, **inputs):
    score = halt_score(rule, h, new, **inputs)
    passes = score >= threshold if rule in HALTS_ABOVE else score <= threshold  # a NaN passes nothing
    halted = (passes & (loop >= min_loops)) | (loop >= limit)
    return (torch.where(active[..., None], new, h), active & ~halted, torch.where(active, loop, loops),
            score.masked_fill(~active, torch.nan))


def token_arguments(rule, h, new, active, loops, scores, threshold, limit, gate, alpha, step, loop, min_loops):
    """The arguments that both halting kernels begin with, in their order; h, active, loops, scores stay views."""
    C, N = h.shape[-1], active.numel()
    gate = gate.reshape(N) if rule == "gate" else blanks(h.device)[2]
    alpha = alpha.reshape(N) if rule == "delta" and alpha is not None else None
    if alpha is None:
        alpha = torch.ones(N, device=h.device) if rule == "delta" else blanks(h.device)[3]
    return (h.view(N, C), new.reshape(N, C), active.view(N), loops.view(N), scores.view(N), threshold.reshape(N),
            limit.reshape(N), gate, alpha, step, loop, min_loops)


def halt_plan(rule, V):
    """Tile sizes of the halt update, R, W, K and CW, and blocks an SM."""
    if rule not in NEEDS_LOGITS:
        return 4, 16, 1, 128, 8
    W = max(16, power(V))
    if W > 512:  # a token a block; tiles of 1024 give each of 128 threads 16 bytes in bf16
        return (1, 1024, 1, 512, 4) if rule == "kl" else (1, 1024, 8, 512, 6)
    return max(1, 512 // W), W, 1, 128, 4


def launch_halt_update(rule, h, new, active, loops, scores, threshold, limit, logits, previous, gate, alpha, step,
                       loop, min_loops):
    N, device = active.numel(), h.device
    rule = "none" if rule == "kl" and previous is None else rule  # before loop 2
    R, W, K, CW, occupancy = halt_plan(rule, logits.shape[-1] if rule in NEEDS_LOGITS else 1)
    rows = logits.reshape(N, -1) if rule in NEEDS_LOGITS else blanks(device)[0]
    before = previous.reshape(N, -1) if rule == "kl" else blanks(device)[1]
    *tokens, gate, alpha, step, loop, min_loops = token_arguments(
        rule, h, new, active, loops, scores, threshold, limit, gate, alpha, step, loop, min_loops)
    tile.launch(looplm_halt_update_kernel, (-(-N // R),), (
        *tokens, rows, before, gate, alpha, step, loop, min_loops, RULES.index(rule), rule in HALTS_ABOVE, R, W, K,
        CW), device, occupancy=occupancy, num_worker_warps=4)


@operator("halt_update", lambda *args: None, ("h", "active", "loops", "scores"))
def halt_update_op(rule: str, h: Tensor, new: Tensor, active: Tensor, loops: Tensor, scores: Tensor,
                   threshold: Tensor, limit: Tensor, logits: Tensor | None, previous: Tensor | None,
                   gate: Tensor | None, alpha: Tensor | None, step: float, loop: int, min_loops: int,
                   forced: bool) -> None:
    """halt_update in place, scores (...) float32 too; delta is divided by alpha (...) and by step."""
    def kernels():
        launch_halt_update(rule, h, new, active, loops, scores, threshold, limit, logits, previous, gate, alpha, step,
                           loop, min_loops)

    def reference():
        out = halt_update_reference(rule, h, new, active, loops, loop, threshold, limit, min_loops, logits=logits,
                                    previous=previous, gate=gate, alpha=step if alpha is None else alpha * step)
        settle((h, active, loops, scores), out)

    if active.numel():
        run("halt_update", forced, h.device, kernels, reference)


def halt_update(rule, h, new, active, loops, loop, threshold, limit, min_loops=1, backend="auto", inplace=False,
                **inputs):
    """What follows loop number `loop` (from 1): score every token, move the active ones, let those that pass halt.

    rule       one of RULES
    h, new     (...,C) states before and after the loop
    active     (...) bool, False for tokens that have halted and for pads
    loops      (...) int64, loops whose result is in h
    threshold  (...) float32, the score at which a token halts; an infinite one that nothing passes switches it off
    limit      (...) int64, the loop in which a token halts whatever its score
    inplace    h, active and loops, contiguous, are overwritten and returned; otherwise they stay as they are
    inputs     what halt_score needs for the rule: logits, previous, gate, alpha; the rows of logits and previous may
               be parts of longer ones: a row stride that is a multiple of 16 bytes is fast

    Returns h, active, loops (the loop in which a token halts counts) and score (NaN for tokens that had halted).
    A halted token keeps its state to the bit.
    """
    if rule not in RULES:
        raise ValueError(f"halting rule {rule!r} is none of {', '.join(RULES)}")
    if choose_backend(backend, h.device, unsupported(h, new, *inputs.values())) == "torch":
        out = halt_update_reference(rule, h, new, active, loops, loop, threshold, limit, min_loops, **inputs)
        return settle((h, active, loops, None), out, inplace)
    if not inplace:
        h, active, loops = (x.clone(memory_format=torch.contiguous_format) for x in (h, active, loops))
    scores = torch.empty(active.shape, device=h.device)
    alpha, step = step_size(inputs.get("alpha", 1.0) if rule == "delta" else 1.0, h, active)
    halt_update_op(rule, h, new, active, loops, scores, threshold, limit, inputs.get("logits"), inputs.get("previous"),
                   inputs.get("gate"), alpha, step, loop, min_loops, backend == "cutile")
    return h, active, loops, scores
