"""Writing 16 sequences side by side in one launch: kernel, its sizes, and decode_n_tokens_of_many.

As decode.py, but the sequences share the blocks that hold the matrices: a product takes 16 rows anyway. Each sequence
is a row with a token, a position and a loop of its own; a row whose token halts reads the next one in the next round,
whatever the others do. So what a token saves in loops, the batch saves in time. Roles:

    ROW      a sequence: its state, readout, halting, sampling, and the next token; 16 blocks
    KEY      a head's queries and new keys, and how well they match
    VALUE    a head's new values, and what they add to the output
    PAST     a head's queries of some rows, the keys and values of their earlier tokens, and what these add
    MLP      a slice of the hidden units, 4C / FT blocks

A round is one loop of every row, and four exchanges (see decode.py) in a chain:

    ROW -> inputs -> KEY, VALUE, PAST -> parts, stats -> ROW -> hidden -> MLP -> slices -> ROW

While the heads attend, ROW reads out the state, and its word says to all whether the token has halted. So all know
what the next round is, and PAST loads the keys that it needs while the MLP works. What KEY and VALUE computed in the
last round of a token is what its frozen state owes to all later loops: it is kept once, and PAST reads it there.

A buffer may be written again two rounds later, because the chain passes through every block: ROW publishes inputs of
round t + 1 when it has all slices of round t; a slice of t needs `hidden` of t from all rows; these need the parts of
t from all heads; and a part of t comes from a block that has read all inputs of t. Nobody skips a wait, so who writes
in t + 2 knows that all have read what stood there in t. Words of t are read by all before they publish what belongs to
round t + 1.
"""
import torch

from kernels import tile
from kernels.decode import (
    KEY,
    POLLS,
    VALUE,
    DecodeSizes,
    DecodeWeights,
    Numbers,
    Sequences,
    add_rows,
    contract,
    decode_arguments,
    decode_n_tokens,
    decode_sizes,
    draw,
    euler_row,
    expand,
    hold_inputs,
    hold_outputs,
    inject_row,
    load_row,
    log_softmax,
    multiply_rows,
    normed,
    padded,
    score_of,
    times,
    why_not_decode_kernel,
    written,
)
from kernels.exchange import (
    ENDS,
    NEW,
    NEW_SCORE,
    OLD,
    OLD_SCORE,
    OLD_TOTAL,
    STOPS,
    TOKEN,
    Box,
    RowsExchange,
    S,
    attention_of_heads,
    await_rows,
    await_shares,
    await_words,
    box_places,
    publish_pieces,
    publish_stat,
    publish_word,
    slices_of_mlp,
)
from kernels.halt import halts_on_tiles
from kernels.tile import FLOOR, LOG2E, ZERO, Const, constants, ct, gelu

THREADS = 256  # of a block, at any width: with 128 the compiler added warps that fetch, and wait in turn

LEAST = 64  # columns of a product, which 8 warps share in eights: with fewer there is no mma
KEYS = 512  # of a PAST block at most: with 1024 the compiler took more than five minutes


# rows ----------------------------------------------------------------------------------------------------------------
def sequences_of_rows(offset, s):
    """Which sequence each row (S,1) is, one that exists, and whether it has ended: 1 where there is none."""
    row, R = offset + ct.arange(S, dtype=ct.int32)[:, None], s.token.shape[0]
    return ct.minimum(row, R - 1), (row >= R).astype(ct.int32)


def advance(words, l, at, n, ended):
    """Loop, position, number of the token, and whether they have ended, of rows (S,1) after a round."""
    stopped, over = (words & STOPS) > 0, ((words & ENDS) > 0).astype(ct.int32)
    next_one = ct.where(stopped, 1 - over, 0)
    return ct.where(stopped, 0, l + 1), at + next_one, n + next_one, ended | over


def pick(x, row):
    """The number of x (S,1) that belongs to a row."""
    return ct.max(ct.where(ct.arange(S, dtype=ct.int32)[:, None] == row, x, 0))


