"""The checkpoints that come with the project: what their tables claim, they write."""
import csv
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy import stats

import addition
import runtime
from model_loop import from_checkpoint

PROBLEMS = 200


@pytest.mark.parametrize("n", [4, 8, 12])
@pytest.mark.parametrize("name", ["addition", "addition_parallel"])
def test_claims(name, n, rng):
    """Fresh problems, answered as sample.py answers them, token by token: their share is one that the claimed accuracy
    would give in 999 of 1,000 draws, where the claim itself comes from so many problems."""
    path = ROOT / "pretrained" / f"{name}.pt"
    assert path.stat().st_size <= 4e6
    with open(path.with_suffix(".csv"), newline="") as f:
        (claim,) = (r for r in csv.DictReader(f) if (r["kind"], r["n"]) == ("uniform", str(n)))
    saved = runtime.load_checkpoint(path)
    model, track = from_checkpoint(saved, num_loops=32), saved["meta"]["track"]
    lengths = np.full(PROBLEMS, n)
    a, b = (addition.random_numbers(rng, lengths, n) for _ in range(2))
    prompts = [addition.prompt_tokens((x[None], lengths[:1], y[None], lengths[:1]), track)
               for x, y in zip(a, b, strict=True)]
    idx = torch.from_numpy(np.stack(prompts))
    if track == "slots":
        h, _ = model.think(idx, trace=False)
        written = model.readout(h).argmax(-1)[:, 2 * n + 2:]
    else:
        written = model.generate(idx, n + 2, temperature=0, stop=addition.ID[addition.END])[:, 2 * n + 2:]
    numbers = [int("".join(map(str, x[::-1]))) for x in np.concatenate((a, b)).tolist()]
    solved = sum(addition.number_text(row) == str(x + y) for row, x, y in zip(
        written.tolist(), numbers[:PROBLEMS], numbers[PROBLEMS:], strict=True))
    right = round(float(claim["accuracy"]) * int(claim["problems"]))
    table = [[solved, PROBLEMS - solved], [right, int(claim["problems"]) - right]]
    assert stats.fisher_exact(table).pvalue > 1e-3


@pytest.mark.parametrize("name", ["addition", "addition_parallel"])
def test_sample_works_with_it(name, scripts):
    out = scripts("sample.py", f"--checkpoint={ROOT}/pretrained/{name}.pt", "--start=123456+876544=").out
    assert "123456+876544=1000000\n" in out
    most = max(int(n) for n in re.findall(r"^ +\S +\S +(\d+) ", out, re.MULTILINE))
    assert most < 32
    assert max(map(len, out.splitlines())) < 30 + 3 * max(most, 10)  # no columns for loops that none took
