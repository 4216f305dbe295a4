"""Checkpoints: whose tokens they know, and one line for each way in which one can be damaged."""
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
import torch

import analyze
import checkpoint
import dataset
import outputs
from looplm_kernels import RULES
from model import GPT, GPTConfig
from model_loop import LoopConfig, LoopGPT

TINY = ("--device=cpu", "--n_embd=16", "--n_head=2", "--num_loops=2", "--block_size=16", "--batch_size=4",
        "--eval_iters=1", "--max_iters=2", "--eval_interval=2")
ABC = "abcdefghijklmnopqrstuvwxyz .\n"


def text_of(rng, characters):
    """A text of 2,000 characters, each of the given ones among them."""
    return "".join(rng.permutation([*characters, *rng.choice(list(characters), 2000 - len(characters))]))


def write_text(folder, text, **more):
    """A dataset of the characters of a text."""
    vocab = sorted(set(text))
    tokens = np.array([vocab.index(c) for c in text])
    dataset.write_dataset(folder, dict(train=tokens[:1500], val=tokens[1500:]), kind="text", vocab=vocab,
                          vocab_size=len(vocab), **more)
    return vocab


def nanogpt(path, vocab_size, name="text", **more):
    """Save a checkpoint as nanoGPT does, which says of its tokens how many they are."""
    args = dict(n_layer=1, n_head=2, n_embd=16, block_size=16, bias=False, vocab_size=vocab_size, dropout=0.0)
    model = GPT(GPTConfig(**args))
    torch.save(dict(model=model.state_dict(), optimizer={}, model_args=args, iter_num=5,
                    best_val_loss=torch.tensor(1.5), config=dict(dataset=name)) | more, path)


@pytest.fixture
def here(tmp_path, monkeypatch, rng):
    """An empty working directory with data/text of 29 characters."""
    monkeypatch.chdir(tmp_path)
    write_text("data/text", text_of(rng, ABC))
    return tmp_path


def refused(path="ckpt.pt", out_dir=""):
    """The message with which a script ends that opens a checkpoint."""
    with pytest.raises(SystemExit) as e:
        checkpoint.open_model(path, out_dir, "cpu", {})
    assert e.value.code == str(e.value)
    assert len(str(e.value).splitlines()) <= 2
    assert "\x1b" not in str(e.value)
    return str(e.value)


# ---- whose tokens

@pytest.fixture(scope="module")
def trained(scripts):
    """A run on data/shakespeare_char."""
    scripts("train.py", *TINY, "--dataset=shakespeare_char", "--out_dir=out_text")
    return "out_text/ckpt_last.pt"


def test_another_text_with_as_many_characters(scripts, trained):
    """Its vocabulary has another character, and all ids move. Prepared by the checkpoint's vocabulary, it fits."""
    text = (scripts.folder / "input.txt").read_text(encoding="utf-8")
    assert "d" in text
    (scripts.folder / "other.txt").write_text(text.replace("d", "Z"), encoding="utf-8")
    (scripts.folder / "fewer.txt").write_text(text.replace("d", "e"), encoding="utf-8")
    scripts("data/shakespeare_char/prepare.py", "--input=other.txt", "--out_dir=data/other")
    start = ("train.py", *TINY, f"--init_from={trained}", "--dataset=other", "--out_dir=tuned")
    run = scripts(*start, status=None)
    assert "lacks 'Z'" in run.err
    assert "data lack 'd'" in run.err
    assert f"prepare.py --vocab_from={trained} --input=FILE --out_dir=data/other" in run.err
    assert not (scripts.folder / "tuned").exists()

    prepare = ("data/shakespeare_char/prepare.py", "--out_dir=data/other")
    run = scripts(*prepare, f"--vocab_from={trained}", "--input=other.txt", status=None)
    assert f"'Z' ({text.count('d'):,} times)" in run.err
    scripts(*prepare, f"--vocab_from={trained}", "--input=fewer.txt")
    scripts(*start)
    metas = [json.loads((scripts.folder / f"data/{name}/meta.json").read_text(encoding="utf-8"))
             for name in ("other", "shakespeare_char")]
    assert metas[0]["vocab"] == metas[1]["vocab"]
    before = (scripts.folder / "data/other/train.bin").read_bytes()
    scripts(*prepare, "--vocab_from=data/shakespeare_char/meta.json", "--input=fewer.txt")
    assert (scripts.folder / "data/other/train.bin").read_bytes() == before
    scripts(*prepare, "--vocab_from=data/addition/meta.json", "--input=fewer.txt", status=None)
    scripts("train.py", *TINY, f"--init_from={trained}", "--dataset=addition", "--out_dir=tuned2", status=None)


