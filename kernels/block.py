"""One transformer block on tiles, with injection, update, readout and score: what kernels of a whole loop share.

A block has M = S * TP rows: S sequences of TP tokens, or TP tokens of one sequence that R blocks share. States are
tuples of float32 tiles (M,W); products have the weights' dtype, with float32 accumulation.

| symbol | meaning |
| --- | --- |
| S, TP, R | sequences per block; rows per sequence in a block; blocks per sequence |
| W | channels per tile, at most 128 |
| HS, GW | channels of a head; of the group of heads that one step of the attention takes, G = GW / HS heads |
| FT | hidden units that one step of the MLP takes |
| VT | the power of two from V on: all logits of a row in one tile |
"""
from dataclasses import dataclass
from typing import Any

from kernels.halt import CONFIDENCE, DELTA, ENTROPY, GATE, KL
from kernels.tile import APPROX, FLOOR, LN2, LOG2E, NAN, ZERO, cast, ct, dot, finite, gelu, pair_sum

INJECTS = ("add", "none", "concat", "decay")  # what re-enters from loop 2 on, in the order of the kernels' numbers
ADD, NOTHING, CONCAT, DECAY = range(len(INJECTS))
NORM_ROW, DECAY_ROW = range(2)  # of Weights.vectors


@dataclass(frozen=True)
class LoopSizes:
    """Constants of a kernel of the whole loop; the sizes as above."""
    R: int
    S: int
    TP: int
    W: int
    C: int
    HS: int
    GW: int
    FT: int
    VT: int
    RULE: int      # number of the halting rule
    INJECT: int    # number of the injection
    STEPS: bool    # a step encoding is added
    EULER: bool    # h + alpha * (candidate - u) instead of candidate
    NORM: bool     # layer norm after every loop
    ADAPT: bool    # tokens halt; otherwise a fixed depth
    TRACE: bool    # the trace is written
    EXACT: bool    # weights in float32: exact products, exact gelu


@dataclass(frozen=True)
class Weights:
    """What the loops read of a model; each layer norm's weight is multiplied into the product that follows it."""
    wqkv: Any      # (3C,C)
    wproj: Any     # (C,C)
    wfc: Any       # (4C,C)
    wout: Any      # (C,4C)
    vectors: Any   # (2,C) float32: weight of the loop norm, decay of the injection
    steps: Any     # (L,C) float32 step encodings
    mix: Any       # (C,C): what the injection 'concat' makes of h
    head: Any      # (V,C)
    gate_w: Any    # (C,C): what the halt head makes of h
    gate_s: Any    # (L,C) float32: what it makes of the step encoding, and its bias
    gate_v: Any    # (1,C) float32: its readout
    V: Any         # vocabulary
    alpha: Any     # step size of Euler
    gate_b: Any    # bias of the halt head's readout
    groups: Any    # C / GW, groups of heads
    slices: Any    # 4C / FT, slices of the MLP


@dataclass(frozen=True)
class Trace:
    """Where a loop writes what happened."""
    stats: Any        # (L,4,B,T) float32: entropy, confidence, delta, score; NaN where a token had halted
    predictions: Any  # (L,B,T) int32
    previous: Any     # (B,T,VT) float32: log p of the loop before, for rule kl


@dataclass(frozen=True)
class At:
    """Which rows a block has."""
    b: Any  # its group of S sequences
    r: Any  # its part of the sequence, of R


# loads ---------------------------------------------------------------------------------------------------------------
def load_rows(x, at, i, p):
    """Channels W*i and on of the block's rows of x (B,T,C), (M,W) float32."""
    return ct.reshape(ct.load(x, (at.b, at.r, i), (p.S, p.TP, p.W), padding_mode=ZERO),
                      (p.S * p.TP, p.W)).astype(ct.float32)


def load_tokens(x, at, p):
    """The block's rows of x (B,T), (M,1)."""
    return ct.reshape(ct.load(x, (at.b, at.r), (p.S, p.TP), padding_mode=ZERO, allow_tma=False), (p.S * p.TP, 1))


