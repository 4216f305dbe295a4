"""The commands of all pages run, on a CPU and in small.

Those that need a GPU, or more than a page can ask of a test, are held against the settings that their scripts know.
"""
import contextlib
import re
import shlex
import shutil
import subprocess

import pytest
from conftest import ROOT, Scripts

import sweep
import tasks
from configurator import read_arguments, read_settings
from model_loop import INFERENCE_SETTINGS

PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md")), "data/text/readme.md"]
START = re.compile(r"python |torchrun |make |for \w+ in .*; do|cp |source |export |nvidia-cuda-mps-control ")
NOT_RUN = {"source .venv/bin/activate", "nvidia-cuda-mps-control -d"}  # what they do, no test may
CHECKED = {"bench.py"}  # scripts whose settings are checked alone
CHECKED_COMMANDS = ("torchrun", "python analyze.py --checkpoint=pretrained/text.pt")  # the latter reads a whole text
SMALL = {  # what a script is told beside the command of a page; the later word wins
    "train.py": "--max_iters=2 --eval_interval=2 --eval_iters=1 --log_interval=1 --batch_size=4 --warmup_iters=1 "
                "--device=cpu --cuda_graph=False --compile=False",
    "sample.py": "--device=cpu",
    "evaluate.py": "--problems=4 --eval_iters=1 --device=cpu",
    "analyze.py": "--tokens=60 --sequences=1 --iterations=2 --loop_multiple=2 --probes=False --device=cpu",
    "sweep.py": "--dry_run=True --out_dir=out/sweep",
    "data/prepare.py": "--train_rows=300 --val_rows=100",
    "data/addition/prepare.py": "--train_rows=300 --val_rows=100",
    "data/shakespeare_char/prepare.py": "--input=novel.txt"}
SMALL_TEXT = "--block_size=16 --n_embd=24"
PROBLEMS = 5  # lines that are left of a file of problems


# ---- the commands of a page

def page(name):
    return (ROOT / name).read_text(encoding="utf-8")


def commands(text):
    """The commands in the code of a page, each on one line and without its comment."""
    fence, found = None, []
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            fence = None if fence is not None else line.strip("` ")
        elif (fence == "sh" or fence is None and line.startswith("    ")) and START.match(line.strip()):
            found.append(re.sub(r"\s+", " ", re.sub(r"\s+#( .*)?$", "", line)).strip())
    return found


