"""sample.py and evaluate.py on half-trained models: right and wrong answers both occur, and the two must agree."""
import contextlib
import csv
import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from helpers import inputs_and_targets, number_text, problem_set
from models import random_weights

import checkpoint
import dataset
import generate
import sample as sample_py
from model_loop import LoopConfig, LoopGPT, from_checkpoint
from tasks import addition

TINY = ("--device=cpu", "--n_embd=32", "--n_head=2", "--num_loops=3", "--pos=place", "--place_ids=8",
        "--place_subset=4", "--tie_weights=False", "--supervise=all", "--batch_size=32", "--eval_iters=1",
        "--eval_interval=1000", "--learning_rate=3e-3", "--fresh_rows=True", "--halt=confidence",
        "--halt_threshold=0.6", "--prompt_loops=2")


@pytest.fixture(scope="module")
def trained(scripts):
    """{track: checkpoint path} of models that add one digit, some of the time."""
    paths = {}
    for track, steps in (("next", 150), ("slots", 100)):
        scripts("data/addition/prepare.py", f"--out_dir=data/{track}", f"--track={track}", "--max_digits=1",
                "--train_rows=500", "--val_rows=100")
        scripts("train.py", f"--dataset={track}", *TINY, f"--max_iters={steps}", f"--out_dir=out_{track}")
        paths[track] = f"out_{track}/ckpt_last.pt"
    return paths


def read_csv(scripts, name):
    with open(scripts.folder / name) as f:
        return list(csv.DictReader(f))


def answers(output):
    """{(a, b): what the model said} from the lines of sample.py."""
    return {(int(a), int(b)): c for a, b, c in re.findall(r"^(\d+)\+(\d+)=(\d*)", output, re.M)}


@pytest.mark.parametrize("track", ["next", "slots"])
def test_evaluate_agrees_with_what_sample_writes(scripts, trained, track):
    """Exact match by one forward pass over the right answer, against greedy decoding token by token."""
    scripts("evaluate.py", f"--checkpoint={trained[track]}", "--digits=[1]", "--problems=60", "--eval_iters=0",
            "--batch_size=17", "--csv_file=e.csv")
    a, _, b, _ = problem_set(1, 60)
    problems = [(int(x), int(y)) for x, y in zip(a[:, 0], b[:, 0], strict=True)]
    said = answers(scripts("sample.py", f"--checkpoint={trained[track]}", "--trace=False",
                           "--start=" + ",".join(f"{x}+{y}=" for x, y in problems)).out)
    right = sum(said[x, y] == str(x + y) for x, y in problems)
    row = next(r for r in read_csv(scripts, "e.csv") if r["kind"] == "uniform")
    assert 0 < right < 60
    assert float(row["accuracy"]) == pytest.approx(right / 60)
    p, z = right / 60, 1.959964  # Wilson's interval by hand
    middle, half = p + z * z / 120, z * math.sqrt(p * (1 - p) / 60 + z * z / (4 * 60 * 60))
    assert float(row["low"]) == pytest.approx((middle - half) / (1 + z * z / 60), abs=1e-4)
    assert float(row["high"]) == pytest.approx((middle + half) / (1 + z * z / 60), abs=1e-4)


def test_zeros_of_the_data_are_written_and_not_shown(scripts):
    """A problem as people write it, asked with leading zeros: what evaluate.py asks too, and greedy decoding says."""
    scripts("data/addition/prepare.py", "--out_dir=data/zeros", "--zeros=shorter", "--few_rows=0.2", "--max_digits=2",
            "--train_rows=500", "--val_rows=100")
    scripts("train.py", "--dataset=zeros", *TINY, "--place_next=True", "--place_runs=0.5", "--place_scale=0.1",
            "--max_iters=200", "--out_dir=out_zeros")
    a, la, b, lb = problem_set(2, 60, "shorter_b")
    assert (la > lb).any()
    problems = [(int(x[0] + 10 * x[1]), int(y[0] + 10 * y[1])) for x, y in zip(a, b, strict=True)]
    out = scripts("sample.py", "--checkpoint=out_zeros/ckpt_last.pt", "--trace_file=t.jsonl", "--halt=none",
                  "--start=" + ",".join(f"{x}+{y}=" for x, y in problems)).out
    said = answers(out)
    scripts("evaluate.py", "--checkpoint=out_zeros/ckpt_last.pt", "--digits=[2]", "--kinds=shorter_b",
            "--halt=none", "--problems=60", "--eval_iters=0", "--csv_file=e.csv")
    row, = (r for r in read_csv(scripts, "e.csv") if r["kind"] == "shorter_b")
    assert float(row["accuracy"]) == pytest.approx(sum(said[x, y] == str(x + y) for x, y in problems) / 60)
    model = from_checkpoint(torch.load(scripts.folder / "out_zeros/ckpt_last.pt", weights_only=True))
    trace = [json.loads(line) for line in (scripts.folder / "t.jsonl").read_text().splitlines()]
    for i, (x, y) in enumerate(problems):
        prompt = f"{str(x).zfill(2)[::-1]}+{str(y).zfill(2)[::-1]}="
        assert "".join(r["reads"] for r in trace if r["sample"] == i).startswith(prompt)
        idx = torch.tensor([[addition.ID[s] for s in prompt]])
        for _ in range(5):
            idx = torch.cat((idx, model(idx)[0][:, -1:].argmax(-1)), 1)
            if idx[0, -1] == addition.ID[addition.END]:
                break
        assert said[x, y] == number_text(idx[0, len(prompt):])