@pytest.mark.parametrize(("theirs", "ours", "words"), [
    ("abc", "abc", ""), ("abc", "acb", "another order"), ("abc", "abcd", "lacks 'd'"), ("abcd", "abc", "data lack 'd'"),
    ("ab" + ABC.upper()[:26], ABC[:28], "21 more")])
def test_how_vocabularies_differ(theirs, ours, words):
    known, meta = (SimpleNamespace(vocab=list(v), vocab_size=len(v), encoding=None) for v in (theirs, ours))
    said = dataset.token_difference(known, len(theirs), meta)
    assert words in said
    assert bool(said) == bool(words)
    bpe = SimpleNamespace(vocab=None, vocab_size=len(ours), encoding="gpt2")
    assert "gpt2" in dataset.token_difference(known, len(theirs), bpe)
    assert "gpt2" in dataset.token_difference(bpe, len(theirs), meta)
    assert not dataset.token_difference(bpe, 64, bpe)


def test_a_checkpoint_of_nanogpt_beside_other_data(here):
    """It is found in its out_dir, and the numbers of tokens are all there is to compare."""
    (here / "run").mkdir()
    nanogpt("run/ckpt.pt", 29)
    model, meta, _, path = checkpoint.open_model("", "run", "cpu", {})
    assert (path, meta.vocab_size, model.config.vocab_size) == ("run/ckpt.pt", 29, 29)
    for size in (28, 30, 65):
        nanogpt("run/ckpt.pt", size)
        said = refused("", "run")
        assert f"{size} tokens against 29" in said
        assert "prepare.py --input=FILE --out_dir=data/text" in said
    nanogpt("run/ckpt.pt", 29, name="none")
    assert "data/none/meta.json is missing" in refused("", "run")
    nanogpt("run/ckpt.pt", 29, config={})
    assert "neither its tokens nor its dataset" in refused("", "run")
    (here / "run/ckpt_best.pt").write_text("damaged")
    assert "ckpt_best.pt" in refused("", "run")  # a run of this project comes first


def test_nanogpt_without_its_data_has_the_tokens_of_gpt2(here):
    nanogpt("ckpt.pt", 50304, name="openwebtext")
    model, meta, *_ = checkpoint.open_model("ckpt.pt", "", "cpu", {})
    assert (meta.encoding, meta.vocab_size, model.config.vocab_size) == ("gpt2", 50257, 50257)
    padded = vars(dataset.read_meta("data/text")) | dict(vocab=None, encoding="gpt2", vocab_size=50304)
    nanogpt("ckpt.pt", 50304, meta=padded)  # whose data were padded already
    assert checkpoint.open_model("ckpt.pt", "", "cpu", {})[0].config.vocab_size == 50257


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("looped", [True, False])
def test_ids_that_no_token_has_are_never_drawn(tied, looped):
    """The padding is likeliest by far, in the answer of every loop, too; without it all else stays as it was."""
    args = dict(vocab_size=64, block_size=16, n_layer=1, n_head=2, n_embd=16, tie_weights=tied)
    model = (LoopGPT(LoopConfig(**args, num_loops=3)) if looped else GPT(GPTConfig(**args))).double().eval()
    torch.nn.init.normal_(model.lm_head.weight)
    idx = torch.randint(0, 50, (4, 9))
    whole = model.logits(idx)
    model.lm_head.weight.data[50:] = 9 * model.transformer.ln_f(model.transformer.wte(idx))[0, :1].detach()
    model.crop_vocabulary(50)
    torch.testing.assert_close(model.logits(idx), whole[..., :50])
    assert model.generate(idx, 20, temperature=2.0).max() < 50
    if looped:
        record = model.think(idx)[1]
        assert record["prediction"].max() < 50
        assert record["entropy"].nan_to_num().max() <= math.log(50) + 1e-5
    model.crop_vocabulary(64)  # there is nothing to add
    assert model.config.vocab_size == len(model.lm_head.weight) == 50


