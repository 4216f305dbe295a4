"""Writing in one launch: kernel, its sizes, and decode_n_tokens; the reference is generate.py with its cache.

A sequence has a group of blocks that stay for all of its tokens, each with a role and two matrices in registers:

    MLP      a slice of the hidden units, 4C / FT blocks
    KEY      a head's query and new key, and how well they match
    VALUE    a head's new value, and what it adds to the output
    PAST     a head's query, the keys and values of earlier tokens, and what these add to the output
    JUDGE    readout, halting, sampling, and the next token

A loop takes two exchanges, attention and MLP. Each block adds up the shares of the others for itself, in the same
order, so all hold the same state, to the bit. While the judge reads out loop l, the others already attend in loop
l + 1. If the token halts, what they computed are the keys and values that its frozen state owes to later tokens.
"""
from dataclasses import dataclass
from typing import Any

import torch

from kernels import tile
from kernels.backend import product_dtype, why_not_tensors
from kernels.block import delta_of_tiles
from kernels.exchange import (
    ENDS,
    NEW,
    NEW_SCORE,
    OLD,
    OLD_SCORE,
    OLD_TOTAL,
    STOPS,
    TOKEN,
    Exchange,
    await_attention,
    await_shares,
    publish_judgement,
    publish_row,
    publish_score,
    slices_of_mlp,
)
from kernels.halt import CONFIDENCE, DELTA, ENTROPY, GATE, KL, NUMBER, halts_on_tiles
from kernels.loop import LOOP_VOCABULARY, beyond_kernels, pack_weights
from kernels.tile import FLOOR, LN2, LOG2E, NAN, ZERO, Const, constants, ct, finite, gelu, next_power_of_2, pair_sum

ROLES = MLP, KEY, VALUE, PAST, JUDGE = range(5)
POLLS = 1 << 22  # before a block gives up: seconds


# products of one row -------------------------------------------------------------------------------------------------
# Loads without TMA keep a matrix in registers, as operands of mma, from one token to the next. With it the compiler
# adds warps that fetch it again for every loop.
def padded(n, p):
    """n columns, or as many as a product has at least."""
    return max(n, p.LEAST)


def transposed(w, row, ROWS, column, COLUMNS, p):
    """Some rows and columns of w (N,K), from these on: a tile (padded(COLUMNS),padded(ROWS)) with zeros beyond.

    A load of bfloat16 reads 2 bytes per thread, a gather 16. And what a gather brings is an operand of mma as it is.
    """
    i = ct.arange(ct.static_eval(padded(ROWS, p)), dtype=ct.int32)[None, :]
    j = ct.arange(ct.static_eval(padded(COLUMNS, p)), dtype=ct.int32)[:, None]
    inside = (i < ROWS) & (row + i < w.shape[0]) & (j < COLUMNS)
    return ct.gather(w, (row + i, column + j), mask=inside, check_bounds=False, latency=1)


def hold_inputs(w, r, R, p):
    """Rows r*R .. (r+1)*R of w (N,C), transposed, as tiles (W,padded(R))."""
    out = ()
    for i, W in ct.static_iter(p.TILES):
        out += (transposed(w, r * R, R, i * W, W, p),)
    return out


def hold_outputs(w, r, R, p):
    """Columns r*R .. (r+1)*R of w (C,K), transposed, as tiles (padded(R),W)."""
    out = ()
    for i, W in ct.static_iter(p.TILES):
        out += (transposed(w, i * W, W, r * R, R, p),)
    return out


def times(x, w):
    """x (M,K) @ w (K,N) in w's dtype, (M,N) float32, for M = 1 or 16: mma takes 16 rows at least."""
    rows = ct.broadcast_to(x.astype(w.dtype), (16, w.shape[0]))
    return ct.extract(ct.mma(rows, w, ct.zeros((16, w.shape[1]), ct.float32)), (0, 0), (x.shape[0], w.shape[1]))


