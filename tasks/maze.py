"""A perfect maze, and the same with the only way from S to G marked: no sequence, so all of it is read out at once.

A maze of n x n cells is 2n-1 lines, parted by '/', with a wall '#' or an opening '.' between cells: S.#/#.#/G.. and,
after '=', oo#/#o#/oo. for n = 2. It is a tree, grown by depth-first search, so that ways are long and winding.
Unique shortest ways as a task for loops: Bansal et al. 2022 (2202.05826).
"""
import numpy as np

max_size = 4                    # >= 2, <= 20: cells along a side of the largest maze in training
track = "slots"                 # slots: the way is found from both ends, not from its first line on

VOCAB = "#.SGo/= _"
PAD, THINK, SLOT = " ", "=", "_"
KINDS, SIZES = ("uniform", "far"), [2, 3, 4, 5]  # a size is n; far: G is where the way from S is longest
EXAMPLES = "S.#/#.#/G..\n..S/.##/..G"


def row_length(size, s):
    n = size or s.max_size
    return 2 * (2 * n * (2 * n - 1) - 1) + 1


def grow(rng, n):
    """A maze of n x n cells (2n-1, 2n-1) of characters, and {cell: (cell before it, steps)} on the ways from its S."""
    grid = np.full((2 * n - 1, 2 * n - 1), "#")
    start = tuple(2 * rng.integers(0, n, 2))
    before, stack = {start: (None, 0)}, [start]
    while stack:
        y, x = stack[-1]
        near = [(y + a, x + b) for a, b in ((2, 0), (-2, 0), (0, 2), (0, -2))
                if min(y + a, x + b) >= 0 and max(y + a, x + b) < 2 * n and (y + a, x + b) not in before]
        if not near:
            stack.pop()
            continue
        cell = near[rng.integers(len(near))]
        before[cell] = (y, x), before[y, x][1] + 1
        grid[(y + cell[0]) // 2, (x + cell[1]) // 2] = "."
        stack.append(cell)
    grid[::2, ::2], grid[start] = ".", "S"
    return grid, before


def draw(rng, N, s, size=None, kind="uniform"):
    """Difficulty: steps of the way, from cell to cell."""
    tokens, steps = np.full((N, row_length(size, s)), VOCAB.index(PAD)), np.zeros(N, np.int64)
    for i in range(N):
        grid, before = grow(rng, size or rng.integers(2, s.max_size + 1))
        ends = [cell for cell in before if grid[cell] == "."]
        goal = max(ends, key=lambda c: before[c][1]) if kind == "far" else ends[rng.integers(len(ends))]
        grid[goal], way, at = "G", grid.copy(), goal
        while at:
            way[at], after, at = "o", at, before[at][0]
            if at:
                way[(after[0] + at[0]) // 2, (after[1] + at[1]) // 2] = "o"
        row = "=".join("/".join(map("".join, x)) for x in (grid, way))
        tokens[i, :len(row)], steps[i] = [VOCAB.index(c) for c in row], before[goal][1]
    answer = (tokens == VOCAB.index(THINK)).cumsum(1) > 0
    return tokens, answer & (tokens != VOCAB.index(THINK)) & (tokens != VOCAB.index(PAD)), dict(steps=steps)


def solve(problem, s):
    """The maze with the shortest way marked, by breadth-first search. ValueError if there is none."""
    lines = problem.strip().split("/")
    place = {(y, x): c for y, line in enumerate(lines) for x, c in enumerate(line)}
    if set(place.values()) - {*"#.SG"} or any(len(line) != len(lines) for line in lines) or len(lines) % 2 == 0 or any(
            list(place.values()).count(c) != 1 for c in "SG"):
        raise ValueError(f"{problem!r} is no maze: an odd number of lines, each of as many symbols; / parts them; S, G")
    start = next(p for p, c in place.items() if c == "S")
    before, reached = {start: None}, [start]
    for y, x in reached:
        for cell in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            if place.get(cell, "#") != "#" and cell not in before:
                before[cell] = y, x
                reached.append(cell)
    at = next((p for p in reached if place[p] == "G"), None)
    if not at:
        raise ValueError(f"{problem!r} has no way from S to G")
    while at:
        place[at], at = "o", before[at]
    return "/".join("".join(place[y, x] for x in range(len(lines))) for y in range(len(lines)))
