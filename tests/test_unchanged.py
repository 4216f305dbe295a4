"""Additions as they were before there were tasks: files, batches and test problems to the bit, and what the checkpoints
that come with the project say. The numbers are from the code of that time."""
import csv
import hashlib
import re

import numpy as np
import pytest
from conftest import ROOT

import dataset
import tasks
from tasks import addition

ARGUMENTS = {
    "next": (), "demo": ("--max_digits=3",), "plain": ("--plain=True",), "few": ("--few_rows=0.25",),
    "zeros": ("--zeros=shorter", "--few_rows=0.25"), "slots": ("--track=slots",),
    "padded": ("--track=slots", "--max_places=12"),
    "slots zeros": ("--track=slots", "--zeros=shorter", "--few_rows=0.25"),
}
HASHES = {  # of the files; of 20 batches of each way to draw them; of 3 sizes of each kind of problems; of 2 pairs
    "next": {
        "train.bin": "ea9c6bae500df806", "val.bin": "314ab6021962c61b", "stored": "33239e87cef936da",
        "stored swap": "80434ecede8281fe", "stored swap flip": "647d8dd44770e315", "fresh": "eeff5e2e04d5f112",
        "fresh swap": "aee7ea02d26a1aae", "fresh swap flip": "f9c3872510759b30", "uniform": "094ed54033125129",
        "hard": "d65f0a42e9e90c0f", "shorter_a": "fabaf577f1f4b3e6", "shorter_b": "b45ef2b3295c140d",
        "equal": "f1e8cee005fb2d04", "nines": "2b44bd5227f0e978", "grid": "b9b89432dfabe707",
    },
    "demo": {
        "train.bin": "d0a8f125c22191b6", "val.bin": "abd104a559a33b60", "stored": "8ff4fbc1e7aed474",
        "stored swap": "a0d8f2754865faea", "stored swap flip": "fb3dd3d895246833", "fresh": "8dae75db01b83688",
        "fresh swap": "2ce4c4049df9e9fc", "fresh swap flip": "25624e4da77c2143", "uniform": "094ed54033125129",
        "hard": "d65f0a42e9e90c0f", "shorter_a": "fabaf577f1f4b3e6", "shorter_b": "b45ef2b3295c140d",
        "equal": "f1e8cee005fb2d04", "nines": "2b44bd5227f0e978", "grid": "b9b89432dfabe707",
    },
    "plain": {
        "train.bin": "7e0c0fce5afe7cef", "val.bin": "7837b7b90720f41d", "stored": "f1530eca292774c0",
        "stored swap": "595b284acbbe4608", "stored swap flip": "0aef2757c6dddc9e", "fresh": "f382a73e9c64e406",
        "fresh swap": "a24f2b8e26e21aa4", "fresh swap flip": "210e95958ad3fe7d", "uniform": "55fc1455ed66f710",
        "hard": "0bb081c8df165de8", "shorter_a": "6260cf9ada7a675d", "shorter_b": "a628140a35c4ad48",
        "equal": "bcce800e11586c3f", "nines": "ecb69dd580244867", "grid": "d494307ff610252f",
    },
    "few": {
        "train.bin": "44a4fc0993b297f5", "val.bin": "459642378b0751c3", "stored": "107e8e6c9138faaa",
        "stored swap": "b710462fc3149c77", "stored swap flip": "2c1727e5bc6b1657", "fresh": "d181368901249637",
        "fresh swap": "a834285516808705", "fresh swap flip": "2892dbc68a7c2847", "uniform": "094ed54033125129",
        "hard": "d65f0a42e9e90c0f", "shorter_a": "fabaf577f1f4b3e6", "shorter_b": "b45ef2b3295c140d",
        "equal": "f1e8cee005fb2d04", "nines": "2b44bd5227f0e978", "grid": "b9b89432dfabe707",
    },
    "zeros": {
        "train.bin": "1dfe063a3270eb1e", "val.bin": "0866408329d1b170", "stored": "e6cb691821bf6ec1",
        "stored swap": "c07dab4ce02c7e63", "stored swap flip": "c2e87e5883e8b4b0", "fresh": "10b58b449ba69a99",
        "fresh swap": "1caec6b313038b75", "fresh swap flip": "d6f96446ab4224b9", "uniform": "094ed54033125129",
        "hard": "99b358b5dd9f3e06", "shorter_a": "06650b11f11bfe85", "shorter_b": "c65e2a71509f7016",
        "equal": "f1e8cee005fb2d04", "nines": "3d4f6fc036cbcb40", "grid": "61c4b98a8d6c4ace",
    },
    "slots": {
        "train.bin": "ea02d891642b02a4", "val.bin": "efc8bce9684a39bf", "stored": "511004de6a698d55",
        "stored swap": "86c3694faa5ce1c8", "fresh": "7fedeffffab9b235", "fresh swap": "521b1b34429464c0",
        "uniform": "522b7a39abfc095a", "hard": "1f6821215bd1a275", "shorter_a": "c9618ab48f56390c",
        "shorter_b": "3e2f5b0a5fcc539c", "equal": "d7b4b2dfbc2a82c0", "nines": "aed7cbdae9e78f6b",
        "grid": "3259ff0f682e9448",
    },
    "padded": {
        "train.bin": "d258ac138fdeff79", "val.bin": "23c2127b70a1072b", "stored": "0f4221d0a1134ee8",
        "stored swap": "ee332e9bed354ae1", "fresh": "bc567a3b91364c3e", "fresh swap": "46cb913b526a13f1",
        "uniform": "522b7a39abfc095a", "hard": "1f6821215bd1a275", "shorter_a": "c9618ab48f56390c",
        "shorter_b": "3e2f5b0a5fcc539c", "equal": "d7b4b2dfbc2a82c0", "nines": "aed7cbdae9e78f6b",
        "grid": "3259ff0f682e9448",
    },
    "slots zeros": {
        "train.bin": "b3746646c6e828f0", "val.bin": "839801ed57e63a09", "stored": "ad3cb701a946ed9d",
        "stored swap": "d635bd4677a6a556", "fresh": "fcc45f9cc74ad024", "fresh swap": "3275fbb23ec78e31",
        "uniform": "522b7a39abfc095a", "hard": "d8fed774a56d0236", "shorter_a": "058ad333c465dfda",
        "shorter_b": "b014e977085a04bf", "equal": "d7b4b2dfbc2a82c0", "nines": "2dcb6d9b945b58e6",
        "grid": "3e6e121f6499345e",
    },
}
SCORES = {  # kind, size: exact match, loops of the answer, exact match of random halting
    "addition": {
        ("uniform", 2): (1, 2.792, 1), ("hard", 2): (1, 3, 0.9), ("shorter_a", 2): (1, 2.767, 1),
        ("shorter_b", 2): (1, 2.742, 1), ("equal", 2): (1, 2.742, 1), ("nines", 2): (1, 3, 0.8),
        ("uniform", 5): (1, 3.105, 1), ("hard", 5): (1, 3.326, 0.6), ("shorter_a", 5): (1, 3.033, 0.9),
        ("shorter_b", 5): (1, 3.069, 1), ("equal", 5): (1, 3.055, 1), ("nines", 5): (1, 3.429, 0.6),
    },
    "addition_search": {
        ("uniform", 2): (1, 2.925, 1), ("hard", 2): (1, 3.175, 0.9), ("shorter_a", 2): (1, 3.358, 1),
        ("shorter_b", 2): (1, 2.975, 1), ("equal", 2): (1, 3.725, 0.6), ("nines", 2): (1, 3.4, 1),
        ("uniform", 5): (1, 2.983, 0.9), ("hard", 5): (1, 3.174, 0.9), ("shorter_a", 5): (1, 3.633, 1),
        ("shorter_b", 5): (1, 3.25, 1), ("equal", 5): (1, 4.033, 0.7), ("nines", 5): (1, 3.343, 1),
    },
    "addition_parallel": {
        ("uniform", 2): (1, 6.4, 1), ("hard", 2): (1, 6.7, 1), ("shorter_a", 2): (1, 6.967, 1),
        ("shorter_b", 2): (1, 6.733, 1), ("equal", 2): (1, 6.967, 1), ("nines", 2): (1, 6.9, 1),
        ("uniform", 5): (1, 6.45, 1), ("hard", 5): (1, 6.867, 1), ("shorter_a", 5): (1, 6.5, 1),
        ("shorter_b", 5): (1, 6.467, 1), ("equal", 5): (1, 6.683, 1), ("nines", 5): (1, 6.733, 1),
    },
    "addition_parallel_search": {
        ("uniform", 2): (1, 5.033, 1), ("hard", 2): (1, 5.033, 1), ("shorter_a", 2): (1, 4.867, 1),
        ("shorter_b", 2): (1, 4.9, 1), ("equal", 2): (1, 5.133, 1), ("nines", 2): (1, 5.133, 1),
        ("uniform", 5): (1, 5.483, 1), ("hard", 5): (1, 5.033, 1), ("shorter_a", 5): (1, 5.05, 1),
        ("shorter_b", 5): (1, 5.15, 1), ("equal", 5): (1, 5.55, 1), ("nines", 5): (1, 5.067, 1),
    },
}
LOOPS = {  # of each token that sample.py reads
    "addition": "44444343244444443443244444444433332444444444444434444432",
    "addition_search": "4444433334444434433444444344434444444435444443",
    "addition_parallel": "eeeee8865eeeeeee87777eeeeeeeee878886eeeeeeeeeeeee86877787",
    "addition_parallel_search": "44444855544444854454444448555444444444485444445",
}
PROBLEMS = "57+68= 999+1, 0012+3\n999999+7"


