"""Datasets: batches are pure and aligned, and every wrong file stops with a message that says what to run."""
import json
import os
import re
import runpy
import subprocess
import sys
import threading
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
import torch
from conftest import ROOT
from helpers import SYMBOLS, UNLIKELY, chains, parse, texts
from scipy import stats

import dataset
import tasks
from tasks import addition


def write_rows(folder, rng, N=300, max_digits=4, track="next", plain=False, carry_rows=0.4, splits=("train", "val"),
               max_places=0, zeros=None, few_rows=0.0):
    row_len = addition.row_tokens(max_places or max_digits, track)
    zeros = zeros or ("places" if max_places else "none")
    draw = max_digits, carry_rows, max_places, zeros, few_rows
    data = {s: addition.write_rows(*addition.random_problems(rng, N, *draw), row_len, track, plain) for s in splits}
    dataset.write_dataset(folder, data, kind="rows", vocab=list(SYMBOLS), vocab_size=15, row_len=row_len, pad=" ",
                           think_token="=", digits="0123456789_", mask=tasks.MASK_RULES[1], track=track, plain=plain,
                           max_digits=max_digits, max_places=max_places, zeros=zeros, carry_rows=carry_rows,
                           few_rows=few_rows)
    return data


def write_text(folder, tokens, cut, vocab=None):
    size = len(vocab) if vocab else 60_000
    splits = {"train": tokens[:cut], "val": tokens[cut:]}
    dataset.write_dataset(folder, splits, kind="text", vocab=vocab, encoding="gpt2", vocab_size=size)


@pytest.fixture
def here(tmp_path, monkeypatch, rng):
    """An empty working directory whose data/rows holds addition rows and a prepare.py, and data/text a stream."""
    monkeypatch.chdir(tmp_path)
    write_rows("data/rows", rng)
    (tmp_path / "data/rows/prepare.py").touch()
    write_text("data/text", np.arange(5000), 4000)
    return tmp_path / "data"


def message(name, root="data"):
    """The message with which open_dataset ends the program."""
    with pytest.raises(SystemExit) as e:
        dataset.open_dataset(name, root)
    assert e.value.code == str(e.value)  # a text, and so exit status 1
    assert 1 <= len(str(e.value).splitlines()) <= 2
    assert "prepare.py" in str(e.value)
    return str(e.value)


def whole_rows(x, y, track):
    """The rows of a batch as written, from its inputs and targets."""
    if track == "next":
        x, y = torch.cat((x, y[:, -1:]), 1), torch.cat((x[:, :1], y), 1)
    rows = np.where((x == SYMBOLS.index("_")) & (y >= 0), y, x)
    return np.where(rows < 0, SYMBOLS.index(" "), rows)


# ---- batches

@pytest.mark.parametrize("options", [{"name": "rows"}, {"name": "rows", "fresh": True, "swap": True, "flip": 0.3},
                                     {"name": "text", "block_size": 33}])
def test_a_batch_is_a_pure_function_of_its_key(here, rng, options):
    data = dataset.open_dataset(options.pop("name"))

    def draw(*key, split="train"):
        np.random.seed(rng.integers(2**31))  # noqa: NPY002  (no global generator must matter)
        torch.manual_seed(int(rng.integers(2**31)))
        return torch.stack(dataset.get_batch(data, split, key, 16, **options))

    seed, it, index = key = tuple(rng.integers(1, 10_000, 3).tolist())
    batch = draw(*key)
    for other in ((seed + 1, it, index), (seed, it + 1, index), (seed, it, index + 1), (it, seed, index + 10_000)):
        assert not torch.equal(batch, draw(*other))
    assert not torch.equal(batch, draw(*key, split="val"))
    assert torch.equal(batch, draw(*key))
    data = dataset.open_dataset(data.name)
    assert torch.equal(batch, draw(*key))


