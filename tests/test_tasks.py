"""Any task in one file: every task that is here, docs/tasks.md word for word, a file of one's own, and modules with a
mistake."""
import csv
import json
import os
import re
import runpy
import shlex
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

import evaluate
import figures
import generate
import tasks
from checkpoint import open_model

PAGE = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
MODULE, SEVERAL, TURNED = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TUNING = re.search(r"(    \w+ = .*\n){5}", PAGE)[0].replace("    ", "")
COMMANDS = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1].splitlines()
PREPARE = runpy.run_path(str(ROOT / "data/prepare.py"))
TINY = ("--fresh_rows=True", "--n_embd=16", "--n_head=2", "--num_loops=2", "--batch_size=8", "--max_iters=2",
        "--eval_iters=1", "--halt=entropy", "--block_size=64", "--device=cpu")


def settings(task, **given):
    """A task's settings, completed, as scripts have them."""
    defaults = {k: x.default for k, x in tasks.settings_of(task).items()}
    s = SimpleNamespace(**dict(track=tasks.tracks(task)[0]) | defaults | given)
    if hasattr(task, "complete"):
        task.complete(s)
    return s


# ---- every task

@pytest.mark.parametrize("name", tasks.names())
def test_every_task_passes_its_check(name):
    task = tasks.load(name)
    PREPARE["check_names"](task)
    for track in tasks.tracks(task):
        PREPARE["check_task"](task, settings(task, track=track))


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_is_on_the_page_and_has_a_config(name):
    assert f"| `{name}` | " in PAGE
    assert name == "addition" or (ROOT / f"config/demo_{name}.py").exists()
    lines = (ROOT / f"tasks/{name}.py").read_text(encoding="utf-8").splitlines()
    assert name == "addition" or len(lines) < (31 if name == "reverse" else 90)


def test_no_script_knows_a_task_by_name():
    for path in ROOT.glob("*.py"):
        code = re.sub(r'(?s:""".*?""")|#.*', "", path.read_text(encoding="utf-8"))
        assert not re.search(r"from tasks|tasks\.(addition|reverse)|[!=]= *[\"'](addition|reverse)", code), path


# ---- the page

def test_the_page_shows_the_whole_module():
    assert (ROOT / "tasks/reverse.py").read_text(encoding="utf-8") == MODULE


def test_numbers_from_their_last_digit_on(rng):
    """read and show of the page."""
    exec(TURNED, code := {"re": re, "END": "\n"})
    for a, b in rng.integers(0, 10 ** rng.integers(1, 8, (100, 2))).tolist():
        row = code["read"](f" {a} + {b}", None)
        assert row == f"{str(a)[::-1]}+{str(b)[::-1]}={str(a + b)[::-1]}\n"
        assert code["show"](row, None) == f"{a}+{b}={a + b}"


@pytest.mark.full
def test_the_commands_of_the_page(scripts):
    """Word for word; the model writes what it was asked for, and thinks."""
    assert len(COMMANDS) == 3
    for command in COMMANDS:
        python, script, *words = shlex.split(command)
        out = scripts(script, *(str(ROOT / w) if w.startswith("config/") else w for w in words)).out
    assert "head=daeh\n" in out
    assert "cabbage=egabbac\n" in out
    assert "reads writes loops" in out


# ---- every script, with a task of the project and with a file elsewhere

@pytest.fixture(scope="module")
def mine(scripts):
    """A file elsewhere with what reverse does not have: a difficulty, labels, the slots track."""
    text = MODULE.replace('VOCAB = "abcdefgh=\\n "', 'VOCAB = "abcdefgh=\\n ~"\nSLOT = "~"')
    text = text.replace(", {}", ", dict(half=(tokens[:, 0] > 3).astype(int))").replace(
        "max_size = 8                    # >= 1, <= 100: letters of the longest word in training\n",
        "max_size = 6                    # >= 1, <= 100: letters\ntrack = 'next'                  # next or slots\n")
    text = text.replace("t <= 2 * length + 1)", "t <= 2 * length + (s.track == 'next'))").replace(
        "t == 2 * length + 1]", "(t == 2 * length + 1) & (s.track == 'next')]")
    text += ("\n\ndef labels(tokens, answer, s):\n    first = answer & (answer.cumsum(1) == 1)\n"
             "    return dict(first=np.where(first, tokens, -1))\n")
    (scripts.folder / "mine.py").write_text(text)
    return "mine.py"