def contract(xs, ws):
    """The product of a whole row, tiles (1,W), with what hold_inputs holds: (1,R)."""
    total = times(xs[0], ws[0])
    for i in ct.static_iter(range(1, len(xs))):
        total = total + times(xs[i], ws[i])
    return total


def expand(x, ws):
    """The product of x (1,R) with what hold_outputs holds: tiles (1,W)."""
    out = ()
    for w in ct.static_iter(ws):
        out += (times(x, w),)
    return out


def load_row(x, at, ones, p):
    """A row of C channels of x, at the index `at` of its other dimensions, as tiles (1,W) float32; ones: (1, .., 1),
    as many as `at` has."""
    out = ()
    for i, W in ct.static_iter(p.TILES):
        row = ct.load(x, at + (i,), ones + (W,), allow_tma=False, check_bounds=False)
        out += (ct.reshape(row, (1, W)).astype(ct.float32),)
    return out


def normed(xs, C):
    """layer_norm of block.py without its divisions, which have a slow path."""
    total = square = ct.zeros((1, 1), ct.float32)
    for x in ct.static_iter(xs):
        t, q = ct.reduce((x, x * x), 1, pair_sum, (0.0, 0.0), keepdims=True)
        total, square = total + t, square + q
    mean = total * (1.0 / C)
    scale = ct.rsqrt(ct.maximum(square * (1.0 / C) - mean * mean, 0.0) + 1e-5)
    out = ()
    for x in ct.static_iter(xs):
        out += ((x - mean) * scale,)
    return out


def add_rows(xs, ys):
    out = ()
    for i in ct.static_iter(range(len(xs))):
        out += (xs[i] + ys[i],)
    return out


def multiply_rows(xs, ys):
    out = ()
    for i in ct.static_iter(range(len(xs))):
        out += (xs[i] * ys[i],)
    return out


# roles ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class DecodeSizes:
    """Constants of the kernel."""
    TILES: Any     # (index, width) of the tiles of a row of C channels
    THREADS: int   # of a block; no tile is wider
    C: int
    NH: int        # heads
    HS: int        # channels of a head
    FT: int        # hidden units of a slice of the MLP
    SLICES: int    # 4C / FT
    T: int         # tokens there is room for in the cache
    VT: int        # the power of two from the vocabulary on
    RULE: int      # number of the halting rule
    DECAY: bool    # the injection a h + b x0 instead of h + x0
    INJECTS: bool  # x0 re-enters from loop 2 on
    STEPS: bool    # a step encoding is added
    EULER: bool    # h + alpha * (candidate - u) instead of candidate
    NORM: bool     # layer norm after every loop
    TOP_K: bool    # only the likeliest tokens can be drawn
    LEAST: int     # columns of a product, which is filled up with zeros
    BOX: Any       # Box of exchange.py, for many rows; else ()


@dataclass(frozen=True)
class DecodeWeights:
    """As Weights of block.py, each layer norm's weight in the product that follows it."""
    wte: Any      # (V,C)
    wqkv: Any     # (3C,C)
    wproj: Any    # (C,C)
    wfc: Any      # (4C,C)
    wout: Any     # (C,4C)
    head: Any     # (V,C)
    vectors: Any  # (3,C) float32: weight of the loop norm, decay a and gain b of the injection
    steps: Any    # (L,C) float32 step encodings
    gate_w: Any   # (C,C)
    gate_s: Any   # (L,C) float32
    gate_v: Any   # (1,C) float32


@dataclass(frozen=True)
class Sequences:
    """R sequences, N tokens of each that are read, and written after them."""
    kv: Any         # (L*2*R*NH,T,HS) the cache
    token: Any      # (R,1) int32: what is read first
    first: Any      # (R,1) int32: where it stands
    places: Any     # (R,N,C) float32: what positions add to the embeddings
    scale: Any      # (R,N) float32 of the queries
    threshold: Any  # (R,N) float32
    limit: Any      # (R,N) int32: loops at most
    noise: Any      # (N,R,V) float32, added to logits / temperature
    ends: Any       # (1,V) int32: 1 for tokens after which a sequence leaves
    tokens: Any     # (R,N) int32 out: what is written; -1 after the end
    loops: Any      # (R,N) int32 out: loops of the token that wrote it


