"""What all tasks share: a module by its name, rows as tokens, what a model reads and what it must say. numpy only.

A task is rows of tokens plus a mask of where the answer stands. It is one plain module, tasks/<name>.py or a file of
your own; docs/tasks.md shows one in full. What a module has:

    VOCAB, PAD, THINK, END  a string of symbols, and some of them: what fills a row on the right; the one after which
                            the answer stands, up to the pads; the last one of an answer on track next
    SLOT                    the symbol that hides an answer on track slots. There is no track slots without it, and no
                            track next without END
    KINDS, SIZES            kinds of test problems of one size, "uniform" first; the sizes that evaluate.py takes, or
                            sizes(s) instead, where they depend on settings
    its settings            lower-case assignments at the top, as in every script; `track` may be one of them
    row_length(size, s)     tokens of a row; size None, here and below: of the longest row in training
    draw(rng, N, s, size=None, kind="uniform")
                            tokens (N,T), answer (N,T) bool, difficulty {name: (N,) int}; all draws come from rng
    solve(problem, s)       the right answer, both as people write them; ValueError if that is no problem

and may have, where the defaults below do not do:

    check(problem, answer, s)
                            whether an answer, of whatever symbols, is right; where several are, and solve gives one
    read(problem, s)        the row of a problem as people write it, without THINK, answer included (on track next with
                            END): a string; ValueError if it is none
    show(row, s)            a row (string, with END, without pads) as people write it: problem, THINK, answer
    split(text)             the problems in a text; else one a line, and a new one after each THINK
    EXAMPLES                a text of problems for sample.py
    PAIRS                   True: a size may be a pair of two numbers, for --grid
    NUMBER, longest_number(size, s)
                            the symbols that place ids count, and how many of them the longest number of a row has
    labels(tokens, answer, s)
                            {name: (N,T) int}: for the probes of analyze.py what stands at a token, -1 elsewhere
    augment(rng, tokens, answer, swap, flip)
                            the same rows written otherwise: tokens, answer
    complete(s)             sets what follows from other settings; ValueError for those that do not go together

s is a namespace of the task's settings, as meta.json has them. Tracks: on track next the model says the next token; on
track slots the answer is hidden behind slots and all of it is read out at once, each symbol at its own slot.
"""
import importlib.machinery
import importlib.util
import inspect
import os
import re

import numpy as np

from configurator import read_settings

FOLDER = os.path.dirname(os.path.abspath(__file__))
NEEDED = ("VOCAB", "PAD", "THINK", "KINDS", "SIZES", "row_length", "draw", "solve")
MASK_RULE = "targets are what follows the think token, pads aside; all others are -1"
MASK_RULES = (MASK_RULE, "targets are what follows the second operator, end symbol included; all others are -1")
TEST_SEED = 2_000_003  # no training stream starts with it, so test problems are the same for every model
own = {}  # {name: module} of files that the command line named


# ---- modules

def names():
    """The names of the tasks that come with the project."""
    return sorted(f[:-3] for f in os.listdir(FOLDER) if f.endswith(".py") and f != "__init__.py")


def load(name):
    """The module of a task. SystemExit if it is neither one of the project nor one that the command line named: what
    stands in a checkpoint or a meta.json never makes a script run a file."""
    if name in own:
        return own[name]
    if name not in names():
        if own:
            raise SystemExit(f"the data, or the checkpoint, is of task {name!r}, while --task names {', '.join(own)}: "
                             f"name its file, --task=path/to/{name}.py, or take other data")
        raise SystemExit(f"the task {name!r} is none of {', '.join(names())}: name its file, --task=path/to/{name}.py")
    return importlib.import_module(f"tasks.{name}")


class Fresh(importlib.machinery.SourceFileLoader):
    """Reads a file as it is now. What Python keeps of one in __pycache__ would also be taken for another one of as many
    bytes that was written within the same second."""

    def get_code(self, fullname):
        return self.source_to_code(self.get_data(self.path), self.path)


def use(given):
    """The module that --task=NAME or --task=path/to/file.py names. SystemExit in one line if there is none."""
    if not given.endswith(".py"):
        return load(given)
    name = os.path.basename(given)[:-3]
    if name in names() and not os.path.samefile(given, os.path.join(FOLDER, f"{name}.py")):
        raise SystemExit(f"--task={given}: there is a task {name} in tasks/; give the file another name")
    path = os.path.abspath(given)
    spec = importlib.util.spec_from_file_location(name, path, loader=Fresh(name, path))
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as e:
        raise SystemExit(f"--task={given}: {type(e).__name__}: {e}") from None
    own[name] = module
    return module


def idle(meta, given):
    """Whether --task does nothing, since the data is of another one, and why: for say_without_effect."""
    of = f"of task {meta.task}" if meta.kind == "rows" else "a text"
    return of != f"of task {os.path.basename(given).removesuffix('.py')}", f"the data is {of}"


def name_of(task):
    """The name by which meta.json knows a module."""
    return task.__name__.rpartition(".")[2]


def settings_of(task):
    """The settings at the top of a module: {name: Setting}."""
    return read_settings(inspect.getsource(task))


