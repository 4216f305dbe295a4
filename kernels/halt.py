"""The halting rules, and the halt update after every loop: kernel, torch reference, operator, public function.

A rule scores each token after each loop. A token halts in the first loop, from min_loops on, in which its score passes
the threshold, and in any case in the loop that is its limit. Then its state is frozen.

Softmax statistics come from one pass over the logits z, with a running maximum m:

    t = (z - m) log2(e)      total = sum 2^t      weighted = sum 2^t t
    m rises to m', d = (m - m') log2(e):    total' = 2^d total      weighted' = 2^d (weighted + d total)

    largest probability = 1 / total                      since its own numerator is 2^0
    entropy in nats     = ln 2 (log2(total) - weighted / total)
"""
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import tile
from kernels.backend import (
    at_least_float32,
    choose_backend,
    operator,
    run_or_fall_back,
    step_size,
    unread_arguments,
    why_not_tensors,
    write_or_return,
)
from kernels.tile import FLOOR, INF, LN2, LOG2E, NAN, ZERO, Const, constants, ct, finite, load_1d, store_1d


# the rules -----------------------------------------------------------------------------------------------------------
class Rule(NamedTuple):
    """How a halting rule reads its scores; the scores themselves are halt_score's, and the kernels'."""
    above: bool          # a token halts at score >= threshold, otherwise at score <= threshold
    needs_logits: bool   # the score is of the readout after the loop
    threshold: float     # the default
    grid: tuple          # the thresholds that evaluate.py --frontier tries


RULES = dict(  # in the order of the kernels' numbers
    none=Rule(False, False, 0.0, ()),
    confidence=Rule(True, True, 0.9, (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999)),  # largest probability
    entropy=Rule(False, True, 0.1, (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.005, 0.001)),  # of the softmax, nats
    delta=Rule(False, False, 0.03, (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.03, 0.01)),  # 0.03 as in Huginn
    kl=Rule(False, True, 1e-3, (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)),  # from the loop before, nats
    gate=Rule(True, False, 0.9, (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999)),  # the halt head's
    energy=Rule(False, False, 1.0, (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3)))  # its fall in the loop
NONE, CONFIDENCE, ENTROPY, DELTA, KL, GATE, _ = range(len(RULES))  # the rules as the kernels know them
NUMBER = {name: number for number, name in enumerate(RULES)}
ABOVE = tuple(rule.above for rule in RULES.values())  # by number


class HaltingPlan(NamedTuple):
    """Which tokens loop, and when each of them halts."""
    active: Tensor       # (B,T) bool, False for pads, which start halted
    threshold: Tensor    # (B,T) float32, the score at which a token halts; an infinite one that nothing passes: never
    limit: Tensor | int  # (B,T) int64, the loop in which it halts whatever its score; a number: all, at a fixed depth
    L: int               # loops in all, the largest limit
    rule: str            # one of RULES

    @property
    def fixed(self):
        """Whether every token takes all L loops, so that no loop counts are kept."""
        return not isinstance(self.limit, Tensor)


def passes(rule, score, threshold):
    """Which scores (...) pass the thresholds (...); a NaN passes nothing."""
    return score >= threshold if RULES[rule].above else score <= threshold


def halts(rule, score, threshold, limit, loop, min_loops):
    """Which tokens (...) halt in loop number `loop`, from 1: those that pass, from min_loops on, and at their limit."""
    return (passes(rule, score, threshold) & (loop >= min_loops)) | (loop >= limit)


# kernel --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Tokens:
    """What the halting kernels read and write of N tokens. A rule's unread inputs may be any tensors of the rank."""
    h: Any           # (N,C) states before the loop, overwritten
    new: Any         # (N,C) states after it
    active: Any      # (N,) bool, overwritten
    loops: Any       # (N,) int, overwritten
    scores: Any      # (N,) float32 out, NaN for tokens that had halted
    threshold: Any   # (N,) float32
    limit: Any       # (N,) int
    gate: Any        # (N,) probabilities of the halt head, of rule energy the energy's fall
    alpha: Any       # (N,) step sizes, by which delta is divided, as it is by `step`
    step: Any        # a number
    loop: Any        # number of the loop, from 1
    min_loops: Any   # a number