@pytest.mark.parametrize("track", ["next", "slots"])
@pytest.mark.parametrize("options", [{}, {"fresh": True}, {"fresh": True, "swap": True}, {"swap": True}])
def test_rows_start_at_an_equation(here, rng, track, options):
    written = write_rows("data/some", rng, N=201, max_digits=5, track=track)["train"]
    data = dataset.open_dataset("some")
    x, y = dataset.get_batch(data, "train", (rng.integers(1000),), 500, 0, **options)
    assert x.dtype == y.dtype == torch.int64
    assert x.shape == y.shape == (500, dataset.sequence_length(data, 256))
    rows = whole_rows(x, y, track)
    pairs = [parse(text, track) for text in texts(rows)]
    if not options:
        assert {tuple(t) for t in rows.tolist()} <= {tuple(t) for t in written.tolist()}
        assert len(set(pairs)) > 100  # of 201, drawn 500 times
    assert max(len(n) for pair in pairs for n in pair) == 5


def test_text_slices_are_contiguous_and_reach_both_ends(here, rng):
    block_size = 17
    write_text("data/short", np.arange(block_size + 30), block_size + 4)
    short = dataset.open_dataset("short")
    x, y = dataset.get_batch(short, "train", (3,), 400, block_size)
    assert torch.equal(x - x[:, :1], torch.arange(block_size).expand(400, -1))  # the stream is 0, 1, 2, ...
    assert torch.equal(y, x + 1)
    assert set(x[:, 0].tolist()) == {0, 1, 2, 3}
    assert y.max() == block_size + 3  # the last token is read
    assert dataset.get_batch(short, "val", (3,), 9, block_size)[0].min() >= block_size + 4


@pytest.mark.parametrize("track", ["next", "slots"])
@pytest.mark.parametrize(("max_digits", "carry_rows"), [(3, 0.0), (6, 1.0)])
def test_fresh_rows_obey_meta(here, rng, track, max_digits, carry_rows):
    write_rows("data/some", rng, max_digits=max_digits, track=track, carry_rows=carry_rows)
    data = dataset.open_dataset("some")
    x, y = dataset.get_batch(data, "train", (int(rng.integers(1000)), 5, 0), 2000, fresh=True)
    pairs = [parse(t, track) for t in texts(whole_rows(x, y, track))]
    a, b = np.array(pairs).astype(int).T
    lengths = np.bincount([len(n) for pair in pairs for n in pair], minlength=max_digits + 1)
    assert len(lengths) == max_digits + 1
    assert (lengths[1:] > 4000 / max_digits / 2).all()
    share = (chains(a, b, max_digits + 1) >= 2)[np.maximum(a, b) >= 10].mean()
    assert share > 0.8 if carry_rows else share < 0.2


@pytest.mark.parametrize("track", ["next", "slots"])
@pytest.mark.parametrize("pack", [2, 5])
def test_packed_rows_are_the_same_problems_parted_by_padding(here, rng, track, pack):
    write_rows("data/some", rng, max_digits=3, track=track)
    data, key = dataset.open_dataset("some"), (int(rng.integers(1000)), 5, 0)
    options = dict(fresh=bool(rng.integers(2)), swap=True)
    plain, packed = (dataset.get_batch(data, "train", key, size, pack=count, **options)
                     for size, count in ((7 * pack, 1), (7, pack)))
    pad, T = data.meta.vocab.index(data.meta.pad), dataset.sequence_length(data, 0)
    for alone, together, filler in zip(plain, packed, (pad, -1), strict=True):
        assert together.shape == (7, dataset.sequence_length(data, 0, pack))
        whole = torch.nn.functional.pad(together, (0, 1), value=filler).view(7 * pack, T + 1)
        assert torch.equal(whole[:, :T], alone)
        assert whole[:, T].eq(filler).all()


@pytest.mark.parametrize("track", ["next", "slots"])
def test_fresh_rows_have_the_leading_zeros_of_meta(here, rng, track):
    write_rows("data/some", rng, max_digits=2, track=track, max_places=7)
    data = dataset.open_dataset("some")
    assert dataset.model_facts(data.meta)["longest_number"] == 8  # the sum of 7 places
    x, y = dataset.get_batch(data, "train", (int(rng.integers(1000)), 5, 0), 2000, fresh=True)
    numbers = [n[::-1] for t in texts(whole_rows(x, y, track)) for n in t.partition("=")[0].split("+")]
    assert {len(n) for n in numbers} == set(range(1, 8))
    assert max(map(int, numbers)) == 99


