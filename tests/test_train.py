"""train.py as its users run it: resuming, stopping, failing, several ranks, and every committed config."""
import csv
import errno
import json
import math
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, start_ranks

import dataset
import runtime
from model_loop import build, from_checkpoint

TINY = ("--n_embd=16", "--n_head=2", "--batch_size=8", "--eval_iters=2", "--device=cpu")
# everything random at once: dropout, drawn place ids, loop counts, fresh and augmented rows
RECIPE = (*TINY, "--num_loops=[1,2,3]", "--dropout=0.1", "--ema_decay=0.9", "--pos=place", "--swap_operands",
          "--flip_rows=0.25", "--fresh_rows", "--gradient_accumulation_steps=2", "--eval_interval=8",
          "--log_interval=1", "--warmup_iters=5", "--learning_rate=2e-3", "--lr_decay_iters=25", "--min_lr=1e-4",
          "--prompt_loops=[0,1]")
N = 30  # iterations of the recipe


def read_log(scripts, out_dir, timing=False):
    clock = () if timing else ("ms", "tokens_per_s")
    with open(scripts.folder / out_dir / "log.csv") as f:
        return [{k: v for k, v in row.items() if k not in clock} for row in csv.DictReader(f)]


def load(scripts, out_dir, name="ckpt_last.pt"):
    return torch.load(scripts.folder / out_dir / name, weights_only=True)


def content(x):
    """Nested containers -> a comparable form in which equal means equal to the bit."""
    if isinstance(x, torch.Tensor):
        return str(x.dtype), tuple(x.shape), x.numpy().tobytes()
    if isinstance(x, dict):
        return {k: content(v) for k, v in x.items()}
    return [content(v) for v in x] if isinstance(x, (list, tuple)) else x


@pytest.fixture(scope="module")
def whole(scripts):
    """The run that nothing interrupts."""
    run = scripts("train.py", *RECIPE, f"--max_iters={N}", "--out_dir=whole")
    return SimpleNamespace(run=run, checkpoint=load(scripts, "whole"), log=read_log(scripts, "whole", timing=True))


@pytest.fixture(scope="module")
def stopped(scripts):
    """The same run, interrupted in three ways: {name of its out_dir: the iteration of its checkpoint}."""
    base = ("train.py", *RECIPE, f"--max_iters={N}")
    term = scripts(*base, "--out_dir=term", status=130, signal_at=("iter 13/", signal.SIGTERM))
    scripts(*base, "--out_dir=int", status=130, signal_at=("iter 16/", signal.SIGINT))
    scripts(*base, "--out_dir=kill", status=-9, signal_at=("iter 21/", signal.SIGKILL))
    assert term.err.splitlines()[-2:] == ["SIGTERM: finishing this step, then saving",
                                          "stopped; term/ckpt_last.pt is of iteration 13, --init_from=resume goes on "
                                          "there"]
    return {"term": 13, "int": 16, "kill": 16}


# ---- resuming and stopping

@pytest.mark.parametrize(("name", "given"), [
    ("term", (*RECIPE, f"--max_iters={N}")), ("int", (*RECIPE, f"--max_iters={N}")),
    ("kill", (*RECIPE, f"--max_iters={N}")), ("term", ("--device=cpu",))], ids=["term", "int", "kill", "nothing_given"])
def test_resume_is_exact(scripts, whole, stopped, name, given):
    """The last one is given nothing that is not of the machine: the rest is the checkpoint's, averages included."""
    before = load(scripts, name)
    assert before["iter_num"] == stopped[name]
    out_dir = scripts.copy(name, f"{name}_resumed{len(given)}")
    run = scripts("train.py", *given, f"--out_dir={out_dir}", "--init_from=resume")
    assert f"resumed from {out_dir}/ckpt_last.pt at iteration {before['iter_num']}, settings as there\n" in run.out
    after = load(scripts, out_dir)
    for key in ("model", "ema", "optimizer", "iter_num", "best_val_loss", "model_args"):
        assert content(after[key]) == content(whole.checkpoint[key]), key
    assert content(after["model"]) != content(before["model"])
    assert content(after["model"]) != content(after["ema"])
    # the rows of the log too, each once: losses, rates, gradient norms, loop counts
    assert read_log(scripts, out_dir) == read_log(scripts, "whole")
    best, wanted = load(scripts, out_dir, "ckpt_best.pt"), load(scripts, "whole", "ckpt_best.pt")
    assert (best["iter_num"], content(best["ema"])) == (wanted["iter_num"], content(wanted["ema"]))


def test_numbered_snapshots(scripts, whole):
    """Each is what the run was at its iteration: from one of them on it comes to the same end."""
    out_dir, at = "snapshots", (7, 14, 21, 28)
    scripts("train.py", *RECIPE, f"--max_iters={N}", "--save_every=7", f"--out_dir={out_dir}")
    folder = scripts.folder / out_dir
    assert sorted(p.name for p in folder.glob("ckpt_*[0-9].pt")) == sorted(f"ckpt_{n}.pt" for n in at)
    assert [load(scripts, out_dir, f"ckpt_{n}.pt")["iter_num"] for n in at] == [*at]
    assert content(load(scripts, out_dir)["model"]) == content(whole.checkpoint["model"])
    os.replace(folder / "ckpt_21.pt", folder / "ckpt_last.pt")
    scripts("train.py", f"--out_dir={out_dir}", "--init_from=resume", "--device=cpu")
    for key in ("model", "ema", "optimizer"):
        assert content(load(scripts, out_dir)[key]) == content(whole.checkpoint[key])
    assert not list((scripts.folder / "whole").glob("ckpt_*[0-9].pt"))