def tracks(task):
    """The tracks on which a task can be trained, the usual one first."""
    return tuple(track for track, symbol in (("next", "END"), ("slots", "SLOT")) if hasattr(task, symbol))


def sizes(task, s):
    """The sizes of test problems that are taken by default."""
    return task.sizes(s) if hasattr(task, "sizes") else task.SIZES


def facts(task):
    """What meta.json says of a module."""
    return dict(kind="rows", task=name_of(task), vocab=list(task.VOCAB), vocab_size=len(task.VOCAB), pad=task.PAD,
                think_token=task.THINK, digits=getattr(task, "NUMBER", ""), mask=MASK_RULE)


# ---- rows as tokens

def tokens_of(task, row):
    """The ids (T,) of a row, a string. ValueError that names what is not in the vocabulary."""
    unknown = sorted({c for c in row if c not in task.VOCAB})
    if unknown:
        raise ValueError(f"{' '.join(map(repr, unknown))} not in the vocabulary of task {name_of(task)}")
    return np.array([task.VOCAB.index(c) for c in row], np.int64)


def text_of(task, tokens):
    """Ids -> a string."""
    return "".join(task.VOCAB[t] for t in tokens)


def answers(task, tokens):
    """True (N,T) where the answer of rows stands: after the think token, pads aside."""
    think = tokens == task.VOCAB.index(task.THINK)
    return (think.cumsum(1) > think) & ~think & (tokens != task.VOCAB.index(task.PAD))


def inputs_and_targets(task, tokens, answer, track):
    """Rows and their answers (N,T) -> what the model reads and what it must say, int64; -1 where no loss is taken.

    next: (N,T-1) each, targets one ahead. slots: (N,T) each, the answer hidden behind slots, targets in place.
    """
    said = np.where(answer, tokens.astype(np.int64), -1)
    if track == "slots":
        return np.where(answer, task.VOCAB.index(task.SLOT), tokens).astype(np.int64), said
    return tokens[:, :-1].astype(np.int64), said[:, 1:]


def together(task, parts):
    """Rows and answers [(tokens (N,T), answer (N,T)), ...] of several lengths T, as two arrays: shorter ones end in
    pads."""
    longest = max(tokens.shape[1] for tokens, _ in parts)
    return tuple(np.concatenate([np.pad(x[i], ((0, 0), (0, longest - x[i].shape[1])), constant_values=fill)
                                 for x in parts]) for i, fill in ((0, task.VOCAB.index(task.PAD)), (1, False)))


def pair(size):
    """The two numbers of a size, the same twice where it has one."""
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


def problem_set(task, s, size, count, kind="uniform"):
    """Test problems of a size, the same at every call: what task.draw returns."""
    rng = np.random.default_rng([TEST_SEED, *pair(size), task.KINDS.index(kind)])
    return task.draw(rng, count, s, size, kind)


# ---- as people write them

def split(task, text):
    """The problems in a text."""
    if hasattr(task, "split"):
        return task.split(text)
    return [p.strip() for p in re.split(rf"\n|(?<={re.escape(task.THINK)})", text) if p.strip()]


def read(task, text, s):
    """A problem as people write it, with its think token or without -> its row (T,), right answer included, and where
    that stands (T,). ValueError that names the problem if it is none."""
    problem = text.strip().removesuffix(task.THINK).strip()
    try:
        if hasattr(task, "read"):
            row = task.read(problem, s)
        else:
            row = problem + task.THINK + task.solve(problem, s) + (task.END if s.track == "next" else "")
        if task.PAD in row.rstrip(task.PAD):
            raise ValueError(f"{task.PAD!r} fills rows up at their end, and stands in no problem")
        tokens = tokens_of(task, row)
    except (ValueError, LookupError) as e:  # with what else the code of a task may say of what it did not expect
        what = str(e) if isinstance(e, ValueError) else f"{type(e).__name__}: {e}"
        raise ValueError(what if repr(problem) in what else f"{problem!r}: {what}") from e
    return tokens, answers(task, tokens[None])[0]


def show(task, tokens, s):
    """A row as people write it: problem, think token, answer; from the first end symbol or slot on nothing."""
    row = text_of(task, tokens).rstrip(task.PAD)
    if hasattr(task, "show"):
        return task.show(row, s)
    problem, think, answer = row.partition(task.THINK)
    return problem + think + re.split(f"[{re.escape(getattr(task, 'END', '') + task.PAD)}]", answer)[0]


def is_answer(task, problem, answer, s):
    """Whether an answer is right, both as people write them."""
    try:
        return bool(task.check(problem, answer, s)) if hasattr(task, "check") else answer == task.solve(problem, s)
    except ValueError:
        return False


def is_right(task, tokens, s):
    """Whether a row (T,) says what `solve` finds or `check` accepts, and on track next where it ends."""
    problem, _, answer = show(task, tokens, s).partition(task.THINK)
    row = text_of(task, tokens).rstrip(task.PAD)
    return is_answer(task, problem, answer, s) and task.PAD not in row and (s.track != "next" or task.END in row)