@dataclass(frozen=True)
class Numbers:
    N: Any
    L: Any
    V: Any
    min_loops: Any
    alpha: Any        # step size of Euler
    gate_b: Any       # bias of the halt head's readout
    temperature: Any  # its inverse
    top_k: Any


def inject_row(h, again, decay, p):
    """The state with what re-enters."""
    if p.DECAY:
        h = multiply_rows(decay, h)
    return add_rows(h, again)


def euler_row(h, candidate, u, alpha):
    """h + alpha * (candidate - u)."""
    out = ()
    for i in ct.static_iter(range(len(h))):
        out += (h[i] + alpha * (candidate[i] - u[i]),)
    return out


def load_past(s, l, b, r, p):
    """Keys, transposed (HS,T), and values (T,HS) of head r in loop l + 1."""
    R = s.token.shape[0]
    place, channel = ct.arange(p.T, dtype=ct.int32), ct.arange(p.HS, dtype=ct.int32)
    k = ct.gather(s.kv, ((2 * l * R + b) * p.NH + r, place[None, :], channel[:, None]), check_bounds=False, latency=1)
    v = ct.gather(s.kv, (((2 * l + 1) * R + b) * p.NH + r, place[:, None], channel[None, :]), check_bounds=False,
                  latency=1)
    return k, v


def attend_past(q, k, v, at, x, b, r, wproj, turn, p):
    """Publish what head r sees of the tokens before `at`; q (1,HS), in units of log 2."""
    seen = ct.arange(p.T, dtype=ct.int32)[None, :] < at
    score = ct.where(seen, times(q, k), FLOOR)  # (1,T)
    top = ct.max(score, axis=1, keepdims=True)
    weight = ct.where(seen, ct.exp2(score - top, flush_to_zero=True), 0.0)
    publish_row(x, b, OLD * p.NH + r, expand(times(weight, v), wproj), turn, p)
    publish_score(x, b, OLD_SCORE, r, top, turn, p)
    publish_score(x, b, OLD_TOTAL, r, ct.sum(weight, axis=1, keepdims=True), turn, p)


def write_past(s, which, x, held, bare, l, end, at, b, r, w, p):
    """Keep x (1,HS), keys (0) or values (1) of head r, as those of loops l + 1 .. end. Of a frozen state they are the
    same in all loops, unless step encodings are added to it; held: the matrix that x is a product with."""
    R = s.token.shape[0]
    for j in range(l, end):
        if p.STEPS and j > l:
            x = contract(normed(add_rows(bare, load_row(w.steps, (j,), (1,), p)), p.C), held).astype(s.kv.dtype)
        ct.store(s.kv, (((2 * j + which) * R + b) * p.NH + r, at, 0), ct.reshape(x, (1, 1, p.HS)), allow_tma=False,
                 check_bounds=False)