@pytest.mark.parametrize("track", ["next", "slots"])
def test_fresh_rows_have_the_zeros_and_the_few_digits_of_meta(here, rng, track):
    write_rows("data/some", rng, max_digits=6, track=track, zeros="shorter", few_rows=0.5)
    data = dataset.open_dataset("some")
    assert dataset.model_facts(data.meta)["longest_number"] == 7
    x, y = dataset.get_batch(data, "train", (int(rng.integers(1000)), 5, 0), 2000, fresh=True)
    pairs = [[n[::-1] for n in t.partition("=")[0].split("+")] for t in texts(whole_rows(x, y, track))]
    assert all(len(a) == len(b) for a, b in pairs)
    assert {len(str(int(n))) for pair in pairs for n in pair} == set(range(1, 7))
    long = [pair for pair in pairs if min(len(str(int(n))) for n in pair) >= 5]
    few = sum(len(set(a + b)) <= 3 for a, b in long)
    p = 0.5 * (0.3 / 3 + 0.7 / 9) / (0.5 * (0.3 / 3 + 0.7 / 9) + 0.5 / 9)  # 5 or 6 digits of 6, and A = B in 30%
    assert abs(few / len(long) - p) < 6 * (p * (1 - p) / len(long)) ** 0.5 + 0.01


@pytest.mark.parametrize("places", [0, 9])
def test_metas_of_before_say_which_zeros_they_have(here, rng, places):
    """meta.json and checkpoints without zeros and few_rows: the zeros that max_places draws, or none."""
    write_rows("data/rows", rng, max_places=places)
    path = here / "rows/meta.json"
    old = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("zeros", "few_rows")}
    path.write_text(json.dumps(old))
    for meta in (dataset.open_dataset("rows").meta, dataset.checkpoint_meta({"meta": old})):
        assert (meta.zeros, meta.few_rows, meta.max_places) == ("places" if places else "none", 0.0, places)
    older = {"meta": {k: v for k, v in old.items() if k != "max_places"}}
    if places:  # the length of its rows says that it has them
        with pytest.raises(SystemExit, match="row_len"):
            dataset.checkpoint_meta(older)
    else:
        assert dataset.checkpoint_meta(older).max_places == 0


def test_a_share_of_flipped_rows_in_batches(here, rng):
    data, key = dataset.open_dataset("rows"), (int(rng.integers(1000)),)
    x, _ = dataset.get_batch(data, "train", key, 2000, flip=0.5)
    flipped = ((x == 11).int().argmax(1) < (x == 10).int().argmax(1)).sum().item()  # '=' before '+'
    assert stats.binomtest(flipped, 2000, 0.5).pvalue > UNLIKELY


# ---- wrong files

def test_a_dataset_that_is_whole_opens(here):
    data = dataset.open_dataset("rows")
    assert {s: x.shape for s, x in data.splits.items()} == {"train": (300, 16), "val": (300, 16)}
    facts = {"vocab_size": 15, "pad_token": 13, "think_token": 11, "number_tokens": (*range(10), 14)}
    assert dataset.model_facts(data.meta).items() >= facts.items()


def test_missing_dataset_and_meta(here):
    assert "data/none/meta.json is missing" in message("none")
    (here / "rows/meta.json").unlink()
    assert "python data/rows/prepare.py" in message("rows")
    write_rows("data/rows/small", np.random.default_rng(0))
    (here / "rows/small/meta.json").unlink()
    assert "python data/rows/prepare.py --out_dir=data/rows/small" in message("rows/small")