def load_block_states(x, at, p):
    """The block's rows of x (B,T,C) as a tuple of C / W tiles."""
    out = ()
    for i in ct.static_iter(range(p.C // p.W)):
        out += (load_rows(x, at, i, p),)
    return out


# layers --------------------------------------------------------------------------------------------------------------
def layer_norm(xs, C):
    """(x - mean) / sqrt(variance + 1e-5) over the C channels of xs, tiles (M,W)."""
    total = square = ct.zeros((xs[0].shape[0], 1), ct.float32)
    for x in ct.static_iter(xs):
        s, q = ct.reduce((x, x * x), 1, pair_sum, (0.0, 0.0), keepdims=True)  # one exchange between warps, not two
        total, square = total + s, square + q
    mean = total / C
    scale = ct.rsqrt(ct.maximum(square / C - mean * mean, 0.0) + 1e-5)
    out = ()
    for i in ct.static_iter(range(len(xs))):
        out += ((xs[i] - mean) * scale,)
    return out


def scale_channels(xs, vectors, row):
    """The channels of xs times vectors[row]."""
    out = ()
    for i in ct.static_iter(range(len(xs))):
        out += (xs[i] * ct.load(vectors, (row, i), (1, xs[i].shape[1])),)
    return out


def linear(xs, w, j, N):
    """Columns j*N .. (j+1)*N of xs @ w.T, (M,N) float32."""
    acc = ct.zeros((xs[0].shape[0], N), ct.float32)
    for i in ct.static_iter(range(len(xs))):
        acc = dot(xs[i], ct.load(w, (i, j), (xs[i].shape[1], N), order=(1, 0), padding_mode=ZERO), acc)
    return acc


def accumulate(ys, x, w, j):
    """ys + x @ w.T, where x (M,K) are columns j*K .. (j+1)*K of w's input."""
    out = ()
    for i in ct.static_iter(range(len(ys))):
        out += (dot(x, ct.load(w, (j, i), (x.shape[1], ys[i].shape[1]), order=(1, 0)), ys[i]),)
    return out


# attention -----------------------------------------------------------------------------------------------------------
def split_heads(x, HS):
    """(M, G*HS) -> (G, M, HS)"""
    return ct.permute(ct.reshape(x, (x.shape[0], x.shape[1] // HS, HS)), (1, 0, 2))


def project(a, wqkv, n, w, p):
    """q, k, v (M,GW) of the n-th group of heads."""
    q = linear(a, wqkv, n, p.GW).astype(wqkv.dtype)
    k = linear(a, wqkv, n + w.groups, p.GW).astype(wqkv.dtype)
    v = linear(a, wqkv, n + 2 * w.groups, p.GW).astype(wqkv.dtype)
    return q, k, v


def attend_block(q, k, v, allowed, HS):
    """Softmax attention within the rows of a block: q, k, v (M, G*HS) -> (M, G*HS), same dtype.

    allowed (1,M,M): which keys a query may see, those before it in its own sequence.
    """
    M = q.shape[0]
    q, k, v = split_heads(q, HS), split_heads(k, HS), split_heads(v, HS)  # (G,M,HS)
    G = q.shape[0]
    s = dot(q, ct.permute(k, (0, 2, 1)), ct.zeros((G, M, M), ct.float32)) * (LOG2E / HS ** 0.5)  # (G,M,M)
    s = ct.where(allowed, s, FLOOR)
    weight = ct.exp2(s - ct.max(s, axis=2, keepdims=True), flush_to_zero=True)
    total = ct.sum(weight, axis=2, keepdims=True)
    o = ct.truediv(dot(weight.astype(v.dtype), v, ct.zeros((G, M, HS), ct.float32)), total, rounding_mode=APPROX)
    return ct.reshape(ct.permute(o.astype(v.dtype), (1, 0, 2)), (M, G * HS))


def self_attention(y, a, allowed, w, p):
    """y + attention of the normed a, all rows within this block."""
    for n in range(0, w.groups):
        q, k, v = project(a, w.wqkv, n, w, p)
        y = accumulate(y, attend_block(q, k, v, allowed, p.HS), w.wproj, n)
    return y


def publish_qkv(a, qkv, l, at, w, p):
    """Write this block's q, k, v of loop l + 1 where the other blocks of the sequence can read them.

    qkv (5,B,T,C) holds q, then k and v of even loops, then those of odd ones: a block that is ahead by a loop does
    not overwrite what another still reads.
    """
    for n in range(0, w.groups):
        q, k, v = project(a, w.wqkv, n, w, p)
        ct.store(qkv, (0, at.b, at.r, n), ct.reshape(q, (1, 1, p.TP, p.GW)), allow_tma=False)
        ct.store(qkv, (2 * (l % 2) + 1, at.b, at.r, n), ct.reshape(k, (1, 1, p.TP, p.GW)), allow_tma=False)
        ct.store(qkv, (2 * (l % 2) + 2, at.b, at.r, n), ct.reshape(v, (1, 1, p.TP, p.GW)), allow_tma=False)


def attend_rows(qkv, parity, at, n, allowed, p):
    """attend_block over the rows of blocks 0..r of a sequence, by the online softmax of attention.py; qkv: as
    publish_qkv writes it, in a loop of this parity."""
    G = p.GW // p.HS
    q = ct.load(qkv, (0, at.b, at.r, n), (1, 1, p.TP, p.GW), padding_mode=ZERO, allow_tma=False)
    q = split_heads(ct.reshape(q, (p.TP, p.GW)), p.HS)
    top, total = ct.full((G, p.TP, 1), FLOOR, ct.float32), ct.zeros((G, p.TP, 1), ct.float32)
    o = ct.zeros((G, p.TP, p.HS), ct.float32)
    for j in range(0, at.r + 1):
        k = ct.load(qkv, (2 * parity + 1, at.b, j, n), (1, 1, p.TP, p.GW), padding_mode=ZERO, allow_tma=False)
        v = ct.load(qkv, (2 * parity + 2, at.b, j, n), (1, 1, p.TP, p.GW), padding_mode=ZERO, allow_tma=False)
        k = split_heads(ct.reshape(k, (p.TP, p.GW)), p.HS)
        v = split_heads(ct.reshape(v, (p.TP, p.GW)), p.HS)
        s = dot(q, ct.permute(k, (0, 2, 1)), ct.zeros((G, p.TP, p.TP), ct.float32)) * (LOG2E / p.HS ** 0.5)
        s = ct.where(allowed | (j < at.r), s, FLOOR)  # blocks before this one are seen whole
        higher = ct.maximum(top, ct.max(s, axis=2, keepdims=True))
        shrink = ct.exp2(top - higher, flush_to_zero=True)
        weight = ct.exp2(s - higher, flush_to_zero=True)
        total = total * shrink + ct.sum(weight, axis=2, keepdims=True)
        o = dot(weight.astype(v.dtype), v, o * shrink)
        top = higher
    o = ct.truediv(o, total, rounding_mode=APPROX).astype(qkv.dtype)
    return ct.reshape(ct.permute(o, (1, 0, 2)), (p.TP, p.GW))


# the equations of a loop ---------------------------------------------------------------------------------------------
def inject(h, x0, injected, l, at, w, p):
    """What the block of loop l + 1 reads, before the step encoding: h in loop 1, then by INJECT

        add h + x0      none h      concat W_h h + W_x x0      decay a h + b x0

    injected (B,T,C) holds what x0 contributes, W_x x0 or b x0: it is the same in every loop.
    """
    out = ()
    for i in ct.static_iter(range(len(h))):
        u = h[i]
        if p.INJECT != NOTHING and l > 0:
            if p.INJECT == ADD:
                u = u + load_rows(x0, at, i, p)
            else:
                x = load_rows(injected, at, i, p)
            if p.INJECT == DECAY:
                u = u * ct.load(w.vectors, (DECAY_ROW, i), (1, p.W)) + x
            if p.INJECT == CONCAT:
                u = linear(cast(h, w.mix.dtype), w.mix, i, p.W) + x
        out += (u,)
    return out


def add_step_encoding(u, steps, l):
    """u plus the step encoding of loop l + 1."""
    out = ()
    for i in ct.static_iter(range(len(u))):
        out += (u[i] + ct.load(steps, (l, i), (1, u[i].shape[1])),)
    return out


def euler_step(h, candidate, u, alpha):
    """h + alpha * (candidate - u): a step of dh/dt = Block(u) - u."""
    out = ()
    for i in ct.static_iter(range(len(h))):
        out += (h[i] + alpha * (candidate[i] - u[i]),)
    return out


def keep_halted(active, new, h):
    """The states of active tokens move, the others stay."""
    out = ()
    for i in ct.static_iter(range(len(h))):
        out += (ct.where(active, new[i], h[i]),)
    return out


# scores and trace ----------------------------------------------------------------------------------------------------
def readout(xs, w, VT, C, ENTROPY_TOO, BEST_TOO):
    """Softmax statistics (M,1) of the readout of states xs: confidence, and if asked for entropy and arg-max."""
    a = cast(layer_norm(xs, C), w.head.dtype)
    column = ct.arange(VT, dtype=ct.int32)[None, :]
    M = xs[0].shape[0]
    top, total = ct.full((M, 1), FLOOR, ct.float32), ct.zeros((M, 1), ct.float32)
    weighted, best = ct.zeros((M, 1), ct.float32), ct.zeros((M, 1), ct.int32)
    # Runs once, V <= VT. A loop on purpose: straight-line code made ptxas drop warp specialisation, 17.4 us instead
    # of 16.8 per loop.
    for j in range(0, ct.cdiv(w.V, VT)):
        z = ct.where(column < w.V, finite(linear(a, w.head, j, VT)), 2 * FLOOR)
        top = ct.max(z, axis=1, keepdims=True)
        t = (z - top) * LOG2E
        e = ct.exp2(t, flush_to_zero=True)
        if ENTROPY_TOO:
            total, weighted = ct.reduce((e, e * t), 1, pair_sum, (0.0, 0.0), keepdims=True)
        else:
            total = ct.sum(e, axis=1, keepdims=True)
        if BEST_TOO:
            best = ct.min(ct.where(z == top, column, VT), axis=1, keepdims=True)
    return 1.0 / total, (ct.log2(total) - weighted / total) * LN2, best


def log_softmax(xs, w, VT, C):
    """(M,VT) of states xs; columns from V on are far below every other."""
    z = linear(cast(layer_norm(xs, C), w.head.dtype), w.head, 0, VT)
    column = ct.arange(VT, dtype=ct.int32)[None, :]
    z = ct.where(column < w.V, finite(z), 2 * FLOOR)
    z = z - ct.max(z, axis=1, keepdims=True)
    return z - LN2 * ct.log2(ct.sum(ct.exp2(z * LOG2E), axis=1, keepdims=True))


def divergence(logp, previous, l, at, V, p):
    """KL (M,1) of this loop's distribution from the one of the loop before, which previous (B,T,VT) keeps."""
    logq = ct.reshape(ct.load(previous, (at.b, at.r, 0), (p.S, p.TP, p.VT), padding_mode=ZERO, allow_tma=False),
                      (p.S * p.TP, p.VT))
    ct.store(previous, (at.b, at.r, 0), ct.reshape(logp, (p.S, p.TP, p.VT)), allow_tma=False)
    inside = ct.arange(p.VT, dtype=ct.int32)[None, :] < V
    kl = ct.sum(ct.where(inside, ct.exp2(logp * LOG2E) * (logp - logq), 0.0), axis=1, keepdims=True)
    return ct.where(l > 0, kl, NAN)  # loop 1 read what no loop had written


def delta_of_tiles(new, h):
    """norm(new - h) / norm(h) of each token, (M,1)."""
    step = size = ct.zeros((h[0].shape[0], 1), ct.float32)
    for i in ct.static_iter(range(len(h))):
        d = new[i] - h[i]  # (M,W)
        step, size = step + ct.sum(d * d, axis=1, keepdims=True), size + ct.sum(h[i] * h[i], axis=1, keepdims=True)
    return ct.sqrt(step) / ct.maximum(ct.sqrt(size), 1e-20)


def gate_of_tiles(xs, l, w, EXACT):
    """Probability (M,1) of the halt head on states xs: sigmoid(gate_v . gelu(gate_w x + gate_s[l]) + gate_b)."""
    odds = ct.zeros((xs[0].shape[0], 1), ct.float32)
    xs = cast(xs, w.gate_w.dtype)
    for i in ct.static_iter(range(len(xs))):
        W = xs[i].shape[1]
        g = gelu(linear(xs, w.gate_w, i, W) + ct.load(w.gate_s, (l, i), (1, W)), EXACT)
        odds = odds + ct.sum(g * ct.load(w.gate_v, (0, i), (1, W)), axis=1, keepdims=True)
    return 1.0 / (1.0 + ct.exp2((odds + w.gate_b) * -LOG2E))


def write_trace(trace, seen, last, active, l, at, p):
    """One loop of the trace; seen: the four statistics (M,1), last (M,1): what the tokens say now."""
    for i in ct.static_iter(range(4)):
        values = ct.reshape(ct.where(active, seen[i], NAN), (1, 1, p.S, p.TP))
        ct.store(trace.stats, (l, i, at.b, at.r), values, allow_tma=False)
    ct.store(trace.predictions, (l, at.b, at.r), ct.reshape(last, (1, p.S, p.TP)), allow_tma=False)


def score_and_trace(h, y, active, last, l, at, w, trace, p):
    """The score (M,1) of loop l + 1, which took the states h to y, and what the tokens say now; writes the trace."""
    score = ct.full(last.shape, NAN, ct.float32)
    if p.TRACE or ct.static_eval(p.RULE in (CONFIDENCE, ENTROPY)):
        confidence, entropy, best = readout(y, w, p.VT, p.C, p.TRACE or p.RULE == ENTROPY, p.TRACE)
        if p.RULE == CONFIDENCE:
            score = confidence
        if p.RULE == ENTROPY:
            score = entropy
    if p.RULE == KL:
        score = divergence(log_softmax(y, w, p.VT, p.C), trace.previous, l, at, w.V, p)
    if p.TRACE or p.RULE == DELTA:
        delta = delta_of_tiles(y, h)
        if p.RULE == DELTA and p.EULER:
            score = delta / ct.abs(w.alpha)
        elif p.RULE == DELTA:
            score = delta
    if p.RULE == GATE:
        score = gate_of_tiles(y, l, w, p.EXACT)
    if p.TRACE:
        last = ct.where(active, best, last)
        write_trace(trace, (entropy, confidence, delta, score), last, active, l, at, p)
    return score, last