def test_an_evaluation_that_a_stop_cut_off_still_saves_the_best(scripts, stopped):
    """SIGINT came in step 16, before its evaluation; the resumed run evaluates there and must keep what was best."""
    out_dir = scripts.copy("int", "int_best")
    scripts("train.py", *RECIPE, "--max_iters=16", f"--out_dir={out_dir}", "--init_from=resume")
    losses = {int(r["iter"]): float(r["val_loss"]) for r in read_log(scripts, out_dir) if r["val_loss"]}
    assert min(losses, key=losses.get) == 16
    assert load(scripts, out_dir, "ckpt_best.pt")["iter_num"] == 16


def test_what_a_stopped_run_leaves(scripts, stopped):
    for name in stopped:
        assert not list((scripts.folder / name).glob("*.part"))
        model = from_checkpoint(load(scripts, name))
        assert all(torch.isfinite(p).all() for p in model.parameters())


def test_resume_refuses_another_model(scripts, stopped):
    out_dir = scripts.copy("term", "term_changed")
    before = (scripts.folder / out_dir / "ckpt_last.pt").read_bytes()
    for changed in ("--n_embd=32", "--num_loops=4", "--pos=none", "--n_layer=2", "--tie_weights=False"):
        run = scripts("train.py", *RECIPE, changed, f"--out_dir={out_dir}", "--init_from=resume", status=None)
        assert re.search(rf"{changed[2:].split('=')[0]}\b.*differ", run.err)
    run = scripts("train.py", *TINY, "--model_type=gpt", f"--out_dir={out_dir}", "--init_from=resume", status=None)
    assert "--model_type=gpt" in run.err
    run = scripts("train.py", *TINY, "--dataset=shakespeare_char", f"--out_dir={out_dir}", "--init_from=resume",
                  status=None)
    assert re.search("shakespeare_char|vocab_size", run.err)
    assert (scripts.folder / out_dir / "ckpt_last.pt").read_bytes() == before


def test_resume_says_what_differs(scripts, stopped):
    """In one line, of all that is not of the machine; and a value of old that is out of range asks for another."""
    out_dir = scripts.copy("term", "term_differs")
    args = ("train.py", f"--out_dir={out_dir}", "--init_from=resume", "--device=cpu", "--eval_iters=1")
    out = scripts(*args, "--max_iters=14", "--learning_rate=1e-4", "--ema_decay=0", "--min_loops=2").out
    line, = (x for x in out.splitlines() if x.startswith("resumed"))
    start, _, differ = line.partition(", but ")
    assert start == f"resumed from {out_dir}/ckpt_last.pt at iteration 13, settings as there"
    assert set(differ.split(", ")) == {"eval_iters 2 -> 1", "max_iters 30 -> 14", "learning_rate 0.002 -> 0.0001",
                                       "ema_decay 0.9 -> 0.0", "min_loops 1 -> 2"}
    assert "ema" not in load(scripts, out_dir)  # as was asked for
    path = scripts.folder / out_dir / "ckpt_last.pt"
    torch.save(load(scripts, out_dir) | dict(config=dict(grad_clip=-1.0, max_iters=15, of_another_version=1)), path)
    assert "trained with grad_clip: -1.0 is out of range" in scripts(*args, status=None).err
    out = scripts(*args, "--grad_clip=0").out
    assert "grad_clip -1.0 -> 0.0" in out
    assert "iterations: 15" in out


def test_resume_of_a_checkpoint_of_nanogpt(scripts):
    """Whose settings say nothing of the kind of model, and hold keys that mean something else or nothing here."""
    scripts("train.py", *TINY, "--model_type=gpt", "--n_layer=1", "--max_iters=1", "--out_dir=nano")
    old = load(scripts, "nano")
    args = {k: v for k, v in old["model_args"].items() if k not in ("tie_weights", "label_smoothing")}
    config = dict(dataset="addition", learning_rate=0.002, max_iters=2, batch_size=4, eval_iters=1, compile=True,
                  backend="nccl", always_save_checkpoint=True, wandb_log=True, init_from="scratch", device="cuda")
    torch.save({k: old[k] for k in ("model", "optimizer", "iter_num", "best_val_loss")} | dict(
        model_args=args, config=config), scripts.folder / "nano/ckpt_last.pt")
    out = scripts("train.py", "--out_dir=nano", "--init_from=resume", "--device=cpu", "--beta1=0.5").out
    assert "resumed from nano/ckpt_last.pt at iteration 1, settings as there\n" in out
    assert "gpt with" in out
    found = load(scripts, "nano")["config"]
    assert (found["learning_rate"], found["batch_size"], found["model_type"]) == (0.002, 4, "gpt")
    assert found["backend"] == "auto"


def test_keys_without_effect_cost_a_line(scripts):
    """Those of the command line, never those of a config file; and nothing else is said."""
    (scripts.folder / "idle.py").write_text("min_lr = 0.1\nhalt_threshold = 0.5\n")
    base = ("train.py", "idle.py", *TINY, "--max_iters=1", "--num_loops=1", "--out_dir=idle", "--decay_lr=False")
    assert "without effect" not in scripts(*base).err
    err = scripts(*base, "--min_lr=1e-5", "--min_loops=2", "--halt_threshold=0.3", "--place_ids=9", "--wandb_project=x",
                  "--halt_head=after").err
    line, = (x for x in err.splitlines() if x.startswith("without effect: "))
    assert re.findall(r"--(\w+) \(", line) == ["min_loops", "halt_threshold", "place_ids", "halt_head", "min_lr",
                                               "wandb_project"]
    assert "--min_lr (decay_lr is False)" in line
    assert "--halt_threshold (halt is none)" in line