def test_missing_dataset_by_an_absolute_path(here):
    assert "is missing" in message("none", root=str(here / "far"))
    assert "is missing" in message(str(here / "none"))


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"text"', "\xff", '{"kind": "rows"'])
def test_broken_json(here, text):
    (here / "rows/meta.json").write_bytes(text.encode("latin-1"))
    assert "meta.json" in message("rows")


ROW_KEYS = ("vocab", "row_len", "pad", "think_token", "digits", "mask", "track")
SETTINGS = ("plain", "max_digits", "carry_rows")  # of the task, which have defaults


@pytest.mark.parametrize("key", ["kind", "vocab_size", "dtype", "tokens", "sha256", *ROW_KEYS, *SETTINGS])
def test_wrong_types_in_meta(here, key):
    path = here / "rows/meta.json"
    meta = json.loads(path.read_text())
    for wrong in ("missing", None, [], {}, "x", 1.5):
        if type(wrong) is type(meta[key]) and wrong != "missing" or wrong == "missing" and key in SETTINGS:
            continue
        path.write_text(json.dumps({k: v for k, v in meta.items() if k != key or wrong != "missing"}
                                   | ({} if wrong == "missing" else {key: wrong})))
        assert "meta.json" in message("rows")


@pytest.mark.parametrize(("name", "change"), [
    ("rows", {"kind": "other"}), ("rows", {"dtype": "int32"}), ("rows", {"vocab_size": 16}),
    ("rows", {"vocab": list("0123456789"), "vocab_size": 10}), ("rows", {"track": "other"}), ("rows", {"row_len": 0}),
    ("rows", {"row_len": 8}), ("rows", {"max_digits": 9}), ("rows", {"max_digits": 0}),
    ("rows", {"max_digits": 3}), ("rows", {"max_places": 3}), ("rows", {"max_places": 5}),
    ("rows", {"max_places": "x"}), ("rows", {"carry_rows": 2.0}), ("rows", {"think_token": "?"}),
    ("rows", {"zeros": "all"}), ("rows", {"zeros": "places"}), ("rows", {"few_rows": -0.1}), ("rows", {"zeros": None}),
    ("rows", {"max_places": 4, "zeros": "shorter"}), ("rows", {"pad": "?"}), ("rows", {"digits": "01?"}),
    ("rows", {"plain": True}), ("rows", {"dtype": "uint32"}),
    ("rows", {"tokens": {"train": "x", "val": 1}}), ("rows", {"tokens": {"train": 4800}}), ("rows", {"sha256": {}}),
    ("text", {"vocab": 5}), ("text", {"encoding": None}), ("text", {"tokens": {}}), ("text", {"vocab": []}),
    ("text", {"vocab": list(range(60_000))}), ("text", {"vocab": ["a"] * 60_000}), ("text", {"vocab": list("ab")}),
    ("text", {"vocab": list("ab"), "vocab_size": 2}), ("text", {"vocab": ["a", ""], "vocab_size": 2}),
    ("text", {"vocab_size": 4999}), ("text", {"vocab_size": 0}),
    ("text", {"tokens": {"train": None, "val": None}})])
def test_values_in_meta_that_do_not_fit(here, name, change):
    path = here / name / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    message(name)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ["rows", "text"])