@dataclass(frozen=True)
class HaltSizes:
    """Constants of the halt update."""
    RULE: int
    R: int    # tokens per block
    W: int    # columns of logits per tile; where R > 1 one tile holds all of them
    K: int    # tiles of logits asked for at once, where R = 1
    CW: int   # channels per tile of states


def halts_on_tiles(score, threshold, limit, loop, min_loops, RULE):
    """`halts`, of tiles."""
    if ct.static_eval(ABOVE[RULE]):
        passed = score >= threshold
    else:
        passed = score <= threshold
    return (passed & (loop >= min_loops)) | (limit <= loop)


def load_states(x, i, c, R, CW):
    """Channels CW*c and on of the tokens from R*i on of x (N,C), (R,CW)."""
    return ct.load(x, (i, c), (R, CW), padding_mode=ZERO, allow_tma=False)


def load_for_halting(t, i, R, CW):
    """What move_and_halt reads of the tokens from R*i on, all asked for at once: one wait for memory, not five."""
    return (load_1d(t.threshold, i, R), load_1d(t.limit, i, R), load_1d(t.loops, i, R),
            load_states(t.new, i, 0, R, CW), load_states(t.h, i, 0, R, CW))


def move_and_halt(t, i, score, act, loaded, RULE, R, CW):
    """What follows the scoring of the R tokens from R*i on: active ones move and are counted, and halt if they pass.

    score, act (R,): the scores, and who was active before the loop; loaded: what load_for_halting returned.
    """
    threshold, limit, loops, new_tile, h_tile = loaded
    halted = halts_on_tiles(score, threshold, limit, t.loop, t.min_loops, RULE)
    store_1d(t.scores, i, ct.where(act, score, NAN))
    store_1d(t.active, i, act & ~halted)
    store_1d(t.loops, i, ct.where(act, ct.full((R,), t.loop, t.loops.dtype), loops))
    if R > 1:  # with one token per block we only get here if it is active, so no select is needed
        new_tile = ct.where(act.reshape((R, 1)), new_tile, h_tile)
    ct.store(t.h, (i, 0), new_tile, allow_tma=False)
    for c in range(1, ct.num_tiles(t.h, 1, (R, CW))):
        new_tile = load_states(t.new, i, c, R, CW)
        if R > 1:
            new_tile = ct.where(act.reshape((R, 1)), new_tile, load_states(t.h, i, c, R, CW))
        ct.store(t.h, (i, c), new_tile, allow_tma=False)


def delta_of_rows(t, i, R, CW):
    """norm(new - h) / norm(h) of the R tokens from R*i on, (R,), in float32."""
    change, size = ct.zeros((R,), ct.float32), ct.zeros((R,), ct.float32)
    for c in range(ct.num_tiles(t.h, 1, (R, CW))):
        old = ct.astype(load_states(t.h, i, c, R, CW), ct.float32)
        step = ct.astype(load_states(t.new, i, c, R, CW), ct.float32) - old
        change, size = change + ct.sum(step * step, 1), size + ct.sum(old * old, 1)
    return ct.sqrt(change) / ct.maximum(ct.sqrt(size), 1e-20)