def python_code(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def one_by_one(command):
    """Simple commands that a command stands for: a loop's turns, a target's recipe."""
    loop = re.fullmatch(r"for (\w+) in (.*?); do (.*); done", command)
    if loop:
        return [loop[3].replace(f"${loop[1]}", x) for x in loop[2].split()]
    if command == "make demo":
        make = subprocess.run(["make", "-n", "demo"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        return [line.replace(".venv/bin/python", "python", 1) for line in make.splitlines()
                if line.startswith(".venv/bin/python ")]
    return [command]


def known_settings(script):
    """The settings that a script knows."""
    own = read_settings(page(script))
    if script == "train.py":
        return sweep.settings_of(script)
    if script in ("sample.py", "evaluate.py", "analyze.py"):
        return sweep.settings_of(script, INFERENCE_SETTINGS)
    if script == "data/addition/prepare.py":
        return read_settings(page("data/prepare.py")) | tasks.settings_of(tasks.load("addition"))
    if script.startswith("data/shakespeare"):
        return read_settings(page("data/text/prepare.py"))
    return own


def check_settings(script, words):
    """SystemExit for words that the script does not take."""
    if script == "data/prepare.py" or words == ["--help"]:
        return  # a task's settings, with which it always runs; no setting
    read_arguments(words, known_settings(script))


def split(command):
    """The script of a command and its words, None for what is no script of the project."""
    words = shlex.split(command)
    scripts = [i for i, word in enumerate(words) if word.endswith(".py") and not word.startswith("--")]
    if not scripts or words[0] not in ("python", "torchrun"):
        return None, words
    return words[scripts[0]], words[scripts[0] + 1:]


class Reader:
    """Does what pages say, in a folder of its own that has what a newcomer's has."""

    def __init__(self, folder):
        self.folder, self.scripts, self.done = folder, Scripts(folder), set()
        for name in ("config", "tasks", "results"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
        (folder / "pretrained").symlink_to(ROOT / "pretrained")
        (folder / "novel.txt").write_text("It was Once: ROMEO\n" * 200, encoding="utf-8")
        (folder / "path/to").mkdir(parents=True)
        shutil.copy(ROOT / "tasks/reverse.py", folder / "path/to/mine.py")
        (example,) = python_code(page("docs/scale.md"))
        (folder / "config/my_addition.py").write_text(example, encoding="utf-8")

    def read(self, name):
        with contextlib.chdir(self.folder):
            for simple in sum(map(one_by_one, commands(page(name))), []):
                if simple not in self.done:
                    self.do(simple)
                    self.done.add(simple)

    def do(self, command):
        if command in NOT_RUN:
            return
        script, words = split(command)
        if script is None:
            self.do_without_script(words)
        elif words[:1] != ["-m"]:
            target = words[words.index(">") + 1] if ">" in words else None
            words = words[:words.index(">")] if target else words
            check_settings(script, words)
            if script not in CHECKED and not command.startswith(CHECKED_COMMANDS):
                out = self.scripts(script, *words, *self.small(script, words)).out
                if target:
                    (self.folder / target).write_text("".join(out.splitlines(True)[:PROBLEMS]))

    def do_without_script(self, words):
        if words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        elif words[0] == "cp":
            shutil.copy(self.folder / words[1], self.folder / words[2])
        else:
            assert words[:3] == ["python", "-m", "pytest"], words
            assert f'"{words[words.index("-m", 2) + 1]}:' in page("pyproject.toml")

    def small(self, script, words):
        more = SMALL.get(script, "").split()
        if script == "train.py":
            text = any("shakespeare" in page(w) for w in words if w.startswith("config/") and (ROOT / w).exists())
            more += SMALL_TEXT.split() * text
            more += ["--max_iters=4"] * ("--init_from=resume" in words)
        if script == "sample.py" and not any("addition" in w or "reverse" in w or "mine" in w for w in words):
            more += ["--max_new_tokens=4"]
        return more


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A Reader who has followed README.md."""
    reader = Reader(tmp_path_factory.mktemp("reader"))
    reader.read("README.md")
    return reader


@pytest.mark.full
@pytest.mark.parametrize("name", PAGES)
def test_commands_run(reader, name):
    reader.read(name)
    assert reader.done.issuperset(sum(map(one_by_one, commands(page(name))), []))


@pytest.mark.full
def test_python_of_the_page_runs(reader, monkeypatch, capsys):
    monkeypatch.chdir(reader.folder)
    scope = {}
    for code in python_code(page("docs/protocol.md")):
        exec(code, scope)
    assert "\n1 [2]\n9 [3]\n8 [1]\n" in capsys.readouterr().out


def test_commands_are_known(monkeypatch):
    """Of all pages, those within a line too: each script is there and knows its settings."""
    monkeypatch.chdir(ROOT)
    count = 0
    for name in [*PAGES, "README.ko.md", "pretrained/readme.md", "data/addition/readme.md"]:
        text = page(name)
        inline = [f"python {c.removeprefix('python ')}" for c in
                  re.findall(r"`((?:python )?[\w/]+\.py [^`]*)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))]
        for command in [*commands(text), *inline]:
            for simple in one_by_one(command):
                script, words = split(simple.replace("path/to/mine.py", "tasks/reverse.py"))
                if script == "prepare.py":
                    script = "data/addition/prepare.py"
                if script is not None and (ROOT / script).suffix == ".py":
                    assert (ROOT / script).exists(), simple
                    words = words[:words.index(">") if ">" in words else None]
                    check_settings(script, [w for w in words if w != "config/my_addition.py"])
                    count += 1
    assert count > 60


def test_a_command_is_found_and_a_mistake_in_it():
    text = ("a\n\n    python x.py --a=1 \\\n        --b=2    # why\n    no command\n\n```sh\nmake demo\n```\n"
            "```python\nmake no\n```\n")
    assert commands(text) == ["python x.py --a=1 --b=2", "make demo"]
    assert one_by_one("for L in 4 8; do python a.py --n=$L; done") == ["python a.py --n=4", "python a.py --n=8"]
    with pytest.raises(SystemExit, match="no_such_key"):
        check_settings("train.py", ["--no_such_key=1"])


def quick_start(name):
    """The commands between the second and the third heading that README.ko.md has, too."""
    (part,) = re.findall(r"^## (?:Quick start|빠른 시작)\n(.*?)(?=^## )", page(name), re.M | re.S)
    return commands(part)


def test_korean_page_has_the_same_commands():
    english, korean = commands(page("README.md")), iter(commands(page("README.md")))
    assert quick_start("README.ko.md") == quick_start("README.md")
    assert all(command in korean for command in commands(page("README.ko.md"))), english


@pytest.mark.parametrize("name", [*PAGES, "README.ko.md"])
def test_python_has_one_name(name):
    assert ".venv/bin/" not in page(name).replace("source .venv/bin/activate", "")


def test_every_file_is_named():
    assert [p.name for p in ROOT.glob("*.py") if f"`{p.name}`" not in page("docs/scale.md")] == []


def test_readme_is_short():
    assert len(page("README.md").splitlines()) <= 180
