"""i-GSM, symbolic, modulo 7 (Saunshi et al. 2025, 2502.17416, after Ye et al. 2024, 2407.20311): variables, each made
from those of the layers below, in any order, and one of the top layer is asked: b=a+5;a=3;d=b*c;c=a;d?3.

Variables stand in `layers` layers: those of the first are numbers, one above is another, or one and a number, or two,
joined by + - *, the first of them of the layer below. A size is the number of variables.
"""
import re

import numpy as np

layers = 4                      # >= 2, <= 8: depth of the graph of definitions
max_variables = 12              # >= 2, <= 26: variables of the largest problem in training

LETTERS, OPERATORS = "abcdefghijklmnopqrstuvwxyz", "+-*"
VOCAB = "0123456" + LETTERS + OPERATORS + "=;?\n "
PAD, THINK, END = " ", "?", "\n"
KINDS = ("uniform", "chain")    # chain: every definition joins two things, so none is a copy
ID = {symbol: i for i, symbol in enumerate(VOCAB)}
EXAMPLES = "b=a+5;a=3;d=b*c;c=a;d?"


def complete(s):
    if s.max_variables < s.layers:
        raise ValueError(f"max_variables={s.max_variables}: at least layers, {s.layers}")


def sizes(s):
    return [n for k in (4, 6, 8, 10) if s.layers <= (n := s.max_variables * k // 6) <= 26]


def row_length(size, s):
    return 6 * (size or s.max_variables) + 4  # d=b*c; of each, then the question, its answer and END


def draw(rng, N, s, size=None, kind="uniform"):
    """Difficulty: how many variables the one that is asked depends on."""
    V = size or s.max_variables
    if V < s.layers:
        raise ValueError(f"size {V}: a problem has at least layers, {s.layers}, variables")
    count = rng.integers(s.layers, V + 1, N) if size is None else np.full(N, V)
    tokens, needed = np.full((N, row_length(size, s)), ID[PAD]), np.zeros(N, np.int64)
    for i, n in enumerate(count):
        names = rng.permutation(list(LETTERS))[:n]
        layer = np.sort(np.append(np.arange(s.layers), rng.integers(0, s.layers, n - s.layers)))
        texts, uses = [], []
        for v, own in enumerate(layer):
            first = int(rng.choice((layer == own - 1).nonzero()[0])) if own else None
            below, shape = int((layer < own).sum()), 0 if not own else rng.integers(kind == "chain", 3)
            second = int(rng.integers(below)) if shape == 2 else None
            text = names[first] if own else str(rng.integers(7))
            if shape:
                text += rng.choice(list(OPERATORS)) + (names[second] if shape == 2 else str(rng.integers(7)))
            texts.append(f"{names[v]}={text};")
            uses.append({v}.union(*(uses[x] for x in (first, second) if x is not None)))
        asked = int(rng.choice((layer == s.layers - 1).nonzero()[0]))
        problem = "".join(texts[v] for v in rng.permutation(n)) + names[asked]
        row = [ID[c] for c in f"{problem}?{solve(problem, s)}\n"]
        tokens[i, :len(row)], needed[i] = row, len(uses[asked])
    t, end = np.arange(tokens.shape[1]), (tokens == ID[END]).argmax(1)[:, None]
    return tokens, (t >= end - 1) & (t <= end), dict(needed=needed)


def solve(problem, s):
    """The value of what is asked. ValueError for a problem that does not say it."""
    *lines, asked = problem.replace(" ", "").removesuffix(THINK).split(";")
    defined = dict(m.groups() for line in lines if (m := re.fullmatch(r"([a-z])=([a-z0-6](?:[-+*][a-z0-6])?)", line)))
    if len(defined) < len(lines):
        raise ValueError(f"{problem!r} is not a list of definitions a=b+5; and a question d?")

    def value(name, above=()):
        if name.isdigit():
            return int(name)
        if name in above or name not in defined:
            raise ValueError(f"{problem!r} does not say what {name} is")
        a, *rest = (value(x, (*above, name)) for x in re.findall(r"\w", defined[name]))
        return {"+": a + sum(rest), "-": a - sum(rest), "*": a * (rest or [1])[0]}[(defined[name] + "++")[1]] % 7
    return str(value(asked))
