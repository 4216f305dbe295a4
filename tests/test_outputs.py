"""Nothing is lost: one folder has one run, a stop or a full disk leaves what was done, side work ends no main work."""
import contextlib
import csv
import io
import json
import os
import re
import resource
import signal
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch._dynamo  # noqa: F401 (it looks at functions of torch as it is loaded: before a test replaces one)

import figures
import outputs
import runtime
import sweep
import train
from kernels import backend

TINY = ("--n_embd=16", "--n_head=2", "--batch_size=8", "--eval_iters=1", "--device=cpu", "--num_loops=2",
        "--log_interval=1", "--eval_interval=1000")
LIMIT = 4000  # bytes of a file: more than config.json has, less than a checkpoint, or the log of 60 iterations


@contextlib.contextmanager
def full_disk(limit=0):
    """No file can grow beyond the limit: as a full disk, for this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def said(capsys):
    """What warnings said so far; those of other tests do not count."""
    outputs.warn.cache_clear()
    return lambda: capsys.readouterr().err.splitlines()


@pytest.fixture
def signals():
    """Gives the handlers back that a test replaces."""
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = [signal.getsignal(n) for n in numbers]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored where the tests run under nohup
    yield
    for n, handler in zip(numbers, before, strict=True):
        signal.signal(n, handler)


def read_csv(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def iteration(scripts, out_dir, name="ckpt_last.pt"):
    return torch.load(scripts.folder / out_dir / name, weights_only=True)["iter_num"]


@pytest.fixture(scope="module")
def finished(scripts):
    """A run that came to its end, its evaluation beside it."""
    scripts("train.py", *TINY, "--max_iters=3", "--out_dir=finished")
    scripts("evaluate.py", "--out_dir=finished", "--digits=[1]", "--problems=10", "--eval_iters=1")
    return scripts.folder / "finished"


# ---- one folder, two runs

def test_a_new_run_moves_the_old_one_aside(scripts, finished):
    folder = scripts.folder / scripts.copy("finished", "twice")
    (folder / "other").mkdir()  # another run, if out_dir is the folder of all runs
    old = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert {"ckpt_best.pt", "loss.png", "evaluate.csv", "evaluate.json"} < set(old)
    for n in (1, 2):
        run = scripts("train.py", *TINY, "--max_iters=1", f"--seed={n}", "--out_dir=twice/")
        assert f"twice holds another run: moved to twice.{n}\n" in run.out
    assert {p.name: p.read_bytes() for p in (scripts.folder / "twice.1").iterdir()} == old
    assert (folder / "other").is_dir()
    assert [iteration(scripts, name) for name in ("twice.1", "twice.2", "twice")] == [3, 1, 1]
    assert not (folder / "evaluate.csv").exists()
    scripts("train.py", *TINY, "--max_iters=4", "--out_dir=twice.1", "--init_from=resume")  # it is a run like any other
    assert iteration(scripts, "twice.1") == 4
    assert not (scripts.folder / "twice.1.1").exists()


def test_the_second_of_two_runs_at_once_is_refused(scripts):
    first = scripts.start("train.py", *TINY, "--max_iters=100000", "--out_dir=at_once")
    while not list(scripts.folder.glob("at_once/log.csv")):
        time.sleep(0.01)
    err = scripts("train.py", *TINY, "--max_iters=1", "--out_dir=at_once", status=None).err
    assert f"at_once is in use by another run (process {first[0].pid} on " in err
    os.kill(first[0].pid, signal.SIGTERM)
    scripts.finish(*first, status=130)
    assert [int(r["iter"]) for r in read_csv(scripts.folder / "at_once/log.csv")] == [0, *range(
        1, iteration(scripts, "at_once") + 1)]
    assert not (scripts.folder / "at_once.1").exists()


def test_a_lock_ends_with_its_process(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "locks", {})
    folder = str(tmp_path / "run")
    outputs.lock_folder(folder)
    with pytest.raises(SystemExit, match=f"run is in use by another run .process {os.getpid()} on"):
        outputs.lock_folder(folder)
    outputs.locks.popitem()[1].close()  # as the kernel does, whatever the process died of
    outputs.lock_folder(folder)
    os.unlink(tmp_path / "run/.lock")  # as its owner does at the end: who opened the file before has no lock
    outputs.lock_folder(folder)
    with pytest.raises(SystemExit, match="in use"):
        outputs.lock_folder(folder)


@pytest.mark.parametrize(("name", "moves"), [("ckpt_last.pt", True), ("ckpt.pt", True), ("log.csv", True),
                                             ("notes.txt", False), ("train.log", False)])
def test_what_is_a_run(tmp_path, name, moves, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    outputs.move_aside(str(tmp_path / "run"))
    assert (tmp_path / "run.1" / name).exists() is moves
    assert (tmp_path / "run" / name).exists() is not moves
    assert bool(capsys.readouterr().out) is moves


def test_where_you_are_is_not_moved(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "log.csv").write_text("iter\n")
    for here in (tmp_path, tmp_path / "sub"):
        monkeypatch.chdir(here)
        with pytest.raises(SystemExit, match="give another --out_dir"):
            outputs.move_aside(os.path.relpath(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv", "sub"]


def test_an_out_dir_that_is_a_file(scripts, finished):
    (scripts.folder / "sweep_file.py").write_text("rows = ['a: --max_iters=1']\n")
    for script, *args in (("train.py", *TINY), ("data/addition/prepare.py",),
                          ("data/shakespeare_char/prepare.py", "--input=input.txt"),
                          ("analyze.py", "--checkpoint=finished/ckpt_last.pt"),
                          ("sweep.py", "sweep_file.py")):
        err = scripts(script, *args, "--out_dir=input.txt", status=None).err
        assert "input.txt" in err
        assert "cannot be written" in err


# ---- signals

@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_stop_is_noted_once(signals, name, monkeypatch):
    """The terminal, the shell and a launcher may all pass it on; later ones are meant."""
    now, calls = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    runtime.on_stop(calls.append, lambda: calls.append("again"))
    number = getattr(signal, name)
    for later, wanted in ((0, [name]), (1.9, [name]), (2.1, [name, "again"])):
        now[0] = 100 + later
        os.kill(os.getpid(), number)
        assert calls == wanted


def test_a_hangup_stays_ignored_under_nohup(signals):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    runtime.on_stop(lambda name: pytest.fail(name))
    os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_closed_terminal_costs_no_iteration(scripts):
    run = scripts("train.py", *TINY, "--max_iters=50", "--out_dir=hup", status=130,
                  signal_at=("iter 7/", signal.SIGHUP))
    assert iteration(scripts, "hup") == 7
    assert "SIGHUP: finishing this step, then saving\n" in run.err
    assert run.err.endswith("stopped; hup/ckpt_last.pt is of iteration 7, --init_from=resume goes on there\n")


def test_a_stopped_evaluation_leaves_what_it_measured(scripts, finished):
    run = scripts("evaluate.py", "--out_dir=finished", "--digits=[1,2]", "--problems=10", "--csv_file=cut.csv",
                  status=130, signal_at=("size", signal.SIGHUP))
    assert run.err.splitlines()[-2:] == ["cut.csv has the 4 rows measured until then", "SIGHUP: stopped"]
    assert [r["n"] for r in read_csv(scripts.folder / "cut.csv")] == ["1", "1", "2", "2"]
    assert json.loads((scripts.folder / "cut.json").read_text())["finished"] is False


def test_a_script_gives_the_streams_and_handlers_back():
    before = sys.stdout.write, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit, match="130"):
        runtime.run(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert (sys.stdout.write, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


# ---- a disk that is full, a reader that is gone

def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "x.json"
    (tmp_path / "link").symlink_to(path)
    for old in (None, {"a": 1}):
        with full_disk(), pytest.raises(SystemExit, match=r"x\.json cannot be written: File too large"):
            outputs.write_json(str(path), {"b": 2})
        assert (json.loads(path.read_text()) if path.exists() else None) == old
        outputs.write_json(str(tmp_path / "link"), {"a": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "x.json"]
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(SystemExit, match="full cannot be written: No space left"):
        outputs.write_json("/dev/full", {"a": 1})


def test_a_table_is_on_disk_row_by_row(tmp_path, said):
    """Of new columns, too; what a full disk refuses follows with the next row."""
    path = str(tmp_path / "t.csv")
    table = outputs.Table(path)
    table.add(dict(a=1))
    table.add(dict(a=2, b="x"), dict(b="y"))
    table.add(dict(a=3))
    rows = [dict(a="1", b=""), dict(a="2", b="x"), dict(a="", b="y"), dict(a="3", b="")]
    assert read_csv(path) == rows
    with full_disk(os.path.getsize(path) + 1):  # half of the next row
        table.add(dict(a=4))
        table.add(dict(a=5))
    assert read_csv(path) == rows
    assert said() == [f"{path} cannot be written (File too large): going on without it"]
    table.add(dict(b=6))
    assert read_csv(path) == [*rows, dict(a="4", b=""), dict(a="5", b=""), dict(a="", b="6")]
    assert os.listdir(tmp_path) == ["t.csv"]


def test_two_tables_at_one_path_are_never_mixed(tmp_path):
    path = str(tmp_path / "t.csv")
    one, two = outputs.Table(path), outputs.Table(path)
    for n in range(3):
        one.add(dict(n=n))
        assert read_csv(path) == [dict(n=str(i)) for i in range(n + 1)]
        two.add(dict(n=10 + n, m=1))
        assert read_csv(path) == [dict(n=str(10 + i), m="1") for i in range(n + 1)]
    os.unlink(path)
    one.add(dict(n=3))
    assert [r["n"] for r in read_csv(path)] == ["0", "1", "2", "3"]


def test_what_was_measured_stays(tmp_path, said):
    path, beside = str(tmp_path / "m.csv"), tmp_path / "m.json"
    (tmp_path / "m.csv").write_text("old")

    def measure(rows, room=None):
        with outputs.measuring(path, "cpu", ["n"], of="x") as table:
            for n, row in enumerate(rows):
                with full_disk(os.path.getsize(path)) if n == room else contextlib.nullcontext():
                    table.add(dict(n=int(row)))

    with pytest.raises(ValueError, match="no"):
        measure(["no row"])
    assert (tmp_path / "m.csv").read_text() == "old"
    with pytest.raises(ValueError, match="no"):
        measure([1, "no row"])
    assert said() == [f"{path} has the 1 rows measured until then"]
    assert read_csv(path) == [dict(n="1")]
    assert not json.loads(beside.read_text())["finished"]
    with pytest.raises(SystemExit, match="has 2 of 3 rows"):
        measure([1, 2, 3], room=2)
    assert read_csv(path) == [dict(n="1"), dict(n="2")]
    measure([7])
    known = json.loads(beside.read_text())
    assert (known["finished"], known["of"], read_csv(path)) == (True, "x", [dict(n="7")])
    assert known["seconds"] >= 0


def test_a_full_disk_leaves_the_data_that_are_there(scripts):
    args = ("data/addition/prepare.py", "--out_dir=data/kept", "--train_rows=500", "--val_rows=50")
    scripts(*args)
    before = {p.name: p.read_bytes() for p in (scripts.folder / "data/kept").iterdir()}
    for limit in (5000, 200):  # of train.bin, of 16,000 bytes; of meta.json, too
        err = scripts(*args, "--seed=2", file_limit=limit, status=None).err
        assert "data/kept cannot be written: File too large" in err
        assert {p.name: p.read_bytes() for p in (scripts.folder / "data/kept").iterdir()} == before


def test_a_full_disk_costs_the_log_a_line_and_no_iteration(scripts):
    """Nothing but the checkpoint at the end says that the run failed; stdout is a file on that disk, too."""
    run = scripts("train.py", *TINY, "--max_iters=60", "--out_dir=full_log", status=1, file_limit=LIMIT)
    *lines, last = [line for line in run.err.splitlines() if not line.startswith("kernels")]
    assert sorted(lines) == ["full_log/log.csv cannot be written (File too large): going on without it",
                             "stdout cannot be written (File too large): going on without it"]
    assert last.startswith("cannot save full_log/ckpt_last.pt")
    assert last.endswith("there was none before; no checkpoint was saved yet")
    rows = read_csv(scripts.folder / "full_log/log.csv")
    assert [int(r["iter"]) for r in rows] == [*range(len(rows))]
    assert 10 < len(rows) < 60


def test_a_full_disk_for_tables_and_traces(scripts, finished):
    run = scripts("evaluate.py", "--out_dir=finished", "--digits=[1]", "--problems=10", "--eval_iters=0",
                  "--csv_file=/dev/full", status=1)
    assert "size" in run.out
    assert run.err.splitlines()[-1] == "/dev/full has 0 of 2 rows, since it could not be written"
    (scripts.folder / "full.jsonl").symlink_to("/dev/full")
    run = scripts("sample.py", "--out_dir=finished", "--start=1+2= 3+4=", "--trace_file=full.jsonl", status=1)
    assert "1+2=" in run.out
    assert "3+4=" in run.out
    assert run.err.splitlines()[-1] == "full.jsonl has 0 of 2 traces, since it could not be written"


def test_a_reader_that_is_gone_costs_no_checkpoint(scripts):
    """train.py | head -3"""
    path = scripts.folder / f"run{scripts.count + 1}.stdout"
    os.mkfifo(path)
    started = scripts.start("train.py", *TINY, "--max_iters=40", "--out_dir=head")
    with open(path) as f:
        assert [f.readline() for _ in range(3)][-1].startswith("iter 1/40")
    path.unlink()
    path.touch()
    assert scripts.finish(*started).err.endswith("stdout cannot be written (Broken pipe): going on without it\n")
    assert iteration(scripts, "head") == 40
    assert len(read_csv(scripts.folder / "head/log.csv")) == 42


# ---- side work

DAMAGED = {"cut": (b"iter,loss,val_loss\n1,0.5,\n2,0.", 1), "bytes": (b"iter,loss,val_loss\n1,0.5,\n\xff\x00,1,\n", 1),
           "words": (b"iter,loss,val_loss\n1,0.5,\nhello,world,\n2,0.25,\n", 2), "wide": (b"iter,loss\n1,0.5,9,9\n", 0),
           "no head": (b"1,0.5\n2,0.25\n", 0), "noise": (bytes(range(256)), 0)}


@pytest.mark.parametrize("name", DAMAGED)
def test_rows_of_a_damaged_log(tmp_path, name):
    raw, kept = DAMAGED[name]
    (tmp_path / "log.csv").write_bytes(raw)
    rows, whole = outputs.read_log(str(tmp_path / "log.csv"))
    assert not whole
    assert [r["iter"] for r in rows] == ["1", "2"][:kept]


def test_a_log_that_is_whole_or_not_there(tmp_path):
    path = tmp_path / "log.csv"
    assert outputs.read_log(str(path)) == ([], True)
    path.write_text("iter,loss,val_loss_per_loop\n0,,1.5 nan\n1,0.5,\n")
    rows, whole = outputs.read_log(str(path))
    assert (len(rows), whole) == (2, True)
    assert outputs.read_log(str(tmp_path)) == ([], False)  # a folder


def test_resuming_beside_a_damaged_log(scripts, finished):
    folder = scripts.folder / scripts.copy("finished", "damaged")
    log = (folder / "log.csv").read_bytes()
    (folder / "log.csv").write_bytes(log[:-40] + b"\xff\xfe what another program wrote\n")
    broken, good = (folder / "log.csv").read_bytes(), len(log.splitlines()) - 2
    err = scripts("train.py", *TINY, "--max_iters=5", "--out_dir=damaged", "--init_from=resume").err
    assert ("damaged/log.csv is damaged: put aside as damaged/log.csv.broken; the "
            f"{good} rows that can be read are kept\n") in err
    assert (folder / "log.csv.broken").read_bytes() == broken
    assert [r["iter"] for r in read_csv(folder / "log.csv") if r["loss"]] == ["1", "2", "3", "4", "5"]
    assert iteration(scripts, "damaged") == 5


def test_an_evaluation_without_the_data_of_its_checkpoint(scripts):
    """The table of additions needs none, and no advice overwrites the data."""
    scripts("data/addition/prepare.py", "--out_dir=data/mine", "--train_rows=100", "--val_rows=50", "--seed=5")
    scripts("train.py", *TINY, "--dataset=mine", "--max_iters=1", "--out_dir=mine")
    scripts("data/addition/prepare.py", "--out_dir=data/mine", "--train_rows=100", "--val_rows=50", "--seed=6")
    run = scripts("evaluate.py", "--out_dir=mine", "--digits=[1,2]", "--problems=10")
    line, = [x for x in run.out.splitlines() if x.startswith("no validation loss: ")]
    assert "data/mine" in line
    assert "sha256" in line
    assert "prepare.py" not in run.out + run.err
    assert [r["kind"] for r in read_csv(scripts.folder / "mine/evaluate.csv")] == ["uniform", "hard"] * 2
    resume = ("train.py", *TINY, "--max_iters=2", "--out_dir=mine", "--init_from=resume")
    err = scripts(*resume, status=None).err
    assert "data/mine is not what the checkpoint was trained on: sha256 differ\n" in err
    scripts("data/addition/prepare.py", "--out_dir=data/mine", "--train_rows=100", "--val_rows=50", "--seed=5")
    err = scripts(*resume, "--dataset=addition", status=None).err
    assert err.strip() == ("--dataset=addition is not what the checkpoint was trained on: sha256 differ; without "
                           "--dataset its own is taken, mine")
    scripts(*resume)
    assert iteration(scripts, "mine") == 2


def test_a_row_of_a_sweep_whose_files_are_damaged_runs_anew(tmp_path, monkeypatch):
    folder, commands = str(tmp_path / "row/seed1"), []

    def launch(command, log, environment, ranks):
        commands.append(command)
        outputs.write_json(f"{folder}/summary.json", dict(val_loss=1.0))
        (tmp_path / "row/seed1/ckpt_last.pt").touch()
        return ""
    monkeypatch.setattr(sweep, "launch", launch)
    run = dict(row="row", seed=1, ranks=1, folder=folder, settings={"a": 1}, steps={"train": ["train.py"]})
    assert sweep.execute(run, {})[0] == dict(row="row", seed=1, error="", val_loss=1.0)
    for content, count in (("[1]", 2), ("{", 3), ('{"settings": {"a": 1}}', 4),
                           ('{"settings": {"a": 1}, "done": 3}', 5)):
        (tmp_path / "row/seed1/row.json").write_text(content)
        assert sweep.execute(run, {})[0]["error"] == ""
        assert len(commands) == count
    assert sweep.execute(run, {})[1] == ""  # finished before
    assert ["--init_from=resume" in c for c in commands] == [False, False, False, True, True]
    monkeypatch.setattr(sweep, "launch", lambda *args: (tmp_path / "row/seed1/summary.json").write_text("{") * 0 or "")
    (tmp_path / "row/seed1/row.json").unlink()
    assert "Expecting property name" in sweep.execute(run, {})[0]["error"]


def test_a_sweep_whose_rows_cannot_be_written(scripts):
    """They are failures, not finished before; another sweep at once is refused."""
    (scripts.folder / "sweep_blocked.py").write_text("rows = ['a: --max_iters=1', 'b: --max_iters=1']\n")
    (scripts.folder / "out/sweep_blocked").mkdir(parents=True)
    for name in "ab":
        (scripts.folder / "out/sweep_blocked" / name).touch()  # a file where the folder of a row should be
    run = scripts("sweep.py", "sweep_blocked.py", status=1)
    assert "finished: 0\nfinished_before: 0\n" in run.out
    assert run.out.count("FAILED") == 2
    assert [r["error"] != "" for r in read_csv(scripts.folder / "results/sweep_blocked.csv")] == [True, True]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(outputs, "locks", {})
        outputs.lock_folder(str(scripts.folder / "out/sweep_blocked"))
        assert "in use" in scripts("sweep.py", "sweep_blocked.py", status=None).err
        outputs.locks.popitem()[1].close()


def test_a_full_disk_costs_a_sweep_its_tables_only(scripts, tmp_path, monkeypatch, said, capsys):
    monkeypatch.setattr(sweep, "execute", lambda run, environment: (
        dict(row=run["row"], seed=1, error="", val_loss=1.0, torch="2", device="cpu"), "log"))
    runs = [dict(row=name, seed=1, folder=str(tmp_path / name), ranks=1, settings={}, steps={}) for name in "ab"]
    monkeypatch.setattr(sweep, "seeds", [1])
    with full_disk():
        assert sweep.run_all(runs, str(tmp_path / "t")) == []
    out, err = capsys.readouterr()
    assert "2/2" in out
    assert [line.split(" (")[0] for line in err.splitlines()] == [
        f"{tmp_path}/t{end}.csv cannot be written" for end in ("", "_curves")]


def test_wandb_that_fails_later_only_warns(said, monkeypatch):
    run = SimpleNamespace(master=True, log=None, it=5, wandb=SimpleNamespace(log=lambda *args, **kw: 1 / 0),
                          shown=outputs.Progress("training", "iterations"))
    train.log(run, "a line", iter=5, loss=1.0)
    train.log(run, "a line", iter=6, loss=1.0)
    assert said() == ["wandb is off from iteration 5 on (ZeroDivisionError: division by zero)"]


def test_curves_of_a_damaged_log(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"iter,loss,val_loss\n0,,2.5\n1,0.5,\n\xff\n5,,1.5\n6,,1.")
    runs = [dict(row="a", seed=1, folder=str(tmp_path)), dict(row="b", seed=1, folder=str(tmp_path / "none"))]
    assert sweep.curves([r for run in runs for r in sweep.logged(run)]) == {"a": {1: {0: 2.5, 5: 1.5, 6: 1.0}}}


# ---- what a machine lacks

def test_without_a_compiler_training_goes_on(scripts):
    run = scripts("train.py", *TINY, "--compile=True", "--max_iters=2", "--out_dir=no_compiler", env={"PATH": "/none"})
    line, = [x for x in run.err.splitlines() if not x.startswith("kernels")]
    assert line.startswith("torch.compile does not work here (")
    assert line.endswith("): going on without, slower")
    assert iteration(scripts, "no_compiler") == 2


@pytest.mark.parametrize(("device", "words"), [
    ("mps", "use --device=cpu"), ("meta", "use --device=cpu"), ("xpu", "use --device=cpu"), ("cuda:99", "cuda"),
    ("gpu", "auto, cpu, cuda"), ("cpu:x", "auto, cpu, cuda")])
def test_devices_that_are_not_there(device, words):
    with pytest.raises(SystemExit, match=words) as e:
        runtime.choose_device(device)
    assert str(e.value).startswith(f"--device={device}")
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(("cuda", "mps", "taken"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_the_device_that_auto_takes(monkeypatch, cuda, mps, taken):
    """Apple's GPU where there is no CUDA, in float32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    assert runtime.choose_device("auto") == taken
    assert runtime.choose_dtype("auto", taken) == ("bfloat16" if cuda else "float32")