def softmax_step(tiles, best, peak, total, weighted, WITH_ENTROPY):
    """Take some tiles of logits into running statistics that every lane keeps for itself.

    best: the largest logit, in the dtype of the logits; peak: the same, float32 and finite; total and weighted: see
    the head of this file. Nothing here crosses lanes, and one correction serves all tiles.
    """
    for z in ct.static_iter(tiles):
        best = ct.maximum(best, z)  # two bf16 in one instruction, before they widen
    higher = ct.maximum(ct.astype(best, ct.float32), FLOOR)
    down = (peak - higher) * LOG2E
    shrink = ct.exp2(down, flush_to_zero=True)
    if WITH_ENTROPY:
        weighted = shrink * (weighted + total * down)
    total = total * shrink
    for z in ct.static_iter(tiles):
        z = ct.astype(z, ct.float32)
        if WITH_ENTROPY:
            z = finite(z)  # 0 * -inf would be NaN
        t = (z - higher) * LOG2E
        e = ct.exp2(t, flush_to_zero=True)
        total = total + e
        if WITH_ENTROPY:
            weighted = weighted + e * t
    return best, higher, total, weighted


def load_logit_columns(x, i, j, R, W, MASKED):
    """Columns W*j and on of the R rows from R*i on of x (N,V), (R,W); -inf beyond V if MASKED.

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


def softmax_rows(logits, i, only, WITH_ENTROPY, p):
    """total and weighted, (R,) each, of the R rows from R*i on, K tiles of W columns at a time.

    only: where R > 1, the one tile that holds all columns.
    """
    V = logits.shape[1]
    best, peak = ct.full((p.R, p.W), -INF, logits.dtype), ct.full((p.R, p.W), FLOOR, ct.float32)
    total, weighted = ct.zeros((p.R, p.W), ct.float32), ct.zeros((p.R, p.W), ct.float32)
    if p.R > 1:
        best, peak, total, weighted = softmax_step((only,), best, peak, total, weighted, WITH_ENTROPY)
    else:
        strides = V // (p.W * p.K)
        for j in range(strides):
            tiles = ()
            for k in ct.static_iter(range(p.K)):
                tiles += (load_logit_columns(logits, i, j * p.K + k, p.R, p.W, False),)
            best, peak, total, weighted = softmax_step(tiles, best, peak, total, weighted, WITH_ENTROPY)
        for j in range(strides * p.K, ct.cdiv(V, p.W)):
            last = load_logit_columns(logits, i, j, p.R, p.W, True)
            best, peak, total, weighted = softmax_step((last,), best, peak, total, weighted, WITH_ENTROPY)
    top = ct.max(peak, 1, keepdims=True)  # only now do the lanes' statistics meet
    down = (peak - top) * LOG2E
    shrink = ct.exp2(down, flush_to_zero=True)
    weighted = ct.sum(shrink * (weighted + total * down), 1)
    total = ct.sum(total * shrink, 1)
    floored = top.reshape((p.R,)) <= FLOOR  # a row of -inf alone is uniform
    return ct.where(floored, ct.astype(V, ct.float32), total), ct.where(floored, 0.0, weighted)


def divergence_step(p, q, inside, p_top, q_top, p_sum, q_sum, weighted):
    """Take a tile of both logits into running statistics of each lane: the largest logits, the sums of exp2, and
    weighted, the sum of p's exp2 times the difference of the exponents. inside: the columns that count."""
    p, q = finite(ct.astype(p, ct.float32)), finite(ct.astype(q, ct.float32))
    p_new, q_new = ct.maximum(p_top, p), ct.maximum(q_top, q)
    p_down, q_down = (p_top - p_new) * LOG2E, (q_top - q_new) * LOG2E
    p_shrink = ct.exp2(p_down, flush_to_zero=True)
    s, t = (p - p_new) * LOG2E, (q - q_new) * LOG2E
    e = ct.where(inside, ct.exp2(s, flush_to_zero=True), 0.0)  # columns beyond V are no part of a row of -inf
    weighted = p_shrink * (weighted + p_sum * (p_down - q_down)) + e * (s - t)
    p_sum = p_sum * p_shrink + e
    q_sum = q_sum * ct.exp2(q_down, flush_to_zero=True) + ct.where(inside, ct.exp2(t, flush_to_zero=True), 0.0)
    return p_new, q_new, p_sum, q_sum, weighted


