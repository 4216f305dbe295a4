"""sweep.py: the same numbers as train.py by itself, whatever fails, stops or is called again; and the tables."""
import contextlib
import csv
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy import stats

import figures
import gpus
import outputs
import sweep
import sweep_tables
from configurator import class_settings, configure, read_arguments, read_settings
from model_loop import FROM_DATASET, LoopConfig, check

SMALL = """n_embd = 16
n_head = 2
batch_size = 8
num_loops = [1, 2]
pos = "place"
dropout = 0.1
ema_decay = 0.9
fresh_rows = True
eval_iters = 1
eval_interval = 100
max_iters = 60
log_interval = 1
device = "cpu"
"""
FILE = """# A small one.
base = "small.py"
seeds = [3, 4]
overrides = ["--warmup_iters=5"]
rows = [
    "broken @1: --pos=learned --block_size=8",
    "plain, 1/2 @1: --learning_rate=2e-3",
]
evaluate = ["--digits=[1,2] --problems=30 --eval_iters=0 --halt=none --prompt_loops=0"]
analyze = "--probes=False --tokens=200 --iterations=5 --loop_multiple=2 --energy=True"
parallel = 2
"""
STOP = """import os, signal, sys, time
write, told, sweep = sys.stdout.write, [], os.getppid()

def watched(text):
    n = write(text)
    if text.startswith("iter 20/"):
        note = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *args: told.append(note(*args)))
        os.kill(sweep, signal.SIGTERM)
        while not told:
            time.sleep(0.01)
    return n

sys.stdout.write = watched
"""  # where sweep.py starts a Python, of which trainings are forks: one tells it to stop at iteration 20, and goes on
# once it passed the signal on
PLAIN = ("small.py", "--warmup_iters=5", "--learning_rate=2e-3", "--seed=3")  # its second row


@pytest.fixture(scope="module")
def folder(scripts):
    (scripts.folder / "small.py").write_text(SMALL)
    (scripts.folder / "sweep_small.py").write_text(FILE)
    (scripts.folder / "config").symlink_to(ROOT / "config")
    return scripts.folder


@pytest.fixture(scope="module")
def alone(scripts, folder):
    """The folder of the same training without a sweep."""
    scripts("train.py", *PLAIN, "--out_dir=alone")
    return folder / "alone"


@pytest.fixture(scope="module")
def swept(scripts, folder):
    return scripts("sweep.py", "sweep_small.py", status=1, forks=True)