@pytest.mark.parametrize(("idle", "given", "before", "taken"), [
    (1.0, "", None, 8), (0.5, "", None, 4), (0.03, "", None, 1), (0.0, "", 3, 3), (1.0, "", 99, 8),
    (0.0, "6", 3, None)])
def test_threads_are_those_that_find_a_free_core(monkeypatch, capsys, idle, given, before, taken):
    """Of 8 cores; a resumed run has as many as before, and OMP_NUM_THREADS has the last word."""
    chosen = []
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(runtime, "usable_cores", lambda: 8)
    monkeypatch.setattr(runtime, "idle_share", lambda: idle)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    assert runtime.choose_device("cpu", before) == "cpu"
    assert chosen == [taken] * (taken is not None)
    line = f"threads: {taken} of 8, for the other cores are busy; OMP_NUM_THREADS=8 takes all\n"
    assert capsys.readouterr().err == (line if taken and taken < 8 and not before else "")


def test_the_idle_share_of_a_machine(monkeypatch):
    """By /proc/stat, and by the load where there is no such file."""
    def stat(path, **options):
        if not readings:
            raise FileNotFoundError
        return io.StringIO(f"cpu  {readings.pop(0)} 77 77\ncpu0 1 2 3\n")  # the last two are among the first ones
    monkeypatch.setattr("builtins.open", stat)
    readings = ["10 20 30 400 50 6 7 8", "15 20 35 480 60 6 7 8"]  # 10 busy ticks, 90 idle ones, of the disk too
    assert runtime.idle_share(0) == 0.9
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for load, idle in ((0.0, 1.0), (1.0, 0.75), (9.0, 0.0)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0, 0))
        assert runtime.idle_share() == idle


