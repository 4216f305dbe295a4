"""Copying: a word, '=', and the word again: abca=abca. Length generalisation as in Fan et al. 2025 (2409.15647)."""
import numpy as np

max_size = 8                    # >= 1, <= 100: letters of the longest word in training
track = "next"                  # next: next-token prediction; slots: parallel answer

VOCAB = "abcdefgh=\n _"
PAD, THINK, END, SLOT, NUMBER = " ", "=", "\n", "_", "abcdefgh_"  # a letter's place is its index within the word
KINDS, SIZES = ("uniform", "repeats"), [1, 2, 4, 8, 12, 16]


def row_length(size, s):
    return longest_number(size, s) * 2 + 1 + (s.track == "next")


def longest_number(size, s):
    return size or s.max_size


def draw(rng, N, s, size=None, kind="uniform"):
    """Of kind repeats are words of two letters, in which the letters before say little of where one stands."""
    T, ends = row_length(size, s), s.track == "next"
    length = rng.integers(1, s.max_size + 1, (N, 1)) if size is None else np.full((N, 1), size)
    letters, t = rng.integers(0, 2 if kind == "repeats" else 8, (N, T)), np.arange(T)
    again = np.take_along_axis(letters, np.clip(t - length - 1, 0, T - 1), 1)
    tokens = np.select([t < length, t == length, t <= 2 * length, (t == 2 * length + 1) & ends],
                       [letters, VOCAB.index(THINK), again, VOCAB.index(END)], VOCAB.index(PAD))
    return tokens, (t > length) & (t <= 2 * length + ends), {}


def solve(word, s):
    return word