def read_csv(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def files(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and not p.match("run*.std*")}


def weights(folder):
    checkpoint = torch.load(folder / "ckpt_last.pt", weights_only=True)
    return {(kind, k): v for kind in ("model", "ema") for k, v in checkpoint[kind].items()}


# ---- runs

def test_a_run_equals_train_by_itself(folder, swept, alone):
    run = folder / "out/sweep_small/plain_1_2/seed3"
    losses, wanted = ([r["loss"] for r in read_csv(p / "log.csv") if r["loss"]] for p in (run, alone))
    assert len(losses) == 60
    assert losses[:20] == wanted[:20]
    assert losses == wanted
    assert all(torch.equal(v, weights(alone)[k]) for k, v in weights(run).items())


def test_a_failing_row_stops_no_other_and_both_are_in_the_tables(folder, swept):
    failed, good = sorted(read_csv(folder / "results/sweep_small.csv"), key=lambda r: r["row"])
    assert (failed["row"], failed["seed"], failed["val_loss"]) == ("broken", "3", "")
    assert "--block_size=8" in failed["error"]
    assert swept.out.strip().splitlines()[-1] == "failed: broken, seed 3 (out/sweep_small/broken/seed3/train.log)"
    assert "--block_size=8, but" in (folder / "out/sweep_small/broken/seed3/train.log").read_text()
    assert (good["row"], good["seed"], good["error"]) == ("plain, 1/2", "3", "")
    run = folder / "out/sweep_small/plain_1_2/seed3"
    said = dict(re.findall(r"^(\w+): (.*)$", (run / "train.log").read_text(), re.MULTILINE))
    assert said["device"] == "cpu"
    assert {k: good[k] for k in sweep_tables.FIRST[2:]} == {k: said[k] for k in sweep_tables.FIRST[2:]}
    measured = read_csv(run / "evaluate.csv")
    assert len(measured) == 4
    for r in measured:
        assert float(good[f"{r['kind']}_{r['n']}"]) == pytest.approx(float(r["accuracy"]), abs=1e-6)
        if r["kind"] == "uniform":
            assert float(good[f"loops_answer_{r['n']}"]) == pytest.approx(float(r["loops_answer"]), abs=1e-6) == 2
    text = (folder / "results/sweep_small.md").read_text()
    assert text.startswith(f"`python sweep.py sweep_small.py`; cpu, torch {torch.__version__}; seeds 3, 4; 2 at once\n")
    assert "| broken | 0/1 |  |  |  |\n" in text
    assert f"| plain, 1/2 | 1/1 | {float(said['val_loss']):.4f} | {100 * float(good['uniform_1']):.1f} |" in text
    assert re.fullmatch(r"(commit \w{10}( \(changed\))?|no git), python \S+, torch .*", text.splitlines()[-1])
    assert list(good)[-1] == "error"
    states = read_csv(folder / "results/sweep_small_states.csv")
    seen = {tuple(r[k] for k in ("what", "weights", "loop", "class")): r for r in read_csv(run / "analyze.csv")}
    for r in states:
        assert r.pop("row") == "plain, 1/2"
        assert seen[tuple(r[k] for k in ("what", "weights", "loop", "class"))] == r
    for r in states:  # those trained with, and --loop_multiple=2 as many
        assert r["loop"] in ("2", "4") or r["what"] in ("delta", "norm", "start_distance")
    assert {r["loop"] for r in states if r["what"] == "norm"} == {"1", "2", "3", "4"}
    own = {what for what in sweep_tables.STATES if re.match("energy|minimum", what)}  # of another update
    assert {r["what"] for r in states} == set(sweep_tables.STATES) - own
    curve, log = ([(r["iter"], float(r["train_loss"]), float(r["val_loss"])) for r in read_csv(path) if r["val_loss"]]
                  for path in (folder / "results/sweep_small_curves.csv", run / "log.csv"))
    assert curve == log != []


def test_the_figure_shows_medians_and_ranges(folder, swept, monkeypatch, rng):
    assert (folder / "results/sweep_small.png").stat().st_size > 5000
    values = rng.random((3, 2))  # (seeds, digit counts)
    found = [{"row": "a", "seed": i, "uniform_4": str(x), "uniform_12": str(y), "hard_4": "1", "16_uniform_4": "0"}
             for i, (x, y) in enumerate(values)] + [{"row": "failed", "seed": 0, "error": "no"}]
    drawn, ceilings = [], {"kl": None, "16": None}
    monkeypatch.setattr(figures, "finish", lambda figure, axes, path, title: drawn.extend(axes))
    figures.draw_sweep(found, ceilings, "x.png")
    (line,), (band,) = drawn[0].lines[:1], drawn[0].collections
    assert line.get_label() == "a (3 seeds)"
    np.testing.assert_array_equal(line.get_xdata(), [4, 12])
    np.testing.assert_allclose(line.get_ydata(), 100 * np.sort(values, 0)[1])
    corners = band.get_paths()[0].vertices
    for n, x in zip((4, 12), 100 * values.T, strict=True):
        own = corners[corners[:, 0] == n, 1]
        np.testing.assert_allclose([own.min(), own.max()], [x.min(), x.max()])
    assert [sum(len(line.get_xdata()) > 0 for line in ax.lines) for ax in drawn] == [1, 1]
    for i, r in enumerate(found[:3]):  # an evaluation that halts, and one of a fixed depth
        r.update(kl_loops_solved_4=str(i), kl_loops_solved_12=str(i + 2.5), loops_solved_4="8", loops_solved_12="8.0")
    drawn.clear()
    figures.draw_sweep(found, ceilings, "x.png")
    line = drawn[2].lines[0]
    assert line.get_label() == "a, kl (3 seeds)"
    np.testing.assert_allclose(line.get_ydata(), [1, 3.5])
    for i, r in enumerate(found[:3]):
        r.update(kl_loops_chain_2=str(9.5 - i), kl_loops_chain_11=i + 0.25)
    drawn.clear()
    figures.draw_sweep(found, ceilings, "x.png")
    np.testing.assert_allclose(drawn[3].lines[0].get_xydata(), [[2, 8.5], [11, 1.25]])
    drawn.clear()  # zeros are values, as numbers too, which rows of this process hold
    figures.draw_sweep([dict(row="b", seed=i, uniform_4=x) for i, x in enumerate((0.0, 0.0, 0.3))], {}, "x.png")
    np.testing.assert_allclose(drawn[0].lines[0].get_ydata(), [0])


def test_a_figure_is_drawn_anew_from_the_tables(scripts, folder, swept):
    """The same pictures to the pixel, without a run; without tables a line."""
    paths, runs = [f"results/sweep_small{what}.png" for what in ("", "_states")], sorted(folder.glob("out/**/*"))
    was = [(folder / path).read_bytes() for path in paths]
    for path in paths:
        (folder / path).unlink()
    out = scripts("sweep.py", "sweep_small.py", "--redraw=True").out
    assert out == "".join(f"figure: {path}\n" for path in paths)
    assert [(folder / path).read_bytes() for path in paths] == was
    assert sorted(folder.glob("out/**/*")) == runs
    fixed = scripts("sweep.py", "sweep_small.py", "--redraw=True", "--overrides=['--fresh_rows=False']").out
    assert "figure: results/sweep_small_fit.png\n" in fixed
    assert (folder / "results/sweep_small_fit.png").read_bytes().startswith(b"\x89PNG")
    assert "nothing to draw" in scripts("sweep.py", "sweep_small.py", "--redraw=True", "--results=results/no",
                                        status=None).err


def test_loops_by_carry_chains_become_columns(tmp_path):
    """Of the digit count that is told by chains, where at least ten problems were solved."""
    (tmp_path / "kl_evaluate.csv").write_text(
        "kind,n,m,problems,accuracy,chain,loops\nuniform,12,12,40,0.5,,\nchain,12,,20,,1,7.25\nchain,12,,9,,2,6.0\n"
        "chain,12,,10,,3,5.5\nchain,8,,90,,3,4.0\n")
    found = sweep.columns_of("kl_evaluate", tmp_path)
    assert found == {"kl_uniform_12": 0.5, "kl_loops_chain_1": 7.25, "kl_loops_chain_3": 5.5}


def test_the_table_and_the_figure_of_a_text(monkeypatch, rng, tmp_path):
    """Without problems to solve, what a model costs stands beside its best loss; medians and ranges by numpy."""
    best = 1.4 + 0.2 * rng.random(3)
    found = [dict(row="a", seed=i, error="", parameters="1234567", flops_per_token="9876543", val_loss="2.0", ms="3.25",
                  best_val_loss=str(x)) for i, x in enumerate(best)] + [dict(row="b", seed=0, error="failed")]
    head, _, line, failed = ([c.strip() for c in x.strip("|").split("|")] for x in sweep_tables.markdown(
        "uniform", "", found, ["a"] * 3 + ["b"]).splitlines() if x.startswith("|"))
    assert head == ["row", "seeds", "parameters", "training FLOPs a token", "best val loss", "last val loss",
                    "ms a step"]
    middle, low, high = np.median(best), best.min(), best.max()
    assert line == ["a", "3/3", "1,234,567", "9,876,543", f"{middle:.4f} ({low:.4f}-{high:.4f})",
                    "2.0000 (2.0000-2.0000)", "3.2 (3.2-3.2)"]
    assert failed == ["b", "0/1", "", "", "", "", ""]
    runs = [dict(row="a", seed=i, folder=str(tmp_path / str(i))) for i in range(4)]  # the last one wrote nothing
    values = rng.random((3, 2))
    for run, (x, y) in zip(runs, values, strict=False):
        os.makedirs(run["folder"])
        with open(f"{run['folder']}/log.csv", "w") as f:
            f.write(f"iter,loss,val_loss\n0,,{x}\n5,1.0,\n10,,{y}\n")
    drawn = []
    monkeypatch.setattr(figures, "finish", lambda figure, axes, path, title: drawn.extend(figure.axes))
    figures.draw_losses(found, sweep.curves([r for run in runs for r in sweep.logged(run)]), "x.png")
    np.testing.assert_allclose([line.get_xdata()[0] for line in drawn[0].lines], sorted(best))
    assert drawn[2].get_yticklabels()[1].get_text().split() == ["1.2M", "9.9M", f"{middle:.4f}"]
    line = drawn[1].lines[0]
    np.testing.assert_allclose(line.get_xydata(), [[0, np.median(values[:, 0])], [10, np.median(values[:, 1])]])


def test_a_second_call_runs_nothing_and_other_settings_run_anew(scripts, folder, swept):
    run = folder / "out/sweep_small/plain_1_2/seed3"
    before = files(run)
    only = "--rows=['plain, 1/2 @1: --learning_rate=2e-3']"
    again = scripts("sweep.py", "sweep_small.py", only, "--results=again")
    assert "finished_before: 1" in again.out
    assert files(run) == before
    assert read_csv(folder / "again.csv") == read_csv(folder / "results/sweep_small.csv")[1:]
    # what the config file says is part of the settings; of the other ones nothing is resumed
    (folder / "small.py").write_text(SMALL + "place_subset = 8\n")
    scripts("sweep.py", "sweep_small.py", only, "--results=again", "--timeout=0.1", status=1)
    (folder / "small.py").write_text(SMALL)
    assert not (run / "ckpt_last.pt").exists()
    assert {p.name for p in (run.parent / "seed3.1").iterdir()} == {p.name for p in before}
    for folder in (run, run.parent / "seed3.1"):
        log = (folder / "train.log").read_text()
        assert log.count("$ python train.py small.py") == 1
        assert "resume" not in log


def test_an_interrupted_sweep_goes_on(scripts, folder, alone):
    """SIGTERM in the middle of the run; then the same command, and the same weights as without."""
    args = ("sweep.py", "sweep_small.py", "--rows=['plain @1: --learning_rate=2e-3']", "--evaluate=[]",
            "--out_dir=cut", "--results=tables/cut")
    run = folder / "cut/plain/seed3"
    (folder / "stop").mkdir()
    (folder / "stop/sitecustomize.py").write_text(STOP)
    first = scripts(*args, status=130, env={"PYTHONPATH": str(folder / "stop")})
    assert first.err.splitlines() == ["SIGTERM: the runs save and end; the same command goes on later"]
    assert torch.load(run / "ckpt_last.pt", weights_only=True)["iter_num"] == 20
    assert json.loads((run / "row.json").read_text())["done"] == {}
    scripts(*args, forks=True)
    commands = [x for x in (run / "train.log").read_text().splitlines() if x.startswith("$")]
    assert ["--init_from=resume" in x for x in commands] == [False, True]
    assert all(torch.equal(v, weights(alone)[k]) for k, v in weights(run).items())
    rows, wanted = ([r["loss"] for r in read_csv(p / "log.csv") if r["loss"]] for p in (run, alone))
    assert rows == wanted
    row, = read_csv(folder / "tables/cut.csv")
    assert (row["seconds"], row["error"]) == ("", "")  # train.py's seconds are those after the interruption


def test_a_run_that_takes_too_long(scripts, folder):
    out = scripts("sweep.py", "sweep_small.py", "--rows=['slow @1:']", "--timeout=0.3", "--out_dir=slow",
                  "--results=slow", status=1).out
    assert read_csv(folder / "slow.csv")[0]["error"] == "timeout after 0.3 s"
    assert out.strip().splitlines()[-1].startswith("failed: slow, seed 3 (slow/slow/seed3/train.log)")


SAVES = """import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path("saved").touch()))
pathlib.Path("began").touch()
time.sleep(1000)
"""


def test_a_run_that_takes_too_long_is_told_so_that_it_saves(tmp_path, monkeypatch):
    """On a machine so slow that it has not begun by then, this says nothing."""
    (tmp_path / "train.py").write_text(SAVES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "HERE", str(tmp_path))
    monkeypatch.setattr(sweep, "timeout", 3.0)
    assert sweep.launch(["train.py"], str(tmp_path / "log"), dict(os.environ), 1) == "timeout after 3 s"
    assert (tmp_path / "saved").exists() == (tmp_path / "began").exists()


@pytest.mark.parametrize("first", ["signal", "timeout"])
def test_what_is_told_to_end_is_told_once(tmp_path, monkeypatch, first):
    """By a signal and by its timeout, in either order: a training that hears two ends before it has saved."""
    heard = []

    class Process:
        args, waits = (), 0

        def wait(self, timeout=None):
            self.waits += 1
            if self.waits == (1 if first == "signal" else 2):
                sweep.pass_on("SIGTERM")
            if self.waits == 1:
                raise subprocess.TimeoutExpired("x", timeout)
            return 130

        def terminate(self):
            heard.append("SIGTERM")

        def kill(self):
            assert self.waits > 1
    monkeypatch.setattr(sweep.gpus, "start", lambda *args: Process())
    monkeypatch.setattr(sweep, "timeout", 3.0)
    monkeypatch.setattr(sweep, "stopping", [])
    assert sweep.launch(["train.py"], str(tmp_path / "log"), {}, 1) == "interrupted"
    assert heard == ["SIGTERM"]
    assert not sweep.running | sweep.told


TORCHRUN = """#!%s
import os, signal, subprocess, sys

def stop(*_):
    rank.kill()
    os.waitpid(rank.pid, 0)
    os._exit(1)

rank = subprocess.Popen(["sleep", "1000"], start_new_session=True)
signal.signal(signal.SIGTERM, stop)
with open(os.environ["PID"], "w") as f:
    f.write(str(rank.pid))
rank.wait()
"""  # a process of it has a session of its own, and ends where torchrun is told to end


def test_a_run_of_several_ranks_that_takes_too_long_leaves_none_behind(tmp_path, monkeypatch):
    """On a machine so slow that the stand-in has not begun by then, this says nothing."""
    (tmp_path / "python").write_text(TORCHRUN % sys.executable)
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sweep, "timeout", 2.0)
    environment = os.environ | dict(PID=str(tmp_path / "pid"))
    assert sweep.launch(["train.py"], str(tmp_path / "log"), environment, 2) == "timeout after 2 s"
    if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "pid").read_text()), 0)