def test_a_resumed_run_has_the_threads_of_before(scripts, finished):
    """Without OMP_NUM_THREADS, whatever the machine does otherwise: their number decides how sums are rounded."""
    saved = torch.load(finished / "ckpt_last.pt", weights_only=True)
    assert saved["provenance"]["threads"] == 1  # as conftest.py says
    for threads in (1, 2):
        folder = scripts.folder / scripts.copy("finished", f"threads{threads}")
        saved["provenance"]["threads"] = threads
        torch.save(saved, folder / "ckpt_last.pt")
        out = scripts("train.py", *TINY, "--max_iters=4", f"--out_dir={folder.name}", "--init_from=resume",
                      env=dict(OMP_NUM_THREADS=None)).out
        assert f" with {min(threads, runtime.usable_cores())} thread(s), " in out


@pytest.mark.parametrize(("device", "says"), [("cpu", ""), ("mps", "plain PyTorch, since cuTile is for NVIDIA GPUs")])
def test_kernels_are_spoken_of_where_one_may_expect_them(device, says, capsys):
    backend.backend_choice.cache_clear()
    assert [backend.choose_backend("auto", device) for _ in range(2)] == ["torch"] * 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == bool(says)


def test_kernels_that_were_asked_for_and_cannot_run(scripts, finished):
    for script, *args in (("sample.py", "--out_dir=finished"), ("train.py", *TINY, "--out_dir=no_kernels")):
        err = scripts(script, "--backend=cutile", "--device=cpu", *args, status=None).err
        assert err.strip() == ("--backend: backend cutile cannot run here: cuTile is for NVIDIA GPUs, and the device "
                               "is cpu; use torch or auto")
    assert not (scripts.folder / "no_kernels").exists()


