"""Multiplication: A*B=C, digits least significant first: 12*34=408 stands as 21*43=8040. The product has as many digits
as both numbers together, so the last may be 0. Length generalisation: Fan et al. 2025 (2409.15647), in binary.

A size is the digits of both numbers, or a pair: those of A, those of B.
"""
import numpy as np

from tasks.addition import random_numbers

max_digits = 3                  # >= 1, <= 50: numbers have 1 to this many digits, lengths drawn independently
track = "next"                  # next: next-token prediction; slots: parallel answer

VOCAB = "0123456789*=\n _"
PAD, THINK, END, SLOT, NUMBER = " ", "=", "\n", "_", "0123456789_"
KINDS, SIZES, PAIRS = ("uniform", "sevens"), [1, 2, 3, 4], True  # sevens: digits of 7 and up, so that carries are large
EXAMPLES = "12*34=\n99*99=\n7*8="


def longest_number(size, s):
    return sum(np.broadcast_to(size or s.max_digits, 2).tolist())


def row_length(size, s):
    return 2 * longest_number(size, s) + 2 + (s.track == "next")


def multiply(a, b):
    """Products (N,A+B) of digit matrices (N,A), (N,B), least significant first."""
    N, A, B = *a.shape, b.shape[1]
    c = np.zeros((N, A + B), np.int64)
    for i in range(A):
        c[:, i:i + B] += a[:, i:i + 1].astype(np.int64) * b
    for i in range(A + B - 1):
        c[:, i + 1] += c[:, i] // 10
    return c % 10


def draw(rng, N, s, size=None, kind="uniform"):
    """Difficulty: digits of A times digits of B."""
    A, B = np.broadcast_to(size or s.max_digits, 2).tolist()
    la, lb = rng.integers(1, s.max_digits + 1, (2, N)) if size is None else (np.full(N, A), np.full(N, B))
    a, b = random_numbers(rng, la, A), random_numbers(rng, lb, B)
    if kind == "sevens":
        a, b = ((7 + x % 3) * (np.arange(x.shape[1]) < n[:, None]) for x, n in ((a, la), (b, lb)))
    tokens, each = np.full((N, row_length(size, s)), VOCAB.index(PAD)), np.arange(N)

    def put(digits, length, at):
        for d in range(int(length.max())):
            here = d < length
            tokens[each[here], (at + d)[here]] = digits[here, d]

    put(a, la, 0 * la)
    tokens[each, la] = VOCAB.index("*")
    put(b, lb, la + 1)
    tokens[each, la + lb + 1] = VOCAB.index(THINK)
    put(multiply(a, b), la + lb, la + lb + 2)
    end = 2 * (la + lb) + 2
    if s.track == "next":
        tokens[each, end] = VOCAB.index(END)
    t = np.arange(tokens.shape[1])
    answer = (t > (la + lb + 1)[:, None]) & (t < (end + (s.track == "next"))[:, None])
    return tokens, answer, dict(products=la * lb)


def numbers_of(text):
    """The two numbers of '12*34=', as text. ValueError if it is no multiplication."""
    parts = text.replace(" ", "").strip().removesuffix("=").split("*")
    if len(parts) != 2 or not all(p.isascii() and p.isdigit() for p in parts):
        raise ValueError(f"{text!r} is not a multiplication; write it as 12*34=")
    return parts


def read(text, s):
    a, b = numbers_of(text)
    c = str(int(a) * int(b)).zfill(len(a) + len(b))
    return f"{a[::-1]}*{b[::-1]}={c[::-1]}" + (END if s.track == "next" else "")


def show(row, s):
    problem, _, c = row.partition("=")
    a, b = (x[::-1] for x in (problem + "*").split("*")[:2])
    c = c.partition(END)[0][::-1]
    return f"{a}*{b}={c.lstrip('0') or ('0' if c else '')}"


def solve(problem, s):
    a, b = numbers_of(problem)
    return str(int(a) * int(b))
