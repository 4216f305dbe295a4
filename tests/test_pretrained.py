"""The checkpoints that come with the project: what their tables claim, they write."""
import csv
import re
import runpy

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import UNLIKELY, inputs_and_targets, number_text
from scipy import stats

import evaluate
import runtime
from dataset import checkpoint_meta, encode
from model_loop import from_checkpoint
from tasks import addition

PROBLEMS = 200
ADDERBOARD = runpy.run_path(str(ROOT / "data/addition/adderboard.py"))
NAMES = {  # and the recipe that its card names
    "addition": "train_addition_long", "addition_search": "train_addition",
    "addition_parallel": "train_addition_parallel_long", "addition_parallel_search": "train_addition_parallel"}


def fresh_problems(rng, n, count, track):
    """Inputs and targets (count,T) of additions of exactly n digits."""
    lengths = np.full(count, n)
    a, b = (addition.random_numbers(rng, lengths, n) for _ in range(2))
    rows = addition.write_rows(a, lengths, b, lengths, addition.row_tokens(n, track), track)
    return map(torch.from_numpy, inputs_and_targets(rows, track))


def solves(model, X, Y):
    """Which problems (N,) the model solves, from one pass over the right answers (N,T): greedy decoding writes a right
    answer if and only if each of its tokens is the arg-max after the right ones before it."""
    h, _ = model.think(X, trace=False)
    return ((model.readout(h).argmax(-1) == Y) | (Y < 0)).all(1)


