"""What the blocks of a persistent kernel tell each other, without a barrier: what decode.py is made of.

A share is float32 numbers whose two lowest bits are the number of the exchange, modulo 4. Who reads asks until all have
arrived; each number vouches for itself, so nothing has to be ordered. There are two buffers in turn: who writes the
third share has seen that all have read the first. (NCCL's protocol LL sends a flag with every number alike.)

R sequences, NH heads, C channels, in tiles (1,W) of a row; p: DecodeSizes.
"""
from dataclasses import dataclass
from typing import Any

from kernels.tile import APPROX, ct, next_power_of_2

STOPS, ENDS, TOKEN = 4, 8, 4  # of the judge's word: the token has halted; it was the last; where the next one stands
NEW, OLD = range(2)  # shares of the attention
NEW_SCORE, OLD_SCORE, OLD_TOTAL = range(3)  # softmax statistics of a head


@dataclass(frozen=True)
class Exchange:
    """Buffers of int32, zeros at first; R sequences; NH heads.

    All that is polled stands in one tensor: the compiler keeps the order of what is stored and loaded there. Among
    several tensors it moved a publish behind the wait for the answer to it.
    """
    box: Any      # (2,R,2 NH + SLICES + 2,C): shares of the attention from new and from old keys, those of the MLP,
    #               scores of new and old keys (base 2) and the total of the old weights (3,NH), the judge's word
    written: Any  # (R,NH) keys and values of how many tokens are in the cache
    state: Any    # (2,) blocks that have started; whether one has given up


def tag(turn):
    """What the numbers of an exchange end in: `turn` counts from 2, so that zeros belong to none."""
    return (turn >> 1) & 3


def slot_of(turn, tries):
    """Which of the two buffers an exchange uses, in a loop that has asked `tries` times, at most POLLS.

    tries >> 30 is 0. The compiler does not know that; without it the place would be the same in every turn of the loop,
    and it would load once, before the loop, since nothing in the loop writes there (a relaxed load is no effect to it).
    """
    return (turn & 1) + (tries >> 30)


def show(buffer, at, bits):
    """Store a tile of int32 where the others poll it."""
    ct.store(buffer, at, bits, allow_tma=False, check_bounds=False,
             memory_order=ct.MemoryOrder.RELAXED, memory_scope=ct.MemoryScope.DEVICE)


def publish(buffer, at, x, turn):
    """Store a float32 tile for the others."""
    show(buffer, at, (ct.bitcast(x, ct.int32) & -4) | tag(turn))


def peek(buffer, at, shape):
    """A tile of a buffer as it is now."""
    return ct.load(buffer, at, shape, allow_tma=False, check_bounds=False,
                   memory_order=ct.MemoryOrder.RELAXED, memory_scope=ct.MemoryScope.DEVICE)


def number(bits):
    """The float32 tile of published bits; the tag is worth 2^-22 of it."""
    return ct.bitcast(bits, ct.float32)