def test_evaluate_counts_loops_of_prompt_and_answer_apart(scripts, trained):
    run = scripts("evaluate.py", f"--checkpoint={trained['next']}", "--digits=[1,2]", "--problems=30", "--grid=2",
                  "--control=True", "--eval_iters=3", "--csv_file=e.csv")
    rows = read_csv(scripts, "e.csv")
    checkpoint = torch.load(scripts.folder / trained["next"], weights_only=True)
    model, meta = from_checkpoint(checkpoint), dataset.checkpoint_meta(checkpoint)
    written = addition.write_rows(*problem_set(2, 30, "hard"), addition.row_tokens(2))
    x, _ = map(torch.from_numpy, inputs_and_targets(written, meta.track))
    most = []
    for row in x:
        tokens = row[row != addition.ID[addition.PAD]][None]
        loops = model.think(tokens)[1]["loops"][0]
        equals = (tokens[0] == addition.ID["="]).nonzero().item()
        assert (loops[:equals] == 2).all()
        most.append(loops[equals:][tokens[0, equals:] != addition.ID[addition.END]].max().item())
    row = next(r for r in rows if r["kind"] == "hard" and r["n"] == "2")
    assert float(row["loops_prompt"]) == 2
    assert float(row["loops_most"]) == pytest.approx(sum(most) / 30)
    assert 0 <= float(row["accuracy_random"]) <= 1
    assert [sum(r["kind"] == kind for r in rows) for kind in ("uniform", "hard", "grid")] == [2, 2, 4]
    losses = [float(r["loss"]) for r in rows if r["kind"] == "val_loss"]
    assert len(losses) == 3
    data = dataset.open_dataset("next", scripts.folder / "data")
    batches = [dataset.get_batch(data, "val", (i,), 64) for i in range(3)]
    (halting,) = [r for r in rows if r["kind"] == "val_loss_halting"]
    thought = [model.think(x) for x, _ in batches]
    own = [model.loss(model.readout(h), y).item() for (h, _), (_, y) in zip(thought, batches, strict=True)]
    assert float(halting["loss"]) == pytest.approx(sum(own) / 3, rel=1e-5)
    taken = [r["loops"][r["loops"] > 0].float().mean().item() for _, r in thought]
    assert float(halting["loops"]) == pytest.approx(sum(taken) / 3, rel=1e-5)
    model.config.halt, model.config.prompt_loops = "none", 0
    for l in (1, 2, 3):
        assert losses[l - 1] == pytest.approx(sum(model(x, y, l)[1].item() for x, y in batches) / 3, rel=1e-5)
    assert "Spearman" in run.out
    known = json.loads((scripts.folder / "e.json").read_text())
    assert known["command"].startswith(f"python evaluate.py --checkpoint={trained['next']} ")
    assert (known["checkpoint"], known["trained"]) == (trained["next"], checkpoint["provenance"])


@pytest.mark.parametrize("track", ["next", "slots"])
def test_random_control_of_a_constant_rule_changes_nothing(scripts, trained, track):
    """If every token takes the same loops, loops drawn from them are the same loops, and so are the answers."""
    scripts("evaluate.py", f"--checkpoint={trained[track]}", "--digits=[1]", "--problems=200", "--eval_iters=0",
            "--halt=none", "--prompt_loops=0", "--control=True", "--csv_file=e.csv")
    for row in read_csv(scripts, "e.csv"):
        assert 0 < float(row["accuracy"]) < 1
        assert row["accuracy_random"] == row["accuracy"]


@pytest.mark.parametrize("track", ["next", "slots"])
def test_the_points_of_the_frontier_are_plain_evaluations(scripts, trained, track):
    """Fixed depths, the last one too, and one threshold of a rule with its random control, on the same problems."""
    common = ("evaluate.py", f"--checkpoint={trained[track]}", "--digits=[1,2]", "--eval_iters=0", "--csv_file=e.csv")
    scripts(*common, "--problems=160", "--halt=none", "--think_loops=7", "--frontier=True")
    points = [r for r in read_csv(scripts, "e.csv") if r["kind"] == "frontier"]
    for rule, threshold, *settings in [("fixed", "", "--halt=none", f"--num_loops={l}") for l in (1, 3)] + [
            ("entropy", "0.5", "--halt=entropy", "--halt_threshold=0.5", "--control=True")]:
        loops = settings[1][-1]
        point, = (r for r in points if (r["rule"], r["threshold"]) == (rule, threshold) and
                  (threshold or float(r["loops"]) == int(loops)))
        scripts(*common, "--problems=40", *settings)
        rows = [r for r in read_csv(scripts, "e.csv") if r["kind"] == "uniform"]
        for key, of_rows in (("accuracy", "accuracy"), ("loops", "loops_answer"), ("loops_most", "loops_most"),
                             ("random_accuracy", "accuracy_random")):
            if threshold or not key.startswith("random"):
                assert float(point[key]) == pytest.approx(sum(float(r[of_rows]) for r in rows) / 2), (rule, key)