def digest(arrays):
    sha = hashlib.sha256()
    for x in arrays:
        sha.update(np.ascontiguousarray(x, np.int64).tobytes())
    return sha.hexdigest()[:16]


@pytest.fixture(scope="module", params=ARGUMENTS)
def data(request, scripts):
    """(name, dataset)"""
    scripts("data/addition/prepare.py", "--out_dir=data/same", "--train_rows=2000", "--val_rows=500",
            *ARGUMENTS[request.param])
    return request.param, dataset.open_dataset("same", scripts.folder / "data")


def test_files_batches_and_test_problems_are_the_same(data):
    name, data = data
    found = {f"{split}.bin": data.meta.sha256[split][:16] for split in ("train", "val")}
    for way in (k for k in HASHES[name] if k.startswith(("stored", "fresh"))):
        options = dict(fresh="fresh" in way, swap="swap" in way, flip=0.3 * ("flip" in way))
        found[way] = digest(x for i in range(20) for x in dataset.get_batch(data, "train", (1337, i, 0), 64, **options))

    def test_problems(sizes, kind):
        for size in sizes:
            rows = tasks.problem_set(addition, data.meta, size, 50, kind)
            yield from tasks.inputs_and_targets(addition, *rows[:2], data.meta.track)
    found |= {kind: digest(test_problems((1, 4, 9), kind)) for kind in addition.KINDS}
    found["grid"] = digest(test_problems(((1, 3), (5, 2)), "uniform"))
    assert found == HASHES[name]


