"""Loops against length, and the frontier, of a fake model whose tokens need a known number of loops."""
import csv
import os
import random
import re
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, start_ranks
from helpers import problem_set
from scipy import stats

import evaluate
import figures
import intervals
import outputs
import sweep
import sweep_tables
from model_loop import LoopGPT
from tasks import addition

L, PROMPT = 6, 3


@pytest.fixture(scope="module")
def untrained(scripts):
    """{track: checkpoint path} of models that are never asked: think() is replaced."""
    for track, dataset in (("next", "addition"), ("slots", "addition/parallel"), ("zeros", "addition/zeros")):
        scripts("train.py", f"--dataset={dataset}", "--device=cpu", "--n_embd=8", "--n_head=1", f"--num_loops={L}",
                f"--prompt_loops={PROMPT}", "--halt=entropy", "--halt_threshold=0.1", "--pos=place", "--place_ids=16",
                "--batch_size=2", "--max_iters=1", "--eval_iters=1", f"--out_dir=fake_{track}")
    return {track: f"fake_{track}/ckpt_last.pt" for track in ("next", "slots", "zeros")}


def answer_text(a, b, track):
    """What has to be written after 'a+b=' by Python's own integers."""
    n = max(len(str(a)), len(str(b)))
    return str(a + b)[::-1].ljust(n + 1, "0") if track == "slots" else str(a + b)[::-1] + "\n"


class Fake:
    """A model in which the n-th operand length and the symbol to be written say how many loops a token needs: a token
    with fewer is wrong. Some problems are never solved; they take all loops. A strict rule gives each token what it
    needs, one with a threshold below 0.9 one loop less."""

    def __init__(self, rng):
        self.need = rng.integers(1, L + 1, (20, len(addition.VOCAB)))
        self.need[:, addition.ID["1"]] = L  # so that no fixed depth below L solves all
        self.hopeless, self.calls = int(rng.integers(5)), []

    def problem(self, a, b, track):
        """Loops that each token of the answer needs, and whether the problem can be solved."""
        need = [self.need[max(len(str(a)), len(str(b)))][addition.ID[s]] for s in answer_text(a, b, track)]
        return need, (a + 3 * b) % 5 != self.hopeless

    def think(self, model, idx, num_loops=None, trace=True, exact_loops=None):
        c, h = model.config, torch.zeros(*idx.shape, len(addition.VOCAB))
        loops = torch.where(idx == addition.ID[" "], 0, PROMPT)
        for i, row in enumerate(idx.tolist()):
            text = "".join(addition.VOCAB[t] for t in row)
            equals, track = text.index("="), "slots" if "_" in text else "next"
            a, b = (int(x[::-1]) for x in text[:equals].split("+"))
            need, fine = self.problem(a, b, track)
            for t, (symbol, n) in enumerate(zip(answer_text(a, b, track), need, strict=True),
                                            equals + (track == "slots")):
                took = n if c.halt != "confidence" or c.halt_threshold >= 0.9 else max(1, n - 1)
                took = int(exact_loops[i, t]) if exact_loops is not None else took if fine else L
                loops[i, t] = took
                h[i, t, addition.ID[symbol] if fine and took >= n else addition.ID["+"]] = 1
        self.calls.append((idx, loops, exact_loops, c.halt, c.halt_threshold))
        return h, dict(loops=loops)


@pytest.fixture
def run(scripts, monkeypatch, rng, untrained):
    """Runs evaluate.py in this process with a fake model: returns the model and the rows of its table."""
    fake = Fake(rng)
    monkeypatch.chdir(scripts.folder)
    monkeypatch.setattr(LoopGPT, "think", lambda model, *args, **kw: fake.think(model, *args, **kw))
    monkeypatch.setattr(LoopGPT, "readout", lambda model, h: h)

    def go(track, *args):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", f"--checkpoint={untrained[track]}", "--device=cpu",
                                          "--eval_iters=0", "--csv_file=fake.csv", *args])
        return evaluate.main()
    go.fake = fake
    return go