def score_of(h, before, logp, logq, l, w, m, p):
    """The score (1,1) of loop l, which took the states `before` to h, by the rule."""
    score = ct.full((1, 1), NAN, ct.float32)
    if p.RULE == CONFIDENCE:
        score = ct.exp2(ct.max(logp, axis=1, keepdims=True) * LOG2E)
    if p.RULE == ENTROPY:
        score = -ct.sum(ct.exp2(logp * LOG2E) * ct.maximum(logp, FLOOR), axis=1, keepdims=True)
    if p.RULE == KL:
        inside = ct.arange(p.VT, dtype=ct.int32)[None, :] < m.V
        score = ct.sum(ct.where(inside, ct.exp2(logp * LOG2E) * (logp - logq), 0.0), axis=1, keepdims=True)
        score = ct.where(l > 1, score, NAN)  # loop 1 has none before it
    if p.RULE == DELTA:
        score = delta_of_tiles(h, before)
        if p.EULER:
            score = score / ct.abs(m.alpha)
    if p.RULE == GATE:
        odds = ct.zeros((1, 1), ct.float32)
        for t in ct.static_iter(range(len(p.TILES))):
            i, W = p.TILES[t]
            for j in ct.static_iter(range(W // 64)):
                r = i * (W // 64) + j
                g = gelu(contract(h, hold_inputs(w.gate_w, r, 64, p)) + ct.load(
                    w.gate_s, (ct.maximum(l - 1, 0), r), (1, 64), allow_tma=False), False)
                odds = odds + ct.sum(g * ct.load(w.gate_v, (0, r), (1, 64), allow_tma=False), axis=1, keepdims=True)
        score = 1.0 / (1.0 + ct.exp2((odds + m.gate_b) * -LOG2E))
    return score


def log_softmax(z, V, VT):
    """Of logits z (1,VT); columns from V on are far below every other."""
    z = ct.where(ct.arange(VT, dtype=ct.int32)[None, :] < V, finite(z), 2 * FLOOR)
    z = z - ct.max(z, axis=1, keepdims=True)
    return z - LN2 * ct.log2(ct.sum(ct.exp2(z * LOG2E), axis=1, keepdims=True))


def draw(logp, noise, ends, m, p):
    """Twice the token that is drawn, plus one if it ends the sequence: the arg-max of logp / temperature + noise among
    the top_k likeliest, equal ones all staying."""
    column = ct.arange(p.VT, dtype=ct.int32)[None, :]
    drawn = column < m.V
    if p.TOP_K:
        likelier = ct.reshape(logp, (p.VT, 1)) > logp  # (VT,VT)
        drawn = drawn & (ct.sum(likelier.astype(ct.int32), axis=0, keepdims=True) < m.top_k)
    pick = ct.where(drawn, logp * m.temperature + noise, 4 * FLOOR)
    best = ct.where(pick == ct.max(pick, axis=1, keepdims=True), 2 * column + ends, 2 * p.VT)
    return ct.minimum(ct.min(best), 2 * m.V - 1)  # of logits that are NaN, too, a token


def play(ROLE, b, r, held, w, s, m, x, p):
    """A block's part in all tokens of sequence b; r: which head or slice; held: its two matrices."""
    turn, shares, polls, going = 2, 2, POLLS, 1  # shares: the turn of the MLP, which has none where a token halts
    tok = ct.load(s.token, (b, 0), (1, 1), allow_tma=False).item()
    at = ct.load(s.first, (b, 0), (1, 1), allow_tma=False).item()
    norm, decay = load_row(w.vectors, (0,), (1,), p), load_row(w.vectors, (1,), (1,), p)
    gain = load_row(w.vectors, (2,), (1,), p)
    logq = ends = ct.zeros((1, p.VT), ct.int32)
    if ROLE == JUDGE:
        logq = ct.zeros((1, p.VT), ct.float32)
        ends = ct.load(s.ends, (0, 0), (1, p.VT), padding_mode=ZERO, allow_tma=False)
    for n in range(0, m.N):
        if going > 0:
            x0 = add_rows(load_row(w.wte, (tok,), (1,), p), load_row(s.places, (b, n), (1, 1), p))
            again = x0
            if p.DECAY:
                again = multiply_rows(gain, x0)
            h = before = x0
            scale = ct.load(s.scale, (b, n), (1, 1), allow_tma=False) * (LOG2E / p.HS ** 0.5)
            if ROLE == PAST:
                count = 0
                while (count < 2 * n) & (polls >= 0):
                    polls -= 1
                    count = ct.atomic_add(x.written, (b, r), 0, memory_order=ct.MemoryOrder.ACQUIRE,
                                          memory_scope=ct.MemoryScope.DEVICE)
                k, v = load_past(s, 0, b, r, p)
            if ROLE == JUDGE:
                noise = ct.reshape(ct.load(s.noise, (n, b, 0), (1, 1, p.VT), padding_mode=ZERO, allow_tma=False),
                                   (1, p.VT))
                threshold = ct.load(s.threshold, (b, n), (1, 1), allow_tma=False)
                limit = ct.load(s.limit, (b, n), (1, 1), allow_tma=False)
            step = x0
            if p.STEPS:
                step = load_row(w.steps, (0,), (1,), p)
            alive = 1
            for l in range(0, m.L + 1):
                if alive > 0:
                    bare = h
                    if p.INJECTS and l > 0:
                        bare = inject_row(h, again, decay, p)
                    u = bare
                    if p.STEPS:
                        u = add_rows(bare, step)
                    if ROLE == KEY:
                        a = normed(u, p.C)
                        k = contract(a, held[1]).astype(s.kv.dtype)
                        score = ct.sum(contract(a, held[0]) * k.astype(ct.float32), axis=1, keepdims=True) * scale
                        publish_score(x, b, NEW_SCORE, r, score, turn, p)
                    if ROLE == VALUE:
                        v = contract(normed(u, p.C), held[0]).astype(s.kv.dtype)
                        publish_row(x, b, NEW * p.NH + r, expand(v, held[1]), turn, p)
                    if ROLE == PAST:
                        q = contract(normed(u, p.C), held[0]) * scale
                        attend_past(q, k, v, at, x, b, r, held[1], turn, p)
                        k, v = load_past(s, ct.minimum(l + 1, m.L - 1), b, r, p)  # before waiting
                    if ROLE == JUDGE:
                        logp = log_softmax(contract(normed(h, p.C), held[0]), m.V, p.VT)
                        score = score_of(h, before, logp, logq, l, w, m, p)
                        logq, before = logp, h
                        halted = halts_on_tiles(score, threshold, limit, l, m.min_loops, p.RULE) & (l > 0)
                        drawn = draw(logp, noise, ends, m, p)
                        word = ct.where(halted, STOPS + (drawn & 1) * ENDS + (drawn >> 1 << TOKEN), 0)
                        publish_judgement(x, b, word, turn, p)
                    if p.STEPS:
                        step = load_row(w.steps, (ct.minimum(l + 1, m.L - 1),), (1,), p)  # before waiting
                    y, word, polls = await_attention(u, b, turn, polls, x, p)
                    last = l + 1
                    if (word & STOPS) > 0:
                        last = m.L
                    if ROLE == KEY:
                        write_past(s, 0, k, held[1], bare, l, last, at, b, r, w, p)
                    if ROLE == VALUE:
                        write_past(s, 1, v, held[0], bare, l, last, at, b, r, w, p)
                    if (word & STOPS) > 0:
                        tok, alive = word >> TOKEN, 0
                        if ROLE == JUDGE:
                            ct.store(s.tokens, (b, n), ct.full((1, 1), 0, ct.int32) + tok, allow_tma=False)
                            ct.store(s.loops, (b, n), ct.full((1, 1), 0, ct.int32) + l, allow_tma=False)
                        if (word & ENDS) > 0:
                            going = 0
                    else:
                        if ROLE == MLP:
                            g = gelu(contract(normed(y, p.C), held[0]), False)
                            publish_row(x, b, 2 * p.NH + r, expand(g, held[1]), shares, p)
                        new, polls = await_shares(slices_of_mlp, y, b, shares, polls, x, p)
                        shares += 1
                        if p.EULER:
                            new = euler_row(h, new, u, m.alpha)
                        if p.NORM:
                            new = multiply_rows(normed(new, p.C), norm)
                        h = new
                    turn += 1
            at += 1
            if ct.static_eval(ROLE in (KEY, VALUE)):
                ct.atomic_add(x.written, (b, r), 1, memory_order=ct.MemoryOrder.RELEASE,
                              memory_scope=ct.MemoryScope.DEVICE)
    if polls < 0:
        ct.store(x.state, (1,), ct.full((1,), 1, ct.int32), allow_tma=False)


@ct.kernel
def looplm_decode_kernel(
        weights,        # the eleven tensors of DecodeWeights
        sequences,      # the eleven tensors of Sequences
        numbers,        # the eight of Numbers
        exchange,       # the three tensors of Exchange
        plan: Const):   # DecodeSizes
    """N tokens of R sequences. Grid (R * (3 NH + SLICES + 1),), all of whose blocks must be resident at once; tickets
    see to it that those who wait for each other have started."""
    w, s, m, x = DecodeWeights(*weights), Sequences(*sequences), Numbers(*numbers), Exchange(*exchange)
    p = DecodeSizes(*plan)
    group = p.SLICES + 3 * p.NH + 1
    ticket = ct.atomic_add(x.state, 0, 1)
    b, r = ticket // group, ticket % group
    if r < p.SLICES:
        play(MLP, b, r, (hold_inputs(w.wfc, r, p.FT, p), hold_outputs(w.wout, r, p.FT, p)), w, s, m, x, p)
    elif r < p.SLICES + p.NH:
        h = r - p.SLICES
        play(KEY, b, h, (hold_inputs(w.wqkv, h, p.HS, p), hold_inputs(w.wqkv, p.NH + h, p.HS, p)), w, s, m, x, p)
    elif r < p.SLICES + 2 * p.NH:
        h = r - p.SLICES - p.NH
        held = hold_inputs(w.wqkv, 2 * p.NH + h, p.HS, p), hold_outputs(w.wproj, h, p.HS, p)
        play(VALUE, b, h, held, w, s, m, x, p)
    elif r < p.SLICES + 3 * p.NH:
        h = r - p.SLICES - 2 * p.NH
        play(PAST, b, h, (hold_inputs(w.wqkv, h, p.HS, p), hold_outputs(w.wproj, h, p.HS, p)), w, s, m, x, p)
    else:
        play(JUDGE, b, 0, (hold_inputs(w.head, 0, p.VT, p),), w, s, m, x, p)


# one call ------------------------------------------------------------------------------------------------------------
def row_tiles(C):
    """The tiles of a row of C channels, and the threads of a block: enough for its two matrices in registers."""
    return {64: (((0, 64),), 128), 128: (((0, 128),), 128), 256: (((0, 256),), 256),
            384: (((0, 256), (2, 128)), 256)}[C]


def decode_sizes(c, T, top_k):
    """DecodeSizes for the settings of a model, T tokens of room, and whether only the likeliest tokens can be drawn."""
    tiles, threads = row_tiles(c.n_embd)
    return DecodeSizes(
        TILES=tiles, THREADS=threads, C=c.n_embd, NH=c.n_head, HS=c.n_embd // c.n_head, FT=64,
        SLICES=4 * c.n_embd // 64, T=T, VT=max(16, next_power_of_2(c.vocab_size)), RULE=NUMBER[c.halt],
        DECAY=c.inject == "decay", INJECTS=c.inject != "none", STEPS=c.step_encoding != "none",
        EULER=c.update == "euler", NORM=c.loop_norm, TOP_K=0 < top_k < c.vocab_size, LEAST=1, BOX=())


def blocks_per_sequence(c):
    """Blocks of a launch that a sequence takes."""
    return 4 * c.n_embd // 64 + 3 * c.n_head + 1


def why_not_decode_kernel(spec, R, T, L):
    """What the decode kernel does not do of a model and R sequences of T tokens in L loops, "" if it does all."""
    c, blocks = spec.config, R * blocks_per_sequence(spec.config)
    asks = beyond_kernels(spec, T, L) | {
        f"injection {c.inject!r}": c.inject == "concat",
        f"a vocabulary of {c.vocab_size}": c.vocab_size > LOOP_VOCABULARY,
        f"weights in {str(product_dtype(spec.head))[6:]}": product_dtype(spec.head) != torch.bfloat16,
        f"{R} sequences at once": blocks > tile.gpu(spec.head.device).multi_processor_count,
        "GPUs other than Hopper": tile.gpu(spec.head.device).major != 9}
    what = next((what for what, asked in asks.items() if asked), "")
    return f"the decode kernel does not do {what}" if what else why_not_tensors(spec.head)


def exchange_buffers(c, R, device):
    """The tensors of Exchange."""
    shapes = (2, R, 2 * c.n_head + 4 * c.n_embd // 64 + 2, c.n_embd), (R, c.n_head), (2,)
    return tuple(torch.zeros(shape, dtype=torch.int32, device=device) for shape in shapes)


def decode_arguments(n, spec, embedding, kv, L, token, first, places, scale, threshold, limit, noise, ends, temperature,
                     top_k):
    """The tensors of DecodeWeights and of Sequences, and Numbers; the arguments are decode_n_tokens'."""
    c, (R, N), device = spec.config, scale.shape, kv.device
    packed = pack_weights(spec, L, kv.dtype)
    wqkv, wproj, wfc, wout, vectors, steps, _, head, *gate = packed.tensors
    one = torch.ones(1, 1, c.n_embd, device=device)
    gain = spec.injected(one, kv.dtype) if c.inject == "decay" else one
    vectors = torch.cat((vectors, gain[0].detach().float()))
    weights = (embedding.detach(), wqkv, wproj, wfc, wout, head, vectors, steps, *gate)
    alpha, gate_b = packed.numbers
    tokens, loops = (torch.full((R, N), -1, dtype=torch.int32, device=device) for _ in range(2))
    noise = torch.zeros(N, R, c.vocab_size, device=device) if noise is None else noise
    sequences = (kv.view(-1, *kv.shape[-2:]), token.int()[:, None], first.int()[:, None], places.float().contiguous(),
                 scale, threshold, limit.int(), noise, ends.int()[None], tokens, loops)
    numbers = (n, L, c.vocab_size, c.min_loops, alpha, gate_b, 1 / temperature if temperature else 1.0, top_k)
    return weights, sequences, numbers


def written(sequences, exchanges):
    """Tokens and loops (R,N) int64 after launches; RuntimeError if a block gave up."""
    if any(exchange[-1][1] for exchange in exchanges):
        raise RuntimeError("blocks of the decode kernel waited for each other in vain")
    return tuple(x.long() for x in sequences[-2:])


def decode_n_tokens(n, spec, embedding, kv, L, token, first, places, scale, threshold, limit, noise, ends,
                    temperature=0, top_k=0):
    """Read n tokens of each of R sequences one after the other, each but the first of them written after the one
    before it: what they wrote, tokens (R,N) and loops (R,N) int64, n <= N. After a token that `ends` a sequence, and
    after n, they are -1.

    spec: LoopSpec; embedding (V,C); kv (L,2,R,nh,T,hs) bfloat16: the cache, up to the tokens `first`, to which those
    read are added; token (R,) int64: what is read first; first (R,): where it stands; places (R,N,C): what positions
    add; scale (R,N): of the queries; threshold, limit (R,N): as in HaltingPlan; noise (N,R,V): Gumbel noise, None at
    temperature 0; ends (V,) bool; temperature, top_k: as generate.sample_token has them. RuntimeError if blocks waited
    for each other in vain.
    """
    R, device = len(scale), kv.device
    weights, sequences, numbers = decode_arguments(n, spec, embedding, kv, L, token, first, places, scale, threshold,
                                                   limit, noise, ends, temperature, top_k)
    exchange, sizes = exchange_buffers(spec.config, R, device), decode_sizes(spec.config, kv.shape[-2], top_k)
    tile.launch(looplm_decode_kernel, (R * blocks_per_sequence(spec.config),), (
        weights, sequences, numbers, exchange, constants(sizes)), device, num_worker_warps=sizes.THREADS // 32)
    return written(sequences, [exchange])