@pytest.mark.parametrize("n", [4, 8, pytest.param(12, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", NAMES)
def test_claims(name, n, rng):
    """Fresh problems: the share that is solved agrees with the claimed accuracy, itself of a number of problems."""
    path = ROOT / "pretrained" / f"{name}.pt"
    assert path.stat().st_size <= 4e6
    with open(path.with_suffix(".csv"), newline="") as f:
        (claim,) = (r for r in csv.DictReader(f) if (r["kind"], r["n"]) == ("uniform", str(n)))
    saved = runtime.load_checkpoint(path)
    model = from_checkpoint(saved, num_loops=32)
    solved = int(solves(model, *fresh_problems(rng, n, PROBLEMS, saved["meta"]["track"])).sum())
    right = round(float(claim["accuracy"]) * int(claim["problems"]))
    table = [[solved, PROBLEMS - solved], [right, int(claim["problems"]) - right]]
    assert stats.fisher_exact(table).pvalue > UNLIKELY


@pytest.mark.parametrize("name", NAMES)
def test_recipe(name):
    """A checkpoint was trained with the settings of its recipe."""
    saved = runtime.load_checkpoint(ROOT / "pretrained" / f"{name}.pt")["config"]
    recipe = runpy.run_path(str(ROOT / "config" / f"{NAMES[name]}.py"))
    recipe = {k: v for k, v in recipe.items() if not k.startswith("__") and k != "eval_interval"}
    assert {k: saved[k] for k in recipe} == recipe


def fresh_windows(saved, rng, count):
    """Tokens (count,257) from anywhere in text that text.pt was not trained on, eight pieces that lie evenly over
    tinyshakespeare's validation text."""
    text = (ROOT / "tests/shakespeare.txt").read_text(encoding="utf-8")
    tokens = torch.tensor(encode(checkpoint_meta(saved), text))
    return torch.stack([tokens[i:i + 257] for i in rng.integers(0, len(tokens) - 256, count).tolist()])


def test_claims_of_text(rng):
    """Fresh windows of text it was not trained on: the loss after the first and the last loop is that of the pieces
    within 5 standard errors of 24 windows, whose losses have standard deviations of 0.18 and 0.21; halting costs next
    to nothing. The pieces are easier than the whole validation text, which has 1.726 and 1.475."""
    path = ROOT / "pretrained/text.pt"
    assert path.stat().st_size <= 4e6
    with open(path.with_suffix(".csv"), newline="") as f:
        claims = {r["kind"] + r["loop"]: r for r in csv.DictReader(f)}
    saved = runtime.load_checkpoint(path)
    model, rows = from_checkpoint(saved), fresh_windows(saved, rng, 24)
    X, Y = rows[:, :-1], rows[:, 1:]
    with torch.no_grad():
        loss = model.loss_per_loop(X, Y).tolist()
        h, record = model.think(X, trace=False)
        halted = model.loss(model.readout(h), Y).item()
    for l, pieces in ((1, 1.663), (12, 1.385)):
        assert abs(loss[l - 1] - pieces) < 0.21
        assert abs(pieces - float(claims[f"val_loss{l}"]["loss"])) < 0.12
    assert loss[0] - loss[11] > 0.15
    assert abs(halted - loss[11]) < 0.03
    assert abs(record["loops"].float().mean() - float(claims["val_loss_halting"]["loops"])) < 1


@pytest.mark.full
def test_one_pass_solves_what_greedy_decoding_solves(rng):
    """Of a length at which some answers are wrong; test_sample.py has the same for small models, in make test."""
    n, saved = 20, runtime.load_checkpoint(ROOT / "pretrained/addition_search.pt")
    model = from_checkpoint(saved, num_loops=32)
    X, Y = fresh_problems(rng, n, 30, "next")
    prompt = 2 * n + 2
    written = model.generate(X[:, :prompt], n + 2, temperature=0, stop=addition.ID[addition.END])[:, prompt:]
    greedy = [number_text(row) == number_text(y) for row, y in zip(
        written.tolist(), Y[:, prompt - 1:].tolist(), strict=True)]
    assert solves(model, X, Y).tolist() == greedy


@pytest.mark.parametrize("count", [200, pytest.param(10_010, marks=pytest.mark.full)])
def test_adderboard(count, tmp_path):
    """Numbers of up to 10 digits, lengths mixed, by a model trained on 4: all are right, those of the edges too."""
    saved = runtime.load_checkpoint(ROOT / "pretrained/addition.pt")
    model, meta = from_checkpoint(saved), checkpoint_meta(saved)
    path = tmp_path / "problems.txt"
    path.write_text("\n".join(f"{a}+{b}" for a, b in ADDERBOARD["problems"]()[:count]), encoding="utf-8")
    X, Y = evaluate.batch(meta, evaluate.read_problems(meta, path))
    assert len(X) == count
    assert all(solves(model, x, y).all() for x, y in zip(X.split(250), Y.split(250), strict=True))


def test_a_hundred_digits(rng):
    """Of both numbers, or of one, the other shorter; more than the model's table of places holds are refused."""
    saved = runtime.load_checkpoint(ROOT / "pretrained/addition.pt")
    model, meta = from_checkpoint(saved), checkpoint_meta(saved)
    for kind in ("uniform", "shorter_a", "equal"):
        some = rng.choice(400, 5, replace=False)
        X, Y = evaluate.batch(meta, [x[some] for x in evaluate.problem_set(meta, 100, 400, kind)[:2]])
        assert solves(model, X, Y).sum() >= 4, kind
    with pytest.raises(ValueError, match="12[89] digits"):
        model.embed(next(iter(evaluate.batch(meta, evaluate.problem_set(meta, 128, 1)))))


def test_sample_writes_text(scripts):
    out = scripts("sample.py", f"--checkpoint={ROOT}/pretrained/text.pt", "--start=ROMEO:", "--max_new_tokens=9").out
    assert re.fullmatch(r"ROMEO:\n.{8,}\n-{15}\n", out, re.DOTALL)


@pytest.mark.parametrize("name", NAMES)
def test_sample_works_with_it(name, scripts):
    out = scripts("sample.py", f"--checkpoint={ROOT}/pretrained/{name}.pt", "--start=123456+876544=").out
    assert "123456+876544=1000000\n" in out
    read = re.findall(r"^ +\S +\S +(\d+) ", out, re.MULTILINE)
    most = max(map(int, read))
    assert most < 32
    lines = [x for x in out.splitlines() if "guess after each loop" not in x]  # whose width is no loop's
    assert len(lines) > len(read)
    assert max(map(len, lines)) < 30 + 3 * max(most, 10)  # no columns for loops that none took
