"""One transformer block on tiles, with injection, update, readout and score: what kernels of a whole loop share."""


from kernels.halt import CONFIDENCE, DELTA, ENTROPY, GATE, KL
from kernels.tile import APPROX, FLOOR, LN2, LOG2E, NAN, ZERO, Flag, Int, cast, ct, dot, finite, gelu, pair_sum

LOOP_NORM, DECAY = range(2)  # rows of `vectors`


def layer_norm(xs, C: Int):
    """Layer norm over the C channels of xs, tiles (M,W); its weights are in the product that follows."""
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


def times(xs, vectors, row: Int):
    """The channels of xs times vectors[row]."""
    out = ()
    for i in ct.static_iter(range(len(xs))):
        out += (xs[i] * ct.load(vectors, (row, i), (1, xs[i].shape[1])),)
    return out


def linear(xs, w, j, N: Int):
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


def heads(x, HS: Int):
    """(M, G*HS) -> (G, M, HS)"""
    return ct.permute(ct.reshape(x, (x.shape[0], x.shape[1] // HS, HS)), (1, 0, 2))


def attend_block(q, k, v, allowed, HS: Int):
    """Softmax attention within the rows of a block: q, k, v (M, G*HS) -> (M, G*HS), same dtype. allowed (1,M,M)."""
    M = q.shape[0]
    q, k, v = heads(q, HS), heads(k, HS), heads(v, HS)
    G = q.shape[0]
    s = dot(q, ct.permute(k, (0, 2, 1)), ct.zeros((G, M, M), ct.float32)) * (LOG2E / HS ** 0.5)
    s = ct.where(allowed, s, FLOOR)
    p = ct.exp2(s - ct.max(s, axis=2, keepdims=True), flush_to_zero=True)
    z = ct.sum(p, axis=2, keepdims=True)
    o = ct.truediv(dot(p.astype(v.dtype), v, ct.zeros((G, M, HS), ct.float32)), z, rounding_mode=APPROX)
    return ct.reshape(ct.permute(o.astype(v.dtype), (1, 0, 2)), (M, G * HS))


def attend_rows(qkv, parity, b, r, n, allowed, HS: Int, TP: Int, GW: Int):
    """attend_block over the rows of blocks 0..r of a sequence, whose q, k, v lie in qkv (5,B,T,C): q, then k and v of
    even loops, then of odd ones."""
    G = GW // HS
    q = heads(ct.reshape(ct.load(qkv, (0, b, r, n), (1, 1, TP, GW), padding_mode=ZERO, allow_tma=False), (TP, GW)), HS)
    top, z = ct.full((G, TP, 1), FLOOR, ct.float32), ct.zeros((G, TP, 1), ct.float32)
    o = ct.zeros((G, TP, HS), ct.float32)
    for j in range(0, r + 1):
        k = ct.load(qkv, (2 * parity + 1, b, j, n), (1, 1, TP, GW), padding_mode=ZERO, allow_tma=False)
        v = ct.load(qkv, (2 * parity + 2, b, j, n), (1, 1, TP, GW), padding_mode=ZERO, allow_tma=False)
        k, v = heads(ct.reshape(k, (TP, GW)), HS), heads(ct.reshape(v, (TP, GW)), HS)
        s = dot(q, ct.permute(k, (0, 2, 1)), ct.zeros((G, TP, TP), ct.float32)) * (LOG2E / HS ** 0.5)
        s = ct.where(allowed | (j < r), s, FLOOR)
        higher = ct.maximum(top, ct.max(s, axis=2, keepdims=True))
        shrink = ct.exp2(top - higher, flush_to_zero=True)
        p = ct.exp2(s - higher, flush_to_zero=True)
        z = z * shrink + ct.sum(p, axis=2, keepdims=True)
        o = dot(p.astype(v.dtype), v, o * shrink)
        top = higher
    o = ct.truediv(o, z, rounding_mode=APPROX).astype(qkv.dtype)
    return ct.reshape(ct.permute(o, (1, 0, 2)), (TP, GW))


def rows(x, b, r, i, S: Int, TP: Int, W: Int):
    """Channels i*W .. of the rows of a block: S sequences of TP rows of x (B,T,C) -> (S*TP, W) float32."""
    return ct.reshape(ct.load(x, (b, r, i), (S, TP, W), padding_mode=ZERO), (S * TP, W)).astype(ct.float32)


def tokens(x, b, r, S: Int, TP: Int):
    """The same of x (B,T) -> (S*TP, 1)."""
    return ct.reshape(ct.load(x, (b, r), (S, TP), padding_mode=ZERO, allow_tma=False), (S * TP, 1))


def states_of(x, b, r, S: Int, TP: Int, W: Int, C: Int):
    """The rows of a block as a tuple of tiles of W channels."""
    out = ()
    for i in ct.static_iter(range(C // W)):
        out += (rows(x, b, r, i, S, TP, W),)
    return out


def inject(h, x0, injected, mix, vectors, l, b, r, INJECT: Int, S: Int, TP: Int, W: Int):
    """What the block of loop l + 1 reads, before the step encoding; injected holds what x0 contributes."""
    out = ()
    for i in ct.static_iter(range(len(h))):
        u = h[i]
        if INJECT != 0 and l > 0:
            if INJECT == 1:
                u = u + rows(x0, b, r, i, S, TP, W)
            else:
                x = rows(injected, b, r, i, S, TP, W)
            if INJECT == 2:
                u = u * ct.load(vectors, (DECAY, i), (1, W)) + x
            if INJECT == 3:
                u = linear(cast(h, mix.dtype), mix, i, W) + x
        out += (u,)
    return out


def readout(xs, head, V, VT: Int, C: Int, ENTROPY_TOO: Flag, BEST_TOO: Flag):
    """Softmax statistics (M,1) of the readout of states xs: confidence, and if asked for entropy and arg-max."""
    a = cast(layer_norm(xs, C), head.dtype)
    column = ct.arange(VT, dtype=ct.int32)[None, :]
    M = xs[0].shape[0]
    top, total = ct.full((M, 1), FLOOR, ct.float32), ct.zeros((M, 1), ct.float32)
    mixed, best = ct.zeros((M, 1), ct.float32), ct.zeros((M, 1), ct.int32)
    for j in range(0, ct.cdiv(V, VT)):  # once, which the compiler must not know
        z = ct.where(column < V, finite(linear(a, head, j, VT)), 2 * FLOOR)
        top = ct.max(z, axis=1, keepdims=True)
        t = (z - top) * LOG2E
        e = ct.exp2(t, flush_to_zero=True)
        if ENTROPY_TOO:
            total, mixed = ct.reduce((e, e * t), 1, pair_sum, (0.0, 0.0), keepdims=True)
        else:
            total = ct.sum(e, axis=1, keepdims=True)
        if BEST_TOO:
            best = ct.min(ct.where(z == top, column, VT), axis=1, keepdims=True)
    return 1.0 / total, (ct.log2(total) - mixed / total) * LN2, best


def log_softmax(xs, head, V, VT: Int, C: Int):
    """(M,VT) of states xs; columns from V on are far below every other."""
    z = linear(cast(layer_norm(xs, C), head.dtype), head, 0, VT)
    column = ct.arange(VT, dtype=ct.int32)[None, :]
    z = ct.where(column < V, finite(z), 2 * FLOOR)
    z = z - ct.max(z, axis=1, keepdims=True)
    return z - LN2 * ct.log2(ct.sum(ct.exp2(z * LOG2E), axis=1, keepdims=True))


def moved_by(new, h):
    """norm(new - h) / norm(h) of each token, (M,1)."""
    step = size = ct.zeros((h[0].shape[0], 1), ct.float32)
    for i in ct.static_iter(range(len(h))):
        d = new[i] - h[i]
        step, size = step + ct.sum(d * d, axis=1, keepdims=True), size + ct.sum(h[i] * h[i], axis=1, keepdims=True)
    return ct.sqrt(step) / ct.maximum(ct.sqrt(size), 1e-20)


def gate_of(xs, gate_w, gate_s, gate_v, gate_b, l, EXACT: Flag):
    """Probability (M,1) of the halt head on states xs; gate_s (L,C) holds what the step encoding contributes."""
    odds = ct.zeros((xs[0].shape[0], 1), ct.float32)
    xs = cast(xs, gate_w.dtype)
    for i in ct.static_iter(range(len(xs))):
        W = xs[i].shape[1]
        g = gelu(linear(xs, gate_w, i, W) + ct.load(gate_s, (l, i), (1, W)), EXACT)
        odds = odds + ct.sum(g * ct.load(gate_v, (0, i), (1, W)), axis=1, keepdims=True)
    return 1.0 / (1.0 + ct.exp2((odds + gate_b) * -LOG2E))


def divergence(logp, previous, l, b, r, V, S: Int, TP: Int, VT: Int):
    """KL (M,1) of this loop's distribution from the one of the loop before, which previous (B,T,VT) keeps."""
    logq = ct.reshape(ct.load(previous, (b, r, 0), (S, TP, VT), padding_mode=ZERO, allow_tma=False), (S * TP, VT))
    ct.store(previous, (b, r, 0), ct.reshape(logp, (S, TP, VT)), allow_tma=False)
    inside = ct.arange(VT, dtype=ct.int32)[None, :] < V
    kl = ct.sum(ct.where(inside, ct.exp2(logp * LOG2E) * (logp - logq), 0.0), axis=1, keepdims=True)
    return ct.where(l > 0, kl, NAN)


def project(a, wqkv, n, groups, GW: Int):
    """q, k, v (M,GW) of the n-th group of heads."""
    q = linear(a, wqkv, n, GW).astype(wqkv.dtype)
    k = linear(a, wqkv, n + groups, GW).astype(wqkv.dtype)
    v = linear(a, wqkv, n + 2 * groups, GW).astype(wqkv.dtype)
    return q, k, v


def self_attention(y, a, wqkv, wproj, allowed, groups, HS: Int, GW: Int):
    """y + attention of the normed a, all rows within this block."""
    for n in range(0, groups):
        q, k, v = project(a, wqkv, n, groups, GW)
        y = accumulate(y, attend_block(q, k, v, allowed, HS), wproj, n)
    return y


def share_rows(a, wqkv, qkv, l, b, r, groups, TP: Int, GW: Int):
    """Write this block's q, k, v of loop l + 1 where the other blocks of the sequence can read them."""
    for n in range(0, groups):
        q, k, v = project(a, wqkv, n, groups, GW)
        ct.store(qkv, (0, b, r, n), ct.reshape(q, (1, 1, TP, GW)), allow_tma=False)
        ct.store(qkv, (2 * (l % 2) + 1, b, r, n), ct.reshape(k, (1, 1, TP, GW)), allow_tma=False)
        ct.store(qkv, (2 * (l % 2) + 2, b, r, n), ct.reshape(v, (1, 1, TP, GW)), allow_tma=False)


def shifted(u, steps, l):
    """u plus the step encoding of loop l + 1."""
    out = ()
    for i in ct.static_iter(range(len(u))):
        out += (u[i] + ct.load(steps, (l, i), (1, u[i].shape[1])),)
    return out


def stepped(h, candidate, u, alpha):
    """Euler: h + alpha * (candidate - u)"""
    out = ()
    for i in ct.static_iter(range(len(h))):
        out += (h[i] + alpha * (candidate[i] - u[i]),)
    return out


def frozen(active, new, h):
    """The states of active tokens move, the others stay."""
    out = ()
    for i in ct.static_iter(range(len(h))):
        out += (ct.where(active, new[i], h[i]),)
    return out


def write_trace(stats, predictions, seen, last, active, l, b, r, S: Int, TP: Int):
    """One loop of the trace: stats (L,4,B,T), NaN where a token had halted; predictions (L,B,T)."""
    for i in ct.static_iter(range(4)):
        tile = ct.reshape(ct.where(active, seen[i], NAN), (1, 1, S, TP))
        ct.store(stats, (l, i, b, r), tile, allow_tma=False)
    ct.store(predictions, (l, b, r), ct.reshape(last, (1, S, TP)), allow_tma=False)


def judge(h, y, active, last, l, b, r, head, gate_w, gate_s, gate_v, gate_b, previous, stats, predictions, V,
          alpha, S: Int, TP: Int, C: Int, VT: Int, RULE: Int, EULER: Flag, TRACE: Flag, EXACT: Flag):
    """The score (M,1) of loop l + 1, which took the states h to y, and what the tokens say now; writes the trace."""
    score = ct.full(last.shape, NAN, ct.float32)
    if TRACE or ct.static_eval(RULE in (CONFIDENCE, ENTROPY)):
        confidence, entropy, best = readout(y, head, V, VT, C, TRACE or RULE == ENTROPY, TRACE)
        if RULE == CONFIDENCE:
            score = confidence
        if RULE == ENTROPY:
            score = entropy
    if RULE == KL:
        score = divergence(log_softmax(y, head, V, VT, C), previous, l, b, r, V, S, TP, VT)
    if TRACE or RULE == DELTA:
        delta = moved_by(y, h)
        if RULE == DELTA and EULER:
            score = delta / ct.abs(alpha)
        elif RULE == DELTA:
            score = delta
    if RULE == GATE:
        score = gate_of(y, gate_w, gate_s, gate_v, gate_b, l, EXACT)
    if TRACE:
        last = ct.where(active, best, last)
        write_trace(stats, predictions, (entropy, confidence, delta, score), last, active, l, b, r, S, TP)
    return score, last
