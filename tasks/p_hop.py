"""p-hop induction (Saunshi et al. 2025, 2502.17416): letters, '=', and the one that p hops from the last one lead to.

A hop goes from a place i of v to the largest j <= i with v[j-1] = v[i]: to the letter after the one before that is the
same. Rows in which p hops do not exist are drawn anew; the paper builds rows around hops, so its lengths differ.
"""
import numpy as np

hops = 16                       # >= 1, <= 100: p
length = 256                    # >= 8, <= 4096: letters of a row in training

VOCAB = "abcd=\n "
PAD, THINK, END = " ", "=", "\n"
KINDS = ("uniform", "rare")     # of test rows; a size is the letters of a row
RARE = [0.55, 0.25, 0.15, 0.05]  # of kind rare: how often each letter comes, so that some hops go far


def complete(s):
    if s.length < 8 * s.hops:
        raise ValueError(f"length={s.length}: at least 8 times hops, {s.hops}, or too few rows have so many hops")


def sizes(s):
    return [s.length * k // 4 for k in (2, 3, 4, 5, 8)]


def row_length(size, s):
    return (size or s.length) + 3


def one_hop(v):
    """Where a hop from each place of v (N,n) leads (N,n), counted from 1, 0 where there is none."""
    last, lead = np.zeros((len(v), 4), np.int64), np.zeros(v.shape, np.int64)  # last: after a letter, by letter
    for i in range(v.shape[1]):
        if i:
            np.put_along_axis(last, v[:, i - 1:i], i + 1, 1)  # i + 1 is this place, counted from 1
        lead[:, i] = np.take_along_axis(last, v[:, i:i + 1], 1)[:, 0]
    return lead


def end_of_hops(v, p):
    """Where p hops from the last place of v (N,n) lead (N,), as one_hop says."""
    lead = np.pad(one_hop(v), ((0, 0), (1, 0)))  # from place 0 to place 0
    at = np.full((len(v), 1), v.shape[1])
    for _ in range(p):
        at = np.take_along_axis(lead, at, 1)
    return at[:, 0]


def draw(rng, N, s, size=None, kind="uniform"):
    """Difficulty: places between the last letter and the one that is asked for, by tens."""
    n = size or s.length
    v, at, todo = np.zeros((N, n), np.int64), np.zeros(N, np.int64), np.arange(N)
    while len(todo):
        v[todo] = rng.choice(4, (len(todo), n), p=RARE if kind == "rare" else None)
        at[todo] = end_of_hops(v[todo], s.hops)
        todo = todo[at[todo] == 0]
    tokens = np.full((N, n + 3), VOCAB.index(THINK))
    tokens[:, :n], tokens[:, n + 1], tokens[:, n + 2] = v, v[np.arange(N), at - 1], VOCAB.index(END)
    return tokens, np.broadcast_to(np.arange(n + 3) > n, tokens.shape), dict(tens=(n - at) // 10)


def solve(word, s):
    """The letter that the hops lead to. ValueError if there are not so many."""
    if not word or set(word) - set(VOCAB[:4]):
        raise ValueError(f"{word!r} is no row of the letters {VOCAB[:4]}")
    at = len(word) - 1  # counted from 0
    for _ in range(s.hops):
        at = word.rfind(word[at], 0, at) + 1
        if not at:
            raise ValueError(f"{word!r} has no {s.hops} hops")
    return word[at]