def test_training_on_with_a_padded_vocabulary(scripts, monkeypatch):
    """As a model of 50,304 tokens on the 50,257 of GPT-2, in small."""
    coder = tiktoken.Encoding("bytes", pat_str=r".|\n", special_tokens={"<|endoftext|>": 256},
                              mergeable_ranks={bytes([i]): i for i in range(256)})
    monkeypatch.setattr(dataset, "bpe", lambda name: coder)
    monkeypatch.chdir(scripts.folder)
    tokens = np.random.default_rng(0).integers(0, 257, 3000)
    dataset.write_dataset("data/bytes", dict(train=tokens[:2000], val=tokens[2000:]), kind="text", vocab=None,
                          encoding="gpt2", vocab_size=257)
    nanogpt("padded.pt", 320, name="bytes")
    for start in ("padded.pt", "out_padded/ckpt_last.pt"):
        scripts("train.py", "--device=cpu", "--model_type=gpt", "--n_layer=1", "--dataset=bytes", "--batch_size=4",
                "--max_iters=2", "--eval_iters=1", "--block_size=16", f"--init_from={start}", "--out_dir=out_padded")
    model, meta, saved, _ = checkpoint.open_model("", "out_padded", "cpu", {})
    assert (saved["model_args"]["vocab_size"], meta.vocab_size, model.config.vocab_size) == (320, 257, 257)
    written = model.generate(torch.tensor([[256]]), 12, temperature=1e4)[0]
    assert len(dataset.decode(meta, written)) >= 12
    nanogpt("padded.pt", 200, name="bytes")
    assert "200 tokens against 257" in scripts("evaluate.py", "--checkpoint=padded.pt", status=None).err


# ---- damaged

@pytest.fixture
def good(here):
    """A checkpoint of this project, as a dict; open_model takes it."""
    args = vars(LoopConfig(vocab_size=29, block_size=16, n_head=2, n_embd=16, num_loops=[1, 2]))
    saved = dict(model=LoopGPT(LoopConfig(**args)).state_dict(), model_args=args, config=dict(dataset="text"),
                 meta=vars(dataset.read_meta("data/text")), iter_num=3, best_val_loss=2.0, optimizer={})
    torch.save(saved, "ckpt.pt")
    checkpoint.open_model("ckpt.pt", "", "cpu", {})
    return saved