TWO_RANKS = "--rows=['two @1 on 2: --gradient_accumulation_steps=2 --max_iters=6 --dropout=0']"


@pytest.mark.full
def test_a_row_on_two_ranks(scripts, folder):
    """torchrun starts them; on a CPU, too, where a place is a process."""
    scripts("sweep.py", "sweep_small.py", TWO_RANKS, "--evaluate=['--digits=[1,2] --problems=9 --eval_iters=1']",
            "--analyze=", "--parallel=1", "--out_dir=two", "--results=two", forks=True)
    log = (folder / "two/two/seed3/train.log").read_text()
    assert log.startswith("$ torchrun --standalone --nproc_per_node=2 train.py small.py --warmup_iters=5 ")
    assert "2 process(es)" in log
    row, = read_csv(folder / "two.csv")
    assert row["error"] == ""
    assert float(row["uniform_2"]) >= 0
    assert (folder / "two/two/seed3/evaluate.log").read_text().startswith("$ torchrun --standalone --nproc_per_node=2 ")


@pytest.mark.full
def test_the_lines_of_a_dry_run_by_a_shell_and_the_tables_collected(scripts, folder, swept):
    """A line per run, as an array job takes them; their results are those that the sweep itself has."""
    args = ("sweep.py", "sweep_small.py", "--out_dir=array", "--results=array",
            "--rows=['plain, 1/2 @1: --learning_rate=2e-3','late @1: --max_iters=7']")
    for name in ("train.py", "evaluate.py", "analyze.py"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    first, second = scripts(*args, "--dry_run=True").out.splitlines()
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    subprocess.run(first, shell=True, cwd=folder, env=os.environ | dict(PATH=path), check=True, capture_output=True)
    said = scripts(*args, "--collect=True", status=1)
    late, good = sorted(read_csv(folder / "array.csv"), key=lambda r: r["row"])
    assert late["error"] == "not finished: array/late/seed3/config.json is not there"
    wanted = next(r for r in read_csv(folder / "results/sweep_small.csv") if r["row"] == "plain, 1/2")
    assert {k: v for k, v in good.items() if k not in ("ms", "seconds")} == {
        k: v for k, v in wanted.items() if k not in ("ms", "seconds")}
    assert "failed: late, seed 3" in said.out
    other = [a.replace("2e-3", "1e-3") for a in args]
    table = (folder / "array.csv").read_bytes()
    assert "other settings: learning_rate" in scripts(*other, "--collect=True", status=1).out
    assert (folder / "array.csv").read_bytes() == table


@pytest.mark.parametrize(("cores", "at_once", "each"), [(64, 32, 2), (64, 52, 1), (8, 3, 2), (2, 7, 1)])
def test_runs_share_the_cores(monkeypatch, cores, at_once, each):
    """With 32 at once, each with as many processes that compile as there are cores, there would be a thousand."""
    names = "OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"
    monkeypatch.setattr(sweep.runtime, "usable_cores", lambda: cores)
    monkeypatch.setattr(gpus, "visible", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(sweep, "parallel", at_once)
    for device in ("auto", "cpu"):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        runs = [dict(ranks=1, settings=dict(device=device))]
        assert [sweep.places_here(runs)[1][name] for name in names] == [str(each)] * 2
        monkeypatch.setenv(names[1], "5")
        assert [sweep.places_here(runs)[1][name] for name in names] == [str(each), "5"]


def test_runs_go_on_where_a_gpu_is_lost(folder, monkeypatch, capsys):
    """Two GPUs, of which one fails in the middle: its run is done on the other one, and no further one tries it."""
    monkeypatch.setattr(gpus, "works", lambda name, environment: name != "GPU-b")
    monkeypatch.setattr(sweep, "seeds", [0, 1, 2, 3])
    monkeypatch.setattr(sweep, "parallel", 0)
    tried, both = [], threading.Barrier(2)

    def execute(run, environment, ran_on):
        name = environment["CUDA_VISIBLE_DEVICES"]
        tried.append((run["seed"], name))
        if run["seed"] < 2 and len(tried) <= 2:
            both.wait(60)
        error = "CUDA error" if name == "GPU-b" or run["seed"] == 3 else ""  # of seed 3 the GPU is not the cause
        return dict(row="a", seed=run["seed"], error=error, val_loss=1.0, ran_on=ran_on), "its.log"
    monkeypatch.setattr(sweep, "execute", execute)
    runs = [dict(row="a", seed=s, ranks=1, folder=str(folder / "none"), settings={}) for s in range(4)]
    places = gpus.Places(["GPU-a", "GPU-b"], 1)
    failed = sweep.run_at(places, lambda run: sweep.execute_somewhere(run, places, {}, {}), runs,
                          str(folder / "lost"))
    assert failed == ["a, seed 3 (its.log)"]
    assert [name for _, name in tried].count("GPU-b") == 1
    rows = read_csv(folder / "lost.csv")
    assert [r["ran_on"] for r in rows] == ["GPU 0"] * 4
    said = capsys.readouterr().out
    assert "GPU 1 is lost, trying elsewhere" in said
    assert "GPU 0: 4 runs" in said
    assert sweep.execute_somewhere(dict(runs[0], ranks=2), places, {}, {})[0]["error"] == (
        "it needs 2 GPU(s), and 1 are left")


def test_seconds_left(rng):
    """Of 32 runs at once one has ended, so the others are about to; and what a clock says that ticks on."""
    assert sweep.seconds_left(80, [79.0] * 30 + [81.0], 0) == 1
    for _ in range(20):
        usual, waiting = int(rng.integers(1, 9)), int(rng.integers(9))
        elapsed = rng.integers(0, 12, rng.integers(1, 5)).tolist()
        places, left, clock = [max(0, usual - s) for s in elapsed], waiting, 0
        while True:
            for i, rest in enumerate(places):
                if not rest and left:
                    places[i], left = usual, left - 1
            if not any(places):
                break
            places, clock = [max(0, rest - 1) for rest in places], clock + 1
        assert sweep.seconds_left(usual, elapsed, waiting) == clock


def test_the_eta_of_runs_that_end_together(tmp_path, monkeypatch, capsys):
    """None waits, so none takes longer from now on than all have taken, however long the tables take meanwhile."""
    monkeypatch.setattr(sweep, "seeds", list(range(8)))
    monkeypatch.setattr(sweep, "parallel", 0)
    monkeypatch.setattr(sweep, "write_tables", lambda *args: time.sleep(0.05))
    monkeypatch.setattr(sweep, "finish", lambda *args: None)
    together = threading.Barrier(8)

    def function(run):
        together.wait(60)
        time.sleep(1)
        return dict(row="a", seed=run["seed"], error="", val_loss=1.0), "its.log"
    runs = [dict(row="a", seed=s, folder=str(tmp_path / "a/b")) for s in range(8)]
    assert sweep.run_at(gpus.Places(["GPU-a", "GPU-b"], 4), function, runs, str(tmp_path / "eta")) == []
    lines = re.findall(r"(\d+):(\d\d):(\d\d), ETA (\d+):(\d\d):(\d\d)$", capsys.readouterr().out, re.MULTILINE)
    assert len(lines) == 8
    for line in lines:
        took, left = (3600 * int(h) + 60 * int(m) + int(s) for h, m, s in (line[:3], line[3:]))
        assert left <= took + 1


def test_a_table_is_not_replaced_by_one_without_results(tmp_path, monkeypatch, capsys):
    """Where every run fails, as on a machine without the data. A first table is written: the reasons stand there."""
    monkeypatch.setattr(sweep, "seeds", [1, 2])
    runs = [dict(row="a", seed=s, folder=str(tmp_path / f"a/{s}"), settings={}, steps={}) for s in (1, 2)]

    def fails(run):
        return dict(row="a", seed=run["seed"], error="dataset: it is not there"), "its.log"
    target = tmp_path / "table"
    for _ in range(2):
        assert len(sweep.run_at(gpus.Places(["process 0"], 1), fails, runs, str(target))) == 2
        assert [r["error"] for r in read_csv(f"{target}.csv")] == ["dataset: it is not there"] * 2
    target.with_suffix(".csv").write_text("row,seed\na,1\n")
    capsys.readouterr()
    sweep.run_at(gpus.Places(["process 0"], 1), fails, runs, str(target))
    assert target.with_suffix(".csv").read_text() == "row,seed\na,1\n"
    assert "as they were, since every run failed" in capsys.readouterr().out


def test_a_table_that_still_grows_is_not_collected(tmp_path):
    """Nor one that another command measured; a further setting of the machine does not matter."""
    command, path = ["evaluate.py", "--sizes=[1, 2]", "--halt=none"], tmp_path / "evaluate.csv"
    run = dict(row="a", seed=1, folder=str(tmp_path), settings={}, steps=dict(evaluate=command))
    (tmp_path / "config.json").write_text("{}")
    path.write_text("kind,n,m,accuracy\nuniform,1,1,0.5\n")
    for finished, words, error in ((False, command, "a part of its rows"), (True, command[:2], "another command"),
                                   (True, [*command, "--device=cuda"], "")):
        outputs.write_provenance(str(path), dict(command=shlex.join(["python", *words]), finished=finished))
        row, _ = sweep.collect_run(run)
        assert error in row["error"]
        assert ("uniform_1" in row) == (row["error"] == "") == (error == "")
    (tmp_path / "evaluate.json").unlink()
    assert "evaluate.json is not there" in sweep.collect_run(run)[0]["error"]


# ---- the plan

def test_dry_run(scripts, folder):
    (folder / "other.py").write_text("n_embd = 24\nn_head = 4\n")
    (folder / "sweep_dry.py").write_text("""base = "small.py"
seeds = [7, 5]
overrides = ["--max_iters=9", "--n_embd=32 --cuda_graph=False"]
rows = ["a @1: --n_embd=48 --wandb_project='two words'", "b: other.py", "c d:"]
evaluate = ["--digits=[1]", "long: --num_loops=9 --digits=[2,3]"]
""")
    before = files(folder)
    lines = scripts("sweep.py", "sweep_dry.py", "--dry_run").out.splitlines()
    common = "--max_iters=9 --n_embd=32 --cuda_graph=False"
    wanted = []
    for row, seed, words in (("a", 7, f"small.py {common} --n_embd=48 '--wandb_project=two words'"),
                             ("b", 7, f"other.py {common}"), ("c_d", 7, f"small.py {common}"),
                             ("b", 5, f"other.py {common}"), ("c_d", 5, f"small.py {common}")):
        out = f"out/sweep_dry/{row}/seed{seed}"
        wanted += [f"python train.py {words} --seed={seed} --out_dir={out}",
                   f"python evaluate.py '--digits=[1]' --checkpoint={out}/ckpt_last.pt --csv_file={out}/evaluate.csv",
                   f"python evaluate.py --num_loops=9 '--digits=[2,3]' --checkpoint={out}/ckpt_last.pt "
                   f"--csv_file={out}/long_evaluate.csv"]
    assert lines == [" && ".join(wanted[i:i + 3]) for i in range(0, len(wanted), 3)]
    assert files(folder) == before


@pytest.mark.third
@pytest.mark.parametrize(("old", "new", "words"), [
    ("--learning_rate", "--learning_rat", ["sweep_bad.py:7: --learning_rat: ", "did you mean 'learning_rate'"]),
    ("--block_size=8", "--block_size=8.5", ["sweep_bad.py:6: --block_size", "int"]),
    ("--block_size=8", "--grad_clip=-1", ["sweep_bad.py:6: --grad_clip: -1.0 is out of range"]),
    ("--learning_rate=2e-3", "--place_subset=99", ["sweep_bad.py:7: place_subset 99 ", "place_ids 64"]),
    ("--learning_rate=2e-3", "--n_embd=18 --n_head=4", ["sweep_bad.py:7: n_embd 18 ", "n_head 4"]),
    ("--learning_rate=2e-3", "--halt=kl --min_loops=3", ["sweep_bad.py:7: min_loops 3 ", "num_loops [1, 2]"]),
    ("--learning_rate=2e-3", "--halt=sometimes", ["sweep_bad.py:7: halt 'sometimes' "]),
    ("--learning_rate=2e-3", "--model_type=rnn", ["sweep_bad.py:7: --model_type=rnn"]),
    ("--problems=30", "--problems=0", ["sweep_bad.py:9: --problems: 0 is out of range"]),
    ("--digits=[1,2]", "--digits=[1,64]", ["sweep_bad.py:7: ", "numbers of 65 digits", "place_ids is 64"]),
    ("--halt=none", "--halt=gate", ["sweep_bad.py:6: ", "halt 'gate'"]),
    ('--learning_rate=2e-3",\n]\nevaluate = ["', '--step_encoding=learned",\n]\nevaluate = ["--num_loops=3 ',
     ["sweep_bad.py:7: 3 loops of num_loops", "ends at the 2 "]),
    ("--halt=none", "--halt=confidence --halt_threshold=3", ["sweep_bad.py:6: ", "halt_threshold 3.0 is above 1"]),
    ("seeds = [3, 4]", "seeds = [3, -4]", ["sweep_bad.py:3: seeds: -4 is out of range"]),
    ("--warmup_iters=5", "--warmup=5", ["sweep_bad.py:4: --warmup", "'warmup_iters'"]),
    ("--problems=30", "--problem=30", ["sweep_bad.py:9: --problem", "'problems'"]),
    ("overrides", "overide", ["sweep_bad.py:4: ", "'overide'", "'overrides'"]),
    ("small.py", "smal.py", ["sweep_bad.py:2: smal.py"]),
    ("@1: --pos", "@1: smal.py --pos", ["sweep_bad.py:6: smal.py"]),
    ("[3, 4]", "[3, 3]", ["sweep_bad.py: ", "seeds"]),
    ("@1: --learning", "@3: --learning", ["sweep_bad.py:7: ", "2"]),
    ("broken @1:", "", ["sweep_bad.py:6: ", "name"]),
    ("broken", "plain? 1/2", ["sweep_bad.py:7: ", "once"]),  # it would have the other one's folder
    ("--learning_rate=2e-3", "--seed=1", ["sweep_bad.py:7: ", "seed"]),
    ("--halt=none", "--checkpoint=x.pt", ["sweep_bad.py:9: ", "checkpoint"]),
    ("--halt=none", "--halt='none", ["sweep_bad.py:9: ", "quotation"]),
    ("--loop_multiple=2", "--loop_multipl=2", ["sweep_bad.py:10: --loop_multipl", "'loop_multiple'"]),
    ("parallel = 2", "parallel = -2", ["parallel"]),
])
def test_mistakes_stop_before_anything_runs(scripts, folder, old, new, words):
    assert old in FILE
    (folder / "sweep_bad.py").write_text(FILE.replace(old, new))
    err = scripts("sweep.py", "sweep_bad.py", status=None).err
    assert len(err.strip().splitlines()) == 1
    assert [word for word in words if word not in err] == []
    assert not (folder / "out/sweep_bad").exists()
    assert not (folder / "results/sweep_bad.csv").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("sweep_*.py")), ids=lambda p: p.stem)