def test_resume_without_a_checkpoint(scripts):
    run = scripts("train.py", *TINY, "--out_dir=never", "--init_from=resume", status=None)
    assert "never/ckpt_last.pt does not exist" in run.err


# ---- what a run writes

def test_files_and_summary(scripts, whole):
    folder = scripts.folder / "whole"
    assert {p.name for p in folder.iterdir()} == {
        "ckpt_last.pt", "ckpt_best.pt", "config.json", "log.csv", "loss.png", "summary.json"}
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    settings = json.loads((folder / "config.json").read_text())
    assert (settings["num_loops"], settings["max_iters"], settings["flip_rows"]) == ([1, 2, 3], N, 0.25)
    assert settings["model_args"]["vocab_size"] == 15
    assert whole.checkpoint["config"].items() <= settings.items()
    summary = whole.run.out.split("---\n")[1].splitlines()
    found = dict(line.split(": ", 1) for line in summary)
    assert found["iterations"] == str(N)
    assert found["checkpoint"] == "whole/ckpt_last.pt"
    last = [r for r in whole.log if r["val_loss"]][-1]
    assert float(found["val_loss"]) == pytest.approx(float(last["val_loss"]), abs=1e-4)
    written = json.loads((folder / "summary.json").read_text())
    known, of_checkpoint = written.pop("provenance"), whole.checkpoint["provenance"]
    assert {k: str(v) for k, v in written.items()} == found
    assert known["command"] == of_checkpoint["command"]
    assert known["command"].startswith("python train.py --n_embd=16 ")
    assert known["seconds"] == written["seconds"] >= of_checkpoint["seconds"] > 0
    assert known["versions"] == of_checkpoint["versions"]


def test_the_first_line_of_a_step_comes_early(scripts):
    """After ten steps, however many the next one is away, so that one sees how long all will take."""
    scripts("train.py", *TINY, "--max_iters=13", "--log_interval=1000", "--out_dir=early")
    assert [r["iter"] for r in read_log(scripts, "early") if r["loss"]] == ["10"]


def test_log_lines(whole):
    steps = [line for line in whole.run.out.splitlines() if line.startswith("iter ")]
    assert len(steps) == N
    for i, line in enumerate(steps, 1):
        number, eta = r"(\d+\.\d+)", r"\d+(s|m\d\ds|h\d\dm)"
        pattern = (rf"iter {i}/{N} \({number}%\): loss {number}, {number} ms, {number}k tokens/s, "
                   rf"loops {number}, ETA {eta}")
        percent, loss, ms, speed, loops, _ = re.fullmatch(pattern, line).groups()
        assert float(percent) == pytest.approx(100 * i / N, abs=0.06)
        assert float(speed) == pytest.approx(8 * 2 * 15 / float(ms), rel=0.05, abs=0.1)
        row = next(r for r in whole.log if r["iter"] == str(i) and r["loss"])
        assert (float(row["loss"]), float(row["loops"])) == (pytest.approx(float(loss), abs=1e-4), float(loops))
    evaluations = [line for line in whole.run.out.splitlines() if line.startswith("eval ")]
    assert [int(re.match(r"eval (\d+)/30: train \d\.\d+, val \d\.\d+ by loop", line)[1]) for line in evaluations] == [
        0, 8, 16, 24, 30]


def test_learning_rate(whole):
    """Five steps up to 2e-3, a cosine down to 1e-4 at iteration 25, and 1e-4 from there on."""
    rates = [float(r["lr"]) for r in whole.log if r["lr"]]
    falling = [1e-4 + 1.9e-3 * math.cos(math.pi * min(i - 5, 20) / 40)**2 for i in range(5, N)]
    assert rates == pytest.approx([2e-3 * i / 6 for i in range(1, 6)] + falling, rel=1e-9)


def test_evaluations_in_the_log(scripts, whole):
    """The last row's losses are those of the checkpoint's averaged weights, over batches of the key (index,)."""
    data = dataset.open_dataset("addition", str(scripts.folder / "data"))
    model = from_checkpoint(whole.checkpoint, prompt_loops=0)  # of a fixed depth, as an evaluation looks at it
    row = [r for r in whole.log if r["val_loss"]][-1]
    for split in ("train", "val"):
        batches = [dataset.get_batch(data, split, (i,), 8) for i in range(2)]
        wanted = [np.mean([model(x, y, num_loops=l)[1].item() for x, y in batches]) for l in (1, 2, 3)]
        assert float(row[f"{split}_loss"]) == pytest.approx(wanted[-1], rel=1e-5)
    assert [float(x) for x in row["val_loss_per_loop"].split()] == pytest.approx(wanted, abs=2e-6)


def test_loop_counts_depend_on_seed_and_iteration_alone(scripts, whole):
    counts = [r["loops"] for r in whole.log if r["loops"]]
    assert set(counts) == {"1.0", "2.0", "3.0"}
    other = ("--num_loops=[1,2,3]", "--n_embd=8", "--n_head=1", "--batch_size=3", "--log_interval=1", "--max_iters=20",
             "--eval_iters=1", "--dataset=addition/parallel", "--device=cpu")
    for seed, same in ((1337, True), (7, False)):
        scripts("train.py", *other, f"--seed={seed}", f"--out_dir=loops{seed}")
        assert ([r["loops"] for r in read_log(scripts, f"loops{seed}") if r["loops"]] == counts[:20]) is same


# ---- fine-tuning