@pytest.mark.parametrize("track", ["next", "slots"])
def test_a_file_elsewhere_works_with_every_script(scripts, mine, track):
    name = f"mine_{track}"
    scripts("data/prepare.py", f"--task={mine}", f"--out_dir=data/{name}", f"--track={track}", "--train_rows=400",
            "--val_rows=50")
    scripts("train.py", f"--task={mine}", f"--dataset={name}", *TINY, f"--out_dir={name}")
    own = f"--task={mine}", f"--out_dir={name}"
    said = scripts("sample.py", *own, "--start=head cafe", status=None).err
    assert said.startswith("--start: 'head cafe': ' ' fills rows up")
    out = scripts("sample.py", *own, "--start=abc=\nhead").out
    assert re.search(r"^abc=.*\(wrong: cba\)$", out, re.MULTILINE)
    assert re.search(r"^head=", out, re.MULTILINE)
    assert len(re.findall(r"^\w+=", scripts("sample.py", *own).out, re.MULTILINE)) == 3  # of its own
    run = scripts("evaluate.py", *own, "--sizes=[2,5]", "--problems=40", "--frontier=True", "--plot=True",
                  "--control=True", "--eval_iters=1").out
    assert run.splitlines()[1].split()[:2] == ["size", "uniform"]
    assert (scripts.folder / name / "evaluate_frontier_loops.png").exists()
    assert (scripts.folder / name / "evaluate_frontier.png").exists()
    assert not (scripts.folder / name / "evaluate_loops.png").exists()  # of the run without --frontier
    (scripts.folder / "words.txt").write_text("abc\nhead=\n")
    assert "of 2 right" in scripts("evaluate.py", *own, "--problems_file=words.txt", "--eval_iters=0").out
    scripts("analyze.py", *own, "--tokens=300", "--sequences=2", "--iterations=2", "--loop_multiple=1")
    found = (scripts.folder / name / "analyze.csv").read_text()
    assert "convergence_spearman_with_half" in found
    assert "loops,trained,,first," in found
    assert "are no pairs" in scripts("evaluate.py", *own, "--grid=2", status=None).err


def test_a_file_elsewhere_is_named_on_every_command_line(scripts, mine):
    scripts("data/prepare.py", f"--task={mine}", "--out_dir=data/named", "--train_rows=50", "--val_rows=50")
    train = "train.py", "--dataset=named", *TINY, "--out_dir=named"
    said = "the task 'mine' is none of addition, "
    assert said in scripts(*train, status=None).err
    scripts(*train, f"--task={mine}")
    for command in (("sample.py", "--out_dir=named"), ("evaluate.py", "--out_dir=named"),
                    ("analyze.py", "--out_dir=named"), ("train.py", "--out_dir=named", "--init_from=resume")):
        assert said in scripts(*command, status=None).err
    (scripts.folder / "sweep_mine.py").write_text(
        TUNING.replace("path/to/mine.py", mine).replace("--dataset=mine", "--dataset=named"))
    lines = scripts("sweep.py", "sweep_mine.py", "--dry_run").out.replace(" && ", "\n").splitlines()
    assert len(lines) == 2 * (2 * 2 + 1)  # rows of two seeds, of which the first is analyzed
    assert all(f"--task={mine}" in line for line in lines)
    path = scripts.folder / "data/named/meta.json"
    meta = json.loads(path.read_text())
    for name in ("./mine", str(scripts.folder / "mine.py"), "os", "__init__"):
        path.write_text(json.dumps(meta | dict(task=name)))
        assert "is none of addition, " in scripts(*train, status=None).err
    path.write_text(json.dumps(meta))
    (scripts.folder / "another.py").write_text(MODULE)
    said = scripts(*train, "--task=another.py", status=None).err
    assert re.search("of task 'mine', while --task names another: name its file, --task=path/to/mine.py", said)
    text = (scripts.folder / mine).read_text()
    (scripts.folder / "new").mkdir()
    (scripts.folder / "new/mine.py").write_text(text.replace('"abcdefgh', '"hgfedcba'))
    for command in (train, ("sample.py", "--out_dir=named")):
        assert "task mine has another VOCAB now" in scripts(*command, "--task=new/mine.py", status=None).err