def test_committed_sweeps(folder, monkeypatch, path):
    """Every row, with every key, of every committed tuning file, as --dry_run=True prints them."""
    monkeypatch.chdir(folder)
    for key, value in configure(sweep.__file__, argv=[f"config/{path.name}"])[0].items():
        monkeypatch.setattr(sweep, key, value)
    lines = [sweep.as_typed(command, run["ranks"]) for run in sweep.plan(f"config/{path.name}", "out")
             for command in run["steps"].values()]
    assert lines
    assert all(re.match(r"python (train\.py config/|(evaluate|analyze)\.py .*ckpt_last\.pt)", line) for line in lines)
    of_model = class_settings(LoopConfig)
    own = {k: x for k, x in of_model.items() if k not in FROM_DATASET}
    known = read_settings((ROOT / "train.py").read_text()) | own
    facts = dict(think_token=11, number_tokens=(1,), longest_number=5)
    for line in lines:
        if line.startswith("python train.py"):
            given = read_arguments(shlex.split(line)[2:], known)
            data = given.get("dataset", "addition")
            other = dict(number_tokens=()) if "plain" in data else {} if "addition" in data else dict(longest_number=1)
            check(LoopConfig(**{k: v for k, v in given.items() if k in of_model} | facts | other))


def test_states_of_several_seeds_are_told_apart(tmp_path, monkeypatch, folder):
    """analyze_seeds: which runs are analysed, and a column that an older table, of one seed, has not."""
    monkeypatch.chdir(folder)
    for key, value in configure(sweep.__file__, argv=["config/sweep_forgetting.py"])[0].items():
        monkeypatch.setattr(sweep, key, value)
    for count in (1, 2):
        monkeypatch.setattr(sweep, "analyze_seeds", count)
        runs = sweep.plan("config/sweep_forgetting.py", "out")
        assert {run["seed"] for run in runs if "analyze" in run["steps"]} == set(sweep.seeds[:count])
        state = dict(what="norm", weights="trained", loop=1, value=0.5)
        found = [dict(row=r, seed=s, error="", states=[state]) for s in sweep.seeds[:count] for r in ("a", "b")]
        sweep_tables.write_tables(found, ["a", "b"], str(tmp_path / "small"), [], ["x", "y"])
        rows = read_csv(tmp_path / "small_states.csv")
        told = [(r["row"], *([r["seed"]] if count > 1 else [])) for r in rows]
        assert told == [(r["row"], *([str(r["seed"])] if count > 1 else [])) for r in found]
        assert ("seed" in rows[0]) == (count > 1)