def operands(n, count, kind):
    a, la, b, lb = problem_set(n, count, kind)
    return [tuple(int("".join(map(str, x[:l][::-1]))) for x, l in ((x, lx), (y, ly)))
            for x, lx, y, ly in zip(a, la, b, lb, strict=True)]


def longest_chain(a, b):
    """By the carries of ever longer ends of the numbers: places that a carry crosses, then a new one is counted."""
    best = run = 0
    for d in range(len(str(max(a, b)))):
        carries = a % 10 ** (d + 1) + b % 10 ** (d + 1) >= 10 ** (d + 1)
        made = a // 10 ** d % 10 + b // 10 ** d % 10 >= 10
        run = 1 if made else run + 1 if carries else 0
        best = max(best, run)
    return best


def test_tables_are_named_after_what_was_measured(tmp_path, monkeypatch):
    """Of checkpoints that come with the project nothing is written into the tree that git keeps."""
    monkeypatch.chdir(tmp_path)
    for name in ("ckpt_best.pt", "ckpt_last.pt", "ckpt_500.pt"):
        (tmp_path / name).touch()
    best, halting = str(tmp_path / "ckpt_best.pt"), dict(halt="kl", halt_threshold=0.1, num_loops=[4, 8])

    def name(path=best, given=(), **settings):
        for key, value in (dict(grid=0, frontier=False, waiting=False, problems_file="") | settings).items():
            monkeypatch.setattr(evaluate, key, value)
        return os.path.relpath(evaluate.table_path(path, dict(given)))
    names = [name(), name(frontier=True), name(waiting=True), name(grid=4), name(problems_file="a/hard ones.txt"),
             name(given=halting), name(given=dict(halting, halt="delta")), name(str(tmp_path / "ckpt_last.pt")),
             name(str(tmp_path / "ckpt_500.pt"), frontier=True)]
    assert names == ["evaluate.csv", "evaluate_frontier.csv", "evaluate_waiting.csv", "evaluate_grid4.csv",
                     "evaluate_hard-ones.csv",
                     "evaluate_halt=kl_halt_threshold=0.1_num_loops=4-8.csv",
                     "evaluate_halt=delta_halt_threshold=0.1_num_loops=4-8.csv", "evaluate_ckpt_last.csv",
                     "evaluate_ckpt_500_frontier.csv"]
    os.unlink(best)
    assert name(str(tmp_path / "ckpt_last.pt")) == "evaluate.csv"  # it is the folder's only one
    assert name(str(ROOT / "pretrained/addition.pt")) == "out/pretrained/addition/evaluate.csv"