@pytest.mark.parametrize(("body", "words"), [
    ("a, b = word.split('+')\n    return a", "--start: 'abc': not enough values to unpack"),
    ("return {}[word]", "--start: KeyError: 'abc'"), ("raise ValueError(f'no {word}')", "--start: 'abc': no abc"),
    ("raise ValueError(f'{word!r} is none')", "--start: 'abc' is none")])
def test_what_is_no_problem_is_named(scripts, mine, body, words):
    """Whatever a task's own read makes of it, which gets it without THINK."""
    if not (scripts.folder / "asked").exists():
        scripts("data/prepare.py", f"--task={mine}", "--out_dir=data/asked", "--train_rows=50", "--val_rows=50")
        scripts("train.py", f"--task={mine}", "--dataset=asked", *TINY, "--out_dir=asked")
    (scripts.folder / "asks").mkdir(exist_ok=True)
    (scripts.folder / "asks/mine.py").write_text(
        (scripts.folder / mine).read_text() + f"\n\ndef read(word, s):\n    {body}\n")
    said = scripts("sample.py", "--task=asks/mine.py", "--out_dir=asked", "--start=abc =", status=None).err
    assert said.startswith(words)


def test_a_named_task_that_the_data_is_not_of(scripts):
    scripts("data/prepare.py", "--task=reverse", "--train_rows=50", "--val_rows=50")
    run = scripts("train.py", "--dataset=reverse", *TINY, "--task=addition", "--out_dir=other")
    assert "without effect: --task (the data is of task reverse)" in run.err
    assert "no operands" in scripts("train.py", "--dataset=reverse", "--swap_operands=True", status=None).err
    assert "flip_rows" in scripts("train.py", "--dataset=reverse", "--flip_rows=0.5", status=None).err
    (scripts.folder / "data/reverse/train.bin").unlink()
    assert "train.bin is missing" in scripts("train.py", "--dataset=reverse", status=None).err


# ---- several right answers

DIVISOR = '''"""Any divisor above 1 of a number: 12=4. Most problems have several right answers."""
import numpy as np

max_number = 30                 # >= 4, <= 999: the largest number in training
track = "next"                  # next or slots

VOCAB = "0123456789=\\n _"
PAD, THINK, END, SLOT = " ", "=", "\\n", "_"
KINDS, SIZES = ("uniform",), [1, 2]  # a size is the digits of the number


def row_length(size, s):
    return 2 * (size or len(str(s.max_number))) + 1 + (s.track == "next")


def draw(rng, N, s, size=None, kind="uniform"):
    low, high = (10 ** (size - 1) + (size == 1), 10 ** size - 1) if size else (2, s.max_number)
    tokens = np.full((N, row_length(size, s)), VOCAB.index(PAD))
    for i, n in enumerate(rng.integers(low, high + 1, N)):
        row = f"{n}={rng.choice([d for d in range(2, n + 1) if n % d == 0])}" + END * (s.track == "next")
        tokens[i, :len(row)] = [VOCAB.index(c) for c in row]
    after = (tokens == VOCAB.index(THINK)).cumsum(1) > 0
    return tokens, after & ~np.isin(tokens, [VOCAB.index(THINK), VOCAB.index(PAD)]), {}


''' + SEVERAL