@pytest.mark.parametrize(("states", "collect", "works"), [
    (["partly", "partly"], False, True), (["done", "partly"], False, True), (["done", "of others"], False, True),
    (["done", "done"], False, False), (["partly", "partly"], True, False)])
def test_a_server_and_mps_are_for_what_is_missing_and_no_server_no_reason_to_run_nothing(
        tmp_path, monkeypatch, states, collect, works):
    asked, wanted, runs = [], [], []

    def fail(environment):
        asked.append(True)
        raise OSError("no memory")

    def mps(want, environment):
        wanted.append(want)
        return contextlib.nullcontext(environment)
    monkeypatch.setattr(gpus, "start_server", fail)
    monkeypatch.setattr(gpus, "mps", mps)
    monkeypatch.setattr(sweep, "collect", collect)
    monkeypatch.setattr(sweep, "places_here", lambda runs: (gpus.Places(["GPU-a"], 2), {}))
    monkeypatch.setattr(sweep, "run_at", lambda places, function, runs, target: runs)
    settings, steps = dict(device="cuda"), {"train": ["train.py"], "long": ["evaluate.py", "--digits=[1, 2]"]}
    for n, state in enumerate(states):
        folder, known = tmp_path / str(n), {"train": {}}
        if state != "partly":
            known["evaluate.py '--digits=[1, 2]'"] = {}
        folder.mkdir()
        (folder / "row.json").write_text(json.dumps(dict(
            settings=settings | dict(seed=7) if "other" in state else settings, done=known)))
        runs.append(dict(settings=settings, ranks=1, folder=str(folder), steps=steps))
    assert sweep.run_all(runs, "results/none") is runs
    assert asked == [True] * works
    assert wanted == [sweep.mps if works else False]


