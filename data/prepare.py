"""Write rows of a task as train.bin, val.bin and meta.json, once 1,000 of them were checked.

    python data/prepare.py --task=reverse
    python data/prepare.py --task=addition --max_digits=3 --out_dir=data/addition/demo
    python data/prepare.py --task=path/to/mine.py --out_dir=data/mine

A task is a module of tasks/, or a file of your own, of which every other script must be told, too: --task=path/mine.py.
Its settings are the lower-case assignments at its top; --task=NAME --help lists them. docs/tasks.md shows one in full.
"""
import os
import random
import re
import sys
import time
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import tasks  # noqa: E402
from configurator import configure, read_settings  # noqa: E402
from dataset import write_dataset  # noqa: E402
from outputs import progress  # noqa: E402
from runtime import first_line, require_memory, run  # noqa: E402

task = ""                       # a name in tasks/, or path/to/file.py
out_dir = ""                    # the folder to write, train.py finds data/NAME as --dataset=NAME; empty: data/<task>
train_rows = 200_000            # >= 1: rows of train.bin
val_rows = 10_000               # >= 1: rows of val.bin
seed = 1                        # >= 0: of all draws

CHECKED = 1000                  # rows that are held against solve before anything is written
TAKEN = {"grid", "file", "frontier", "val_loss"}  # kinds of rows in evaluate.py's table, beside those of a task


# ---- what is wrong with a module, ValueError in one line

def check_names(module):
    """Its symbols, kinds and functions."""
    missing = [name for name in tasks.NEEDED if not (hasattr(module, name) or name == "SIZES" and
                                                     hasattr(module, "sizes"))] + ["END"] * (not tasks.tracks(module))
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    symbols = module.VOCAB
    if not isinstance(symbols, str) or len(set(symbols)) < len(symbols):
        raise ValueError("VOCAB must be a string, each symbol in it once")
    for key in ("PAD", "THINK", "END", "SLOT"):
        if hasattr(module, key) and (len(getattr(module, key)) != 1 or getattr(module, key) not in symbols):
            raise ValueError(f"{key} {getattr(module, key)!r} is no symbol of VOCAB")
    if set(getattr(module, "NUMBER", "")) - set(symbols):
        raise ValueError("NUMBER has symbols outside VOCAB")
    if module.KINDS[0] != "uniform" or not all(re.fullmatch(r"[a-z]\w*", k) and k not in TAKEN for k in module.KINDS):
        raise ValueError(f"KINDS {module.KINDS}: 'uniform' first, then other names than {', '.join(sorted(TAKEN))}")


def check_rows(module, s, drawn, length, where):
    """What draw returns, for rows of so many tokens."""
    tokens, answer, difficulty = drawn
    N, V = len(tokens), len(module.VOCAB)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.shape != (N, length):
        raise ValueError(f"{where} gives rows of shape {tokens.shape}, {tokens.dtype}; row_length says {length} tokens")
    if answer.shape != tokens.shape or answer.dtype != bool:
        raise ValueError(f"{where} gives an answer of shape {answer.shape}, {answer.dtype}; bool as the rows is needed")
    if tokens.min() < 0 or tokens.max() >= V:
        raise ValueError(f"{where} gives token {tokens.max()}, VOCAB has {V} symbols")
    pads = tokens == module.VOCAB.index(module.PAD)
    if (pads[:, :-1] & ~pads[:, 1:]).any():
        raise ValueError(f"{where} has a pad {module.PAD!r} inside a row; pads stand at its end")
    wrong = (answer != tasks.answers(module, tokens)).any(1) | ~answer.any(1)
    if wrong.any():
        row = tasks.text_of(module, tokens[wrong.argmax()])
        raise ValueError(f"{where}: the answer of {row!r} must be all that follows {module.THINK!r}, pads aside")
    if s.track == "next" and (tokens[np.arange(N), N and length - 1 - answer[:, ::-1].argmax(1)]
                              != module.VOCAB.index(module.END)).any():
        raise ValueError(f"{where}: on track next an answer ends with END, {module.END!r}")
    for name, x in difficulty.items():
        if not re.fullmatch(r"[a-z]\w*", name) or name in (*TAKEN, *module.KINDS) or np.shape(x) != (N,):
            raise ValueError(f"{where}: difficulty {name!r} must be (N,), of a name that no kind has")


