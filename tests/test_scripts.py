"""What all scripts share: how they start, what they say of where numbers come from, and figures that cost no run."""
import csv
import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

import columns
import configurator
import figures
import outputs
import runtime

SCRIPTS = ("train", "sample", "evaluate", "analyze", "sweep", "bench")
QUICK = ("sample", "evaluate", "analyze", "sweep")
HELP = f"""
import contextlib, importlib, io, sys, torch
of_torch = set(sys.modules)
for name in {QUICK}:
    sys.argv = [name + ".py", "--help"]
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:
        importlib.import_module(name).main()
    assert "usage: python " + name in said.getvalue()
print(*set(sys.modules) - of_torch, sep="\\n")
"""


# ---- how they start

@pytest.fixture(scope="module")
def modules():
    """What is imported beside torch once all of QUICK have answered --help, in a process that no test has prepared."""
    run = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


@pytest.mark.parametrize("name", ["scipy", "matplotlib", "tiktoken", "wandb", "pandas", "sympy", "torch._dynamo"])
def test_help_imports_nothing_that_it_does_not_need(modules, name):
    assert "looplm_kernels" in modules
    assert name not in modules


def test_help_imports_torch_and_little_else(modules):
    assert len(modules) < 120


@pytest.mark.parametrize("name", SCRIPTS)
def test_importing_a_script_runs_nothing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--no_such_key=1"])
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    assert callable(module.main)
    assert capsys.readouterr() == ("", "")
    assert os.listdir(tmp_path) == []
    with pytest.raises(SystemExit, match="no_such_key"):
        module.main()


@pytest.mark.parametrize("path", sorted(ROOT.glob("data/*/prepare.py")), ids=lambda p: p.parent.name)
def test_importing_a_prepare_script_runs_nothing(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert callable(runpy.run_path(str(path))["main"])
    assert os.listdir(tmp_path) == []


# ---- what columns mean

def table(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def unexplained(script, names):
    """Those of the names that no line of columns.py explains."""
    known = [re.sub(r"<\w+>", r"\\w+", name.replace("<n>", r"\d+")) for name in columns.TABLES[script][1]
             if "<label>" not in name]
    label = r"(\w+?_)?" if script == "sweep.py" else ""
    return {name for name in names if not any(re.fullmatch(label + pattern, name) for pattern in known)}


def test_each_column_of_the_committed_tables_is_explained():
    results = {p.name: p for p in (ROOT / "results").glob("*.csv")}
    of = {"evaluate.py": [*(ROOT / "pretrained").glob("*.csv"), *(p for n, p in results.items() if "halting" in n)],
          "sweep.py": [p for n, p in results.items() if "sweep" in n and not n.endswith("_states.csv")],
          "analyze.py": [p for n, p in results.items() if "analyze" in n]}
    for script, paths in of.items():
        assert paths
        for path in paths:
            rows = table(path)
            assert unexplained(script, rows[0]) == set(), path
            if script == "analyze.py":
                assert unexplained(script, {f"what = {r['what']}" for r in rows}) == set()
    assert unexplained("sweep.py", ["val_los", "n_8_x"]) == {"val_los", "n_8_x"}


def test_each_number_that_is_explained_is_one_of_analyze():
    words = set(re.findall(r"[a-z]\w+", (ROOT / "analyze.py").read_text()))
    for name in columns.TABLES["analyze.py"][1]:
        known = name[7:].partition("<")[0].removeprefix("taught_")
        assert "=" not in name or any(word.startswith(known) for word in words), name


@pytest.mark.parametrize("script", columns.TABLES)
def test_help_ends_with_what_the_columns_mean(script, capsys):
    with pytest.raises(SystemExit):
        configurator.configure(str(ROOT / script), argv=["--help"])
    out, (title, found) = capsys.readouterr().out, columns.TABLES[script]
    assert title in out
    shown = out.partition(title)[2].strip().splitlines()
    assert [line.split("  ")[0] for line in map(str.strip, shown)] == [*found]
    assert max(map(len, shown)) <= 140


# ---- where numbers come from

def test_provenance_says_what_ran_and_survives_json_and_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "data/addition/prepare.py"), "--out_dir=two words"])
    found = outputs.provenance(seconds=1.5)
    assert found["command"] == "python data/addition/prepare.py '--out_dir=two words'"
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert set(found) == {"command", "commit", "changed", "versions", "card", "date", "seconds"}
    assert found["card"]
    assert json.loads(json.dumps(found)) == found
    runtime.save_checkpoint(str(tmp_path / "x.pt"), dict(model={}, model_args={}, provenance=found))
    assert runtime.load_checkpoint(str(tmp_path / "x.pt"))["provenance"] == found
    line = outputs.provenance_line(found)
    assert all(str(x) in line for x in (torch.__version__, found["card"], found["date"]))
    assert len(line.splitlines()) == 1
    monkeypatch.setattr(sys, "argv", ["/somewhere/else/x.py"])
    assert outputs.provenance()["command"] == "python x.py"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder that stands for the project's."""
    monkeypatch.setattr(outputs, "ROOT", str(tmp_path))
    outputs.git_state.cache_clear()
    yield tmp_path
    outputs.git_state.cache_clear()


