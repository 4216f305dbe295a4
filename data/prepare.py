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
import traceback
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

CHECKED = 1000                  # rows that are held against solve, or check, before anything is written
TAKEN = {"grid", "file", "frontier", "val_loss"}  # kinds of rows in evaluate.py's table, beside those of a task


# ---- what is wrong with a module, ValueError in one line

def where_in(module, e):
    """What went wrong, and where if that is in the module: 'mine.py:17, in draw: IndexError: ...'."""
    frames = [f for f in traceback.extract_tb((e.__cause__ or e).__traceback__) if f.filename == module.__file__]
    if not frames:
        return f"{module.__file__}: {first_line(e)}"
    what = first_line(e)
    if isinstance(e, AttributeError) and isinstance(e.obj, SimpleNamespace):
        what = f"s has no {e.name}; settings are lower-case assignments at the top"
    name = type(e.__cause__ or e).__name__
    return f"{module.__file__}:{frames[-1].lineno}, in {frames[-1].name}: {what if name in what else f'{name}: {what}'}"


def check_names(module):
    """Its symbols, kinds and functions."""
    missing = [name for name in tasks.NEEDED if not (hasattr(module, name) or name == "SIZES" and
                                                     hasattr(module, "sizes"))] + ["END"] * (not tasks.tracks(module))
    missing += ["longest_number"] * (hasattr(module, "NUMBER") and not hasattr(module, "longest_number"))
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    symbols, found = module.VOCAB, {}
    if not isinstance(symbols, str) or len(set(symbols)) < len(symbols):
        raise ValueError("VOCAB must be a string, each symbol in it once")
    for key in ("PAD", "THINK", "END", "SLOT"):
        symbol = getattr(module, key, None)
        if hasattr(module, key) and (not isinstance(symbol, str) or len(symbol) != 1 or symbol not in symbols):
            raise ValueError(f"{key} {symbol!r} is no symbol of VOCAB")
        if symbol in found:
            raise ValueError(f"{found[symbol]} and {key} are the same symbol, {symbol!r}")
        found |= {symbol: key} if symbol else {}
    if set(getattr(module, "NUMBER", "")) - set(symbols):
        raise ValueError("NUMBER has symbols outside VOCAB")
    for key in ("KINDS", "SIZES"):
        given = getattr(module, key, [0])  # sizes(s) may stand for SIZES
        if not isinstance(given, (tuple, list)) or not given:
            raise ValueError(f"{key} {given!r} must be a tuple or a list")
    if module.KINDS[0] != "uniform" or not all(re.fullmatch(r"[a-z]\w*", k) and k not in TAKEN for k in module.KINDS):
        raise ValueError(f"KINDS {module.KINDS}: 'uniform' first, then other names than {', '.join(sorted(TAKEN))}")
    reserved = own_keys() | {*tasks.facts(module), "row_len", "tokens", "sha256", "dtype", "encoding"}
    if taken := reserved & {*tasks.settings_of(module)}:
        raise ValueError(f"its settings {', '.join(sorted(taken))} need other names: prepare.py or meta.json has these")


def drawn(module, where, *args):
    """What draw returns: tokens, answer, difficulty."""
    found = module.draw(*args)
    if not isinstance(found, tuple) or len(found) != 3 or not isinstance(found[2], dict) or not all(
            isinstance(x, np.ndarray) for x in found[:2]):
        named = ", ".join(type(x).__name__ for x in found) if isinstance(found, tuple) else type(found).__name__
        raise ValueError(f"{where} must return tokens, answer, difficulty: two arrays and a dict, not {named}")
    return found