def check_answers(module, s, tokens, where):
    """show, solve and read agree on the rows."""
    for row in tokens:
        text = tasks.show(module, row, s)
        problem, _, said = text.partition(module.THINK)
        right = module.solve(problem, s)
        if said != right:
            raise ValueError(f"{where} gives {text!r}, where solve says {right!r}")
        again, _ = tasks.read(module, problem, s)
        if tasks.show(module, again, s) != text:
            raise ValueError(f"{where} gives {text!r}, of which read makes {tasks.show(module, again, s)!r}")


def check_task(module, s):
    """ValueError in one line for a module with a mistake, found on CHECKED rows of training and some of each size."""
    draws = []
    for state in (1, 2):  # of the generators that a draw must not depend on
        random.seed(state)
        np.random.seed(state)  # noqa: NPY002
        draws.append(module.draw(np.random.default_rng([seed, 2]), CHECKED, s))
    if not all(np.array_equal(x, y) for x, y in zip(*(d[:2] for d in draws), strict=True)):
        raise ValueError("draw gives other rows at the second call: all it draws must come from rng")
    check_rows(module, s, draws[0], module.row_length(None, s), "draw")
    check_answers(module, s, draws[0][0], "draw")
    for size in tasks.sizes(module, s):
        for kind in module.KINDS:
            where, drawn = f"draw of size {size}, kind {kind}", tasks.problem_set(module, s, size, 20, kind)
            check_rows(module, s, drawn, module.row_length(size, s), where)
            check_answers(module, s, drawn[0], where)


# ---- the run

def own_keys():
    """The settings of this script."""
    with open(__file__, encoding="utf-8") as f:
        return {*read_settings(f.read())}


def settings_for(given):
    """The task that a command names, itself and with its settings; and these, completed, as a namespace."""
    if not given:
        raise SystemExit(f"--task=NAME: {', '.join(tasks.names())}, or path/to/file.py")
    module = tasks.use(given)
    own, of_task, _ = configure(__file__, {f"settings of task {tasks.name_of(module)}": tasks.settings_of(module)})
    globals().update(own)
    try:
        check_names(module)
    except ValueError as e:
        raise SystemExit(f"{module.__file__}: {e}") from None
    return module, SimpleNamespace(**dict(track=tasks.tracks(module)[0]) | of_task)


def main(name=""):
    """name: of the task, where the script that calls this is one task's."""
    said = [arg.removeprefix("--task=") for arg in sys.argv[1:] if arg.startswith("--task=")]
    if not (name or said) and {"-h", "--help"} & {*sys.argv}:
        configure(__file__)
    module, s = settings_for(name or (said or [""])[-1])
    taken = set(vars(s)) & {*tasks.facts(module), "row_len", "tokens", "sha256", "dtype", "encoding", *own_keys()}
    try:
        if taken:
            raise ValueError(f"its settings {', '.join(taken)} need other names")
        if s.track not in tasks.tracks(module):
            raise SystemExit(f"--track={s.track}: {' or '.join(tasks.tracks(module))}")
        if hasattr(module, "complete"):
            try:
                module.complete(s)
            except ValueError as e:
                raise SystemExit(f"--{e}") from None
        check_task(module, s)
    except Exception as e:  # whatever a module does
        raise SystemExit(f"{module.__file__}: {first_line(e)}") from None
    folder = out_dir or os.path.join("data", tasks.name_of(module))
    start, row_len = time.time(), module.row_length(None, s)
    require_memory(22 * row_len * max(train_rows, val_rows), "lower --train_rows or --val_rows")  # as was measured
    counts, splits = dict(train=train_rows, val=val_rows), {}
    for i, split in enumerate(progress([*counts], "drawing", "rows", sum(counts.values()), counts.get)):
        splits[split] = module.draw(np.random.default_rng([seed, i]), counts[split], s)[0]
    write_dataset(folder, splits, **tasks.facts(module) | dict(row_len=row_len) | vars(s), seed=seed)
    print(f"written in {time.time() - start:.1f} s; first rows: "
          + ", ".join(repr(tasks.text_of(module, row).rstrip()) for row in splits["train"][:3]))


if __name__ == "__main__":
    run(main, "--train_rows")