def gather_missing(missing, late, THREADS):
    """missing (1,THREADS) or late (1,W), whose lowest two bits are set where a number has not arrived.

    A tile narrower than the block is held by several threads, each of which has loaded it for itself: they may have
    seen different values. A maximum over such a tile is what one of them has seen. So it is repeated to an element for
    every thread, which moves nothing between threads.
    """
    W = late.shape[1]
    if ct.static_eval(W == THREADS):
        return missing | late
    again = ct.broadcast_to(ct.reshape(late, (1, 1, W)), (1, THREADS // W, W))
    return missing | ct.reshape(again, (1, THREADS))


def publish_row(x, b, line, xs, turn, p):
    """publish of a row of C channels, tiles (1,W), in a line of the box of sequence b."""
    for t in ct.static_iter(range(len(p.TILES))):
        i, W = p.TILES[t]
        publish(x.box, (turn & 1, b, line, i), ct.reshape(xs[t], (1, 1, 1, W)), turn)


def last_lines(p):
    """The two lines of Exchange's box after the shares: of softmax statistics, and of the judge's word."""
    return 2 * p.NH + p.SLICES, 2 * p.NH + p.SLICES + 1


def publish_score(x, b, kind, h, score, turn, p):
    """publish of a softmax statistic (1,1) of head h."""
    publish(x.box, (turn & 1, b, last_lines(p)[0], kind * p.NH + h), ct.reshape(score, (1, 1, 1, 1)), turn)


def publish_judgement(x, b, word, turn, p):
    """Say to all what becomes of the token of sequence b; word (1,1)."""
    show(x.box, (turn & 1, b, last_lines(p)[1], 0), ct.reshape(word | tag(turn), (1, 1, 1, 1)))


def peek_part(x, slot, b, which, h, i, W, p):
    """Tile i of W channels of head h's share of sequence b as it is now, (1,W); `which`: NEW or OLD."""
    if ct.static_eval(p.BOX == ()):
        return ct.reshape(peek(x.box, (slot, b, which * p.NH + h, i), (1, 1, 1, W)), (1, W))
    box = Box(*p.BOX)
    return peek_piece(x, slot, b, box.PARTS + (which * p.NH + h) * box.P, i, W, p)


def peek_slice(x, slot, b, j, i, W, p):
    """Tile i of W channels of the share of the MLP's slice j, (1,W)."""
    if ct.static_eval(p.BOX == ()):
        return ct.reshape(peek(x.box, (slot, b, 2 * p.NH + j, i), (1, 1, 1, W)), (1, W))
    box = Box(*p.BOX)
    return peek_piece(x, slot, b, box.SLICES + j * box.P, i, W, p)


def peek_stat(x, slot, b, kind, h, p):
    """A softmax statistic of head h, (1,1)."""
    if ct.static_eval(p.BOX == ()):
        return ct.reshape(peek(x.box, (slot, b, last_lines(p)[0], kind * p.NH + h), (1, 1, 1, 1)), (1, 1))
    box = Box(*p.BOX)
    return ct.reshape(peek(x.box, (slot, box.STATS + kind * p.NH + h, b), (1, 1, 1)), (1, 1))


def attention_of_heads(u, b, slot, turn, x, p):
    """u plus the attention of all heads as it is now, and missing (1,THREADS) as gather_missing has it."""
    missing = ct.zeros((1, p.THREADS), ct.int32)
    weight = ()
    for h in ct.static_iter(range(p.NH)):
        new, old = peek_stat(x, slot, b, NEW_SCORE, h, p), peek_stat(x, slot, b, OLD_SCORE, h, p)
        total = peek_stat(x, slot, b, OLD_TOTAL, h, p)
        missing = missing | (new ^ tag(turn)) | (old ^ tag(turn)) | (total ^ tag(turn))
        top = ct.maximum(number(new), number(old))
        new = ct.exp2(number(new) - top, flush_to_zero=True)
        old = ct.exp2(number(old) - top, flush_to_zero=True)
        scale = ct.truediv(1.0, new + old * number(total), rounding_mode=APPROX)
        weight += ((new * scale, old * scale),)
    y = ()
    for t in ct.static_iter(range(len(p.TILES))):
        i, W = p.TILES[t]
        late, sum_of_heads = ct.zeros((1, W), ct.int32), u[t]
        for h in ct.static_iter(range(p.NH)):
            new = peek_part(x, slot, b, NEW, h, i, W, p)
            old = peek_part(x, slot, b, OLD, h, i, W, p)
            late = late | (new ^ tag(turn)) | (old ^ tag(turn))
            sum_of_heads = sum_of_heads + number(new) * weight[h][NEW] + number(old) * weight[h][OLD]
        y += (sum_of_heads,)
        missing = gather_missing(missing, late, p.THREADS)
    return y, missing


def await_attention(u, b, turn, polls, x, p):
    """Once all shares are there, u plus the attention of all heads, the judge's word, and the polls that are left.

    All shares are awaited even if the word says that the token has halted: who writes two turns later must know that
    the others have read this one.
    """
    tries, going, word, y = 0, 1, 0, u
    while going > 0:
        slot, tries = slot_of(turn, tries), tries + 1
        said = ct.reshape(peek(x.box, (slot, b, last_lines(p)[1], 0), (1, 1, 1, 1)), (1, 1))
        y, missing = attention_of_heads(u, b, slot, turn, x, p)
        going, word, polls = ct.max((missing | (said ^ tag(turn))) & 3), said.item(), polls - 1
        if polls < 0:
            going, word = 0, STOPS + ENDS
    return y, word, polls


def slices_of_mlp(y, b, slot, turn, x, p):
    """y plus the shares of all slices of the MLP as they are now, and missing (1,THREADS) as gather_missing has it."""
    missing = ct.zeros((1, p.THREADS), ct.int32)
    new = ()
    for t in ct.static_iter(range(len(p.TILES))):
        i, W = p.TILES[t]
        late, total = ct.zeros((1, W), ct.int32), y[t]
        for j in ct.static_iter(range(p.SLICES)):
            share = peek_slice(x, slot, b, j, i, W, p)
            late = late | (share ^ tag(turn))
            total = total + number(share)
        new += (total,)
        missing = gather_missing(missing, late, p.THREADS)
    return new, missing


def await_shares(plus_shares, y, b, turn, polls, x, p):
    """Once all shares are there, y with what plus_shares adds, slices_of_mlp or attention_of_heads, and the polls that
    are left."""
    tries, going, new = 0, 1, y
    while going > 0:
        slot, tries = slot_of(turn, tries), tries + 1
        new, missing = plus_shares(y, b, slot, turn, x, p)
        going, polls = ct.max(missing & 3), polls - 1
        if polls < 0:
            going = 0
    return new, polls


# exchanges of S rows -------------------------------------------------------------------------------------------------
S = 16  # rows of a launch of decode_rows.py; those without a sequence have ended when it begins


@dataclass(frozen=True)
class RowsExchange:
    """Buffers of int32, zeros at first; as Exchange, in one tensor."""
    box: Any      # (2,N,S*PIECE): see Box
    written: Any  # (NH,) rounds of which the keys, and of which the values are in the cache, added up
    state: Any    # (2,): the second is 1 when a block has given up


@dataclass(frozen=True)
class Box:
    """Lines of the box, constants. A line has PIECE channels of all rows side by side: many rows are read and written
    at constant offsets from one address. P lines, a power of two, hold all channels."""
    PIECE: int
    P: int
    INPUTS: int  # what attention reads, after its layer norm, P lines
    HIDDEN: int  # what the MLP reads, after its layer norm
    PARTS: int   # shares of the attention: (2,NH,P)
    SLICES: int  # shares of the MLP: (4C/FT,P)
    STATS: int   # (3,NH), a number a row
    WORDS: int   # a row's word, 16 times


def box_places(C, NH, SLICES):
    """Box as a tuple, and how many lines it has."""
    piece = min(C, 128)
    P = next_power_of_2(C // piece)
    starts = [0]
    for lines in (P, P, 2 * NH * P, SLICES * P, 3 * NH, 1):
        starts.append(starts[-1] + lines)
    return (piece, P, *starts[:-1]), starts[-1]


def peek_piece(x, slot, b, line, i, W, p):
    """Tile i of W channels of row b, (1,W); its first line: a multiple of P."""
    box = Box(*p.BOX)
    lines = W // box.PIECE
    return ct.reshape(peek(x.box, (slot, line // lines + i, b), (1, lines, box.PIECE)), (1, W))


def publish_pieces(x, line, g, xs, turn, p):
    """publish of rows g*R .. (g+1)*R, tiles (R,W), R = 1 or W = PIECE; the first line: a multiple of P."""
    box = Box(*p.BOX)
    for t in ct.static_iter(range(len(p.TILES))):
        i, W = p.TILES[t]
        lines = W // box.PIECE
        publish(x.box, (turn & 1, line // lines + i, g), ct.reshape(xs[t], (1, lines, xs[t].shape[0] * box.PIECE)),
                turn)


def publish_stat(x, kind, h, g, number_of_rows, turn, p):
    """publish of a softmax statistic of head h and rows g*R .. (g+1)*R, (R,1)."""
    box = Box(*p.BOX)
    publish(x.box, (turn & 1, box.STATS + kind * p.NH + h, g),
            ct.reshape(number_of_rows, (1, 1, number_of_rows.shape[0])), turn)


def publish_word(x, b, word, turn, p):
    """Say to all what row b does."""
    show(x.box, (turn & 1, Box(*p.BOX).WORDS, b), ct.full((1, 1, 16), 0, ct.int32) + (word | tag(turn)))


def await_rows(x, line, g, R, turn, polls, tries, p):
    """Rows g*R .. (g+1)*R of inputs or hidden, tiles (R,PIECE) in bfloat16 once they are there; the polls that are
    left.

    tries: 0 or 1; what it is made of has been computed before, else the compiler may move it behind the wait.
    R * PIECE is at least the number of threads: no number is loaded twice (see gather_missing). What is reduced is
    flat: it takes half the barriers.
    """
    box, going, rows = Box(*p.BOX), 1, ()
    for _ in ct.static_iter(p.TILES):
        rows += (ct.zeros((R, box.PIECE), ct.bfloat16),)
    while going > 0:
        slot, tries = slot_of(turn, tries), tries + 1
        late, rows = ct.zeros((R * box.PIECE,), ct.int32), ()
        for t in ct.static_iter(range(len(p.TILES))):
            bits = ct.reshape(peek(x.box, (slot, line + t, g), (1, 1, R * box.PIECE)), (R * box.PIECE,))
            late = late | (bits ^ tag(turn))
            rows += (ct.reshape(number(bits), (R, box.PIECE)).astype(ct.bfloat16),)
        going, polls = ct.max(late & 3), polls - 1
        if polls < 0:
            going = 0
    return rows, polls


def await_words(turn, polls, x, p):
    """The words (S,1) of all rows once they are there, and the polls that are left.

    All 16 copies of a word are alike, and those of an earlier turn have another tag: so the largest has this turn's tag
    only if it is this turn's. What is returned is what was checked: of a tile that is read in two layouts, the compiler
    made two loads, of which one came too early.
    """
    tries, going, words = 0, 1, ct.zeros((S, 1), ct.int32)
    while going > 0:
        slot, tries = slot_of(turn, tries), tries + 1
        said = ct.reshape(peek(x.box, (slot, Box(*p.BOX).WORDS, 0), (1, 1, S * 16)), (S, 16))
        words = ct.max(said, axis=1, keepdims=True)
        going, polls = ct.max((words ^ tag(turn)) & 3), polls - 1
        if polls < 0:
            going, words = 0, ct.full((S, 1), STOPS + ENDS, ct.int32)
    return words, polls