def test_a_plan_loads_no_compiler():
    """It would take seconds before the first training begins: nothing is drawn, and nothing computed, on meta."""
    test = ("import glob, sys, sweep\n"
            "files = glob.glob('config/sweep_*.py')\n"
            "assert len(files) > 30\n"
            "for file in files:\n"
            "    sweep.models(file)\n"
            "    assert 'torch._dynamo' not in sys.modules, file")
    subprocess.run([sys.executable, "-c", test], cwd=ROOT, check=True, env=os.environ | dict(OMP_NUM_THREADS="1"))


# ---- the tables

def test_the_markdown_table(rng):
    """Against medians by numpy, with rows that failed, lack a column, or are not there yet."""
    seeds = [rng.permutation(5)[:n] for n in (5, 4, 1)]
    tables = {("uniform", ""): "uniform_8", ("hard", ""): "hard_8", ("uniform", "long"): "long_uniform_12",
              ("loops_solved", "long"): "long_loops_solved_12", ("loops_chain", "long"): "long_loops_chain_3"}
    found = [dict(row=f"row {i}", seed=int(s), error="", val_loss=f"{rng.random():.4f}",
                  **{k: round(float(rng.random()), 6) for k in tables.values()})
             for i, own in enumerate(seeds) for s in own]
    del found[0]["long_uniform_12"]
    found[1]["error"] = "an evaluation failed"
    found = [found[i] for i in rng.permutation(len(found))]
    wanted = [f"row {i}" for i in (0, 1, 2, 3) for _ in range(5)]
    for (kind, label), key in tables.items():
        head, _, *lines = ([c.strip() for c in line.strip("|").split("|")] for line in
                           sweep_tables.markdown(kind, label, found, wanted).splitlines() if line.startswith("|"))
        with_loss = (kind, label) == ("uniform", "")
        assert head == ["row", "seeds", *["val loss"] * with_loss, key.rpartition("_")[2]]
        assert [line[:2] for line in lines] == [["row 0", "4/5"], ["row 1", "4/5"], ["row 2", "1/5"], ["row 3", "0/5"]]
        for line in lines:
            own = [r for r in found if r["row"] == line[0]]
            for k, text in zip(["val_loss"] * with_loss + [key], line[2:], strict=True):
                x = np.array([float(r[k]) for r in own if k in r])
                scale, half = ((1, 5.1e-5) if k == "val_loss" else (1, 5.1e-3) if kind.startswith("loops_") else
                               (100, 5.1e-2))
                shown = [float(part) for part in re.findall(r"\d+\.\d+", text)]
                assert len(shown) == (0 if not len(x) else 1 if len(x) == 1 else 3)
                if len(x):
                    numbers = [np.median(x), x.min(), x.max()][:len(shown)]
                    np.testing.assert_allclose(shown, scale * np.array(numbers), atol=half)
    for r in found:
        r["long_loops_solved_12"] = 8.0  # the same for all: nothing halts
    for kind in ("loops_solved", "hard"):
        assert sweep_tables.markdown(kind, "long", found, wanted) == ""


