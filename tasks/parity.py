"""Parity: bits, '=', and the parity of the bits up to each: 1011=1101. All of them are read out at once, so that how
many steps follow from each other is known: one a bit. Fan et al. 2025 (2409.15647); prefix sums of Bansal et al. 2022
(2202.05826)."""
import numpy as np

max_size = 16                   # >= 1, <= 1000: bits of the longest row in training
track = "slots"                 # slots: written one after the other every step would be local

VOCAB = "01= _"
PAD, THINK, SLOT, NUMBER = " ", "=", "_", "01_"  # a bit's place is its index
KINDS, SIZES = ("uniform", "sparse"), [2, 4, 6, 8, 12, 16]


def row_length(size, s):
    return 2 * longest_number(size, s) + 1


def longest_number(size, s):
    return size or s.max_size


def draw(rng, N, s, size=None, kind="uniform"):
    """Difficulty: how many bits are 1; of kind sparse an eighth of them."""
    T = row_length(size, s)
    length = rng.integers(1, s.max_size + 1, (N, 1)) if size is None else np.full((N, 1), size)
    t = np.arange(T)
    bits = (rng.random((N, T)) < (1 / 8 if kind == "sparse" else 1 / 2)) & (t < length)
    sums = np.take_along_axis(bits.cumsum(1) % 2, np.clip(t - length - 1, 0, T - 1), 1)
    tokens = np.select([t < length, t == length, t <= 2 * length], [bits, VOCAB.index(THINK), sums], VOCAB.index(PAD))
    return tokens, (t > length) & (t <= 2 * length), dict(ones=bits.sum(1))


def solve(bits, s):
    if not bits or set(bits) - {"0", "1"}:
        raise ValueError(f"{bits!r} is not a row of bits; write it as 1011")
    return "".join(str(bits[:i].count("1") % 2) for i in range(1, len(bits) + 1))