def test_a_model_is_told_the_same(data):
    name, data = data
    longest = {"demo": 4, "padded": 13}.get(name, 5)
    assert dataset.model_facts(data.meta) == dict(
        vocab_size=15, pad_token=13, think_token=11, longest_number=longest,
        number_tokens=() if name == "plain" else (*range(10), 14))


@pytest.mark.parametrize("name", SCORES)
def test_checkpoints_say_the_same(scripts, name):
    """Loops may differ by a token or two where another processor rounds otherwise."""
    model = f"--checkpoint={ROOT}/pretrained/{name}.pt", "--device=cpu", "--num_loops=8"
    scripts("evaluate.py", *model, "--digits=[2,5]", "--kinds=all", "--problems=10", "--control=True",
            "--eval_iters=0", "--csv_file=same.csv")
    with open(scripts.folder / "same.csv", newline="") as f:
        rows = {(r["kind"], int(r["n"])): r for r in csv.DictReader(f)}
    assert list(rows) == list(SCORES[name])
    for key, (accuracy, loops, random) in SCORES[name].items():
        assert float(rows[key]["accuracy"]) == accuracy
        assert float(rows[key]["loops_answer"]) == pytest.approx(loops, abs=0.06)
        assert float(rows[key]["accuracy_random"]) == pytest.approx(random, abs=0.11)
    out = scripts("sample.py", *model, f"--start={PROBLEMS}").out
    assert [line for line in out.splitlines() if line[0] != " "] == ["57+68=125", "999+1=1000", "12+3=15",
                                                                    "999999+7=1000006"]
    taken = [int(n) for n in re.findall(r"^ +\S +\S +(\d+) ", out, re.MULTILINE)]
    wanted = [int(n, 16) for n in LOOPS[name]]
    assert len(taken) == len(wanted)
    assert sum(a != b for a, b in zip(taken, wanted, strict=True)) <= 2