def test_a_bar_in_a_name_does_not_break_the_table():
    row = dict(row="a|b", seed=1, error="", val_loss="1.5")
    assert "| a\\|b | 1/1 |  |  |  | 1.5000 |  |\n" in sweep_tables.markdown("uniform", "", [row], ["a|b"])


# ---- a comparison

def test_a_comparison_of_two_rows(tmp_path, monkeypatch, capsys, rng):
    """Against scipy's paired t-test, by the seeds that both have and that came to an end; nothing is trained."""
    a, b = rng.normal(size=(2, 6))
    rows = [dict(row=name, seed=seed, val_loss=x[seed], ms="" if seed % 2 else 5.0, parameters=7, device="cpu",
                 error="out of memory" if (name, seed) == ("B, small", 4) else "")
            for name, x in (("A", a), ("B, small", b)) for seed in rng.permutation(6) if (name, seed) != ("A", 5)]
    with open(tmp_path / "table.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "any.py").write_text("")
    monkeypatch.chdir(tmp_path)
    for pair, sign in (("A,B, small", 1), ("B, small, A", -1)):
        monkeypatch.setattr(sys, "argv", ["sweep.py", "any.py", "--results=table", f"--compare={pair}"])
        sweep.main()
        out = capsys.readouterr().out
        (loss,) = (line.split() for line in out.splitlines() if re.match("val_loss|ms", line))  # times compare nothing
        interval = stats.ttest_rel(a[:4], b[:4]).confidence_interval()
        low, high = sorted((sign * interval.low, sign * interval.high))
        wanted = [*(a[:4].mean(), b[:4].mean())[::sign], sign * (a[:4] - b[:4]).mean(), low, high]
        assert [float(x) for x in loss[1:] if re.fullmatch(r"[-+]?\d.*\d", x)] == pytest.approx(wanted, rel=1e-4)
        assert sorted(re.findall(r"\d", "".join(loss[-4:]))) == ["0", "1", "2", "3"]
        assert out.endswith(f"; {int(low > 0 or high < 0)} of 1 do here\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["any.py", "table.csv"]
    for pair, words in (("A,C", "two rows, parted by a comma, of A; B, small"), ("A,A", "two rows")):
        monkeypatch.setattr(sys, "argv", ["sweep.py", "any.py", "--results=table", f"--compare={pair}"])
        with pytest.raises(SystemExit, match=words):
            sweep.main()
    monkeypatch.setattr(sys, "argv", ["sweep.py", "any.py", "--results=none", "--compare=A,B"])
    with pytest.raises(SystemExit, match="none.csv does not exist"):
        sweep.main()


def test_a_comparison_at_equal_accuracy(tmp_path, monkeypatch, capsys, rng):
    """Against the same frontiers drawn on a fine grid: the fewest loops whose accuracy is the asked one at least."""
    runs, labels = {}, [f"gate_{t}" for t in (90, 95, 98, 99)]
    for name in ("A", "B"):
        for seed in range(4):
            loops, accuracy = rng.uniform(size=(2, 4)) * [[1], [0.1]]
            loops += [1, 3, 5, 7]
            accuracy += [0.4, 0.7, 0.5, 0.8]  # one threshold costs loops and accuracy
            runs[name, seed] = loops, accuracy + 5 * (seed == 3) * (name == "B"), rng.uniform(size=4)
    rows = []
    for (name, seed), points in runs.items():
        named = zip(labels, rng.permutation(np.transpose(points)), strict=True)  # thresholds in no order
        rows.append(dict(row=name, seed=seed, error="", once_loops_answer_4=8, kl_1_loops_answer_4=5,
                         kl_1_uniform_4=1, kl_1_accuracy_random_4=1) | {
            f"{label}_{what}_4": x for label, point in named
            for what, x in zip(("loops_answer", "uniform", "accuracy_random"), point, strict=True)})
    with open(tmp_path / "table.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "any.py").write_text("")
    monkeypatch.setattr(sys, "argv", ["sweep.py", "any.py", "--results=table", "--compare=A,B"])
    sweep.main()
    lines = [x.split() for x in capsys.readouterr().out.splitlines() if x.startswith("gate  ")]
    assert [x[1:3] for x in lines] == [["4", "all"], ["4", "highest"]]  # one threshold of kl is no frontier

    def slow(loops, accuracy, random, level):
        fine = np.linspace(loops[0], loops[-1], 20001)
        height = np.interp(fine, loops, [max(accuracy[:i + 1]) for i in range(4)])
        taken = fine[np.argmax(height >= level - 1e-9)]
        return taken, np.interp(taken, loops, random)
    for line, levels_of in zip(lines, (lambda x, y: np.linspace(x, y, 101), lambda x, y: [y]), strict=True):
        table = []
        for seed in range(3):  # of seed 3 nothing is shared
            known = runs["A", seed], runs["B", seed]
            low, high = max(x[1].min() for x in known), min(x[1].max() for x in known)
            levels = levels_of(low, high)
            table.append([100 * np.mean(levels), *(
                scale * np.mean([slow(*x, level)[i] for level in levels]) for x in known for i, scale in
                ((0, 1), (1, 100)))])
        level, a, a_random, b, b_random = np.mean(table, 0)
        table = np.array(table)
        interval = stats.ttest_rel(table[:, 1], table[:, 3]).confidence_interval()
        names = "level", "a", "a_random", "b", "b_random", "mean", "low", "to", "high"
        shown = dict(zip(names, line[3:12], strict=True))
        assert line[12:] == ["0,", "1,", "2"]
        for names, wanted, half in ((("level", "a_random", "b_random"), (level, a_random, b_random), 0.08),
                                    (("a", "b", "mean", "low", "high"), (a, b, a - b, *interval), 0.006)):
            assert [float(shown[name]) for name in names] == pytest.approx(wanted, abs=half)