def test_provenance_without_git(tree):
    found = outputs.provenance()
    assert (found["commit"], found["changed"]) == (None, None)
    assert outputs.provenance_line(found).startswith("no git, ")


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_provenance_says_whether_the_tree_was_changed(tree):
    def git(*words):
        settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tree), *settings, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tree / "a.py").write_text("1")
    git("init")
    git("add", "a.py")
    git("commit", "-m", "first")
    (tree / "untracked.csv").write_text("a result")
    assert outputs.git_state() == (git("rev-parse", "HEAD"), False)
    (tree / "a.py").write_text("2")
    outputs.git_state.cache_clear()
    assert outputs.git_state() == (git("rev-parse", "HEAD"), True)
    found = outputs.provenance()
    assert outputs.provenance_line(found).startswith(f"commit {found['commit'][:10]} (changed), ")


@pytest.mark.parametrize(("table", "beside"), [("a.csv", "a.json"), ("a", "a.json"), ("a.json", "a.json.json")])
def test_provenance_stands_beside_a_table(tmp_path, table, beside):
    (tmp_path / table).write_text("n\n1\n")
    outputs.write_provenance(str(tmp_path / table), outputs.provenance())
    assert (tmp_path / table).read_text() == "n\n1\n"
    assert json.loads((tmp_path / beside).read_text())["card"] == outputs.card_name()


# ---- outputs

@pytest.mark.parametrize(("error", "line"), [(ValueError("a\nb"), "a"), (ValueError(" \n"), "ValueError"),
                                             (KeyError(), "KeyError"), (OSError("\n\nx "), "x")])
def test_first_line_of_an_exception(error, line):
    assert runtime.first_line(error) == line


def test_a_wrong_path_fails_and_an_old_file_stays(tmp_path):
    (tmp_path / "old.csv").write_text("old")
    outputs.require_writable(str(tmp_path / "old.csv"))
    assert (tmp_path / "old.csv").read_text() == "old"
    outputs.require_writable(str(tmp_path / "new/er/x.csv"))
    for wrong in ("old.csv/x.csv", "new"):
        with pytest.raises(SystemExit, match=f"{wrong} cannot be written"):
            outputs.require_writable(str(tmp_path / wrong))


@pytest.mark.parametrize("path", ["none/x.png", "x.nothing"])
def test_a_figure_that_cannot_be_written_costs_a_line(tmp_path, path, capsys):
    rows = [dict(iter="1", loss="2.5"), dict(iter="1", train_loss="2.0", val_loss="2.5")]
    assert figures.draw_training(rows, "a run", str(tmp_path / "fine.png")) is True
    assert (tmp_path / "fine.png").read_bytes().startswith(b"\x89PNG")
    assert figures.draw_training(rows, "a run", str(tmp_path / path)) is False
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert path in err


