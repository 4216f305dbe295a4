"""Additions as plain Python reads them: text, int() and +. The symbols are spelled out here on purpose."""
from types import SimpleNamespace

import numpy as np

import tasks
from tasks import addition

SYMBOLS = "0123456789+=\n _"
UNLIKELY = 1e-6  # a statistical test on fresh draws fails once in a million runs


def texts(rows):
    """Rows of tokens -> list of strings."""
    raw = np.frombuffer(SYMBOLS.encode(), np.uint8)[rows].tobytes().decode()
    width = rows.shape[1]
    return [raw[i:i + width] for i in range(0, len(raw), width)]


def value(text, plain=False):
    assert text.isdigit()
    return int(text if plain else text[::-1])


def parse(text, track="next", plain=False):
    """(A, B) of one row of text, which must be well formed and true; A and B as text, most significant digit first."""
    body = text.rstrip(" ")
    if track == "next":
        assert body.endswith("\n")
        body = body[:-1]
    left, c = body.split("=")
    a, b = left.split("+")
    sum_ = value(a, plain) + value(b, plain)
    assert value(c, plain) == sum_
    assert len(c) == (max(len(a), len(b)) + 1 if track == "slots" else len(str(sum_)))
    a, b = (x if plain else x[::-1] for x in (a, b))
    assert str(int(a)) == a
    assert str(int(b)) == b
    return a, b


def chains(a, b, places):
    """The longest carry chain of each sum, from ints alone: a carry enters place j if the numbers' tails make 10**j."""
    run = longest = np.zeros(len(a), int)
    for j in range(1, places + 1):
        carry = (a % 10**j + b % 10**j >= 10**j).astype(bool)
        made = (a // 10**(j - 1) % 10 + b // 10**(j - 1) % 10 >= 10).astype(bool)
        run = np.where(carry, np.where(made, 1, run + 1), 0)
        longest = np.maximum(longest, run)
    return longest


# ---- the addition task as scripts see it

def problem_set(n, count, kind="uniform", m=None):
    """The problems a, la, b, lb that evaluate.py asks, of n and m (default n) digits."""
    m = n if m is None or kind not in ("uniform", "hard") else m
    rng = np.random.default_rng([tasks.TEST_SEED, n, m, addition.KINDS.index(kind) if kind in addition.KINDS else 0])
    return addition.problem_set(rng, count, (n, m), kind)


def inputs_and_targets(rows, track="next"):
    """Rows (N,T) -> what the model reads and what it must say."""
    return tasks.inputs_and_targets(addition, rows, tasks.answers(addition, rows), track)


def prompt_tokens(problem, track="next", plain=False):
    """Tokens (T,) that ask a problem a, la, b, lb: A+B= and, on track slots, the slots of its answer."""
    row = addition.write_rows(*problem, addition.row_tokens(problem[0].shape[1], track), track, plain)
    read = tasks.inputs_and_targets(addition, row, tasks.answers(addition, row), "slots")[0][0]
    return read[:tasks.answers(addition, row)[0].argmax()] if track == "next" else read[read != SYMBOLS.index(" ")]


def number_text(tokens, plain=False):
    """Digit tokens as written by the model -> the number as people write it."""
    row = "0+0=" + "".join(SYMBOLS[int(t)] for t in tokens)
    return addition.show(row, SimpleNamespace(plain=plain)).partition("=")[2]