@pytest.mark.parametrize("extra", [(), ("--ema_decay=0.9",)])
def test_halt_head_after_trains_nothing_else(scripts, whole, extra):
    out_dir = f"after{len(extra)}"
    start = ("train.py", *TINY, "--halt_head=after", "--init_from=whole/ckpt_last.pt", "--learning_rate=0.01", *extra)
    scripts(*start, f"--out_dir={out_dir}", "--max_iters=4", "--warmup_iters=0", "--eval_interval=1")
    new, old = load(scripts, out_dir), whole.checkpoint["ema"]
    for weights in [new["model"]] + ([new["ema"]] if extra else []):
        assert {k for k in weights if k not in old} == {k for k in weights if k.startswith("halt_head")} != set()
        assert all(torch.equal(weights[k], x) for k, x in old.items())
    runtime.seed_torch(1337)
    fresh = build(new["model_args"]).state_dict()
    assert all(not torch.equal(x, fresh[k]) for k, x in new["model"].items() if k.startswith("halt_head"))
    assert len(new["optimizer"]["state"]) == 4  # the weights and biases of its two layers
    assert new["iter_num"] == 4
    # and without the head again, all else trains on from where it was
    scripts(*start, "--halt_head=none", f"--out_dir={out_dir}_left_out", "--max_iters=1",
            "--learning_rate=1e-30", f"--init_from={out_dir}/ckpt_last.pt", "--eval_interval=1", "--min_lr=0")
    left = load(scripts, f"{out_dir}_left_out")["model"]
    assert left.keys() == old.keys()
    assert all(torch.equal(x, old[k]) for k, x in left.items())


def test_init_from_a_checkpoint_that_does_not_fit(scripts, whole):
    for wrong, name in (("--n_embd=32", "do not fit"), ("--n_layer=2", r"transformer\.h\.1"),
                        ("--dataset=shakespeare_char", "shakespeare_char"), ("--model_type=gpt", "--model_type=gpt")):
        run = scripts("train.py", *TINY, wrong, "--init_from=whole/ckpt_last.pt", "--out_dir=unfit", status=None)
        assert re.search(name, run.err)


def test_init_from_with_longer_numbers_than_before(scripts):
    """Sums of 4 digits in data/addition/demo, of 5 in data/addition: too long for place_subset=4."""
    base = ("train.py", *TINY, "--pos=place", "--place_subset=4", "--max_iters=1", "--num_loops=1")
    scripts(*base, "--dataset=addition/demo", "--out_dir=short")
    run = scripts(*base, "--dataset=addition", "--init_from=short/ckpt_last.pt", "--out_dir=long", status=None)
    assert "place_subset" in run.err


# ---- failing

def test_a_loss_that_is_not_finite(scripts, stopped):
    out_dir = scripts.copy("term", "nan")
    before = content(load(scripts, out_dir))
    explode = ("--learning_rate=1e30", "--min_lr=1e30", "--grad_clip=0", f"--max_iters={N}")
    run = scripts("train.py", *RECIPE, *explode, f"--out_dir={out_dir}", "--init_from=resume", status=1)
    assert re.search(r"not finite at iteration 1[45].*nan/ckpt_last\.pt is of iteration 13", run.err)
    assert "Traceback" not in run.err
    assert content(load(scripts, out_dir)) == before
    assert all(torch.isfinite(p).all() for p in from_checkpoint(load(scripts, out_dir)).parameters())
    run = scripts("train.py", *RECIPE, *explode, "--out_dir=nan_scratch", "--eval_interval=100", status=1)
    assert "no checkpoint was saved yet" in run.err
    assert not list((scripts.folder / "nan_scratch").glob("*.pt"))