@pytest.fixture(scope="module", params=["next", "slots"])
def divisors(scripts, request):
    """The folder of a model that was trained on divisors for a moment, and its --task."""
    (scripts.folder / "divisor.py").write_text(DIVISOR)
    name, own = f"divisor_{request.param}", "--task=divisor.py"
    scripts("data/prepare.py", own, f"--out_dir=data/{name}", f"--track={request.param}", "--train_rows=500",
            "--val_rows=100")
    scripts("train.py", own, f"--dataset={name}", *TINY, "--max_iters=300", "--batch_size=64", "--num_loops=3",
            "--learning_rate=0.01", "--halt=confidence", "--halt_threshold=0.6", f"--out_dir={name}")
    return name, own


def test_whatever_check_accepts_is_right(scripts, divisors, tmp_path):
    """Counted once more by arithmetic on what sample.py writes, which keeps keys and values."""
    name, own = divisors
    (scripts.folder / "numbers.txt").write_text("\n".join(map(str, range(2, 41))))
    out = scripts("sample.py", own, f"--out_dir={name}", "--trace=False", "--start=FILE:numbers.txt").out
    right, other = 0, 0
    for n, line in zip(range(2, 41), out.splitlines(), strict=True):
        problem, said = line.partition("   (wrong")[0].split("=")
        assert problem == str(n)
        divides = said.isdigit() and int(said) > 1 and n % int(said) == 0
        assert divides or "(wrong" in line
        right += "(wrong" not in line
        other += "(wrong" not in line and int(said) != next(d for d in range(2, n + 1) if n % d == 0)
    assert other  # right ones that solve does not give
    measure = "evaluate.py", own, f"--out_dir={name}", "--eval_iters=0", "--problems_file=numbers.txt"
    assert f"{right} of 39 right" in scripts(*measure).out
    out = scripts("evaluate.py", own, f"--out_dir={name}", "--eval_iters=0", "--sizes=[1,2]", "--problems=40",
                  "--frontier=True", "--control=True", "--plot=True", "--csv_file=divisors.csv").out
    assert "frontier: " in out
    scripts("evaluate.py", own, f"--out_dir={name}", "--eval_iters=0", "--sizes=[1,2]", "--problems=40", "--halt=none",
            "--prompt_loops=0", "--control=True", "--csv_file=equal.csv")
    for row in figures.read_table(str(scripts.folder / "equal.csv")):  # other tokens' loops are the same ones
        assert row["accuracy_random"] == row["accuracy"]


def test_writing_is_that_of_generate(scripts, divisors, monkeypatch):
    """evaluate.write, a pass per token, writes and counts what generate.write does with a cache."""
    name, own = divisors
    monkeypatch.chdir(scripts.folder)
    task = tasks.use("divisor.py")
    model, meta, *_ = open_model("", name, "cpu", {})
    if meta.track == "slots":
        return
    rows = tasks.problem_set(task, meta, 2, 50)
    X, Y = evaluate.batch(meta, rows)
    written, loops = evaluate.write(model, meta, X, Y)
    prompts = [row[:on.argmax()].tolist() for row, on in zip(*rows[:2], strict=True)]
    said, taken = [[] for _ in prompts], [[] for _ in prompts]
    end = task.VOCAB.index(task.END)
    for burst in generate.write(model, prompts, [X.shape[1] + 1 - len(p) for p in prompts], 0, stop=end):
        for row, new, l in zip(burst.rows, burst.tokens, burst.loops, strict=True):
            said[row] += new
            taken[row] += l
    for i, p in enumerate(prompts):
        if task.VOCAB.index(task.PAD) not in said[i]:
            assert written[i].tolist()[:len(p) + len(said[i])] == p + said[i]
            assert loops[i, len(p) - 1:len(p) - 1 + len(said[i])].tolist() == taken[i]
    assert len(np.unique(loops.numpy())) > 1