@pytest.mark.parametrize("track", ["next", "slots"])
def test_loops_of_solved_problems_against_digits_and_carries(run, track, capsys):
    counts = [1, 4, 6, 12]
    _, table = run(track, "--digits=[1,4,6,12]", "--problems=70", "--plot=True")
    said = capsys.readouterr().out
    most, n_of, means, rhos = [], [], {}, []
    for n in counts:
        chains = {}
        for kind in ("uniform", "hard"):
            found = [(longest_chain(a, b), max(need)) for a, b in operands(n, 70, kind)
                     for need, fine in [run.fake.problem(a, b, track)] if fine]
            row = next(r for r in table if r["kind"] == kind and r["n"] == n)
            x = [m for _, m in found]
            assert 0 < len(x) < 70
            assert row["accuracy"] == pytest.approx(len(x) / 70)
            assert row["loops_most_solved"] == pytest.approx(np.mean(x))
            if np.ptp(x):
                ends = stats.ttest_1samp(x, 0).confidence_interval(0.95)
                assert (row["loops_most_solved_low"], row["loops_most_solved_high"]) == pytest.approx(tuple(ends))
            for k, m in found:
                chains.setdefault(k, []).append(m)
            if kind == "uniform":
                most, n_of, means[n] = most + x, n_of + [n] * len(x), np.mean(x)
        rows = [r for r in table if r["kind"] == "chain" and r["n"] == n]
        assert {r["chain"]: r["problems"] for r in rows} == {k: len(x) for k, x in chains.items()}
        for r in rows:
            x = chains[r["chain"]]
            assert r["loops"] == pytest.approx(np.mean(x))
            assert ("loops_low" in r) == (len(x) > 1)
        pairs = np.array([(k, m) for k, x in chains.items() for m in x])
        if np.ptp(pairs, 0).all():
            rhos.append(stats.spearmanr(*pairs.T).statistic)
    found = re.search(r"size (\S+) over problems, (\S+) over the means of 4", said)
    if np.ptp(most):
        assert float(found[1]) == pytest.approx(stats.spearmanr(n_of, most).statistic, abs=0.0051)
    else:
        assert "the loops are the same for every problem" in said
    if np.ptp([*means.values()]):
        assert float(found[2]) == pytest.approx(stats.spearmanr(counts, [*means.values()]).statistic, abs=0.0051)
    if rhos:
        assert float(re.search(r"Spearman with chain (\S+),", said)[1]) == pytest.approx(np.mean(rhos), abs=0.0051)
    ratio = float(re.search(r"at size 12 / at size 1 (\S+)", said)[1])
    assert ratio == pytest.approx(means[12] / means[1], abs=0.0051)
    assert Path("fake_loops.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("track", ["next", "slots", "zeros"])
def test_every_kind_of_problem_is_measured(run, track, capsys, tmp_path):
    """Exact match by hand, in the order asked for; with leading zeros both numbers are asked with as many digits."""
    kinds = ["nines", *(k for k in addition.KINDS if k != "nines")]
    _, table = run(track, "--digits=[2,9]", f"--kinds={','.join(kinds)}", "--problems=60", "--batch_size=60")
    said, rows = capsys.readouterr().out, [r for r in table if r["kind"] in addition.KINDS]
    assert [(r["n"], r["kind"]) for r in rows] == [(n, kind) for n in (2, 9) for kind in kinds]
    for row, (idx, *_) in zip(rows, run.fake.calls, strict=True):
        pairs = operands(row["n"], 60, row["kind"])
        fine = [run.fake.problem(a, b, track)[1] for a, b in pairs]
        assert 0 < sum(fine) < 60 or row["n"] == 2
        assert row["accuracy"] == pytest.approx(np.mean(fine))
        for tokens, (a, b) in zip(idx.tolist(), pairs, strict=True):
            left, right = "".join(addition.VOCAB[t] for t in tokens).partition("=")[0].split("+")
            assert (int(left[::-1]), int(right[::-1])) == (a, b)
            assert len(left) == len(right) if track == "zeros" else [len(str(a)), len(str(b))] == [*map(len, (
                left, right))]
    head = next(line.split() for line in said.splitlines() if line.split()[:1] == ["size"])
    assert [word for word in head if word in kinds] == kinds
    line = next(line.split() for line in said.splitlines() if line.split()[:1] == ["9"])
    assert line[1:2 * len(kinds):2] == [f"{100 * r['accuracy']:.1f}%" for r in rows[len(kinds):]]
    found = sweep_tables.columns_of_evaluation("", outputs.read_csv("fake.csv"))
    assert {k for k in found if k.rpartition("_")[0] in kinds} == {f"{k}_{n}" for k in kinds for n in (2, 9)}
    every = run(track, "--digits=[1]", "--kinds=all", "--problems=4")[1]
    assert [r["kind"] for r in every][:len(kinds)] == [*addition.KINDS]
    table = [dict(row="a", seed=0, error="", **found)]
    assert f"| a | 1/1 | {100 * found['equal_2']:.1f} | {100 * found['equal_9']:.1f} |" in sweep_tables.markdown(
        "equal", "", table, ["a"])
    figures.draw_sweep(table, {}, str(tmp_path / "x.png"))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("track", ["next", "slots", "zeros"])
def test_a_file_of_problems_is_measured(run, track, capsys, tmp_path):
    """Lengths mixed, written as people do; each is asked as the dataset writes it, and exact match is by hand."""
    pairs = [(7, 12345), (0, 0), (99999, 1), (5, 5), (123, 4567890)] + operands(9, 30, "shorter_a")
    path = tmp_path / "problems.txt"
    lines = [f"{a}+{b}" if a % 2 else f" {a} + {b}= " for a, b in pairs]
    path.write_text("\ufeff" + "\n\n".join(lines), encoding="utf-8")
    _, table = run(track, f"--problems_file={path}", "--batch_size=8", "--control=True")
    said, (row,) = capsys.readouterr().out, [r for r in table if r["kind"] == "file"]
    fine = [run.fake.problem(a, b, track)[1] for a, b in pairs]
    asked = [row for idx, _, exact, *_ in run.fake.calls if exact is None for row in idx.tolist()]
    for tokens, (a, b) in zip(asked, pairs, strict=True):
        left, right = "".join(addition.VOCAB[t] for t in tokens).partition("=")[0].split("+")
        assert (int(left[::-1]), int(right[::-1])) == (a, b)
        assert len(left) == len(right) or track != "zeros"
    assert row["problems"] == len(pairs)
    assert row["accuracy"] == pytest.approx(np.mean(fine))
    interval = stats.binomtest(sum(fine), len(pairs)).proportion_ci(method="wilson")
    assert (row["low"], row["high"]) == pytest.approx(tuple(interval))
    assert f"{path}: {sum(fine)} of {len(pairs)} right, {100 * np.mean(fine):.2f}% " in said
    assert not any(r["kind"] == "uniform" for r in table)  # digits were not asked for
    _, table = run(track, f"--problems_file={path}", "--digits=[2]", "--kinds=uniform", "--problems=4")
    assert [r["kind"] for r in table] == ["uniform", "file"]


@pytest.mark.parametrize(("text", "words"), [
    ("1+2\n\n3+x\n", "line 3: '3.x' is not an addition"), ("1+2+3\n", "line 1"), ("12\n", "line 1"),
    ("1+2\n" + "9" * 17 + "+1", "problems.txt: a number of 1[78] digits.*place_ids"), ("-1+2\n", "line 1"),
    ("\n\n", "no problem")])
def test_a_file_that_holds_no_problems(run, tmp_path, text, words):
    path = tmp_path / "problems.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match=words):
        run("next", f"--problems_file={path}")
    with pytest.raises(SystemExit, match="cannot be read"):
        run("next", f"--problems_file={path}.txt")


def test_adderboard_draws_its_problems():
    """As github.com/anadim/AdderBoard's verify.py does: edge cases first; a few of its pairs, drawn once by hand."""
    found = runpy.run_path(str(ROOT / "data/addition/adderboard.py"))["problems"]()
    assert len(found) == 10_010
    assert found[8] == (9_999_999_999, 9_999_999_999)
    rng = random.Random(2025)
    assert found[10:] == [(rng.randint(0, 9_999_999_999), rng.randint(0, 9_999_999_999)) for _ in range(10_000)]


def test_kinds_that_do_not_exist(run):
    for wrong in ("--kinds=even", "--kinds=uniform,all"):
        with pytest.raises(SystemExit, match="kinds.*shorter_a"):
            run("next", "--digits=[1]", wrong)


@pytest.mark.parametrize("track", ["next", "slots"])
def test_frontier_of_known_needs(run, track, capsys):
    """Every point by hand; random has the loops of its rule on average, and the settings are as before afterwards."""
    model, table = run(track, "--digits=[2,3]", "--problems=160", "--frontier=True", "--plot=True", "--think_loops=5",
                       "--think_threshold=0.7")
    said = capsys.readouterr().out
    c, rows = model.config, [r for r in table if r["kind"] == "frontier"]
    assert (c.halt, c.halt_threshold, c.think_threshold, c.think_loops) == ("entropy", 0.1, 0.7, 5)
    found = [run.fake.problem(a, b, track) for n in (2, 3) for a, b in operands(n, 40, "uniform")]
    fixed = [r for r in rows if r["rule"] == "fixed"]
    assert [r["loops"] for r in fixed] == [*range(1, L + 1)]
    for l, r in enumerate(fixed, 1):
        assert r["problems"] == 80
        assert r["loops_most"] == l
        assert r["accuracy"] == pytest.approx(np.mean([fine and max(need) <= l for need, fine in found]))
    taken = np.mean([np.mean(need) if fine else L for need, fine in found])
    less = np.mean([np.mean(np.maximum(1, np.array(need) - 1)) if fine else L for need, fine in found])
    for r in rows[L:]:
        strict = r["rule"] != "confidence" or r["threshold"] >= 0.9
        assert r["loops"] == pytest.approx(taken if strict else less)
        assert r["loops_most"] == pytest.approx(np.mean([
            (max(need) if strict else max(1, max(need) - 1)) if fine else L for need, fine in found]))
        assert r["accuracy"] == pytest.approx(np.mean([fine and (strict or max(need) == 1) for need, fine in found]))
        interval = stats.binomtest(round(80 * r["random_accuracy"]), 80).proportion_ci(method="wilson")
        assert (r["random_low"], r["random_high"]) == pytest.approx(tuple(interval))
    rules = {r["rule"] for r in rows}
    assert rules == {"fixed", "confidence", "entropy", "delta", "kl"}  # no halt head, no gate
    best = f"fixed depth {L}"  # only L loops can write a 1
    assert best in said
    assert any(abs(float(x) - 100 * (1 - taken / L)) < 0.051 for x in re.findall(r"([\d.]+)%", said))
    assert Path("fake_frontier.png").read_bytes().startswith(b"\x89PNG")

    frontier = run.fake.calls[-2 * 2 * len(rows[L:]):]  # of each point: a rule and its control, for 2 digit counts
    for (idx, loops, _, halt, at), (same, drawn, asked, *_) in zip(frontier[::2], frontier[1::2], strict=True):
        assert torch.equal(idx, same)
        answer = (idx == addition.ID["="]).cumsum(1).bool() & (loops > 0)
        prompt = (idx != addition.ID[" "]) & ~answer
        assert (asked[prompt] == PROMPT).all()
        x, y = loops[answer].double(), drawn[answer].double()
        assert set(y.tolist()) <= set(x.tolist())
        assert abs(x.mean() - y.mean()) <= 5 * x.std() / len(x) ** 0.5 + 1e-9, (halt, at)


def test_what_cannot_be_computed_is_left_out_with_its_reason(run, monkeypatch, capsys):
    """One digit count; loops that are all the same; problems of which none, or of one digit count only, are solved."""
    run("next", "--digits=[4]", "--problems=70")
    said = capsys.readouterr().out
    assert re.search(r"answer: mean \d\.\d\d, no correlation with the size, since only one was asked\n", said)
    assert f"prompt: mean {PROMPT:.2f}, the same for every problem" in said  # as every token's limit
    assert "nan" not in said
    of_problem = run.fake.problem
    for fine, frontier, words in (
            (lambda a: False, True, "since none of the sizes has any"),
            (lambda a: a < 10, False, "since 1 of the sizes has any"),
            (lambda a: True, False, "since the loops are the same for every problem")):
        monkeypatch.setattr(run.fake, "problem", lambda a, b, track, fine=fine: (
            [L] * len(of_problem(a, b, track)[0]), fine(a)))
        _, table = run("next", "--digits=[1,3]", "--problems=40", f"--frontier={frontier}", "--plot=True")
        said = capsys.readouterr().out
        assert words in said
        assert "nan" not in said
        if frontier:
            assert "no fixed depth solves more than 0.5% of the problems" in said
            assert "saving" not in said
            assert sum(r["kind"] == "frontier" for r in table) > L


def test_waiting_to_think_of_a_model_with_a_known_law(run, monkeypatch, capsys):
    """A fake that is right where the answer takes at most three loops more than the prompt, and reads in 5 loops where
    confidence says so: each pair of the table, and what its rule was; afterwards the settings are as before."""
    asked = []

    def think(model, idx, num_loops=None, trace=True, exact_loops=None):
        c, h = model.config, torch.zeros(*idx.shape, len(addition.VOCAB))
        asked.append((c.halt, c.halt_threshold, c.think_threshold, c.prompt_loops, c.think_loops))
        read, write = c.prompt_loops or 5, c.think_loops or 2
        after = (idx == addition.ID["="]).cumsum(1) > 0
        for i, row in enumerate(idx.tolist()):
            text = "".join(addition.VOCAB[t] for t in row)
            a, b = (int(x[::-1]) for x in text.partition("=")[0].split("+"))
            for t, symbol in enumerate(answer_text(a, b, "next"), text.index("=")):
                h[i, t, addition.ID[symbol if write <= read + 3 else "+"]] = 1
        return h, dict(loops=torch.where(idx == addition.ID[" "], 0, torch.where(after, write, read)))

    monkeypatch.setattr(LoopGPT, "think", think)
    model, table = run("next", "--digits=[2,3]", "--problems=30", "--kinds=uniform", "--waiting=True")
    rows = {(r["read"], r["write"], r["n"]): r for r in table if r["kind"] == "waiting"}
    assert set(rows) == {(read, write, n) for read in evaluate.READING for write in evaluate.WRITING for n in (2, 3)
                         if (read, write) != (0.9, 0)}  # its rule is entropy, which cannot write where confidence reads
    for (read, write, _), r in rows.items():
        read, write = 5 if read == 0.9 else read, write or 2
        assert (r["loops_prompt"], r["loops_answer"]) == (read, write)
        assert r["accuracy"] == (write <= read + 3)
        assert 0 <= r["low"] <= r["accuracy"] <= r["high"] <= 1
    columns = sweep_tables.columns_of_evaluation("", outputs.read_csv("fake.csv"))
    assert {k: v for k, v in columns.items() if k.startswith("read_")} == {
        f"read_{'0_9' if read == 0.9 else read}_write_{write}_{n}": round(r["accuracy"], 6)
        for (read, write, n), r in rows.items()}
    assert {x[:3] for x in asked if x[3]} == {("entropy", 0.1, None)}
    assert {x[:3] for x in asked if not x[3]} == {("confidence", 0.9, 0.1)}
    assert (model.config.halt, model.config.prompt_loops, model.config.think_loops) == ("entropy", PROMPT, 0)
    said = capsys.readouterr().out
    assert re.search(r"^ +3 +16 +0.0% +0.0- 11.4 +3.0 16.0 +0.0%", said, re.M)
    assert re.search(r"^ +8 +rule +100.0%", said, re.M)
    run("next", "--digits=[2]", "--problems=3", "--halt=confidence", "--halt_threshold=0.8", "--waiting=True")
    assert asked[-1][:3] == ("confidence", 0.9, 0.8)
    assert asked[-5][3:] == (0, 0)  # now its rule can write, too


def test_the_cheapest_points_of_a_constructed_frontier(rng):
    """Fixed depths 2 and up are within half a point of the best; each rule has one point that is the answer."""
    points = [("fixed", 1, 0.90), ("fixed", 2, 0.945), ("fixed", 3, 0.95), ("fixed", 4, 0.948),
              ("a", 1.2, 0.9449), ("a", 1.5, 0.945), ("a", 1.7, 0.95), ("a", 3.0, 0.99),
              ("b", 1.0, 0.94), ("b", 4.0, 0.944), ("c", 1.9, 0.96), ("c", 1.9, 0.97), ("c", 1.8, 0.1)]
    rows = [dict(rule=rule, loops=loops, accuracy=accuracy) for rule, loops, accuracy in points]
    rng.shuffle(rows)
    found = {rule: r and (r["loops"], r["accuracy"]) for rule, r in evaluate.cheapest(rows).items()}
    assert found == {"fixed": (2, 0.945), "a": (1.5, 0.945), "b": None, "c": (1.9, 0.97)}


def test_print_frontier_says_saving_and_margin(capsys):
    common = dict(kind="frontier", problems=800, loops_most=3.25, threshold=0.05)
    points = [("fixed", 2.0, 0.6, 0.6), ("fixed", 4.0, 0.9, 0.9), ("kl", 3.0, 0.9, 0.775), ("delta", 3.0, 0.8, 0.7)]
    evaluate.print_frontier([common | dict(rule=rule, loops=loops, accuracy=accuracy, random_accuracy=random)
                             for rule, loops, accuracy, random in points])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["kl", "0.05", "3.00", "25.0%", "90.0%", "77.5%", "+12.5", "3.25"] in lines
    assert ["delta", "nowhere"] in lines


def test_intervals_and_correlations_of_few_or_equal_values(rng):
    assert intervals.mean_interval(np.array([]), "x") == {}
    assert intervals.mean_interval(np.array([3.0]), "x") == {"x": 3}
    assert intervals.mean_interval(np.array([3.0, 3.0]), "x") == {"x": 3, "x_low": 3, "x_high": 3}
    x, y = rng.integers(0, 9, (2, 50))
    assert intervals.spearman(x, y) == pytest.approx(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
    assert np.isnan(intervals.spearman(x, 0 * y))
    assert np.isnan(intervals.spearman([1], [2]))


def test_a_sweep_reads_the_same_columns_beside_the_new_rows(run, tmp_path):
    run("next", "--digits=[1,2]", "--problems=20", "--frontier=True", "--control=True", "--plot=True")
    with open("fake.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert {r["kind"] for r in rows} == {"uniform", "hard", "chain", "frontier"}
    with open(tmp_path / "evaluate.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, [*rows[0]])
        writer.writeheader()
        writer.writerows(r for r in rows if r["kind"] in ("uniform", "hard"))
    found = sweep.columns_of("evaluate", tmp_path)
    assert found == sweep_tables.columns_of_evaluation("", rows)
    assert {*found} == {f"{k}_{n}" for k in ("uniform", "hard", "loops_answer", "loops_most", "accuracy_random")
                        for n in (1, 2)} | {f"loops_solved_{r['n']}" for r in rows if r["loops_most_solved"]}


def test_frontier_and_plot_need_loops_and_additions(scripts):
    common = ("--device=cpu", "--n_embd=8", "--n_head=1", "--max_iters=1", "--eval_iters=1", "--batch_size=2")
    scripts("train.py", *common, "--model_type=gpt", "--dataset=addition", "--out_dir=no_loops")
    for option in ("--frontier=True", "--waiting=True", "--plot=True"):
        assert "looped" in scripts("evaluate.py", "--checkpoint=no_loops/ckpt_last.pt", option, status=None).err


def test_two_ranks_write_the_table_of_one_process(scripts, untrained):
    """Problems of both kinds with the random control, frontier, grid and validation loss; one rank prints it."""
    args = ("--checkpoint=fake_next/ckpt_last.pt", "--sizes=[1,2,3]", "--problems=16", "--control=True", "--grid=2",
            "--frontier=True", "--eval_iters=3", "--batch_size=8", "--device=cpu")
    one = scripts("evaluate.py", *args, "--csv_file=one.csv")
    store, started = start_ranks(scripts, "evaluate.py", *args, "--csv_file=two.csv")
    first, second = (scripts.finish(*rank) for rank in started)
    assert first.out == one.out.replace("one.csv", "two.csv")
    assert second.out == second.err == ""
    assert (scripts.folder / "two.csv").read_text() == (scripts.folder / "one.csv").read_text()


def test_a_rank_of_an_evaluation_that_dies(scripts, untrained):
    """The other one ends with one line."""
    args = ("--checkpoint=fake_next/ckpt_last.pt", "--sizes=[1,2,3]", "--problems=100000", "--device=cpu",
            "--csv_file=dead.csv")
    store, started = start_ranks(scripts, "evaluate.py", *args, of_rank={0: dict(signal_at=("looped", signal.SIGKILL))})
    scripts.finish(*started[0], -signal.SIGKILL)
    assert re.fullmatch(r"another process of this run has ended, and so does this one \(.*\)\n",
                        scripts.finish(*started[1], 1).err)