class Memory:
    """Has the n-th call of a function fail for want of memory."""

    def __init__(self, function, n, error):
        self.function, self.left, self.error = function, n, error

    def __call__(self, *args):
        self.left -= 1
        if not self.left:
            raise self.error
        return self.function(*args)


@pytest.mark.parametrize(("where", "error", "saved"), [
    ("forward_backward", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore\nlines"), 2),
    ("batch", np._core._exceptions._ArrayMemoryError((9, 9), np.dtype(int)), 2),
    ("lerp", torch.OutOfMemoryError("CUDA out of memory."), None),  # weights that have moved, averages that have not
    ("forward_backward", RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2)])
def test_out_of_memory(scripts, monkeypatch, signals, where, error, saved):
    monkeypatch.chdir(scripts.folder)
    holder, name = (torch, "_foreach_lerp_") if where == "lerp" else (train, where)
    monkeypatch.setattr(holder, name, Memory(getattr(holder, name), 3, error))
    out_dir = f"memory{scripts.count}{where}{saved}{len(str(error))}"
    monkeypatch.setattr(sys, "argv", ["train.py", *TINY, "--ema_decay=0.5", f"--out_dir={out_dir}"])
    with pytest.raises(SystemExit) as e:
        train.main()
    line = str(e.value)
    assert len(line.splitlines()) == 1
    assert f"out of memory at iteration 2 ({runtime.first_line(error)}): lower --batch_size, now 8, and raise " in line
    assert "--gradient_accumulation_steps, now 1" in line
    if saved:
        assert line.endswith(f"{out_dir}/ckpt_last.pt is of iteration 2, --init_from=resume goes on there")
        assert iteration(scripts, out_dir) == 2
    else:
        assert line.endswith("no checkpoint was saved yet")
        assert not (scripts.folder / out_dir / "ckpt_last.pt").exists()


def test_more_rows_than_memory_holds(scripts):
    err = scripts("data/addition/prepare.py", "--train_rows=10000000000", "--out_dir=data/huge", status=None).err
    assert "GB of memory" in err
    assert "lower --train_rows" in err
    assert not (scripts.folder / "data/huge").exists()


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 1 PiB"), torch.OutOfMemoryError("CUDA: no memory")])
def test_other_scripts_out_of_memory(error):
    def main():
        raise error
    with pytest.raises(SystemExit, match="out of memory .*: lower --tokens"):
        runtime.run(main, "--tokens")


# ---- before the first step

def test_a_stop_before_the_first_step_ends_at_once(scripts):
    """There is nothing to save yet, and setting up a large model may take long."""
    run = scripts("train.py", *TINY, "--max_iters=40", "--out_dir=stopped_early", status=130,
                  signal_at=(" parameters", signal.SIGTERM))
    assert "SIGTERM: stopped" in run.err
    assert "eval 0/40" not in run.out
    assert not (scripts.folder / "stopped_early/ckpt_last.pt").exists()


@pytest.mark.parametrize("text", ["--n_layer=1000000000", "--n_embd=1000000"])
def test_a_model_larger_than_memory(scripts, text):
    assert "lower --n_layer or --n_embd" in scripts("train.py", *TINY, text, "--out_dir=huge", status=None).err
    assert not (scripts.folder / "huge").exists()


def test_resuming_what_is_done(scripts):
    scripts("train.py", *TINY, "--max_iters=3", "--out_dir=done")
    assert "nothing to train: at iteration 3 already, and max_iters is 2" in scripts(
        "train.py", "--out_dir=done", "--init_from=resume", "--max_iters=2").out


def test_a_figure_stands_at_its_path_and_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [dict(iter=1, loss=2.0, val_loss="")]
    assert figures.draw_training(rows, "a run", "no_end")
    assert os.listdir(tmp_path) == ["no_end"]
    assert not figures.draw_training(rows, "a run", str(tmp_path))
    assert os.listdir(tmp_path) == ["no_end"]


# ---- progress

@pytest.mark.parametrize("live", [True, False])
def test_progress(live, monkeypatch, capsys):
    """On a terminal one line written over, which leaves nothing; elsewhere a line a minute, with the time left."""
    now = [5.0]
    monkeypatch.setattr(outputs.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: live, raising=False)
    for _ in outputs.progress(range(6), "counting", "numbers"):
        now[0] += 40
    said = capsys.readouterr()
    assert said.out == ""
    found = re.findall(r"counting: (\d)/6 numbers, (\w+), ETA (\w+)", said.err)
    every = range(1, 7) if live else (2, 4, 6)
    assert found == [(str(n), *map(outputs.human_time, (40 * n, 240 - 40 * n))) for n in every]
    assert said.err.endswith("\r\x1b[K" if live else "ETA 0s\n")
    assert said.err.count("\n") == (0 if live else 3)
    assert live == ("\r" in said.err)


def test_progress_of_quick_work_without_a_terminal_says_nothing(capsys):
    assert list(outputs.progress(iter("abc"), "x", "y")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_is_closed_from_the_start_costs_nothing(name, monkeypatch, capsys):
    """What would go there goes nowhere, not to the other one."""
    done = []

    def main():
        print("x", file=getattr(sys, name))
        done.extend(outputs.progress(range(3), "counting", "numbers"))
    monkeypatch.setattr(sys, name, None)
    runtime.run(main)
    assert done == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