# ---- mistakes

@pytest.mark.parametrize(("old", "new", "words"), [
    ("+ 2\n", "+ 1\n", "END"), ("2 * (size or s.max_size) + 2\n", "9\n", "the answer of"),
    ("    return tokens,", "    return tokens[:, :-1],", r"shape \(1000, 17\), int64; row_length says 18"),
    ("    return tokens,", "    return tokens + 0.5,", "float64"),
    (", (t > length) & (t <= 2 * length + 1)", ", (t > length) & (t <= 2 * length)", "answer of"),
    (", (t > length) & (t <= 2 * length + 1)", ", (t > length) & (t <= 2 * length + 2)", "answer of"),
    (", (t > length) & (t <= 2 * length + 1)", ", t > 1", "answer of shape"),
    ("[letters, VOCAB", "[letters + 20, VOCAB", "token 27, VOCAB has 11 symbols"),
    ("rng.integers(0, 8, (N, T))", "np.random.randint(0, 8, (N, T))", "must come from rng"),
    ("return word[::-1]", "return word", "where solve says"),
    ("return word[::-1]", "return word[99]", "index out of range"),
    ("def solve", "def solv", "it has no solve"), ('PAD, THINK, END = " "', 'PAD, THINK, END = "?"', "PAD '\\?'"),
    ('VOCAB = "abcdefgh', 'VOCAB = "aabcdefg', "once"), ('("uniform",)', '("even",)', "'uniform' first"),
    (", {}", ", dict(uniform=length[:, 0])", "difficulty 'uniform'"), (", {}", ", dict(x=length)", "difficulty 'x'"),
    ("max_size = 8", "seed = 8", "other names|max_size"), ("import numpy", "import numpi", "No module named"),
    ("def draw(rng,", "def draw(rng", "SyntaxError"),
    ("    T = row_length", "    rng = np.random.default_rng(0)\n    T = row_length", "same rows whatever rng"),
    ('END = " ", "=", "\\n"', 'END = " ", "=", " "', "PAD and END are the same symbol"),
    ('END = " ", "=", "\\n"', 'END, SLOT = " ", "=", "\\n", "a"', "SLOT, 'a', in the row"),
    ('=\\n "\n', '=\\n ~"\nSLOT, slots = "~", 0\ntrack = "slots"\n', "on track slots an answer has no END"),
    ("letters, t =", "letters, u =", r"bad\.py:\d+, in draw: .*'t'"),
    ("    return word[::-1]", "    return {}[word]", r"bad\.py:\d+, in solve: KeyError: '"),
    ("    return tokens, ", "    return tokens, 1, ", "must return tokens, answer, difficulty: .* not ndarray, int"),
    (", {}", "", "must return tokens, answer, difficulty: two arrays and a dict, not ndarray, ndarray"),
    (" * (size or s.max_size) + 2", " * (size or s.max_size) + 1", "is it cut at row_length 17"),
    ("max_size = 8  ", "Max_size = 8  ", "s has no max_size; settings are lower-case"),
    ("max_size = 8  ", "seed = 8  ", "its settings seed need other names"),
    ('("uniform",)', '("uniform")', "KINDS 'uniform' must be a tuple"),
    ("[1, 2, 4, 8, 12, 16]", "4", "SIZES 4 must be a tuple"),
    ("", 'NUMBER = "abcdefgh"', "it has no longest_number"),
    ("", 'NUMBER = "abcdefgh"\ndef longest_number(size, s): return 7', "8 symbols of NUMBER in a run, .* says 7"),
    ("", "def labels(tokens, answer, s): return dict(x=tokens[:, 0])", "label 'x' must be"),
    ("", "def augment(rng, tokens, answer, swap, flip): return tokens[:, 1:], answer", "augment makes rows"),
    ("", "PAIRS = True", "in row_length: TypeError"),
    (", {}", ", dict(x=length[:, 0] / 2)", r"difficulty 'x' must be \(N,\) of integers, .* float64"),
    ("", "def read(word, s): return word + '=' + word + END", "of which read makes"),
    ("", "def show(row, s): return row.split(THINK, 1)[0] + THINK + row[row.index(END) // 2 + 1:row.index(END)]",
     r"bad\.py:\d+, in show: ValueError"),
    ("", "def check(word, answer, s): return True", "check accepts any answer"),
    ("", "def check(word, answer, s): return answer == word", "where check refuses"),
    ("return word[::-1]", "return word\ndef check(word, said, s): return said == word[::-1]", "which check refuses"),
    ("", 'EXAMPLES = "x="', "'x' not in the vocabulary")])
