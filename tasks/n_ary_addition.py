"""n-ary addition (Saunshi et al. 2025, 2502.17416): the sum of n three-digit numbers, 315 + 120 + 045 = 480."""
import numpy as np

counts: list[int] = [2, 4, 8, 16, 32]  # >= 1, <= 1000: how many numbers a row in training has, one of these
plain = True                    # most significant digit first, as in the paper, instead of least

VOCAB = "0123456789+=\n "
PAD, THINK, END, NUMBER = " ", "=", "\n", "0123456789"
KINDS, SIZES = ("uniform", "nines"), [2, 3, 4, 5, 6, 8, 16, 32]  # a size is n
EXAMPLES = "315 + 120 + 045 =\n999 + 999 ="


def longest_number(size, s):
    return len(str(999 * (size or max(s.counts))))


def row_length(size, s):
    return 4 * (size or max(s.counts)) + longest_number(size, s) + 1


def draw(rng, N, s, size=None, kind="uniform"):
    """Difficulty: the hundreds of the sum over n, so how far from the middle it is. Of kind nines half of the numbers
    are 999 less a digit."""
    n, T = size or max(s.counts), row_length(size, s)
    count = rng.choice(s.counts, N) if size is None else np.full(N, size)
    numbers = rng.integers(0, 1000, (N, n))
    if kind == "nines":
        numbers = np.where(rng.random((N, n)) < 0.5, 999 - rng.integers(0, 10, (N, n)), numbers)
    numbers = numbers * (np.arange(n) < count[:, None])
    total, order = numbers.sum(1), -1 if s.plain else 1
    tokens = np.full((N, T), VOCAB.index(PAD))
    digits = numbers[:, :, None] // 10 ** np.arange(3) % 10  # (N,n,3)
    tokens[:, :4 * n] = np.pad(digits[:, :, ::order], ((0, 0), (0, 0), (0, 1)), constant_values=10).reshape(N, -1)
    places = np.char.str_len(total.astype(str))
    for i, (at, long) in enumerate(zip(4 * count - 1, places, strict=True)):
        answer = total[i] // 10 ** np.arange(long) % 10
        tokens[i, at:] = VOCAB.index(PAD)
        tokens[i, at], tokens[i, at + 1:at + 1 + long], tokens[i, at + 1 + long] = 11, answer[::order], 12
    t, start = np.arange(T), 4 * count[:, None]
    return tokens, (t >= start) & (t <= start + places[:, None]), dict(hundreds=total // (100 * count))


def numbers_of(text):
    """The numbers of '315 + 120 + 045', three digits each. ValueError if they are none."""
    found = text.replace(" ", "").strip().removesuffix("=").split("+")
    if not all(x.isascii() and x.isdigit() and len(x) <= 3 for x in found):
        raise ValueError(f"{text!r} is no sum of numbers up to 999; write it as 315 + 120 + 045 =")
    return [x.zfill(3) for x in found]


def read(text, s):
    order, found = 1 if s.plain else -1, numbers_of(text)
    return "+".join(x[::order] for x in found) + "=" + solve(text, s)[::order] + END


def show(row, s):
    order, (problem, _, answer) = 1 if s.plain else -1, row.partition("=")
    return " + ".join(x[::order] for x in problem.split("+")) + " =" + answer.partition(END)[0][::order]


def solve(problem, s):
    return str(sum(map(int, numbers_of(problem))))