# roles ---------------------------------------------------------------------------------------------------------------
def write_row(b, head, offset, w, s, m, x, p):
    """A row's part in all rounds; head: the readout, as hold_inputs has it."""
    R, box = s.token.shape[0], Box(*p.BOX)
    row, polls, going, over, n, l = ct.minimum(offset + b, R - 1), POLLS, 1, 0, 0, 0
    if offset + b >= R:
        over = 1
    norm, decay = load_row(w.vectors, (0,), (1,), p), load_row(w.vectors, (1,), (1,), p)
    gain = load_row(w.vectors, (2,), (1,), p)
    ends = ct.load(s.ends, (0, 0), (1, p.VT), padding_mode=ZERO, allow_tma=False)
    token = ct.load(s.token, (row, 0), (1, 1), allow_tma=False).item()
    _, ended = sequences_of_rows(offset, s)
    h = before = x0 = add_rows(load_row(w.wte, (token,), (1,), p), load_row(s.places, (row, 0), (1, 1), p))
    logq = ct.zeros((1, p.VT), ct.float32)
    noise = ct.reshape(ct.load(s.noise, (0, row, 0), (1, 1, p.VT), padding_mode=ZERO, allow_tma=False), (1, p.VT))
    threshold, limit = (ct.load(s.threshold, (row, 0), (1, 1), allow_tma=False),
                        ct.load(s.limit, (row, 0), (1, 1), allow_tma=False))
    for turn in range(2, 2 + m.N * (m.L + 1)):
        if going > 0:
            u = h
            if p.INJECTS and l > 0:
                again = x0
                if p.DECAY:
                    again = multiply_rows(gain, x0)
                u = inject_row(h, again, decay, p)
            publish_pieces(x, box.INPUTS, b, normed(u, p.C), turn, p)
            # the judgement, while the heads attend
            logp = log_softmax(contract(normed(h, p.C), head), m.V, p.VT)
            score = score_of(h, before, logp, logq, l, w, m, p)
            logq, before = logp, h
            halted = halts_on_tiles(score, threshold, limit, l, m.min_loops, p.RULE) & (l > 0)
            drawn = draw(logp, noise, ends, m, p)
            word = ct.max(ct.where(halted, STOPS + (drawn & 1) * ENDS + (drawn >> 1 << TOKEN), 0))
            if ((word & STOPS) > 0) & (n + 1 >= m.N):
                word = word | ENDS
            if over > 0:
                word = STOPS + ENDS
            publish_word(x, b, word, turn, p)
            y, polls = await_shares(attention_of_heads, u, b, turn, polls, x, p)
            publish_pieces(x, box.HIDDEN, b, normed(y, p.C), turn, p)
            # the next token, while the MLP works
            if (word & STOPS) > 0:
                if over == 0:
                    ct.store(s.tokens, (row, n), ct.full((1, 1), 0, ct.int32) + (word >> TOKEN), allow_tma=False)
                    ct.store(s.loops, (row, n), ct.full((1, 1), 0, ct.int32) + l, allow_tma=False)
                if (word & ENDS) > 0:
                    over = 1
                else:
                    n += 1
                x0 = add_rows(load_row(w.wte, (word >> TOKEN,), (1,), p), load_row(s.places, (row, n), (1, 1), p))
                noise = ct.reshape(ct.load(s.noise, (n, row, 0), (1, 1, p.VT), padding_mode=ZERO, allow_tma=False),
                                   (1, p.VT))
                threshold = ct.load(s.threshold, (row, n), (1, 1), allow_tma=False)
                limit = ct.load(s.limit, (row, n), (1, 1), allow_tma=False)
            words, polls = await_words(turn, polls, x, p)
            ended = ended | (words & ENDS)
            new, polls = await_shares(slices_of_mlp, y, b, turn, polls, x, p)
            if p.EULER:
                new = euler_row(h, new, u, m.alpha)
            if p.NORM:
                new = multiply_rows(normed(new, p.C), norm)
            l += 1
            h = new
            if (word & STOPS) > 0:
                h, l = x0, 0
            if ct.min(ended) > 0:
                going = 0
    report(polls, x)