def test_wrong_bin_files(here, rng, name, split):
    path = here / name / f"{split}.bin"
    whole = path.read_bytes()
    for wrong in (b"", whole[:-1], whole[:-2], whole[:len(whole) // 2], whole + whole[:32]):
        path.write_bytes(wrong)
        assert f"{split}.bin has {len(wrong):,} bytes" in message(name)
    foreign = bytearray(whole)  # the same size, one other bit
    foreign[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
    path.write_bytes(foreign)
    assert f"{split}.bin is not the file that meta.json describes" in message(name)
    path.unlink()
    assert f"{split}.bin is missing" in message(name)
    path.write_bytes(whole)
    assert dataset.open_dataset(name).splits[split].tobytes() == whole


def test_data_that_a_checkpoint_was_not_trained_on(here, rng):
    """No advice overwrites them."""
    known = dict(vars(dataset.open_dataset("rows").meta))
    assert dataset.open_dataset("rows", like=dict(meta=known, config={})).meta.sha256 == known["sha256"]
    write_rows("data/rows", rng)
    for config in ({}, {"dataset": "rows"}):
        with pytest.raises(SystemExit) as e:
            dataset.open_dataset("rows", like=dict(meta=known, config=config))
        assert str(e.value) == ("dataset: data/rows is not what the checkpoint was trained on: sha256 differ\n  give "
                                "it another name, so that it is kept, then write what the checkpoint needs: python "
                                "data/rows/prepare.py")
    with pytest.raises(SystemExit, match="--dataset=rows is not what .* without --dataset its own is taken, other"):
        dataset.open_dataset("rows", like=dict(meta=known, config={"dataset": "other"}))


def test_text_too_short_for_its_block_size(here):
    data = dataset.open_dataset("text")
    assert dataset.sequence_length(data, 999) == 999  # val has 1000 tokens
    with pytest.raises(SystemExit, match="1,000 tokens.*block_size=1000"):
        dataset.sequence_length(data, 1000)


# ---- writing, and text

def test_write_and_open(here, rng):
    vocab = sorted("aé∑\n𝛼 ")
    splits = {s: rng.integers(0, len(vocab), n) for s, n in (("train", 501), ("val", 77), ("val_hard", 3))}
    dataset.write_dataset("data/deep/er", splits, kind="text", vocab=vocab, vocab_size=len(vocab), own="kept")
    data = dataset.open_dataset("deep/er")
    assert data.meta.vocab == vocab
    assert data.meta.own == "kept"
    assert {s: x.tolist() for s, x in data.splits.items()} == {s: x.tolist() for s, x in splits.items()}
    rows = write_rows("data/some", rng, N=13, max_digits=2, splits=("train", "val", "val_hard"))
    data = dataset.open_dataset("some")
    assert all((data.splits[s] == x).all() for s, x in rows.items())


def test_plain_rows_are_read_as_plain(here, rng):
    write_rows("data/plain", rng, plain=True)
    assert dataset.open_dataset("plain").meta.plain
    path = here / "plain/meta.json"
    path.write_text(path.read_text().replace('"plain": true', '"plain": false'))
    assert "plain" in message("plain")


@pytest.mark.parametrize("token", [5, 70_000, -1])
def test_tokens_outside_the_vocabulary_are_not_written(here, token):
    meta = dict(kind="text", vocab=list("abcde"), vocab_size=5)
    dataset.write_dataset("data/x", {"train": np.arange(5), "val": np.arange(5)}, **meta)
    with pytest.raises(ValueError, match=f"token {token} is outside a vocabulary of 5"):
        dataset.write_dataset("data/x", {"train": np.zeros(9, int), "val": np.array([0, token])}, **meta)
    assert {s: x.tolist() for s, x in dataset.open_dataset("x").splits.items()} == dict.fromkeys(
        ("train", "val"), [*range(5)])
    assert sorted(os.listdir("data/x")) == ["meta.json", "train.bin", "val.bin"]


@pytest.mark.parametrize(("size", "dtype"), [(65_536, "uint16"), (65_537, "uint32"), (100_000, "uint32")])
def test_ids_are_stored_as_they_are(here, rng, size, dtype):
    tokens = {s: np.append(rng.integers(0, size, 300), size - 1) for s in ("train", "val")}
    dataset.write_dataset("data/x", tokens, kind="text", vocab=None, encoding="some", vocab_size=size)
    data = dataset.open_dataset("x")
    assert data.meta.dtype == data.splits["val"].dtype == dtype
    assert {s: x.tolist() for s, x in data.splits.items()} == {s: x.tolist() for s, x in tokens.items()}
    x, y = dataset.get_batch(data, "train", (1,), 50, 299)
    assert y.max() == size - 1
    assert set(x.flatten().tolist()) <= set(tokens["train"].tolist())


def test_a_mark_at_the_beginning_of_meta(here):
    path = here / "text/meta.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert dataset.open_dataset("text").meta.vocab_size == 60_000


# ---- text


def test_encode_and_decode(rng):
    meta = SimpleNamespace(vocab=list("aé∑\n𝛼 "))
    text = "".join(rng.choice(meta.vocab, 200))
    assert dataset.decode(meta, dataset.encode(meta, text)) == text
    with pytest.raises(SystemExit) as e:
        dataset.encode(meta, "aXaéß")
    assert "'X'" in str(e.value)
    assert "'ß'" in str(e.value)
    assert "'a'" not in str(e.value)


def test_a_large_vocabulary_is_not_printed(rng):
    meta = SimpleNamespace(vocab=[chr(ord("가") + 2 * i) for i in range(5000)])
    with pytest.raises(SystemExit) as e:
        dataset.encode(meta, chr(ord("가") + 501) + "abc" * 99 + "".join(map(chr, range(200, 260))))
    assert "5,000" in str(e.value)
    assert "44 more" in str(e.value)
    assert len(str(e.value)) < 400
    with pytest.raises(SystemExit) as e:
        dataset.encode(meta, unknown := chr(ord("가") + 501))
    assert {chr(ord(unknown) - 1), chr(ord(unknown) + 1)} < set(str(e.value))


def byte_encoding(special=None):
    """Bytes stand in for the encoding's vocabulary, which would have to be downloaded."""
    return tiktoken.Encoding("bytes", pat_str=GPT2_PATTERN, special_tokens=special or {},
                             mergeable_ranks={bytes([i]): i for i in range(256)} | {
                                 b"th": 256, b" a": 257, b"\n\n": 258, b"\n ": 259})


GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def test_special_tokens_in_prompts(monkeypatch):
    monkeypatch.setattr(dataset, "bpe", lambda name: byte_encoding({"<|endoftext|>": 300}))
    meta = SimpleNamespace(vocab=None, encoding="gpt2")
    assert dataset.encode(meta, "<|endoftext|>") == [300]
    assert dataset.encode(meta, "a<|endoftext|>b<|end") == [97, 300, 98, *b"<|end"]
    assert dataset.decode(meta, [300, 97]) == "<|endoftext|>a"


def test_a_text_in_pieces_has_the_tokens_of_the_whole(rng):
    words = ["the", "a", "12", "it's", "é∑", "\n", "\n\n", "  ", " ", "...", "\n \n", "th_", "x-", "\t", "가나"]
    coder = byte_encoding()
    for _ in range(100):
        text = "".join(rng.choice(words, 60))
        cuts = [0, *sorted(rng.integers(0, len(text), 9)), len(text)]
        parts = list(dataset.whole_words(text[a:b] for a, b in zip(cuts, cuts[1:], strict=False)))
        assert "".join(parts) == text
        assert sum(map(coder.encode_ordinary, parts), []) == coder.encode_ordinary(text)
    assert len(list(dataset.whole_words(["ab cd ef"] * 9))) > 5


def test_shakespeare_char_takes_any_text(tmp_path, rng):
    """A process of its own whose locale knows ASCII only: the files are UTF-8 all the same, with a mark too."""
    text = "".join(rng.choice(list("abc\n é∑𝛼"), 4001))
    (tmp_path / "any.txt").write_text(text, encoding="utf-8-sig")
    env = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    args = [sys.executable, ROOT / "data/shakespeare_char/prepare.py", "--input=any.txt", "--out_dir=made"]
    run = subprocess.run(args, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    data = dataset.open_dataset("made", os.path.relpath(tmp_path))
    assert [len(data.splits[s]) for s in ("train", "val")] == [3600, 401]
    assert data.meta.vocab == sorted(set(text))
    assert dataset.decode(data.meta, np.concatenate(list(data.splits.values()))) == text


@pytest.mark.parametrize("name", ["shakespeare_char", "text"])
def test_prepare_without_its_text(scripts, name):
    (scripts.folder / "short.txt").write_text("too short")
    (scripts.folder / "latin.txt").write_bytes(b"\xe9" * 2000)
    (scripts.folder / "empty.txt").write_text("")
    for file, reason in (("none.txt", "No such file"), ("short.txt", "only 9 characters"), ("latin.txt", "as UTF-8"),
                         ("empty.txt", "is empty")):
        run = scripts(f"data/{name}/prepare.py", f"--input={file}", "--out_dir=made", status=None)
        assert file in run.err
        assert reason in run.err
    assert not (scripts.folder / "made").exists()


def run_prepare(name, monkeypatch, *args):
    """data/<name>/prepare.py in this process, so that its network can be taken away."""
    script = str(ROOT / "data" / name / "prepare.py")
    monkeypatch.setattr(sys, "argv", [script, *args])
    monkeypatch.setattr(sys, "path", list(sys.path))
    dataset.bpe.cache_clear()
    runpy.run_path(script, run_name="__main__")


def test_an_encoding_that_tiktoken_has_not():
    with pytest.raises(SystemExit, match="has no encoding 'none'"):
        dataset.bpe("none")


def no_network(*args, **kwargs):
    raise ConnectionError("no network")


def test_shakespeare_without_the_vocabulary(here, monkeypatch):
    (here / "any.txt").write_text("To be, or not to be: " * 100)
    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    with pytest.raises(SystemExit, match="TIKTOKEN_CACHE_DIR") as e:
        run_prepare("shakespeare", monkeypatch, f"--input={here / 'any.txt'}", "--out_dir=made")
    assert "'gpt2'" in str(e.value)
    assert not os.path.exists("made/meta.json")


def test_shakespeare_with_the_vocabulary(here, monkeypatch, rng):
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: byte_encoding())
    monkeypatch.setattr(dataset, "PIECE", 77)
    text = "".join(rng.choice(list("abé∑\n "), 2000))
    (here / "any.txt").write_text(text, encoding="utf-8")
    run_prepare("shakespeare", monkeypatch, f"--input={here / 'any.txt'}", "--out_dir=data/made")
    data = dataset.open_dataset("made")
    assert (data.meta.vocab_size, data.meta.encoding) == (260, "gpt2")
    assert dataset.decode(data.meta, np.concatenate(list(data.splits.values()))) == text
    assert dataset.decode(data.meta, dataset.encode(data.meta, text)) == text
    dataset.bpe.cache_clear()


@pytest.mark.parametrize("piece", [17, 1 << 20])
def test_text_is_streamed(here, monkeypatch, rng, piece):
    """The same files whatever the size of a piece, from a pipe too; with more characters than 16 bits can count."""
    points = np.r_[np.arange(32, 0xD800), np.arange(0xE000, 0x15000)] if piece > 1000 else np.arange(97, 120)
    text = "\n".join(map(chr, rng.permutation(np.tile(points, 1 + 2000 // len(points)))))
    pipe, end = os.pipe()
    writer = threading.Thread(target=lambda: os.fdopen(end, "wb").write(text.encode("utf-8-sig")))
    writer.start()
    monkeypatch.setattr(dataset, "PIECE", piece)
    run_prepare("shakespeare_char", monkeypatch, f"--input=/dev/fd/{pipe}", "--out_dir=data/made")
    writer.join()
    os.close(pipe)
    data = dataset.open_dataset("made")
    assert data.meta.dtype == ("uint32" if piece > 1000 else "uint16")
    assert data.meta.vocab == sorted(set(text))
    cut = int(0.9 * len(text))
    assert dataset.decode(data.meta, data.splits["train"]) == text[:cut]
    assert dataset.decode(data.meta, data.splits["val"]) == text[cut:]


def test_a_text_of_ones_own(here, monkeypatch, capsys, rng):
    """Korean, in a folder named after its file; the command it prints trains on it."""
    text = "".join(rng.choice(list("가나다라마 \n"), 3000))
    (here / "나의 글.v2.txt").write_text(text, encoding="utf-8")
    run_prepare("text", monkeypatch, f"--input={here / '나의 글.v2.txt'}")
    said = capsys.readouterr().out
    assert "3,000 characters, 7 different ones" in said
    assert "next: python train.py config/demo_text.py --dataset=나의_글.v2 --out_dir=out/나의_글.v2" in said
    assert (ROOT / "config/demo_text.py").exists()
    data = dataset.open_dataset("나의_글.v2")
    assert dataset.decode(data.meta, np.concatenate(list(data.splits.values()))) == text


def test_a_text_named_as_a_dataset_of_the_project_overwrites_nothing(here, monkeypatch):
    (here / "rows.txt").write_text("some text" * 200)
    before = (here / "rows/meta.json").read_text()
    with pytest.raises(SystemExit, match="give --out_dir=data/NAME"):
        run_prepare("text", monkeypatch, f"--input={here / 'rows.txt'}")
    assert (here / "rows/meta.json").read_text() == before
    for args in ((), ("--encoding=utf8",), ("--encoding=gpt2", "--vocab_from=x", "--input=rows.txt")):
        with pytest.raises(SystemExit, match="^--(input|encoding|vocab_from)"):
            run_prepare("text", monkeypatch, *args)


def test_download_without_a_network(here, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(SystemExit, match="no network.*--input=FILE"):
        run_prepare("shakespeare_char", monkeypatch, "--out_dir=made")
    assert not os.path.exists("made")


def test_a_missing_dataset_is_told_the_command_of_the_configs():
    """Two configs that mean different rows by one name would train on those that were written last."""
    told = {}
    for path in sorted((ROOT / "config").glob("*.py")):
        for options, name in re.findall(r"python data/addition/prepare\.py((?: --\S+)*?) --out_dir=data/addition/(\w+)",
                                        path.read_text(encoding="utf-8")):
            assert dataset.VARIANTS.get(name) == options, path.name
            told[name] = options
    assert len(told) > 6
