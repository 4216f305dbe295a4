"""Reversal: a word, '=', and the word from its end: abc=cba."""
import numpy as np

max_size = 8                    # >= 1, <= 100: letters of the longest word in training

VOCAB = "abcdefgh=\n "
PAD, THINK, END = " ", "=", "\n"
KINDS, SIZES = ("uniform",), [1, 2, 4, 8, 12, 16]


def row_length(size, s):
    return 2 * (size or s.max_size) + 2


def draw(rng, N, s, size=None, kind="uniform"):
    T = row_length(size, s)
    length = rng.integers(1, s.max_size + 1, (N, 1)) if size is None else np.full((N, 1), size)
    letters, t = rng.integers(0, 8, (N, T)), np.arange(T)
    mirror = np.take_along_axis(letters, np.clip(2 * length - t, 0, T - 1), 1)
    tokens = np.select([t < length, t == length, t <= 2 * length, t == 2 * length + 1],
                       [letters, VOCAB.index(THINK), mirror, VOCAB.index(END)], VOCAB.index(PAD))
    return tokens, (t > length) & (t <= 2 * length + 1), {}


def solve(word, s):
    return word[::-1]