def attend_new(ROLE, h, held, offset, w, s, m, x, p):
    """The part of a head's KEY or VALUE block in all rounds.

    What follows a round's words stands before the next round: the compiler moved a publish behind the wait for them.
    """
    box = Box(*p.BOX)
    row, ended = sequences_of_rows(offset, s)
    at = ct.gather(s.first, (row, 0), check_bounds=False, latency=1)
    l, n, polls, going = ct.zeros((S, 1), ct.int32), ct.zeros((S, 1), ct.int32), POLLS, ct.minimum(m.N, 1)
    made = ct.zeros((S, ct.static_eval(padded(p.HS, p))), s.kv.dtype)  # keys or values
    channel = ct.arange(ct.static_eval(padded(p.HS, p)), dtype=ct.int32)[None, :]
    for turn in range(2, 3 + m.N * (m.L + 1)):
        if going > 0 and turn > 2:
            words, polls = await_words(turn - 1, polls, x, p)
            where = ((2 * l + (ROLE == VALUE)) * s.token.shape[0] + row) * p.NH + h
            ct.scatter(s.kv, (where, at, channel), made, mask=(l < m.L) & (ended == 0) & (channel < p.HS),
                       check_bounds=False)
            l, at, n, ended = advance(words, l, at, n, ended)
            going = 1 - ct.min(ended)
        if going > 0:
            scale = ct.gather(s.scale, (row, n), check_bounds=False, latency=1) * (LOG2E / p.HS ** 0.5)
            a, polls = await_rows(x, box.INPUTS, 0, S, turn, polls, one_of(scale), p)
            made = contract(a, held[0]).astype(s.kv.dtype)
            if ROLE == KEY:
                match = ct.sum(contract(a, held[1]) * made.astype(ct.float32), axis=1, keepdims=True) * scale
                publish_stat(x, NEW_SCORE, h, 0, match, turn, p)
            else:
                publish_pieces(x, box.PARTS + (NEW * p.NH + h) * box.P, 0, expand(made, held[1]), turn, p)
            # Of what was scattered above. One thread adds, and the compiler has it wait for its own part of a scatter
            # alone; what stands between has made the block wait for all parts.
            ct.atomic_add(x.written, h, 1, memory_order=ct.MemoryOrder.RELEASE, memory_scope=ct.MemoryScope.DEVICE)
    report(polls, x)