def test_a_figure_that_cannot_be_drawn_costs_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if matplotlib were missing
    assert figures.draw_loops([], 4, str(tmp_path / "x.png")) is False
    assert "x.png: ModuleNotFoundError" in capsys.readouterr().err


def trace(*guesses):
    """A trace of one token per guess, as sample.py makes it, of one loop."""
    return [dict(reads=g, writes=g, loops=1, prediction=[g], entropy=[0.5]) for g in guesses]


def drawn_texts(monkeypatch):
    """The texts of all figures that are written from now on, as matplotlib has them: [{text: Text}, ...]."""
    found, write = [], Figure.savefig

    def savefig(figure, *args, **options):
        write(figure, *args, **options)
        found.append({t.get_text(): t for t in figure.findobj(Text)})
    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


@pytest.mark.filterwarnings("error")
def test_texts_in_figures_are_no_mathematics(tmp_path, monkeypatch, capsys):
    found, guesses = drawn_texts(monkeypatch), ["$$E", "$x$", r"\$", "a$b", "$", r"$\f$"]
    assert figures.draw_traces([trace(*guesses)], ["$$ $"], 1.0, str(tmp_path / "x.png"))
    assert {*guesses, "$$ $", *(f"{g} → {g}" for g in guesses)} <= found[0].keys()
    assert not any(found[0][g].get_parse_math() for g in guesses)
    rows = [dict(iter=str(i), loss=str(10 ** -i)) for i in range(5)]
    assert figures.draw_training(rows, "a$b$c", str(tmp_path / "y.png"))
    assert not found[1]["a$b$c"].get_parse_math()
    powers = [t for text, t in found[1].items() if "mathdefault" in text]
    assert powers
    assert all(t.get_parse_math() for t in powers)
    assert capsys.readouterr().err == ""


def make_font(path, family, characters):
    """Write a font file with a square for each of a few characters."""
    builder = FontBuilder(1000, isTTF=True)
    names = [".notdef", *(f"g{i}" for i in range(len(characters)))]
    pen = TTGlyphPen(None)
    for i, at in enumerate([(0, 0), (0, 800), (800, 800), (800, 0)]):
        (pen.lineTo if i else pen.moveTo)(at)
    pen.closePath()
    square = pen.glyph()
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): n for c, n in zip(characters, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable(dict(familyName=family, styleName="Regular"))
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.mark.filterwarnings("error")
def test_a_figure_takes_fonts_that_have_its_characters(tmp_path, monkeypatch, capsys):
    """Fonts that were installed after matplotlib made its list, too; what none has is said in one line, once."""
    (tmp_path / "damaged.ttf").write_text("no font")
    fonts = [str(tmp_path / "damaged.ttf")]
    for name, characters in (("Few", "가"), ("Many", "가나다"), ("Other", "𒀀")):
        fonts.append(str(tmp_path / f"{name}.ttf"))
        make_font(fonts[-1], f"LoopLM Test {name}", characters)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: fonts)
    found = drawn_texts(monkeypatch)
    assert figures.draw_traces([trace("가나", "é", "\t")], ["다"], 1.0, str(tmp_path / "x.png"))
    assert found[0]["가나"].get_fontfamily() == ["monospace", "sans-serif", "LoopLM Test Many"]
    assert capsys.readouterr().err == ""
    for _ in range(2):
        assert figures.draw_traces([trace("가𒀀", "𓀀")], [""], 1.0, str(tmp_path / "x.png"))
    said = capsys.readouterr().err
    assert "𓀀" in said
    assert "가" not in said
    assert "fonts-noto-cjk" in said
    assert said.count("\n") == 1