def test_a_full_disk(scripts, stopped):
    """The limit on file sizes stands in for the disk: the next checkpoint cannot be written to its end."""
    out_dir = scripts.copy("term", "full")
    before = (scripts.folder / out_dir / "ckpt_last.pt").read_bytes()
    run = scripts("train.py", *RECIPE, f"--max_iters={N}", f"--out_dir={out_dir}", "--init_from=resume", status=None,
                  file_limit=len(before) // 2)
    assert "cannot save full/ckpt_last.pt" in run.err
    assert "untouched" in run.err
    assert "is of iteration 13" in run.err
    assert (scripts.folder / out_dir / "ckpt_last.pt").read_bytes() == before
    assert not list((scripts.folder / out_dir).glob("*.part"))


def no_space(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_a_save(checkpoint, f):
    f.write(b"half of it" * 1000)
    raise RuntimeError("unexpected pos 64 vs 0")


@pytest.mark.parametrize(("where", "name", "fails"), [
    (os, "fsync", no_space), (torch, "save", half_a_save), (torch, "save", no_space), (os, "replace", no_space)])
def test_a_save_that_fails_keeps_the_last_one(tmp_path, monkeypatch, where, name, fails):
    path, good = str(tmp_path / "ckpt.pt"), {"model": {"w": torch.randn(5)}, "model_args": {"a": 1}}
    for before in ([], ["ckpt.pt"]):
        with monkeypatch.context() as m:
            m.setattr(where, name, fails)
            with pytest.raises(SystemExit, match=r"cannot save .*ckpt\.pt") as e:
                runtime.save_checkpoint(path, {"model": {"w": torch.zeros(5)}, "model_args": {}})
        assert ("untouched" if before else "none before") in str(e.value)
        assert os.listdir(tmp_path) == before
        if before:
            assert content(runtime.load_checkpoint(path)) == content(good)
        runtime.save_checkpoint(path, good)
    assert os.listdir(tmp_path) == ["ckpt.pt"]


def test_a_save_into_a_folder_that_is_gone(tmp_path):
    with pytest.raises(SystemExit, match="cannot save"):
        runtime.save_checkpoint(str(tmp_path / "gone/ckpt.pt"), {})


class Dangerous:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def no_checkpoints(good, rng):
    """Files that are no checkpoint, as bytes: {name: content}."""
    files = {"empty": b"", "noise": rng.bytes(5000), "text": b"not a checkpoint\n" * 9,
             "truncated": good[:len(good) // 2], "almost": good[:-1], "zip": b"PK\x03\x04" + rng.bytes(500),
             "object": pickle.dumps(Dangerous()), "list": pickle.dumps([1, 2])}
    return {f"{name}.pt": content for name, content in files.items()}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_are_no_checkpoint(scripts, whole, rng, monkeypatch):
    """None of them runs code of its own, or is taken for a checkpoint; so say the scripts, of two of them."""
    good = (scripts.folder / "whole/ckpt_last.pt").read_bytes()
    files = no_checkpoints(good, rng)
    torch.save({"model": Dangerous(), "model_args": {}}, scripts.folder / "code.pt")
    torch.save({"weights": torch.zeros(3)}, scripts.folder / "other.pt")
    for name, raw in files.items():
        (scripts.folder / name).write_bytes(raw)
    monkeypatch.chdir(scripts.folder)
    for name in [*files, "code.pt", "other.pt", "missing.pt", "data"]:
        with pytest.raises(SystemExit, match=re.escape(name)) as e:
            runtime.load_checkpoint(name)
        assert len(str(e.value).splitlines()) == 1
    assert "code.pt" in scripts("train.py", *TINY, "--out_dir=no", "--init_from=code.pt", status=None).err
    assert "object.pt" in scripts("evaluate.py", "--checkpoint=object.pt", status=None).err
    assert not (scripts.folder / "executed").exists()
    assert not (scripts.folder / "no").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_checkpoints(tmp_path, rng, zipped):
    """Whatever stands in the file: a checkpoint or one clear message."""
    path = tmp_path / "ckpt.pt"
    good = {"model": {"w": torch.randn(9), "b": torch.ones(2, 3)}, "model_args": {"n": 1, "names": ["a", "b"]}}
    torch.save(good, path, _use_new_zipfile_serialization=zipped)  # False: the format of torch before 1.6
    whole, messages = path.read_bytes(), []
    for i in range(300):
        damaged = bytearray(whole[:rng.integers(1, len(whole))] if i % 2 else whole)
        for at in rng.integers(0, len(damaged), 5):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            runtime.load_checkpoint(str(path))
        except SystemExit as e:
            messages.append(str(e))
    assert len(messages) > 150
    assert all(str(path) in m and len(m.splitlines()) == 1 for m in messages)


@pytest.mark.parametrize(("args", "words"), [
    (("--dataset=none",), ["data/none/meta.json", "prepare.py"]),
    (("--learning_rat=1",), ["learning_rat", "learning_rate"]),
    (("config/none.py",), ["config/none.py"]),
    (("--n_embd=16.5",), ["n_embd", "16.5", "int"]),
    (("--n_embd=17", "--n_head=2"), ["n_embd 17", "n_head 2"]),
    (("--model_type=rnn",), ["rnn", "gpt"]),
    (("--model_type=gpt", "--num_loops=3"), ["num_loops", "model_type"]),
    (("--halt=sometimes",), ["sometimes", "confidence"]),
    (("--num_loops=0",), ["num_loops"]),
    (("--pos=place", "--dataset=shakespeare_char", "--block_size=32"), ["place"]),
    (("--pos=place", "--place_subset=2"), ["place_subset"]),
    (("--dataset=shakespeare_char", "--block_size=5000"), ["block_size=5000"]),
    (("--block_size=8",), ["block_size"]),  # a row has 15 tokens
    (("--dataset=addition/parallel", "--flip_rows=0.5"), ["flip_rows"]),  # an option of track next
    (("--device=gpu",), ["device", "gpu"]),
    (("--dtype=float16",), ["float16", "bfloat16"]),
    (("--cuda_graph", "--device=cpu"), ["cuda_graph"]),
    (("--max_iters=0",), ["max_iters", ">= 1"]),
    (("--halt=confidence", "--halt_threshold=5"), ["halt_threshold 5.0", "'confidence'"]),
    (("--halt=entropy", "--min_loops=9"), ["min_loops 9", "num_loops 8"]),
    (("--out_dir=input.txt",), ["input.txt"]),  # a file stands there
])
def test_mistakes_have_a_clear_message(scripts, args, words):
    out_dir = f"mistake{scripts.count}"
    run = scripts("train.py", *TINY, "--max_iters=1", f"--out_dir={out_dir}", *args, status=None)
    assert [word for word in words if word not in run.err] == []
    assert not list(scripts.folder.glob(f"{out_dir}/*.pt"))


# ---- micro-steps and ranks

STEP = (*TINY, "--max_iters=1", "--warmup_iters=0", "--dropout=0.1", "--num_loops=3", "--pos=place", "--grad_clip=0",
        "--gradient_accumulation_steps=2", "--eval_iters=3", "--log_interval=1", "--ema_decay=0.9")


@pytest.fixture(scope="module")
def one_step(scripts):
    scripts("train.py", *STEP, "--out_dir=one_step")
    return load(scripts, "one_step"), read_log(scripts, "one_step")


def gradients(checkpoint):
    """The gradients of the first step, in the optimizer's order, from AdamW's running mean of them."""
    group = checkpoint["optimizer"]["param_groups"][0]
    state = checkpoint["optimizer"]["state"]
    return [state[i]["exp_avg"] / (1 - group["betas"][0]) for i in sorted(state)]


def test_micro_steps_accumulate_the_mean_gradient(scripts, one_step):
    """The gradient of the mean loss of batches (seed, 0, 0) and (seed, 0, 1), by autograd here."""
    checkpoint, log = one_step
    data = dataset.open_dataset("addition", str(scripts.folder / "data"))
    runtime.seed_torch(1337)
    model, loss = build(checkpoint["model_args"]).train(), 0.0
    for index in range(2):
        x, y = dataset.get_batch(data, "train", (1337, 0, index), 8)
        runtime.seed_torch(1337, 0, index)
        loss = loss + model(x, y, 3)[1] / 2
    loss.backward()
    params = sorted(model.parameters(), key=lambda p: p.dim() < 2)  # the optimizer's order: matrices, then the rest
    for found, p in zip(gradients(checkpoint), params, strict=True):
        torch.testing.assert_close(found, p.grad, rtol=1e-4, atol=1e-7)
    row = next(r for r in log if r["loss"])
    norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in params))
    assert float(row["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    assert float(row["loss"]) == pytest.approx(loss.item(), rel=1e-5)


def torchrun(*options_and_args):
    return [sys.executable, "-m", "torch.distributed.run", *options_and_args]


def ranks_by_torchrun(scripts, *args):
    command = torchrun("--standalone", "--nproc_per_node=2", str(ROOT / "train.py"), *args)
    run = subprocess.run(command, cwd=scripts.folder, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return run.stdout


def ranks_on_two_hosts(scripts, *args):
    """Two groups of one rank each, started by the same command, which meet on loopback as those of two hosts meet at
    the first one."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]  # free a moment ago
    command = torchrun("--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}",
                       "--rdzv_id=test", "--local_addr=127.0.0.1", str(ROOT / "train.py"), *args)
    hosts = [subprocess.Popen(command, cwd=scripts.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env=os.environ | dict(GLOO_SOCKET_IFNAME="lo")) for _ in range(2)]
    said = [host.communicate(timeout=600) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    return "".join(out for out, _ in said)


def ranks_as_by_torchrun(scripts, *args, status=0):
    store, started = start_ranks(scripts, "train.py", *args)
    return "".join(scripts.finish(*one, status).out for one in started)


@pytest.mark.parametrize("ranks", [ranks_as_by_torchrun, pytest.param(ranks_by_torchrun, marks=pytest.mark.full),
                                   pytest.param(ranks_on_two_hosts, marks=pytest.mark.full)])
def test_two_ranks_equal_two_micro_steps(scripts, one_step, ranks):
    out_dir = ranks.__name__
    assert ranks(scripts, *STEP, f"--out_dir={out_dir}").count("2 process(es)") == 1
    one, log = one_step
    two = load(scripts, out_dir)
    for x, y in zip(gradients(two), gradients(one), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-7)
    for key in ("model", "ema"):
        for name, x in one[key].items():
            torch.testing.assert_close(two[key][name], x, rtol=0, atol=2e-5)  # of a step of 1e-3
    rows = list(zip(read_log(scripts, out_dir), log, strict=True))
    assert [r["iter"] for r, _ in rows] == ["0", "1", "1"]
    for key in ("grad_norm", "train_loss", "val_loss"):
        found = [(float(x[key]), float(y[key])) for x, y in rows if y[key]]
        assert found
        assert all(x == pytest.approx(y, rel=1e-5) for x, y in found)


def test_ranks_follow_one_process_and_resume(scripts):
    """Losses, weights and averages of two ranks, interrupted in the middle, are those of as many micro-steps of one
    process, with everything random at once."""
    recipe = (*RECIPE, "--max_iters=12")
    scripts("train.py", *recipe, "--out_dir=alone")
    store, started = start_ranks(scripts, "train.py", *recipe, "--out_dir=both",
                                 of_rank={0: dict(signal_at=("iter 7/", signal.SIGTERM))})
    said = "".join(scripts.finish(*one, 130).err for one in started)
    assert said.count("stopped; both/ckpt_last.pt is of iteration 7") == 1
    ranks_as_by_torchrun(scripts, "--device=cpu", "--out_dir=both", "--init_from=resume")
    one, two = load(scripts, "alone"), load(scripts, "both")
    for key in ("model", "ema"):
        for name, x in one[key].items():
            torch.testing.assert_close(two[key][name], x, rtol=0, atol=2e-4)  # of 12 steps of up to 2e-3
    found, wanted = (np.array([float(r["loss"]) for r in read_log(scripts, name) if r["loss"]])
                     for name in ("both", "alone"))
    assert found == pytest.approx(wanted, rel=1e-4)


STAND_IN = """
import types
import torch, runtime, train

def capture_step(forward_backward, update, optimizer, pool):
    loss, norm = torch.zeros(()), torch.zeros(())
    def replay():
        optimizer.zero_grad(set_to_none=True)
        loss.copy_(forward_backward())
        norm.copy_(update())
    return types.SimpleNamespace(replay=replay), loss, norm

def choose_machine(checkpoint, choose=train.choose_machine):
    run = choose(checkpoint)
    run.captured = True
    return run

runtime.capture_step, train.choose_machine, torch.cuda.graph_pool_handle = capture_step, choose_machine, lambda: None
runtime.run(train.main)
"""  # train.py with captured steps, where a replay does again what was captured


def test_captured_steps_of_ranks(scripts):
    """All but the capture itself: whose batch each rank takes, whose dropout, what it exchanges, and when."""
    path = scripts.folder / "captured.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{STAND_IN}")
    recipe = (*RECIPE, "--max_iters=12")
    scripts("train.py", *recipe, "--out_dir=plain")
    store, started = start_ranks(scripts, path, *recipe, "--out_dir=captured")
    assert [scripts.finish(*one).err for one in started] == ["", ""]
    one, two = (load(scripts, name)["model"] for name in ("plain", "captured"))
    for name, x in one.items():
        torch.testing.assert_close(two[name], x, rtol=0, atol=2e-4)
    found, wanted = ([float(r["loss"]) for r in read_log(scripts, name) if r["loss"]] for name in ("captured", "plain"))
    assert found == pytest.approx(wanted, rel=1e-4)


def test_ranks_end_together_where_a_loss_is_not_finite(scripts):
    """One line for both of them, and the checkpoint of before."""
    recipe = (*RECIPE, "--eval_interval=3", "--out_dir=both_nan")
    ranks_as_by_torchrun(scripts, *recipe, "--max_iters=3")
    before = content(load(scripts, "both_nan"))
    explode = ("--learning_rate=1e30", "--min_lr=1e30", "--grad_clip=0", "--init_from=resume")
    store, started = start_ranks(scripts, "train.py", *recipe, *explode, "--max_iters=9")
    said = [scripts.finish(*one, 1).err for one in started]
    assert re.fullmatch(r"the loss or a weight is not finite at iteration [45] .*; both_nan/ckpt_last\.pt is of "
                        r"iteration 3, --init_from=resume goes on there; .*\n", said[0])
    assert said[1] == ""
    assert content(load(scripts, "both_nan")) == before


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_dies(scripts, killed):
    """The other one says so, once, and ends; what it resumes from is whole."""
    out_dir = f"dead{killed}"
    args = (*RECIPE, "--max_iters=100000", "--eval_interval=20", f"--out_dir={out_dir}")
    of_rank = {} if killed else {0: dict(signal_at=("iter 25/", signal.SIGKILL))}  # rank 1 prints nothing
    store, started = start_ranks(scripts, "train.py", *args, of_rank=of_rank)
    if killed:
        log, late = scripts.folder / out_dir / "log.csv", time.monotonic() + 300
        while not (log.exists() and "\n25," in log.read_text()) and time.monotonic() < late:
            time.sleep(0.05)
        os.kill(started[1][0].pid, signal.SIGKILL)
    scripts.finish(*started[killed], -signal.SIGKILL)
    err = scripts.finish(*started[1 - killed], 1).err
    line, = err.splitlines()
    saved = load(scripts, out_dir)["iter_num"]
    assert saved == 20 if not killed else saved >= 25  # rank 0 saves what it has
    assert re.fullmatch(rf"another process of this training has ended, and so does this one \(.*\); {out_dir}/"
                        rf"ckpt_last\.pt is of iteration {saved}, --init_from=resume goes on there", line)


def test_what_all_ranks_find_wrong_is_said_once(scripts):
    store, started = start_ranks(scripts, "train.py", *TINY, "--n_embd=17", "--n_head=2", "--out_dir=wrong")
    said = [scripts.finish(*one, 1).err for one in started]
    assert "".join(said).count("n_embd 17") == 1


def test_a_rank_that_waits_where_no_signal_reaches_it(tmp_path):
    """As one does whose GPU waits for a rank that is gone: here in C, for a minute."""
    code = """
import ctypes, runtime, sys
runtime.StopSignal()
runtime.end_if_stuck(lambda: "the last word", seconds=0.2)
print("waits", flush=True)
ctypes.CDLL(None).pause()
ctypes.CDLL(None).sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    assert process.stdout.readline() == "waits\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "the last word" in err


# ---- the committed configs

CONFIGS = [p for p in sorted((ROOT / "config").glob("*.py")) if not p.stem.startswith("sweep_")]  # see test_sweep.py


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configs(scripts, path):
    text = path.read_text()
    args = ["--n_embd=16", "--n_head=2", "--batch_size=4", "--eval_iters=1", "--max_iters=10", "--eval_interval=10",
            "--log_interval=2", "--warmup_iters=2", "--device=cpu", f"--out_dir={path.stem}"]
    args += ["--block_size=32"] if "shakespeare" in text else []
    args += ["--n_layer=2"] if re.search(r"^n_layer = (?!1$)", text, re.MULTILINE) else []
    args += ["--num_loops=[2,3]"] if "num_loops = [" in text else ["--num_loops=2"] if "num_loops =" in text else []
    args += ["--prompt_loops=3"] if "prompt_loops =" in text else []
    args += ["--min_loops=1"] if "min_loops =" in text else []
    if data := re.search(r"Data: python data/prepare\.py((?:[\s#]+--\S+)+)", text):
        scripts("data/prepare.py", *data[1].replace("#", "").split(), "--train_rows=400", "--val_rows=100")
        args += ["--batch_size=32"]  # of 4 rows, in which every symbol is as likely, the loss hardly falls
    run = scripts("train.py", str(path), *args)
    folder = scripts.folder / path.stem
    assert all((folder / name).stat().st_size for name in ("config.json", "log.csv", "loss.png", "ckpt_last.pt"))
    log = read_log(scripts, path.stem)
    losses = [(float(r["train_loss"]), float(r["val_loss"])) for r in log if r["val_loss"]]
    assert len(losses) == 2
    assert losses[1][0] < losses[0][0]
    assert losses[1][1] < losses[0][1]
    assert [int(r["iter"]) for r in log if r["loss"]] == [2, 4, 6, 8, 10]
    for line in run.out.split("---\n")[1].splitlines():
        assert re.fullmatch(r"[a-z_]+: \S.*", line)
    assert load(scripts, path.stem)["iter_num"] == 10


def test_wandb_without_a_login_only_warns(scripts):
    """HOME elsewhere, so that a login of whoever runs this is not found and nothing is sent."""
    env = {k: None for k in os.environ if k.startswith("WANDB")}
    env |= {"WANDB_API_KEY": "", "HOME": str(scripts.folder), "NETRC": str(scripts.folder / "none")}
    out = scripts("train.py", *TINY, "--max_iters=2", "--wandb_log=True", "--out_dir=no_wandb", env=env).out
    assert "wandb is off" in out
    assert "iterations: 2" in out
    assert load(scripts, "no_wandb")["iter_num"] == 2


def test_what_the_checkpoint_decides_is_what_runs(scripts, whole):
    """Resumed without its settings, a run keeps those of its model; config.json says so."""
    name = scripts.copy("whole", "bare")
    scripts("train.py", "--device=cpu", "--batch_size=8", "--eval_iters=1", "--ema_decay=0.9", "--eval_interval=100",
            "--log_interval=1", "--init_from=resume", f"--max_iters={N + 9}", f"--out_dir={name}")
    config = json.loads((scripts.folder / name / "config.json").read_text())
    assert (config["num_loops"], config["n_embd"], config["pos"]) == ([1, 2, 3], 16, "place")
    assert {float(r["loops"]) for r in read_log(scripts, name) if r["loss"]} <= {1, 2, 3}
    other = json.loads((scripts.folder / "data/addition/meta.json").read_text())
    assert load(scripts, name)["meta"]["sha256"] == other["sha256"]


def test_an_evaluation_leaves_the_run_as_it_is(scripts, whole):
    name = scripts.copy("whole", "measured")
    files = {p.name: p.read_bytes() for p in (scripts.folder / name).iterdir()}
    run = scripts("train.py", *TINY, "--eval_only", f"--init_from={name}/ckpt_last.pt", f"--out_dir={name}")
    assert "val_loss:" in run.out
    assert files == {p.name: p.read_bytes() for p in (scripts.folder / name).iterdir()}


def test_a_config_of_nanogpt(scripts):
    """It names layers and knows no loops: a line says how deep the model is that they make."""
    (scripts.folder / "nanogpt.py").write_text("n_layer = 2\ndataset = 'shakespeare_char'\nblock_size = 16\n")
    start = ("train.py", "nanogpt.py", *TINY, "--max_iters=1", "--out_dir=layers")
    assert "n_layer 2 without num_loops" in scripts(*start).out
    for meant in ("--num_loops=2", "--model_type=gpt"):
        assert "without num_loops" not in scripts(*start, meant).out


def test_settings_that_would_do_nothing_are_refused(scripts):
    scripts("data/addition/prepare.py", "--out_dir=data/plain", "--plain=True", "--train_rows=50", "--val_rows=20")
    for args, key in ((("--dataset=plain", "--pos=place"), "place"), (("--alpha=learned",), "alpha"),
                      (("--update=euler", "--alpha=-1.0"), "alpha"), (("--compile=no",), "compile"),
                      (("--pos=place", "--place_ids=4", "--place_subset=0"), "place_ids")):
        assert key in scripts("train.py", *TINY, *args, "--out_dir=nothing", status=None).err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_captured_steps_follow_plain_ones_and_resume_exactly(scripts):
    """--cuda_graph against the plain step, all randomness on; and a captured run, interrupted, to the bit."""
    recipe = (*RECIPE, "--device=cuda", "--dtype=float32", "--deterministic=True", "--compile=False",
              "--gradient_accumulation_steps=1")  # a captured step seeds once, a plain one in each micro-step
    losses = {}
    for name, extra, steps in (("plain", ("--cuda_graph=False",), 20), ("graph", ("--cuda_graph=True",), 20),
                               ("resumed", ("--cuda_graph=True",), 8),
                               ("resumed", ("--cuda_graph=True", "--init_from=resume"), 20)):
        scripts("train.py", *recipe, *extra, f"--max_iters={steps}", f"--out_dir={name}_gpu")
        losses[name] = [float(r["loss"]) for r in read_log(scripts, f"{name}_gpu") if r["loss"]]
    assert len(losses["plain"]) == 20
    assert losses["graph"] == pytest.approx(losses["plain"], abs=1e-4)
    for key in ("model", "ema"):
        whole, again = (load(scripts, f"{name}_gpu")[key] for name in ("graph", "resumed"))
        assert all(torch.equal(whole[k].cpu(), again[k].cpu()) for k in whole)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
@pytest.mark.parametrize("captured", ["False", "True"])
def test_two_gpus_follow_one_and_resume_exactly(scripts, captured):
    """NCCL, plain and in the graphs, against two micro-steps of one GPU; and stopped in the middle, to the bit."""
    recipe = (*RECIPE, "--device=cuda", "--dtype=float32", "--deterministic=True", "--compile=False")
    scripts("train.py", *recipe, "--cuda_graph=False", "--max_iters=20", "--out_dir=one_gpu")
    both = (*recipe, f"--cuda_graph={captured}")
    for name, steps, more in (("whole", 20, ()), ("resumed", 8, ()), ("resumed", 20, ("--init_from=resume",))):
        ranks_by_torchrun(scripts, *both, f"--max_iters={steps}", f"--out_dir={name}_{captured}", *more)
    log, wanted = (read_log(scripts, name) for name in (f"whole_{captured}", "one_gpu"))
    losses, alone = ([float(r["loss"]) for r in rows if r["loss"]] for rows in (log, wanted))
    assert len(alone) == 20
    assert losses == pytest.approx(alone, abs=1e-4)
    whole, again, one = (load(scripts, name) for name in (f"whole_{captured}", f"resumed_{captured}", "one_gpu"))
    for key in ("model", "ema"):
        assert all(torch.equal(x.cpu(), again[key][k].cpu()) for k, x in whole[key].items())
        for k, x in one[key].items():
            torch.testing.assert_close(whole[key][k].cpu(), x.cpu(), rtol=0, atol=1e-3)