def attend_old(h, g, held, PAST_ROWS, offset, w, s, m, x, p):
    """The part in all rounds of the block that has rows g*PAST_ROWS .. of head h. In products they repeat to 16, and
    their keys stand side by side, so that one product serves all."""
    box, mine = Box(*p.BOX), ct.arange(S, dtype=ct.int32)[:, None] % PAST_ROWS
    row, ended = sequences_of_rows(offset, s)
    at = ct.gather(s.first, (row, 0), check_bounds=False, latency=1)
    l, n, polls, going = ct.zeros((S, 1), ct.int32), ct.zeros((S, 1), ct.int32), POLLS, ct.minimum(m.N, 1)
    key = ct.arange(PAST_ROWS * p.T, dtype=ct.int32)
    channel = ct.arange(ct.static_eval(padded(p.HS, p)), dtype=ct.int32)
    frozen = ct.full((PAST_ROWS * p.T,), m.L - 1, ct.int32)  # the last loop of which a token has a key
    for turn in range(2, 3 + m.N * (m.L + 1)):
        if going > 0 and turn > 2:
            words, polls = await_words(turn - 1, polls, x, p)
            for r in ct.static_iter(range(PAST_ROWS)):
                here = g * PAST_ROWS + r
                mark = ct.where((pick(words, here) & STOPS) > 0, r * p.T + pick(at, here), -1)
                frozen = ct.where(key == mark, ct.minimum(pick(l, here), frozen), frozen)
            l, at, n, ended = advance(words, l, at, n, ended)
            going = 1 - ct.min(ended)
        if going > 0:
            # What was made two rounds ago was written in the last one. A token takes two rounds at least, so the next
            # one, a loop behind in each of its rounds, sees nothing newer.
            count = 0
            while (count < 2 * (turn - 2)) & (polls >= 0):
                polls -= 1
                count = ct.atomic_add(x.written, h, 0, memory_order=ct.MemoryOrder.ACQUIRE,
                                      memory_scope=ct.MemoryScope.DEVICE)
            where = end = ct.zeros((PAST_ROWS * p.T,), ct.int32)
            scale = ct.zeros((S, 1), ct.float32)
            for r in ct.static_iter(range(PAST_ROWS)):
                here = g * PAST_ROWS + r
                sequence = pick(row, here)
                loop = ct.minimum(pick(l, here), frozen)
                where = ct.where(key // p.T == r, (2 * loop * s.token.shape[0] + sequence) * p.NH + h, where)
                end = ct.where(key // p.T == r, pick(at, here), end)
                scale = ct.where(mine == r, ct.load(s.scale, (sequence, pick(n, here)), (1, 1), allow_tma=False), scale)
            seen, place = key % p.T < end, key % p.T
            k = ct.gather(s.kv, (where[None, :], place[None, :], channel[:, None]),
                          mask=seen[None, :] & (channel < p.HS)[:, None], check_bounds=False, latency=1)
            where = where + s.token.shape[0] * p.NH
            v = ct.gather(s.kv, (where[:, None], place[:, None], channel[None, :]),
                          mask=seen[:, None] & (channel < p.HS)[None, :], check_bounds=False, latency=1)
            a, polls = await_rows(x, box.INPUTS, g, PAST_ROWS, turn, polls, one_of(k) | one_of(v), p)
            all_a = ()
            for i in ct.static_iter(range(len(a))):
                all_a += (repeat_rows(a[i], PAST_ROWS),)
            q = contract(all_a, held[0]) * (scale * (LOG2E / p.HS ** 0.5))
            # All 16 rows to the end: fewer ones were repeated before the exponentials, in every warp again.
            seen = (mine == (key // p.T)[None, :]) & seen[None, :]
            score = ct.where(seen, times(q, k), FLOOR)
            top = ct.max(score, axis=1, keepdims=True)
            weight = ct.where(seen, ct.exp2(score - top, flush_to_zero=True), 0.0)
            shares, out = expand(times(weight, v), held[1]), ()
            for i in ct.static_iter(range(len(shares))):
                out += (ct.extract(shares[i], (0, 0), (PAST_ROWS, shares[i].shape[1])),)
            publish_pieces(x, box.PARTS + (OLD * p.NH + h) * box.P, g, out, turn, p)
            total = ct.extract(ct.sum(weight, axis=1, keepdims=True), (0, 0), (PAST_ROWS, 1))
            top = ct.extract(top, (0, 0), (PAST_ROWS, 1))
            publish_stat(x, OLD_SCORE, h, g, top, turn, p)
            publish_stat(x, OLD_TOTAL, h, g, total, turn, p)
    report(polls, x)


def one_of(x):
    """0 or 1, by a number of x (M,N)."""
    return (ct.extract(x, (0, 0), (1, 1)).item() > 0).astype(ct.int32)


def repeat_rows(x, R):
    """x (R,K) as often as 16 rows (S,K) take it."""
    return ct.reshape(ct.broadcast_to(ct.reshape(x, (1, R, x.shape[1])), (S // R, R, x.shape[1])), (S, x.shape[1]))


def expand_hidden(j, held, offset, s, m, x, p):
    """The part of slice j of the MLP in all rounds."""
    polls, going, box = POLLS, ct.minimum(m.N, 1), Box(*p.BOX)
    _, ended = sequences_of_rows(offset, s)
    for turn in range(2, 3 + m.N * (m.L + 1)):
        if going > 0 and turn > 2:
            words, polls = await_words(turn - 1, polls, x, p)
            ended = ended | (words & ENDS)
            going = ct.where(ct.min(ended) > 0, 0, 1)
        if going > 0:
            a, polls = await_rows(x, box.HIDDEN, 0, S, turn, polls, 0, p)
            g = gelu(contract(a, held[0]), False)
            publish_pieces(x, box.SLICES + j * box.P, 0, expand(g, held[1]), turn, p)
    report(polls, x)


def report(polls, x):
    """Say that this block has given up, if it has no polls left."""
    if polls < 0:
        ct.store(x.state, (1,), ct.full((1,), 1, ct.int32), allow_tma=False)


@ct.kernel
def looplm_decode_rows_kernel(
        weights,           # the ten tensors of DecodeWeights
        sequences,         # the eleven tensors of Sequences
        numbers,           # the eight of Numbers
        exchange,          # the three tensors of RowsExchange
        offset,            # the first of the S sequences
        one_row: Const,    # DecodeSizes for tiles of one row
        all_rows: Const,   # for those of S rows
        PAST_ROWS: Const): # rows of a PAST block
    """N tokens of up to S sequences. Grid (S + SLICES + (2 + S / PAST_ROWS) NH,), all of whose blocks must be resident
    at once: each waits for all others."""
    w, s, m, x = DecodeWeights(*weights), Sequences(*sequences), Numbers(*numbers), RowsExchange(*exchange)
    p, one = DecodeSizes(*all_rows), DecodeSizes(*one_row)
    r = ct.bid(0)
    if r < S:
        write_row(r, hold_inputs(w.head, 0, p.VT, one), offset, w, s, m, x, one)
    elif r < S + p.SLICES:
        j = r - S
        expand_hidden(j, (hold_inputs(w.wfc, j, p.FT, p), hold_outputs(w.wout, j, p.FT, p)), offset, s, m, x, p)
    elif r < S + p.SLICES + p.NH:
        h = r - S - p.SLICES
        held = hold_inputs(w.wqkv, p.NH + h, p.HS, p), hold_inputs(w.wqkv, h, p.HS, p)
        attend_new(KEY, h, held, offset, w, s, m, x, p)
    elif r < S + p.SLICES + 2 * p.NH:
        h = r - S - p.SLICES - p.NH
        held = hold_inputs(w.wqkv, 2 * p.NH + h, p.HS, p), hold_outputs(w.wproj, h, p.HS, p)
        attend_new(VALUE, h, held, offset, w, s, m, x, p)
    else:
        i = r - S - p.SLICES - 2 * p.NH
        h, g = i // (S // PAST_ROWS), i % (S // PAST_ROWS)
        held = hold_inputs(w.wqkv, h, p.HS, p), hold_outputs(w.wproj, h, p.HS, p)
        attend_old(h, g, held, PAST_ROWS, offset, w, s, m, x, p)


# one call ------------------------------------------------------------------------------------------------------------
def rows_sizes(c, T, top_k):
    """DecodeSizes for tiles of one row and of S rows, for the settings of a model as in decode_sizes."""
    one = decode_sizes(c, T, top_k)
    box, _ = box_places(c.n_embd, c.n_head, one.SLICES)
    one = DecodeSizes(**vars(one) | dict(BOX=box, THREADS=THREADS, LEAST=LEAST, VT=max(one.VT, LEAST)))
    return one, DecodeSizes(**vars(one) | dict(TILES=tuple((i, box[0]) for i in range(c.n_embd // box[0]))))


def blocks_of_rows(c, past_rows):
    """Blocks of a launch."""
    return S + 4 * c.n_embd // 64 + (2 + S // past_rows) * c.n_head


def rows_of_past(c, device):
    """Rows of a PAST block: as few as the multiprocessors allow and every thread has a number of; 0 if none fit."""
    fits = [r for r in (1, 2, 4, 8, 16)
            if r * min(c.n_embd, 128) >= THREADS and blocks_of_rows(c, r) <= tile.gpu(device).multi_processor_count]
    return min(fits, default=0)


def why_not_decode_of_many(spec, T, L):
    """What decode_n_tokens_of_many does not do of a model and sequences of T tokens in L loops, "" if it does all."""
    why, past = why_not_decode_kernel(spec, 1, T, L), rows_of_past(spec.config, spec.head.device)
    if spec.config.step_encoding != "none":
        return "the decode kernel of many sequences adds no step encoding"
    if why or past and past * T <= KEYS:
        return why
    return f"the decode kernel has no room for {spec.config.n_head} heads of {S} sequences of {T} tokens"


def fastest_decode(spec, R, T, L):
    """decode_n_tokens where R sequences of T tokens have room for a group of blocks each, else decode_n_tokens_of_many;
    None if neither does the model."""
    if not why_not_decode_kernel(spec, R, T, L):
        return decode_n_tokens
    return None if why_not_decode_of_many(spec, T, L) else decode_n_tokens_of_many


def decode_n_tokens_of_many(n, spec, embedding, kv, L, token, first, places, scale, threshold, limit, noise, ends,
                            temperature=0, top_k=0):
    """decode_n_tokens for any number of sequences R, S at a time; same arguments and results."""
    c, device = spec.config, kv.device
    weights, sequences, numbers = decode_arguments(n, spec, embedding, kv, L, token, first, places, scale, threshold,
                                                   limit, noise, ends, temperature, top_k)
    sizes, past = rows_sizes(c, kv.shape[-2], top_k), rows_of_past(c, device)
    blocks, offsets = blocks_of_rows(c, past), range(0, len(scale), S)
    exchanges = [rows_exchange(c, device) for _ in offsets]
    # As many launches side by side as have room for all of their blocks: each launch waits for its own.
    for offset, exchange, _ in zip(offsets, exchanges, tile.side_by_side(device, blocks, len(offsets)), strict=True):
        tile.launch(looplm_decode_rows_kernel, (blocks,), (
            weights, sequences, numbers, exchange, offset, *map(constants, sizes), past), device,
            num_worker_warps=THREADS // 32)
    tokens, loops = written(sequences, exchanges)
    if ((loops >= 0) & (loops < L)).any():
        repeat_frozen(kv, first, loops)
    return tokens, loops


def repeat_frozen(kv, first, loops):
    """Into the cache kv (L,2,R,nh,T,hs) what tokens owe to the loops after their last: loops (R,N) of those that stand
    from `first` (R,) on, -1 where there is none. In a launch, PAST knows it."""
    L, (R, N), device = len(kv), loops.shape, kv.device
    row, at = torch.arange(R, device=device)[:, None], first.long()[:, None] + torch.arange(N, device=device)
    row, at, last = row.expand(R, N)[loops >= 0], at[loops >= 0], loops[loops >= 0].clamp(max=L - 1)
    those = kv[:, :, row, :, at]  # (n,L,2,nh,hs)
    loop = torch.arange(L, device=device).minimum(last[:, None])  # (n,L)
    kv[:, :, row, :, at] = those.take_along_dim(loop[..., None, None, None], 1)


def rows_exchange(c, device):
    """The tensors of RowsExchange."""
    box, lines = box_places(c.n_embd, c.n_head, 4 * c.n_embd // 64)
    shapes = (2, lines, S * box[0]), (c.n_head,), (2,)
    return tuple(torch.zeros(shape, dtype=torch.int32, device=device) for shape in shapes)