def check_rows(module, s, found, size, where):
    """What draw returns, for rows of a size."""
    tokens, answer, difficulty = found
    N, V, length = len(tokens), len(module.VOCAB), module.row_length(size, s)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu" or tokens.shape != (N, length):
        raise ValueError(f"{where} gives rows of shape {tokens.shape}, {tokens.dtype}; row_length says {length} tokens")
    if answer.shape != tokens.shape or answer.dtype != bool:
        raise ValueError(f"{where} gives an answer of shape {answer.shape}, {answer.dtype}; bool as the rows is needed")
    if tokens.min() < 0 or tokens.max() >= V:
        raise ValueError(f"{where} gives token {tokens.max()}, VOCAB has {V} symbols")

    def first(wrong):
        """The first row with something wrong (N,T)."""
        return repr(tasks.text_of(module, tokens[wrong.any(1).argmax()]))

    is_symbol = {key: tokens == module.VOCAB.index(getattr(module, key)) for key in ("PAD", "END", "SLOT")
                 if hasattr(module, key)}
    pads, slots = is_symbol["PAD"], is_symbol.get("SLOT", answer & False)
    inside = pads & (~pads[:, ::-1]).cumsum(1)[:, ::-1].astype(bool)
    wrong = (answer != tasks.answers(module, tokens)) | ~answer.any(1, keepdims=True)
    if inside.any():
        raise ValueError(f"{where} has a pad {module.PAD!r} inside a row, {first(inside)}; pads stand at its end")
    if slots.any():
        raise ValueError(f"{where} has SLOT, {module.SLOT!r}, in the row {first(slots)}; it is for hidden answers")
    if wrong.any():
        raise ValueError(f"{where}: the answer of {first(wrong)} must be all that follows {module.THINK!r}, pads aside")
    if s.track == "next":
        last = answer & (answer[:, ::-1].cumsum(1)[:, ::-1] == 1)
        wrong = last & ~is_symbol["END"]
        if wrong.any():
            raise ValueError(f"{where}: on track next an answer ends with END, {module.END!r}, that of "
                             f"{first(wrong)} does not; is it cut at row_length {length}?")
    elif "END" in is_symbol and (wrong := answer & is_symbol["END"]).any():
        raise ValueError(f"{where}: on track slots an answer has no END, {module.END!r}, as {first(wrong)} has")
    for name, x in difficulty.items():
        if not re.fullmatch(r"[a-z]\w*", name) or name in (*TAKEN, *module.KINDS) or np.shape(x) != (N,) or (
                np.asarray(x).dtype.kind not in "iu"):
            raise ValueError(f"{where}: difficulty {name!r} must be (N,) of integers, of a name that no kind has, here "
                             f"{np.shape(x)}, {np.asarray(x).dtype}")


def check_answers(module, s, tokens, where):
    """show, solve or check, and read agree on the rows, and show takes whatever a model may write."""
    others, accepted = np.random.default_rng(seed).integers(0, len(module.VOCAB), (len(tokens), 4)), True
    for row, other in zip(tokens, others, strict=True):
        text = tasks.show(module, row, s)
        problem, _, said = text.partition(module.THINK)
        right = module.solve(problem, s)
        if not tasks.is_answer(module, problem, said, s):
            raise ValueError(f"{where} gives {text!r}, where " + (
                f"check refuses {said!r}" if hasattr(module, "check") else f"solve says {right!r}"))
        if not tasks.is_answer(module, problem, right, s):
            raise ValueError(f"solve says {right!r} to {problem!r}, which check refuses")
        again = tasks.show(module, tasks.read(module, problem, s)[0], s)
        if again != (f"{problem}{module.THINK}{right}"):
            raise ValueError(f"{where} gives {text!r}, of which read makes {again!r}")
        prompt = row[:(row == module.VOCAB.index(module.THINK)).argmax() + 1]
        problem, _, said = tasks.show(module, [*prompt, *other], s).partition(module.THINK)
        accepted &= tasks.is_answer(module, problem, said, s) and tasks.is_answer(module, problem, "", s)
    if accepted:
        raise ValueError("check accepts any answer, even none")


def check_optional(module, s, found, size, where):
    """NUMBER, labels and augment, on what draw returns for a size."""
    tokens, answer, _ = found
    x = tasks.inputs_and_targets(module, tokens, answer, s.track)[0]
    if getattr(module, "NUMBER", "") and not getattr(s, "plain", False):
        digit = np.isin(x, [module.VOCAB.index(c) for c in module.NUMBER])
        before = np.maximum.accumulate(np.where(digit, 0, digit.cumsum(1)), 1)
        run, says = (digit.cumsum(1) - before).max(), module.longest_number(size, s)
        if run > says:
            raise ValueError(f"{where} has {run} symbols of NUMBER in a run, where longest_number says {says}")
    if hasattr(module, "labels"):
        for name, label in module.labels(tokens, answer, s).items():
            if np.shape(label) != tokens.shape or np.asarray(label).dtype.kind not in "iu":
                raise ValueError(f"label {name!r} must be {tokens.shape} of integers as the rows of {where}, -1 where "
                                 f"there is none, not {np.shape(label)}, {np.asarray(label).dtype}")
    if hasattr(module, "augment"):
        rows, _ = module.augment(np.random.default_rng(seed), tokens, answer, True, 0.0)
        if rows.shape != tokens.shape:
            raise ValueError(f"augment makes rows of shape {rows.shape} of {tokens.shape}")