def test_untrained_weights_have_no_padding_either(good):
    args = good["model_args"] | dict(vocab_size=64)
    torch.save(good | dict(model_args=args, model=LoopGPT(LoopConfig(**args)).state_dict()), "ckpt.pt")
    model, _, saved, _ = checkpoint.open_model("ckpt.pt", "", "cpu", dict(num_loops=3))
    fresh = analyze.untrained(model, saved, dict(num_loops=3))
    assert fresh.config == model.config
    assert fresh.config.vocab_size == len(fresh.lm_head.weight) == 29
    assert not torch.equal(fresh.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("key", ["model", "model_args", "meta", "config", "optimizer", "iter_num", "best_val_loss",
                                 "ema"])
def test_parts_of_another_type(good, key):
    for wrong in (None, "x", [1], 5 if key not in ("iter_num", "best_val_loss") else {}):
        torch.save(good | {key: wrong}, "ckpt.pt")
        assert re.search(rf"ckpt\.pt is damaged: {key} ", refused())


@pytest.mark.parametrize("key", ["model", "model_args"])
def test_parts_that_are_missing(good, key):
    torch.save({k: v for k, v in good.items() if k != key}, "ckpt.pt")
    assert f"has no {key}" in refused()


@pytest.mark.parametrize(("part", "change", "words"), [
    ("model_args", {"n_layer": "x"}, "n_layer 'x'"), ("model_args", {"n_embd": None}, "n_embd None"),
    ("model_args", {"n_head": 0}, "n_head"), ("model_args", {"vocab_size": -29}, "vocab"),
    ("model_args", {"vocab_size": "29"}, "vocab_size '29'"), ("model_args", {"bias": 2}, "bias 2"),
    ("model_args", {"num_loops": ["a"]}, "num_loops ['a']"), ("model_args", {"num_loops": []}, "num_loops"),
    ("model_args", {"other": 1}, "other"), ("model_args", {7: 1}, "7"), ("model_args", {"n_embd": 32}, "do not fit"),
    ("model_args", {"halt": "sometimes"}, "sometimes"), ("model_args", {"number_tokens": "abc"}, "number_tokens"),
    ("model_args", {"dropout": [0.1]}, "dropout"),
    ("meta", {"vocab": None}, "vocab"), ("meta", {"vocab": list(range(29))}, "vocab"),
    ("meta", {"vocab": list(ABC) + ["é"], "vocab_size": 30}, "fewer tokens"), ("meta", {"kind": "pictures"}, "kind"),
    ("model", {"lm_head.weight": 5}, "not tensors"),
    ("model", {"lm_head.weight": torch.eye(3).to_sparse()}, "not tensors"),
    ("model", {"lm_head.weight": torch.zeros(29, 16, dtype=torch.complex64)}, "not tensors"),
    ("model", {3: torch.zeros(1)}, "not tensors"),
    ("model", {"more": torch.zeros(1)}, "more on one side"),
    ("model", {"lm_head.weight": torch.full((29, 16), math.nan)}, "not finite"),
    ("model", {"lm_head.weight": torch.full((29, 16), math.inf)}, "not finite")])
def test_values_that_do_not_fit(good, part, change, words):
    torch.save(good | {part: good[part] | change}, "ckpt.pt")
    said = refused()
    assert words in said
    assert "ckpt.pt" in said
    assert len(said.splitlines()) == 1


def test_a_dataset_that_is_no_name(good):
    torch.save({k: v for k, v in good.items() if k != "meta"} | dict(config=dict(dataset=5)), "ckpt.pt")
    assert "neither its tokens nor its dataset" in refused()


@pytest.mark.parametrize(("content", "words"), [(b"not a checkpoint\n" * 9, "damaged, or no checkpoint at all"),
                                                (b"", "damaged"), (b"PK\x03\x04" + bytes(99), "damaged")])
def test_other_files(here, capfd, content, words):
    (here / "ckpt.pt").write_bytes(content)
    assert words in refused()
    assert refused(".").startswith(". is a folder")
    assert capfd.readouterr() == ("", "")


def test_a_run_that_cannot_be_resumed(scripts, trained):
    """Each in a line or two, and what stands there stays."""
    whole = torch.load(scripts.folder / trained, weights_only=True)
    (scripts.folder / "broken").mkdir()
    path = scripts.folder / "broken/ckpt_last.pt"
    nan = {k: torch.full_like(x, math.nan) for k, x in whole["model"].items()}
    moments = {i: dict(state, exp_avg=torch.zeros(3)) for i, state in whole["optimizer"]["state"].items()}
    for change, words in ((dict(optimizer={}), "KeyError: 'state'"), (dict(optimizer=dict(state=[1])), "resumed"),
                          (dict(optimizer=dict(state=moments)), "does not fit its weights"),
                          (dict(best_val_loss=math.nan), "best_val_loss nan"), (dict(iter_num=-1), "iter_num -1"),
                          (dict(model=nan), "not finite"), (dict(meta=whole["meta"] | dict(vocab=[])), "vocab"),
                          (dict(ema=nan, config=whole["config"] | dict(ema_decay=0.9)), "not finite"),
                          (("best_val_loss",), "no best_val_loss"), (("optimizer",), "no optimizer")):
        torch.save(whole | change if isinstance(change, dict) else {k: whole[k] for k in whole.keys() - set(change)},
                   path)
        before = path.read_bytes()
        run = scripts("train.py", *TINY, "--dataset=shakespeare_char", "--out_dir=broken", "--init_from=resume",
                      status=None)
        assert words in run.err
        assert "good" not in run.err
        assert path.read_bytes() == before


@pytest.mark.parametrize(("overrides", "said"), [
    (dict(halt="entropy"), True), (dict(halt="kl", num_loops=2), True), (dict(halt="entropy", think_loops=2), False),
    (dict(halt="entropy", halt_threshold=0.1), False), (dict(halt="confidence"), False), (dict(halt="none"), False),
    ({}, False)])
def test_a_threshold_that_nobody_chose_for_the_model_is_named(good, capsys, overrides, said):
    """Where a rule is asked for that is not the checkpoint's own, and no threshold is."""
    outputs.warn.cache_clear()
    args = good["model_args"] | dict(halt="confidence", halt_threshold=0.99, think_token=3)
    torch.save(good | dict(model_args=args), "ckpt.pt")
    checkpoint.open_model("ckpt.pt", "", "cpu", overrides)
    rule = overrides.get("halt", "none")
    line = (f"halt={rule} at its default {RULES[rule].threshold:g} was not chosen for this model: evaluate.py shows "
            "what it costs\n")
    assert capsys.readouterr().err == line * said


@pytest.mark.parametrize(("overrides", "said"), [
    (dict(prompt_loops=3, think_loops=9), True), (dict(think_loops=9), False), (dict(prompt_loops=3), False),
    (dict(prompt_loops=3, think_loops=4), False), (dict(prompt_loops=4, think_loops=9), False),
    (dict(prompt_loops=3, think_loops=9, num_loops=2), True), ({}, False)])
def test_reading_faster_than_in_training_and_thinking_on_is_named(good, capsys, overrides, said):
    """Where the prompt takes fewer loops than every training step and the answer more."""
    for trained, warned in ((5, said), ([0, 6, 4], said), ([0, 3, 5], False)):  # of the last some prompts took 3
        outputs.warn.cache_clear()
        args = good["model_args"] | dict(num_loops=[8, 4, 6], prompt_loops=trained, think_token=3, halt="confidence")
        torch.save(good | dict(model_args=args), "ckpt.pt")
        checkpoint.open_model("ckpt.pt", "", "cpu", overrides)
        err = capsys.readouterr().err
        assert ("prompt_loops=3 with think_loops=9: in training every token took 4 loops or more" in err) == warned
        assert err.count("\n") == warned


RULE, FIXED = "halt=confidence for the prompt with think_loops=9", dict(halt="none", num_loops=9)


@pytest.mark.parametrize(("overrides", "said"), [
    (dict(think_loops=9), RULE), (dict(think_loops=4), ""), (dict(think_loops=9, min_loops=4), ""),
    (dict(think_loops=9, halt="none"), ""), (dict(think_loops=9, prompt_loops=4), ""),
    (FIXED | dict(prompt_loops=3), "prompt_loops=3 with num_loops=9 for the answer"),
    (FIXED | dict(num_loops=3, think_loops=9), "num_loops=3 for the prompt with think_loops=9"),
    (FIXED | dict(prompt_loops=4), ""), (FIXED | dict(num_loops=3, prompt_loops=0), ""), (dict(prompt_loops=3), "")])
def test_reading_by_a_rule_or_at_a_fixed_depth_and_thinking_on_is_named(good, capsys, overrides, said):
    """Where a rule may stop the prompt before every training step, or num_loops gives it fewer loops or the answer
    more, and the answer takes more loops."""
    outputs.warn.cache_clear()
    args = good["model_args"] | dict(num_loops=[8, 4, 6], think_token=3, prompt_loops=0, halt="confidence")
    torch.save(good | dict(model_args=args), "ckpt.pt")
    checkpoint.open_model("ckpt.pt", "", "cpu", overrides)
    err = capsys.readouterr().err
    assert err.startswith(said and f"{said}: in training every token took 4 loops or more")
    assert err.count("\n") == bool(said)