def test_a_mistake_gets_one_line(scripts, old, new, words):
    assert old in MODULE
    (scripts.folder / "bad.py").write_text(MODULE.replace(old, new) if old else MODULE + new)  # or one line more
    err = scripts("data/prepare.py", "--task=bad.py", "--train_rows=50", "--val_rows=50", status=None).err
    assert len(err.strip().splitlines()) == 1
    assert re.match(r"(--task=)?\S*bad\.py(:\d+, in \w+)?: ", err)
    assert re.search(words, err)
    assert not (scripts.folder / "data/bad").exists()


def test_a_file_is_read_as_it_is_now(tmp_path, monkeypatch):
    """Not as Python keeps it of another one of the same second and length."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(tasks, "own", {})
    path = tmp_path / "mine.py"
    for word in ("abc", "xyz"):
        path.write_text(f"VOCAB = '{word}'")
        os.utime(path, (1e9, 1e9))
        assert tasks.use(str(path)).VOCAB == word


def test_tasks_that_are_not_there(scripts):
    for words, *given in (("none of addition", "--task=none"), ("No such file", "--task=none.py"), ("--task=NAME",)):
        assert words in scripts("data/prepare.py", *given, status=None).err
    (scripts.folder / "addition.py").write_text(MODULE)
    assert "another name" in scripts("data/prepare.py", "--task=addition.py", status=None).err


# ---- the tasks, each against an independent solver

def draws(name, rng, N=300, **given):
    """(text of a row, difficulty) of N rows for training and of each kind and size."""
    task = tasks.load(name)
    s = settings(task, **given)
    for size, kind in ((None, "uniform"), *((size, kind) for size in tasks.sizes(task, s) for kind in task.KINDS)):
        tokens, _, difficulty = task.draw(rng, N, s, size, kind)
        for i, row in enumerate(tokens):
            yield tasks.text_of(task, row).rstrip(task.PAD), size, {k: int(x[i]) for k, x in difficulty.items()}


def test_reverse(rng):
    for text, size, _ in draws("reverse", rng):
        word, answer = text.split("=")
        assert answer == "".join(reversed(word)) + "\n"
        assert len(word) == size if size else 1 <= len(word) <= 8
    lengths = [len(text) // 2 - 1 for text, size, _ in draws("reverse", rng, 4000) if size is None]
    assert (np.bincount(lengths)[1:] > 350).all()


def test_copy(rng):
    for track, end in (("next", "\n"), ("slots", "")):
        for text, size, _ in draws("copy", rng, 100, track=track):
            word, answer = text.split("=")
            assert answer == word + end
            assert len(word) == size if size else 1 <= len(word) <= 8


def test_parity(rng):
    for text, size, difficulty in draws("parity", rng, 100):
        bits, answer = text.split("=")
        assert len(bits) == size if size else 1 <= len(bits) <= 16
        odd = False
        for bit, said in zip(bits, answer, strict=True):
            odd ^= bit == "1"
            assert said == str(int(odd))
        assert difficulty == dict(ones=bits.count("1"))


@pytest.mark.parametrize(("group", "order"), [("S3", 6), ("S4", 24), ("A5", 60), ("S5", 120)])
def test_group_word(rng, group, order):
    """By permutation matrices; every element comes, and products stay in the group."""
    task, seen = tasks.load("group_word"), set()
    matrices = [np.eye(5, dtype=int)[:, p] for p in task.PERMUTATIONS]  # columns: what each thing becomes
    for text, size, _ in draws("group_word", rng, 120, group=group):
        word, answer = text.split("=")
        assert len(word) == size if size else 1 <= len(word) <= 16
        product = np.eye(5, dtype=int)
        for element, said in zip(word, answer, strict=True):
            product = matrices[task.VOCAB.index(element)] @ product
            assert (product == matrices[task.VOCAB.index(said)]).all()
        seen |= {*word, *answer}
    assert len(seen) == order
    signs = {round(np.linalg.det(matrices[task.VOCAB.index(x)])) for x in seen}
    assert signs == ({1} if group == "A5" else {1, -1})


def test_p_hop(rng):
    """By the definition of the paper, places counted from 1."""
    for given in (dict(hops=16, length=256), dict(hops=3, length=30)):
        for text, size, difficulty in draws("p_hop", rng, 10, **given):
            v, answer = text.removesuffix("\n").split("=")
            n = at = len(v)
            assert n == (size or given["length"])
            for _ in range(given["hops"]):
                at = max([0] + [j for j in range(2, at + 1) if v[j - 2] == v[at - 1]])
                assert at
            assert answer == v[at - 1]
            assert difficulty == dict(tens=(n - at) // 10)
    with pytest.raises(ValueError, match="has no 16 hops"):
        tasks.load("p_hop").solve("abcd", settings(tasks.load("p_hop")))


@pytest.mark.parametrize("plain", [True, False])
def test_n_ary_addition(rng, plain):
    counts = set()
    for text, size, _ in draws("n_ary_addition", rng, 60, plain=plain):
        numbers, answer = text.removesuffix("\n").split("=")
        turn = 1 if plain else -1
        numbers = numbers.split("+")
        assert {len(x) for x in numbers} == {3}
        assert str(sum(int(x[::turn]) for x in numbers)) == answer[::turn]
        assert size in (None, len(numbers))
        counts |= {len(numbers)} if size is None else set()
    assert counts == {2, 4, 8, 16, 32}
    task = tasks.load("n_ary_addition")
    row, _ = tasks.read(task, "315 + 120 + 045 =", settings(task, plain=plain))
    assert tasks.text_of(task, row) == ("315+120+045=480\n" if plain else "513+021+540=084\n")
    assert tasks.show(task, row, settings(task, plain=plain)) == "315 + 120 + 045 =480"


@pytest.mark.parametrize("track", ["next", "slots"])
def test_multiplication(rng, track):
    for text, size, difficulty in draws("multiplication", rng, 100, track=track):
        assert text.endswith("\n") == (track == "next")
        (a, b), c = (x.strip().split("*") for x in text.split("="))
        assert len(c[0]) == len(a) + len(b)
        assert int(a[::-1]) * int(b[::-1]) == int(c[0][::-1])
        assert {len(a), len(b)} == {size} if size else max(len(a), len(b)) <= 3
        assert difficulty == dict(products=len(a) * len(b))
    task = tasks.load("multiplication")
    s = settings(task, track=track)
    row, _ = tasks.read(task, " 12 * 34", s)
    assert tasks.show(task, row, s) == "12*34=408"
    tokens, _, _ = tasks.problem_set(task, s, (4, 2), 5)
    assert {tuple(map(len, tasks.show(task, row, s).partition("=")[0].split("*"))) for row in tokens} == {(4, 2)}


def test_i_gsm(rng):
    """By Python's own arithmetic, definition by definition as soon as what it needs is known."""
    layers = set()
    for text, size, difficulty in draws("i_gsm", rng, 60):
        *lines, asked = text.partition("?")[0].split(";")
        left, known, depth = dict(line.split("=") for line in lines), {}, {}
        assert len(left) == len(lines)
        assert len(left) == size if size else 4 <= len(left) <= 12
        while left:
            for name, expression in [*left.items()]:
                used = set(re.findall("[a-z]", expression))
                if used <= known.keys():
                    known[name] = eval(left.pop(name), {}, known) % 7
                    depth[name] = 1 + max((depth[x] for x in used), default=0)
        assert text == f"{';'.join(lines)};{asked}?{known[asked]}\n"
        layers.add(depth[asked])
        needs, left = {asked}, dict(line.split("=") for line in lines)
        while (more := needs.union(*(re.findall("[a-z]", left[x]) for x in needs))) != needs:
            needs = more
        assert difficulty == dict(needed=len(needs))
    assert layers == {4}
    task = tasks.load("i_gsm")
    assert task.solve("b=a-5;a=3;b?", settings(task)) == "5"
    for wrong in ("a=b;b=a;a?", "a=3;b?", "a=3+;a?", "a?", "", "a=3"):
        with pytest.raises(ValueError, match="does not say|is not a list"):
            task.solve(wrong, settings(task))