def divergence_rows(logits, previous, i, only, R, W):
    """KL of the softmax of logits from that of previous, nats, of the R rows from R*i on, (R,).

    With s, t the exponents of p and q as above: KL = ln 2 (sum 2^s (s - t) / sum 2^s - log2 sum 2^s + log2 sum 2^t).
    only: where R > 1, the tiles of both that hold all columns.
    """
    V = logits.shape[1]
    p_top, q_top = ct.full((R, W), FLOOR, ct.float32), ct.full((R, W), FLOOR, ct.float32)
    p_sum, q_sum, weighted = ct.zeros((R, W), ct.float32), ct.zeros((R, W), ct.float32), ct.zeros((R, W), ct.float32)
    column = ct.arange(W, dtype=ct.int32).reshape((1, W))
    if R > 1:
        p, q = only
        p_top, q_top, p_sum, q_sum, weighted = divergence_step(p, q, column < V, p_top, q_top, p_sum, q_sum, weighted)
    else:
        for j in range(V // W):  # whole tiles need no mask
            p, q = load_logit_columns(logits, i, j, R, W, False), load_logit_columns(previous, i, j, R, W, False)
            p_top, q_top, p_sum, q_sum, weighted = divergence_step(p, q, True, p_top, q_top, p_sum, q_sum, weighted)
        for j in range(V // W, ct.cdiv(V, W)):
            p, q = load_logit_columns(logits, i, j, R, W, True), load_logit_columns(previous, i, j, R, W, True)
            p_top, q_top, p_sum, q_sum, weighted = divergence_step(p, q, column < V - j * W, p_top, q_top, p_sum,
                                                                   q_sum, weighted)
    p_down = (p_top - ct.max(p_top, 1, keepdims=True)) * LOG2E
    q_down = (q_top - ct.max(q_top, 1, keepdims=True)) * LOG2E
    p_shrink = ct.exp2(p_down, flush_to_zero=True)
    weighted = ct.sum(p_shrink * (weighted + p_sum * (p_down - q_down)), 1)
    p_sum, q_sum = ct.sum(p_sum * p_shrink, 1), ct.sum(q_sum * ct.exp2(q_down, flush_to_zero=True), 1)
    return LN2 * (weighted / p_sum - ct.log2(p_sum) + ct.log2(q_sum))


def score_without_logits(t, i, RULE, R, CW):
    """The score (R,) of a rule that reads no logits, NaN for rule none."""
    score = ct.full((R,), NAN, ct.float32)
    if RULE == DELTA:
        size = ct.astype(load_1d(t.alpha, i, R), ct.float32)
        score = delta_of_rows(t, i, R, CW) / (size * t.step)
    if RULE >= GATE:  # gate, and energy
        score = ct.astype(load_1d(t.gate, i, R), ct.float32)
    return score


@ct.kernel
def looplm_halt_update_kernel(
        tokens,         # the nine tensors of Tokens
        logits,         # (N,V) readout after the loop
        previous,       # (N,V) readout before it, for rule kl
        step,           # delta is divided by it
        loop,           # number of the loop, from 1
        min_loops,
        plan: Const):   # HaltSizes
    """Score R tokens per block, move the active ones in place, let those that pass halt. Grid (cdiv(N, R),).

    Measured (H200): 8192 x 50304 bf16 logits in 207 us, 1.5 times the rate of a copy, torch.compile 496 us.
    """
    t, p = Tokens(*tokens, step, loop, min_loops), HaltSizes(*plan)
    i = ct.bid(0)
    act = load_1d(t.active, i, p.R)
    z = q = ct.zeros((p.R, p.W), logits.dtype)
    if p.R > 1:  # small blocks wait for latency, not bandwidth: all is asked for at once (V = 65: 4.7 us -> 3.8)
        loaded = load_for_halting(t, i, p.R, p.CW)
        z, q = load_logit_columns(logits, i, 0, p.R, p.W, True), load_logit_columns(previous, i, 0, p.R, p.W, True)
    if ct.max(ct.astype(act, ct.int32)) == 0:  # all have halted: nothing moves
        store_1d(t.scores, i, ct.full((p.R,), NAN, ct.float32))
        return
    if p.RULE == CONFIDENCE:
        score = 1.0 / softmax_rows(logits, i, z, False, p)[0]
    elif p.RULE == ENTROPY:
        total, weighted = softmax_rows(logits, i, z, True, p)
        score = LN2 * (ct.log2(total) - weighted / total)
    elif p.RULE == KL:
        score = divergence_rows(logits, previous, i, (z, q), p.R, p.W)
    else:
        score = score_without_logits(t, i, p.RULE, p.R, p.CW)
    if p.R == 1:
        loaded = load_for_halting(t, i, p.R, p.CW)
    move_and_halt(t, i, score, act, loaded, p.RULE, p.R, p.CW)


# torch reference -----------------------------------------------------------------------------------------------------
def softmax_statistics(logits):
    """log p (N,V), the largest probability (N,) and the entropy in nats (N,), float32 or wider, of logits (N,V).

    The largest probability is 1 / sum exp(z - z_max): its own numerator is exp(0). Logits of -inf count as FLOOR, so
    that 0 * log 0 is 0 and not NaN.
    """
    z = at_least_float32(logits).clamp(min=FLOOR)
    z = z - z.max(-1, keepdim=True).values
    total = z.exp().sum(-1, keepdim=True)
    logp = z - total.log()
    return logp, 1 / total.squeeze(-1), -(logp.exp() * logp).sum(-1)


def state_delta(new, h):
    """delta = norm(new - h) / norm(h) of each token; states (...,C) -> (...), float32 or wider."""
    new, h = at_least_float32(new), at_least_float32(h)
    return (new - h).norm(dim=-1) / h.norm(dim=-1).clamp(min=1e-20)


def halt_score(rule, h, new, logits=None, previous=None, gate=None, alpha=1.0):
    """The score (...) of a rule after a loop that took the states h (...,C) to new, NaN where it has none yet.

    logits, previous (...,V): the readout of new and of h (None before loop 1); gate (...): the halt head's
    probability, of rule energy by how much the loop lowered the energy; alpha: the step size of every update but
    replace, by which delta is divided.
    """
    if rule == "confidence":
        return softmax_statistics(logits)[1]
    if rule == "entropy":
        return softmax_statistics(logits)[2]
    if rule == "delta":
        return state_delta(new, h) / alpha
    if rule in ("gate", "energy"):
        return gate.float()
    if rule == "kl" and previous is not None:
        logp, logq = softmax_statistics(logits)[0], softmax_statistics(previous)[0]
        return (logp.exp() * (logp - logq)).sum(-1).clamp(min=0)  # below 0 by rounding alone; kernels do not clamp
    return torch.full(h.shape[:-1], torch.nan, device=h.device)  # rule none, and kl before loop 2


def halt_update_reference(rule, h, new, active, loops, loop, threshold, limit, min_loops=1, **inputs):
    """halt_update in torch, never in place."""
    score = halt_score(rule, h, new, **inputs)
    halted = halts(rule, score, threshold, limit, loop, min_loops)
    return (torch.where(active[..., None], new, h), active & ~halted, torch.where(active, loop, loops),
            score.masked_fill(~active, torch.nan))


# operator ------------------------------------------------------------------------------------------------------------
def token_tensors(rule, h, new, active, loops, scores, threshold, limit, gate, alpha):
    """The tensors of Tokens, flat over the tokens; h, active, loops and scores stay views, so that they are written."""
    C, N = h.shape[-1], active.numel()
    gate = gate.reshape(N) if rule in ("gate", "energy") else unread_arguments(h.device)[2]
    if rule != "delta":
        alpha = unread_arguments(h.device)[3]
    else:
        alpha = torch.ones(N, device=h.device) if alpha is None else alpha.reshape(N)
    return (h.view(N, C), new.reshape(N, C), active.view(N), loops.view(N), scores.view(N), threshold.reshape(N),
            limit.reshape(N), gate, alpha)


def halt_plan(rule, V):
    """The sizes of the halt update for logits of V columns, and how many blocks per SM to compile for."""
    number = NUMBER[rule]
    if not RULES[rule].needs_logits:
        return HaltSizes(number, R=4, W=16, K=1, CW=128), 8
    W = max(16, tile.next_power_of_2(V))
    if W > 512:  # a token per block; tiles of 1024 give each of 128 threads 16 bytes in bf16
        return (HaltSizes(number, 1, 1024, 1, 512), 4) if rule == "kl" else (HaltSizes(number, 1, 1024, 8, 512), 6)
    return HaltSizes(number, max(1, 512 // W), W, 1, 128), 4


def launch_halt_update(rule, tokens, logits, previous, gate, alpha, step, loop, min_loops):
    """tokens: h, new, active, loops, scores, threshold, limit, as halt_update_op has them."""
    N, device = tokens[2].numel(), tokens[0].device
    rule = "none" if rule == "kl" and previous is None else rule  # before loop 2
    needs_logits = RULES[rule].needs_logits
    plan, occupancy = halt_plan(rule, logits.shape[-1] if needs_logits else 1)
    logits = logits.reshape(N, -1) if needs_logits else unread_arguments(device)[0]
    previous = previous.reshape(N, -1) if rule == "kl" else unread_arguments(device)[1]
    tile.launch(looplm_halt_update_kernel, (-(-N // plan.R),), (
        token_tensors(rule, *tokens, gate, alpha), logits, previous, step, loop, min_loops, constants(plan)),
        device, occupancy=occupancy, num_worker_warps=4)


@operator("halt_update", lambda *args: None, ("h", "active", "loops", "scores"))
def halt_update_op(rule: str, h: Tensor, new: Tensor, active: Tensor, loops: Tensor, scores: Tensor,
                   threshold: Tensor, limit: Tensor, logits: Tensor | None, previous: Tensor | None,
                   gate: Tensor | None, alpha: Tensor | None, step: float, loop: int, min_loops: int,
                   forced: bool) -> None:
    """halt_update in place, scores (...) float32 too; delta is divided by alpha (...) and by step."""
    def kernels():
        launch_halt_update(rule, (h, new, active, loops, scores, threshold, limit), logits, previous, gate, alpha, step,
                           loop, min_loops)

    def reference():
        out = halt_update_reference(rule, h, new, active, loops, loop, threshold, limit, min_loops, logits=logits,
                                    previous=previous, gate=gate, alpha=step if alpha is None else alpha * step)
        write_or_return((h, active, loops, scores), out)

    if active.numel():
        run_or_fall_back("halt_update", forced, h.device, kernels, reference)


# public function -----------------------------------------------------------------------------------------------------
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
    A halted token keeps its state to the bit. ValueError for another rule; errors of choose_backend.
    """
    if rule not in RULES:
        raise ValueError(f"halting rule {rule!r} is none of {', '.join(RULES)}")
    if choose_backend(backend, h.device, why_not_tensors(h, new, *inputs.values())) == "torch":
        out = halt_update_reference(rule, h, new, active, loops, loop, threshold, limit, min_loops, **inputs)
        return write_or_return((h, active, loops, None), out, inplace)
    if not inplace:
        h, active, loops = (x.clone(memory_format=torch.contiguous_format) for x in (h, active, loops))
    scores = torch.empty(active.shape, device=h.device)
    alpha, step = step_size(inputs.get("alpha", 1.0) if rule == "delta" else 1.0, h, active)
    halt_update_op(rule, h, new, active, loops, scores, threshold, limit, inputs.get("logits"), inputs.get("previous"),
                   inputs.get("gate"), alpha, step, loop, min_loops, backend == "cutile")
    return h, active, loops, scores
