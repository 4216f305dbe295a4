"""Words of a finite group: elements, '=', and the product of all up to each. All of them are read out at once on track
slots, so that the serial depth is known: one product an element, or the log of it for a parallel scan. Words of A5
and S5, which are not solvable, are complete for NC1 (Barrington 1989). Loops on them: 2607.20594, 2505.19245.

An element is a permutation of 5 things, one letter; S3 and S4 move the first 3 and 4. The product of a and b takes a
first: (a b)[i] = b[a[i]].
"""
import itertools
import string

import numpy as np

group = "S3"                    # S3, S4, A5, S5: of 6, 24, 60 and 120 elements
max_size = 16                   # >= 1, <= 1000: elements of the longest word in training
track = "slots"                 # slots: written one after the other every step would be local

PERMUTATIONS = np.array(list(itertools.permutations(range(5))))  # (120,5)
EVEN = np.array([sum(p[i] > p[j] for i in range(5) for j in range(i, 5)) % 2 == 0 for p in PERMUTATIONS])
MEMBERS = dict(S3=(PERMUTATIONS[:, 3:] == [3, 4]).all(1), S4=PERMUTATIONS[:, 4] == 4, A5=EVEN, S5=EVEN | True)
RANK = np.zeros((5,) * 5, np.int64)
RANK[tuple(PERMUTATIONS.T)] = np.arange(120)
PRODUCT = RANK[tuple(np.moveaxis(PERMUTATIONS.T[PERMUTATIONS], 1, 0))]  # (120,120): of a and b

LETTERS = (string.ascii_letters + "".join(c for c in map(chr, range(0xC0, 0x180)) if c.isalpha()))[:120]
VOCAB = LETTERS + "= _"
PAD, THINK, SLOT, NUMBER = " ", "=", "_", LETTERS + "_"  # an element's place is its index
KINDS, SIZES = ("uniform",), [2, 4, 6, 8, 12, 16]


def complete(s):
    if s.group not in MEMBERS:
        raise ValueError(f"group={s.group}: {', '.join(MEMBERS)}")


def row_length(size, s):
    return 2 * longest_number(size, s) + 1


def longest_number(size, s):
    return size or s.max_size


def draw(rng, N, s, size=None, kind="uniform"):
    T = row_length(size, s)
    length = rng.integers(1, s.max_size + 1, (N, 1)) if size is None else np.full((N, 1), size)
    word, t = rng.choice(MEMBERS[s.group].nonzero()[0], (N, T)), np.arange(T)
    products = word.copy()
    for i in range(1, T // 2):
        products[:, i] = PRODUCT[products[:, i - 1], word[:, i]]
    products = np.take_along_axis(products, np.clip(t - length - 1, 0, T - 1), 1)
    tokens = np.select([t < length, t == length, t <= 2 * length], [word, VOCAB.index(THINK), products],
                       VOCAB.index(PAD))
    return tokens, (t > length) & (t <= 2 * length), {}


def solve(word, s):
    if not word or set(word) - set(LETTERS):
        raise ValueError(f"{word!r} is no word of elements, which are {LETTERS}")
    return "".join(LETTERS[i] for i in itertools.accumulate(map(LETTERS.index, word), lambda a, b: PRODUCT[a, b]))