def test_a_failed_evaluation_leaves_the_old_table(scripts, trained):
    (scripts.folder / "old.csv").write_text("old")
    for key, *args in (("sizes", "--digits=[1,30]"), ("grid", "--digits=[1]", "--grid=8")):  # sums of 9 digits
        run = scripts("evaluate.py", f"--checkpoint={trained['next']}", *args, "--csv_file=old.csv", status=None)
        assert f"--{key} goes up to" in run.err
        assert "place_ids is 8" in run.err
        assert len(run.out.splitlines()) == 1  # what is measured; nothing was
    assert (scripts.folder / "old.csv").read_text() == "old"


def test_keys_without_effect_cost_a_line(scripts, trained):
    common = ("--digits=[1]", "--problems=5", "--eval_iters=0", "--csv_file=e.csv")
    for script, track, args, keys in (
            ("sample.py", "slots", ("--temperature=0.5", "--top_k=3", "--max_new_tokens=3"),
             "max_new_tokens temperature top_k"),
            ("sample.py", "next", ("--halt=none", "--halt_threshold=0.5", "--min_loops=2", "--seed=3"),
             "min_loops halt_threshold seed"),
            ("sample.py", "next", ("--temperature=0.5", "--top_k=3", "--halt_threshold=0.5", "--seed=3"), ""),
            ("evaluate.py", "next", (*common, "--seed=3", "--out_dir=out_next", "--think_loops=2",
                                     "--think_threshold=0.5"), "think_threshold seed out_dir"),
            ("evaluate.py", "next", (*common, "--control=True", "--seed=3"), "")):
        err = scripts(script, f"--checkpoint={trained[track]}", *args).err
        lines = [x for x in err.splitlines() if x.startswith("without effect: ")]
        assert " ".join(re.findall(r"--(\w+) \(", "".join(lines))) == keys
        assert len(lines) == bool(keys)


def test_thresholds_that_nothing_can_pass(scripts, trained):
    for args, words in ((("--halt_threshold=5",), "halt_threshold 5.0 .*'confidence'"),
                        (("--halt=confidence", "--think_threshold=1.5"), "think_threshold 1.5"),
                        (("--halt=entropy", "--halt_threshold=-1"), "--halt_threshold: -1.0 is out of range"),
                        (("--min_loops=4",), "min_loops 4 .*num_loops 3")):
        assert re.search(words, scripts("sample.py", f"--checkpoint={trained['next']}", *args, status=None).err)
    scripts("sample.py", f"--checkpoint={trained['next']}", "--num_loops=1", "--halt_threshold=1.0", "--min_loops=1")


def test_halting_settings_of_a_run_override_the_checkpoint(scripts, trained):
    scripts("evaluate.py", f"--checkpoint={trained['next']}", "--digits=[1]", "--problems=20", "--eval_iters=0",
            "--halt=none", "--num_loops=5", "--prompt_loops=0", "--think_loops=7", "--csv_file=e.csv")
    row = read_csv(scripts, "e.csv")[0]
    assert float(row["loops_prompt"]) == 5
    assert float(row["loops_answer"]) == 7


@pytest.mark.parametrize("track", ["next", "slots"])
def test_trace_file_and_picture(scripts, trained, track):
    """The trace says what the model's own dict says, labelled by what is read and written."""
    sample = ("sample.py", f"--checkpoint={trained[track]}", "--start=7+5=")
    run = scripts(*sample, "--trace_file=t.jsonl")
    assert scripts(*sample, "--trace_file=t.png").out == run.out.replace("trace: t.jsonl", "heat map: t.png")
    assert "--trace_file=t.gif" in scripts(*sample, "--trace_file=t.gif", status=None).err
    rows = [json.loads(line) for line in (scripts.folder / "t.jsonl").read_text(encoding="utf-8").splitlines()]
    reads, writes = "".join(r["reads"] for r in rows), "".join(r["writes"] or "" for r in rows)
    assert reads.startswith("7+5=")
    said = number_text([addition.ID[{"⏎": "\n", "␣": " "}.get(w, w)] for w in writes])
    assert run.out.startswith(f"7+5={said}")
    assert ("wrong: 12" in run.out.splitlines()[0]) == (said != "12")
    tokens = torch.tensor([[addition.ID[{"⏎": "\n", "␣": " "}.get(s, s)] for s in reads]])
    _, record = from_checkpoint(torch.load(scripts.folder / trained[track], weights_only=True)).think(tokens)
    for t, row in enumerate(rows):
        assert row["loops"] == record["loops"][0, t]
        for key in ("entropy", "confidence", "delta"):
            got = torch.tensor([math.nan if x is None else x for x in row[key]])
            torch.testing.assert_close(got, record[key][0, t], equal_nan=True, atol=1e-5, rtol=1e-4)
        if track == "next" and row["writes"]:
            assert row["prediction"][-1] == row["writes"]
    assert (scripts.folder / "t.png").read_bytes().startswith(b"\x89PNG")
    table = [line.split() for line in run.out.splitlines() if line.startswith("  ") and "reads" not in line]
    assert [(r[0], int(r[2])) for r in table] == [(r["reads"], r["loops"]) for r in rows]