def test_maze(rng):
    """By filling dead ends until only the way is left, which does in a perfect maze."""
    for text, size, difficulty in draws("maze", rng, 12):
        maze, way = (np.array([[*line] for line in part.split("/")]) for part in text.split("="))
        n = (len(maze) + 1) // 2
        assert n == size if size else 2 <= n <= 4
        assert maze.shape == way.shape == (2 * n - 1,) * 2
        free = np.pad(maze != "#", 1)
        assert free.sum() == 2 * n * n - 1  # the cells, and a tree's openings between them
        keep = np.pad(np.isin(maze, ("S", "G")), 1)
        while True:
            near = sum(np.roll(free, *step) for step in ((1, 0), (-1, 0), (1, 1), (-1, 1)))
            dead = free & ~keep & (near <= 1)
            if not dead.any():
                break
            free &= ~dead
        assert (way == np.where(free[1:-1, 1:-1], "o", maze)).all()
        assert difficulty == dict(steps=int(free.sum()) // 2)
    task = tasks.load("maze")
    assert task.solve("S.#/#.#/G..", None) == "oo#/#o#/oo."
    for wrong in ("S#./##./..G", "S.#/#.#/...", "S.G/...", "", "S.?/#.#/G.."):
        with pytest.raises(ValueError, match="no maze|no way"):
            task.solve(wrong, None)


# ---- what they reach

def test_the_results_of_the_page_are_those_of_the_table():
    """Exact match in % and loops, size by size, of every row that the page has."""
    with open(ROOT / "results/sweep_tasks.csv", encoding="utf-8") as f:
        found = {r["row"]: r for r in csv.DictReader(f)}
    table = re.search(r"\n\| task \| trained on.*?\n\n", PAGE, re.DOTALL)[0].strip().splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    assert {row[0].strip("`") for row in rows} == set(tasks.names()) - {"addition"}
    for name, _, *cells in rows:
        name = name.strip("`")
        one, untied = (next((r for r in found if re.fullmatch(rf"{name}, {kind}", r)), None)
                       for kind in ("1 layer", r"\d+ layers"))
        for cell, row, column in zip(cells, (name, name, one, untied), ("uniform", "loops_solved", *["uniform"] * 2),
                                     strict=False):
            for size, said in re.findall(r"(\d+): ([\d.]+)", cell):
                right = float(found[row][f"{column}_{size}"])
                assert said == (f"{right:.2f}" if column == "loops_solved" else f"{100 * right:.1f}"), (row, size)