def check_task(module, s):
    """ValueError in one line for a module with a mistake, found on CHECKED rows of training and some of each size."""
    draws = []
    for state in (1, 2, 1):  # of the generators that a draw must not depend on; the last with another seed
        random.seed(state)
        np.random.seed(state)  # noqa: NPY002
        rng = np.random.default_rng([seed, 2 + len(draws) // 2])
        draws.append(drawn(module, "draw", rng, CHECKED, s))
    same = [all(np.array_equal(x, y) for x, y in zip(draws[0][:2], d[:2], strict=True)) for d in draws]
    if not same[1]:
        raise ValueError("draw gives other rows at the second call: all it draws must come from rng")
    if same[2]:
        raise ValueError("draw gives the same rows whatever rng: all it draws must come from rng")
    sets = [(None, "draw", draws[0])]
    of_pairs = [((1, 2), module.KINDS[0])] if getattr(module, "PAIRS", False) else []
    for size, kind in [(size, kind) for size in tasks.sizes(module, s) for kind in module.KINDS] + of_pairs:
        where = f"draw of size {size}, kind {kind}"
        rng = np.random.default_rng([tasks.TEST_SEED, *tasks.pair(size), module.KINDS.index(kind)])
        sets.append((size, where, drawn(module, where, rng, 20, s, size, kind)))
    for size, where, found in sets:
        check_rows(module, s, found, size, where)
        check_answers(module, s, found[0], where)
        check_optional(module, s, found, size, where)
    for problem in tasks.split(module, getattr(module, "EXAMPLES", "")):
        tasks.read(module, problem, s)


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
    except Exception as e:  # whatever a module does
        raise SystemExit(where_in(module, e)) from None
    return module, SimpleNamespace(**dict(track=tasks.tracks(module)[0]) | of_task)


def main(name=""):
    """name: of the task, where the script that calls this is one task's."""
    said = [arg.removeprefix("--task=") for arg in sys.argv[1:] if arg.startswith("--task=")]
    if not (name or said) and {"-h", "--help"} & {*sys.argv}:
        configure(__file__)
    module, s = settings_for(name or (said or [""])[-1])
    try:
        if s.track not in tasks.tracks(module):
            needs = {"next": "track = next needs END", "slots": "track = slots needs SLOT"}.get(s.track)
            raise SystemExit(f"--track={s.track}: {needs or ' or '.join(tasks.tracks(module))}")
        if hasattr(module, "complete"):
            try:
                module.complete(s)
            except ValueError as e:
                raise SystemExit(f"--{e}") from None
        check_task(module, s)
    except Exception as e:  # whatever a module does
        raise SystemExit(where_in(module, e)) from None
    folder = out_dir or os.path.join("data", tasks.name_of(module))
    start, row_len = time.time(), module.row_length(None, s)
    require_memory(22 * row_len * max(train_rows, val_rows), "lower --train_rows or --val_rows")  # as was measured
    counts, splits = dict(train=train_rows, val=val_rows), {}
    for i, split in enumerate(progress([*counts], "drawing", "rows", sum(counts.values()), counts.get)):
        splits[split] = module.draw(np.random.default_rng([seed, i]), counts[split], s)[0]
    write_dataset(folder, splits, **tasks.facts(module) | dict(row_len=row_len) | vars(s), seed=seed)
    print(f"written in {time.time() - start:.1f} s; first rows: "
          + ", ".join(repr(tasks.show(module, row, s)) for row in splits["train"][:3]))


if __name__ == "__main__":
    run(main, "--train_rows")