@pytest.mark.parametrize("track", ["next", "slots"])
def test_the_page_says_what_the_trace_says(scripts, trained, track):
    """Sequences, numbers before halting, thresholds of reading and writing, and the answer after each loop."""
    sample = ("sample.py", f"--checkpoint={trained[track]}", "--start=7+5= 1+2=", "--trace=False", "--min_loops=2")
    out = scripts(*sample, "--trace_file=t.html").out.splitlines()
    scripts(*sample, "--trace_file=t.jsonl")
    rows = [json.loads(line) for line in (scripts.folder / "t.jsonl").read_text(encoding="utf-8").splitlines()]
    page = (scripts.folder / "t.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert (data["rule"], data["above"], data["min_loops"], out[-1]) == ("confidence", True, 2, "trace: t.html")
    for i, found in enumerate(data["sequences"]):
        assert found["title"] == out[i]
        assert (found["said"][-1], found["right"][-1]) == (out[i].split(" ")[0], "wrong" not in out[i])
        mine = [r for r in rows if r["sample"] == i]
        writes = [r for r in mine if r["writes"]]
        for l, said in enumerate(found["said"], 1):
            guesses = [addition.ID[{"⏎": "\n", "␣": " "}.get(s, s)] for s in (r["prediction"][l - 1] for r in writes)]
            assert said == f"{out[i].split('=')[0]}={number_text(guesses)}"
        thinks = False
        for token, r in zip(found["tokens"], mine, strict=True):
            n, thinks = r["loops"], thinks or r["reads"] == "="
            assert (token["loops"], token["prediction"]) == (n, r["prediction"][:n])
            assert token["score"] == pytest.approx(r["score"][:n], rel=1e-3)
            assert token["threshold"] == (0.6 if thinks else None)  # the prompt takes exactly prompt_loops
            assert not thinks or n == 3 or token["score"][-1] >= 0.6
    assert "cannot be written" in scripts(*sample, "--trace_file=t.html/x.html", status=None).err


def test_columns_of_a_terminal():
    """By hand: two for each Korean syllable and emoji, none for marks and for letters of a syllable begun."""
    for text, wide in (("", 0), ("ab", 2), ("한글", 4), ("🙂", 2), ("e\u0301", 1), ("\u1112\u1161\u11ab", 2), ("漢", 2),
                       ("⏎␣·", 3), ("Ａ", 2), ("\u200b", 0), ("\ufffd", 1), ("가a", 3)):
        assert sample_py.columns(text) == wide, text
    assert sample_py.in_columns(["한", "a", ""], 3) == ["한 ", "a  ", "   "]
    assert sample_py.in_columns(["한", "abc"], right=True) == [" 한", "abc"]


def test_a_trace_lines_up_with_wide_characters(rng, capsys):
    """Every field of a row begins in the same column of the terminal, whatever was read, written and guessed."""
    symbols = ["a", "한", "🙂", "⏎", "ｗ", "é", "긴 말", "abcdefg"]
    rows = [dict(reads=str(rng.choice(symbols)), writes=rng.choice([None, *symbols]), loops=int(n),
                 entropy=[1.0] * n + [None] * (4 - n), prediction=[str(x) for x in rng.choice(symbols, 4)])
            for n in (4, *rng.integers(1, 5, 30))]
    sample_py.print_trace(rows, 3.0)
    head, *lines = capsys.readouterr().out.splitlines()
    at = head.index("guess after each loop")
    for row, line in zip(rows, lines, strict=True):
        cells = [c for c in line for _ in range(sample_py.columns(c))]  # the character of each column
        assert cells[head.index("reads") + 4] == row["reads"][-1]
        assert cells[head.index("writes") + 5] == (row["writes"] or "·")[-1]
        assert cells[head.index("loops") + 4] == str(row["loops"])
        assert cells[head.index("last") + 3] == "0"  # of 1.00
        assert cells[at] == row["prediction"][0][0]


def test_a_heat_map_says_what_it_leaves_out(scripts, trained):
    sample = ("sample.py", f"--checkpoint={trained['slots']}", "--trace=False", "--trace_file=t.png")
    assert "t.png (the first 6 of 8 sequences; --trace_file" in scripts(
        *sample, "--start=" + ",".join(f"{n}+1" for n in range(8))).out
    assert scripts(*sample, "--start=1+1 2+2").out.endswith("heat map: t.png\n")


def test_problems_from_a_file(scripts, trained):
    (scripts.folder / "problems.txt").write_text("1+1=\n2+3=, 4+4\n")
    said = answers(scripts("sample.py", f"--checkpoint={trained['next']}", "--start=FILE:problems.txt").out)
    assert set(said) == {(1, 1), (2, 3), (4, 4)}


@pytest.mark.parametrize(("start", "found"), [
    ("1 + 2 =", ["1+2"]), ("1+2 =3 +4", ["1+2=3+4"]), (" 1 +2,3+ 4 = 5+6=\n7\t+\t8\n=", ["1+2", "3+4", "5+6", "7+8"]),
    ("1+2", ["1+2"]), ("", ["57+68", "999+1", "1234+8766"])])
def test_problems_as_people_write_them(monkeypatch, start, found):
    meta = SimpleNamespace(kind="rows", task="addition", track="next", plain=True, zeros="none")
    monkeypatch.setattr(sample_py, "start", start)
    if found == ["1+2=3+4"]:
        with pytest.raises(SystemExit, match="not an addition"):
            sample_py.read_prompts(meta)
    else:
        prompts = [p for p, _ in sample_py.read_prompts(meta)]
        assert ["".join(addition.VOCAB[t] for t in p) for p in prompts] == [f"{f}=" for f in found]


@pytest.mark.parametrize(("content", "words"), [("", "no problem in it"), (" \n", "no problem in it"),
                                                ("1+1=".encode("utf-16"), "save it as UTF-8"),
                                                ("1+1= # 하나".encode("cp949"), "save it as UTF-8")])
def test_files_without_a_problem(tmp_path, monkeypatch, content, words):
    (tmp_path / "some.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr(sample_py, "start", f"FILE:{tmp_path}/some.txt")
    with pytest.raises(SystemExit, match=words) as e:
        sample_py.read_prompts(SimpleNamespace(kind="rows", task="addition", track="next", plain=False))
    assert "some.txt" in str(e.value)
    if content == "":
        with pytest.raises(SystemExit, match="some.txt: the file is empty"):
            sample_py.read_prompts(SimpleNamespace(kind="text", vocab=["a"]))


@pytest.mark.parametrize(("vocab", "default", "says"), [("a\n ", "\n", ""), ("a b", " ", "no new line"),
                                                        ("ab", "a", "no new line")])
def test_the_start_of_a_text(monkeypatch, capsys, tmp_path, vocab, default, says):
    meta = SimpleNamespace(kind="text", vocab=list(vocab))
    assert sample_py.read_prompts(meta) == [([vocab.index(default)], None)]
    out = capsys.readouterr().out
    assert says in out
    assert bool(out) == bool(says)
    (tmp_path / "marked.txt").write_text("ba", encoding="utf-8-sig")
    monkeypatch.setattr(sample_py, "start", f"FILE:{tmp_path}/marked.txt")
    if "b" in vocab:
        assert sample_py.read_prompts(meta) == [([vocab.index("b"), vocab.index("a")], None)]


def test_how_a_token_looks():
    meta = SimpleNamespace(vocab=["\n", " ", "\t", "\r", "a", "가", "$", "\x00", "\ufeff", "—"])
    shown = ["⏎", "␣", r"\t", r"\r", "a", "가", "$", r"\x00", r"\ufeff", "—"]
    assert [sample_py.show(meta, t) for t in range(10)] == shown


@pytest.mark.parametrize(("start", "names"), [("5a+6x=", "'a' 'x'"), ("5+6+7=", "5+6+7"), ("+=", "not an addition"),
                                              ("FILE:none.txt", "none.txt"), ("1+1= 123456789+1=", "place_ids"),
                                              ("FILE:", "names no file"),
                                              (" ", "no problem")])
def test_prompts_that_cannot_be(scripts, trained, start, names):
    run = scripts("sample.py", f"--checkpoint={trained['next']}", f"--start={start}", status=None)
    assert names in run.err
    assert "1+1=" not in run.out


def test_a_text_of_one_character(scripts):
    """There is nothing to learn, and no entropy to scale a bar by."""
    (scripts.folder / "one.txt").write_text("a" * 2000)
    scripts("data/shakespeare_char/prepare.py", "--input=one.txt", "--out_dir=data/one")
    scripts("train.py", "--device=cpu", "--dataset=one", "--n_embd=16", "--n_head=2", "--block_size=16",
            "--num_loops=2", "--batch_size=4", "--max_iters=2", "--eval_iters=1", "--halt=entropy", "--out_dir=one")
    run = scripts("sample.py", "--out_dir=one", "--max_new_tokens=5", "--trace=True", "--trace_file=one.png")
    assert "aaaaaa" in run.out
    assert (scripts.folder / "one.png").exists()
    assert "0.0000" in scripts("evaluate.py", "--out_dir=one", "--eval_iters=2").out


class Meta(SimpleNamespace):
    """Of a text of the letters a, b, c, ...: what sample.py asks of it."""
    kind, vocab = "text", [chr(97 + i) for i in range(20)]


def read_again(model, vocab, sequence, prompt):
    """What a text's trace has to say: each token read as the last one of its window; the prompt's in one pass."""
    rows = []
    for n in range(prompt, len(sequence)):
        start = next(s for s in range(0, n, 4) if n - s <= 8)
        _, record = model.think(torch.tensor([sequence[start:n]]))
        for t in range(start if n == prompt else n - 1, n):
            rows.append(dict(position=t, context_start=start, reads=vocab[sequence[t]],
                             writes=vocab[sequence[t + 1]] if t >= prompt - 1 else None,
                             loops=int(record["loops"][0, t - start]),
                             prediction=[vocab[p] for p in record["prediction"][0, t - start]]))
    return rows


@pytest.mark.parametrize("prompt", [3, 8, 13])
@pytest.mark.parametrize("reread", [False, True])
def test_a_trace_beyond_the_context(rng, prompt, reread, capsys, monkeypatch):
    """Of each token the pass that read it first, at positions of the whole text."""
    torch.manual_seed(int(rng.integers(2**31)))
    vocab = Meta.vocab
    model = random_weights(LoopGPT(LoopConfig(vocab_size=20, block_size=8, n_embd=16, n_head=2, num_loops=4,
                                              halt="confidence", halt_threshold=0.5)))
    meta = Meta()
    for key, value in dict(temperature=0.0, max_new_tokens=20, reread=reread,
                           start="".join(rng.choice(vocab, prompt))).items():
        monkeypatch.setattr(sample_py, key, value)
    sequence, = sample_py.samples(model, meta, trace=True)
    tokens, seen = sequence.prompt + sequence.written, sequence.thought
    assert len(tokens) == prompt + 20
    assert capsys.readouterr().out == "".join(vocab[t] for t in tokens) + "\n---------------\n"
    for row, want in zip(seen, read_again(model, vocab, tokens, prompt), strict=True):
        assert {k: row[k] for k in want} == want
        if row["writes"]:
            assert row["prediction"][-1] == row["writes"]
    sample_py.say_what_no_trace_shows(seen)
    line, = capsys.readouterr().out.splitlines()
    assert ("the first 8 tokens, which no pass read" in line) == (prompt == 13)
    assert "thought again" in line


def test_text_appears_as_it_is_written(monkeypatch, capsys):
    """The first sample token by token, the ones after it in their order, whatever their bursts."""
    def work(*args):
        for rows, tokens, done in (([0, 1], [[1], [2]], [False, False]), ([0, 1], [[3, 4], [5, 6]], [False, True]),
                                   ([0], [[7]], [True]), ([2], [[8]], [True])):
            yield generate.Burst(rows, tokens, None, [0] * len(rows), None, done)
            printed.append(capsys.readouterr().out)
    printed = []
    for key, value in dict(start="a", num_samples=3, bursts=work).items():
        monkeypatch.setattr(sample_py, key, value)
    found = list(sample_py.samples(SimpleNamespace(learned_positions=True), Meta(), trace=False))
    assert [s.written for s in found] == [[1, 3, 4, 7], [2, 5, 6], [8]]
    assert printed == ["ab", "de", "h\n---------------\nacfg\n---------------\na"]
    out = capsys.readouterr()
    assert out.out == "i\n---------------\n"
    assert re.fullmatch(r"8 tokens in 5 steps of [\d.]+ ms, [\d.]+ tokens/s\n", out.err)


def test_half_a_character_waits(monkeypatch, capsys):
    """Of an emoji that a byte-pair encoding cuts in two, nothing is printed before it is whole; at the end what is."""
    pieces = [b"a", "🙂".encode()[:2], "🙂".encode()[2:], "🙂".encode()[:2]]
    monkeypatch.setattr(sample_py, "decode", lambda meta, tokens: b"".join(pieces[t] for t in tokens).decode(
        errors="replace"))
    sequence, seen = sample_py.Sequence([0], None), []
    for token in (1, 2, 3):
        sequence.written.append(token)
        sequence.complete = token == 3
        sequence.print(None)
        seen.append(capsys.readouterr().out)
    assert seen == ["", "a🙂", "\ufffd\n---------------\n"]


def test_problems_at_once_as_one_by_one(scripts, trained):
    """What each says depends neither on the others nor on the cache; the line at the end counts loops and tokens."""
    sample = ("sample.py", f"--checkpoint={trained['next']}", "--trace=True")
    problems = ["1+2=", "98+7=", "555+66=", "3+4="]
    run = scripts(*sample, "--start=" + " ".join(problems))
    alone = [scripts(*sample, f"--start={p}") for p in problems[:2]]
    assert run.out.startswith("".join(one.out for one in alone))
    assert scripts(*sample, "--start=" + " ".join(problems), "--reread=True").out == run.out
    tokens, mean, most = re.search(r"^(\d+) tokens in \d+ steps of [\d.]+ ms, [\d.]+ tokens/s, ([\d.]+) loops per "
                                   r"token \(at most (\d+), \d+% not taken\)$", run.err, re.M).groups()
    writes = [line.split() for line in run.out.splitlines() if re.match(r"  +\S+ +[^·\s]+ +\d+  ", line)]
    assert len(writes) == int(tokens)
    assert sum(int(row[2]) for row in writes) / len(writes) == pytest.approx(float(mean), abs=0.01)
    assert int(most) == 3


def test_text_samples(scripts):
    """A plain GPT and a looped model write text; equal seeds write the same, temperature 0 needs none."""
    common = ("--device=cpu", "--dataset=shakespeare_char", "--n_embd=16", "--n_head=2", "--block_size=16",
              "--batch_size=4", "--max_iters=3", "--eval_iters=1", "--eval_interval=3")
    scripts("train.py", *common, "--model_type=gpt", "--n_layer=1", "--out_dir=gpt")
    scripts("train.py", *common, "--num_loops=2", "--out_dir=text")
    (scripts.folder / "prompt.txt").write_text("abé ", encoding="utf-8")
    for out_dir in ("gpt", "text"):
        sample = ("sample.py", f"--out_dir={out_dir}", "--start=FILE:prompt.txt", "--max_new_tokens=30")
        first, again = (scripts(*sample, "--seed=5", "--num_samples=2").out for _ in range(2))
        assert first == again
        one, two = first.split("\n---------------\n")[:2]
        assert one != two
        assert len(one) == len(two) == 34
        greedy = [scripts(*sample, "--temperature=0", f"--seed={s}").out for s in (1, 2)]
        assert greedy[0] == greedy[1]
    assert "no loops" in scripts("sample.py", "--out_dir=gpt", "--trace=True", status=None).err
    assert "no loops" in scripts("evaluate.py", "--out_dir=gpt", "--halt=entropy", status=None).err
    table = scripts("sample.py", "--out_dir=text", "--start=ab", "--trace=True", "--max_new_tokens=5").out
    assert table.count("\n") > 7
    assert "not shown" not in table
    assert "+-" in scripts("evaluate.py", "--out_dir=text", "--eval_iters=2").out
    out = scripts("evaluate.py", "--out_dir=text", "--eval_iters=1", "--csv_file=one.csv").out
    assert "of one batch, so without an interval" in out
    assert "+-" not in out
    assert list(read_csv(scripts, "one.csv")[0]) == ["kind", "loop", "loss"]


def test_a_model_from_python_in_five_lines(scripts, monkeypatch, capsys):
    """Those of checkpoint.py's docstring write what sample.py writes."""
    lines = re.findall(r"^    (.*)$", checkpoint.__doc__, re.M)
    assert len(lines) == 5
    scripts("train.py", "--device=cpu", "--dataset=shakespeare_char", "--n_embd=16", "--n_head=2", "--block_size=16",
            "--batch_size=4", "--max_iters=1", "--eval_iters=1", "--num_loops=2", "--out_dir=five")
    monkeypatch.chdir(scripts.folder)
    code = "\n".join(lines).replace("out/novel/ckpt_best.pt", "five/ckpt_last.pt").replace("It was", "abé ")
    capsys.readouterr()
    exec(code, {})
    written = capsys.readouterr().out
    said = scripts("sample.py", "--checkpoint=five/ckpt_last.pt", "--start=abé ", "--seed=0", "--top_k=0").out
    assert "abé " + written == said.removesuffix("---------------\n")
    assert len(written) == 201


# ---- a person, and a pipe

class Terminal:
    """A script on a terminal of its own."""

    def __init__(self, folder, *command):
        pid, self.fd = pty.fork()
        if pid == 0:
            os.chdir(folder)
            os.execvp(sys.executable, [sys.executable, str(ROOT / command[0]), *command[1:]])
        self.pid, self.seen = pid, ""

    def until(self, pattern, least=1):
        """Read until the pattern has come; returns what came, without what was read before."""
        end = time.monotonic() + 600
        while len(re.findall(pattern, self.seen)) < least:
            assert time.monotonic() < end, self.seen
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    new = os.read(self.fd, 65536)
                except OSError:  # how Linux says that the script has ended; others say it by nothing
                    new = b""
                if not new:
                    break
                self.seen += new.decode(errors="replace")
        assert re.search(pattern, self.seen), self.seen
        said, self.seen = self.seen, ""
        return said

    def type(self, text):
        os.write(self.fd, text.encode())

    def rest(self):
        """Wait until the script waits for what is typed: a signal that comes just before is noted, and looked at only
        when something else comes."""
        end, path = time.monotonic() + 600, Path(f"/proc/{self.pid}/stat")
        while path.exists() and path.read_text().rpartition(")")[2].split()[0] != "S" and time.monotonic() < end:
            time.sleep(0.01)
        if not path.exists():  # no Linux
            time.sleep(2)

    def end(self):
        """Ctrl-D: the exit status. Typed again until the script ends: what comes just before it waits for input is
        lost, since the terminal changes its mode then."""
        end = time.monotonic() + 600
        while time.monotonic() < end:
            with contextlib.suppress(OSError):  # it has ended
                self.type("\x04")
                if select.select([self.fd], [], [], 0.5)[0]:
                    os.read(self.fd, 65536)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("Ctrl-D does not end it")


def test_prompts_on_a_terminal(scripts, trained):
    terminal = Terminal(scripts.folder, "sample.py", f"--checkpoint={trained['next']}", "--trace=False")
    terminal.until("> ")
    terminal.type("1+2=\n")
    assert re.search(r"1\+2=\d", terminal.until("tokens/s"))
    terminal.type("1+x\n")
    assert "is not an addition" in terminal.until("not an addition[^>]*> ")  # and asks again, before Ctrl-C
    terminal.rest()
    terminal.type("\x03")
    terminal.until("> ")
    terminal.type("2+3= 4+4=\n")
    said = terminal.until("tokens/s")
    assert re.search(r"2\+3=\d", said)
    assert re.search(r"4\+4=\d", said)
    assert terminal.end() == 0


def test_a_training_says_on_a_terminal_how_far_it_is(scripts):
    terminal = Terminal(scripts.folder, "train.py", "--device=cpu", "--n_embd=16", "--n_head=2", "--batch_size=4",
                        "--max_iters=300", "--log_interval=300", "--eval_iters=1", "--num_loops=2", "--out_dir=told")
    said = terminal.until("checkpoint: ")
    assert re.search(r"training: 0/300 iterations.*iter 10/300.*training: \d+/300 iterations, .*ETA", said, re.S)
    assert terminal.end() == 0


def test_ctrl_c_ends_a_long_answer_and_no_more(scripts):
    scripts("train.py", "--device=cpu", "--dataset=shakespeare_char", "--n_embd=16", "--n_head=2", "--block_size=16",
            "--batch_size=4", "--max_iters=1", "--eval_iters=1", "--num_loops=2", "--out_dir=typed")
    terminal = Terminal(scripts.folder, "sample.py", "--out_dir=typed", "--max_new_tokens=100000000")
    terminal.until("> ")
    for prompt in ("ab", "abc"):  # a second one must not kill
        terminal.type(f"{prompt}\n")
        terminal.until(rf"\n{prompt}[^\n]*")
        terminal.type("\x03")
        terminal.until("> ")
    terminal.rest()
    os.kill(terminal.pid, signal.SIGTERM)
    assert "SIGTERM: stopped" in terminal.until("stopped")
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 130


def test_ctrl_c_and_mistakes_end_no_conversation(monkeypatch, capsys):
    typed, answered = iter(["a", "b", "c", "d"]), []

    def respond(text):
        answered.append(text)
        if text == "b":
            raise KeyboardInterrupt
        if text == "c":
            raise SystemExit("standard input: c is wrong")

    def read(prompt):
        text = next(typed, None)
        if text in ("d", None):
            raise KeyboardInterrupt if text else EOFError
        return text
    monkeypatch.setattr("builtins.input", read)
    before = signal.getsignal(signal.SIGINT)
    sample_py.converse(respond)
    assert answered == ["a", "b", "c"]
    assert capsys.readouterr().err.endswith("\nc is wrong\n")
    assert signal.getsignal(signal.SIGINT) == before
    monkeypatch.setattr("builtins.input", lambda prompt: (_ for _ in ()).throw(KeyboardInterrupt("SIGTERM")))
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        sample_py.converse(respond)


@pytest.mark.parametrize(("given", "args", "found"), [
    ("1+2=\n3+4=\n", (), {(1, 2), (3, 4)}), ("", (), {(57, 68), (999, 1), (1234, 8766)}),
    ("1+2=", ("--start=5+6=",), {(5, 6)})])
def test_prompts_in_a_pipe(scripts, trained, given, args, found):
    run = scripts("sample.py", f"--checkpoint={trained['next']}", "--trace=False", *args, given=given)
    assert set(answers(run.out)) == found
    assert ("no prompt given" in run.err) == (not given)


def test_a_mistake_in_a_pipe_is_not_blamed_on_start(scripts, trained):
    command = [sys.executable, ROOT / "sample.py", f"--checkpoint={trained['next']}"]
    run = subprocess.run(command, cwd=scripts.folder, input="1+x\n", capture_output=True, text=True, timeout=600)
    assert run.returncode == 1
    assert run.stderr.startswith("standard input: ")
    assert "is not an addition" in run.stderr
    assert "--start" not in run.stderr


def test_what_is_no_text_in_a_pipe_is_not_passed_over(monkeypatch, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for encoding, said in (("latin1", "caf\xe9"), ("utf-8", None)):
        with open(tmp_path / "latin.txt", encoding=encoding) as f:
            monkeypatch.setattr(sys, "stdin", f)
            if said:
                assert sample_py.piped() == said
            else:
                with pytest.raises(SystemExit, match="is not text in UTF-8"):
                    sample_py.piped()
    for stdin in (None, f):
        monkeypatch.setattr(sys, "stdin", stdin)  # closed from the start, or since
        assert sample_py.piped() is None
