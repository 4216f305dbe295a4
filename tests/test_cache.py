"""Generation with cached keys and values, against reading every token's whole window again: token for token, loop for
loop, in float64, where ties do not flip. Every run draws new models, prompts and settings."""
import copy
import itertools
import math

import pytest
import torch
from models import EASY, RULES_OF_BLOCKS, halfway, random_weights

import generate
from model import GPT, GPTConfig
from model_loop import STAGES, LoopConfig, LoopGPT

V, C, L, BLOCK = 13, 16, 4, 24
PAD, THINK = 12, 11
PLACE = dict(pos="place", number_tokens=tuple(range(10)), place_ids=400, place_subset=0)


@pytest.fixture(autouse=True)
def seed(rng):
    torch.manual_seed(int(rng.integers(2 ** 31)))


def make(**overrides):
    settings = dict(vocab_size=V, block_size=BLOCK, n_head=2, n_embd=C, num_loops=L, halt_head="joint", pad_token=PAD,
                    think_token=THINK, tie_weights=False) | overrides
    if settings["update"] != "replace":
        settings.setdefault("alpha", 0.3)
    model = random_weights(LoopGPT(LoopConfig(**settings)))
    rule = model.config.halt
    if rule != "none":  # a rule that some tokens pass early, others late
        model.config.halt = "none"
        halfway(model, torch.randint(V - 2, (8, min(20, model.config.block_size))), rule)
    return model


def prompts(n, longest):
    """Prompts of random lengths, most of which have a think token and pads somewhere."""
    lengths = [int(x) for x in torch.randint(1, longest + 1, (n,))]
    return [torch.randint(V, (t,)).tolist() for t in lengths]


def written(model, given, n, **options):
    """{row: (tokens, loops, windows' starts, trace)} of all that `write` yields."""
    found = {i: ([], [], [], []) for i in range(len(given))}
    for burst in generate.write(model, given, n, **options):
        lists = [burst.tokens, burst.loops or [[]] * len(burst.rows), [[s] for s in burst.start],
                 [[t] for t in burst.trace or [None] * len(burst.rows)]]
        for row, *parts in zip(burst.rows, *lists, strict=True):
            for total, part in zip(found[row], parts, strict=True):
                total += part
    return found


def assert_same(model, given, n, **options):
    """Cached and re-read are the same; returns what was written."""
    cached, again = (written(model, given, n, reread=reread, **options) for reread in (False, True))
    for row, (tokens, loops, starts, trace) in cached.items():
        assert (tokens, loops, starts) == again[row][:3]
        for got, want in zip(trace, again[row][3], strict=True):
            if got is not None:
                torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7, equal_nan=True)
    return cached


SETTINGS = dict(
    halt=RULES_OF_BLOCKS, inject=["add", "none", "concat", "decay"],
    step_encoding=["none", "learned", "sinusoid", "rope"],
    pos=["learned", "rope", "place", "next", "none"], update=list(STAGES), n_layer=[1, 2],
    tie_loops=[True, False], block=["nanogpt", "modern", "geglu+after"], n_kv_head=[0, 1],
    keys=["state", "x0"], start=["x0", "x0", "zero", "learned", "random"],
    extra=[{}, dict(loop_norm=True), dict(log_scale=3), dict(bias=True), dict(min_loops=2), dict(gate_encoding=True),
           dict(alpha="gate"), dict(alpha="learned"), dict(prompt_loops=[0, 2]), dict(think_loops=L + 2),
           dict(prompt_loops=L, think_loops=1)])


def drawn(**fixed):
    """Settings of a model: those that are fixed, all others at random."""
    one = {k: v[int(torch.randint(len(v), ()))] for k, v in SETTINGS.items()} | fixed
    extra, pos = one.pop("extra"), one["pos"]
    if one["inject"] == "none":
        one["start"] = "x0"
    ends = one["step_encoding"] == "learned" or not one["tie_loops"]
    if one["update"] == "replace" and "alpha" in extra or ends and extra.get("think_loops", 0) > L:
        extra = {}
    if pos in ("place", "next"):
        one |= PLACE | dict(place_next=pos == "next", place_end=pos == "next")
    print(one, extra)
    return one | extra


@pytest.mark.third
@pytest.mark.parametrize(("rule", "inject", "step_encoding", "pos"), list(itertools.product(
    RULES_OF_BLOCKS, SETTINGS["inject"], SETTINGS["step_encoding"], SETTINGS["pos"])))
def test_cached_equals_reread(rule, inject, step_encoding, pos):
    """Updates, blocks in the loop, wait-to-think and the rest by chance; prompts of mixed lengths, pads among them."""
    model = make(**drawn(halt=rule, inject=inject, step_encoding=step_encoding, pos=pos))
    assert_same(model, prompts(2, 10), 3, temperature=0, trace=bool(torch.randint(2, ())))


@pytest.mark.parametrize("update", STAGES)
@pytest.mark.parametrize("n_layer", [1, 2])
def test_in_long_texts(update, n_layer):
    """Prompts of 1 to 300 tokens, beyond the window of learned positions too, and draws."""
    for pos in ("learned", "place"):
        model = make(**drawn(update=update, n_layer=n_layer, pos=pos, extra={}))
        given = [torch.randint(V, (n,)).tolist() for n in (1, int(torch.randint(1, 301, ())))]
        options = dict(temperature=1.3, top_k=int(torch.randint(0, V, ())), seed=int(torch.randint(2 ** 40, ())))
        assert_same(model, given, int(torch.randint(1, 2 * BLOCK if pos == "learned" else 9, ())), **options)


@pytest.mark.parametrize("rule", RULES_OF_BLOCKS)
@pytest.mark.parametrize("step_encoding", ["none", "learned"])
def test_loops_with_blocks_of_their_own(rule, step_encoding):
    """What a halted token owes to each later loop is by that loop's block."""
    model = make(**drawn(halt=rule, step_encoding=step_encoding, n_layer=1, tie_loops=False))
    assert_same(model, prompts(4, 10), 8, temperature=0, trace=True)


@pytest.mark.parametrize("step_encoding", ["none", "learned"])
@pytest.mark.parametrize("tie_loops", [True, False])
def test_keys_of_the_input(step_encoding, tie_loops):
    """Who halts owes the keys of its input, the same in all loops of one block."""
    for rule in ("entropy", "kl"):
        model = make(**drawn(halt=rule, step_encoding=step_encoding, keys="x0", n_layer=1, tie_loops=tie_loops))
        assert_same(model, prompts(4, 10), 8, temperature=0, trace=True)
    assert len(generate.KVCache(model, 1, 9).kv) == (1 if tie_loops else generate.KVCache(model, 1, 9).loops)


@pytest.mark.parametrize("n_kv_head", [1, 2])
@pytest.mark.parametrize("pos", ["learned", "rope", "place"])
def test_a_modern_block(pos, n_kv_head):
    """Keys are normed before they are kept or owed, and as many are kept as there are heads of them."""
    for rule in ("entropy", "kl"):
        model = make(**drawn(halt=rule, pos=pos, block="modern", n_layer=1, n_kv_head=n_kv_head,
                             extra=dict(n_head=4, log_scale=3)))
        assert_same(model, prompts(4, 10), 8, temperature=0, trace=True)
    assert generate.KVCache(model, 1, 9).kv[0].shape[3] == n_kv_head


def test_anderson():
    for rule in ("none", "delta", "confidence"):
        model = make(**drawn(halt=rule, step_encoding="none", tie_loops=True, extra=dict(anderson=2)))
        assert_same(model, prompts(6, 10), 6, temperature=0)


@pytest.mark.parametrize("n_layer", [1, 3])
def test_a_plain_gpt(n_layer):
    model = random_weights(GPT(GPTConfig(vocab_size=V, block_size=BLOCK, n_layer=n_layer, n_head=2, n_embd=C, **(
        dict(block="modern", n_kv_head=1) if n_layer > 1 else {}))))
    found = assert_same(model, prompts(4, 60), 30, temperature=1.0)
    assert all(loops == [] for _, loops, _, _ in found.values())


def test_windows():
    """Where learned positions end, the window loses its first half of block_size, whatever the prompt's length."""
    model, lengths = make(**drawn(pos="learned", extra={}), block_size=8), (1, 5, 8, 9, 9, 12, 30)
    found = assert_same(model, [torch.randint(V, (n,)).tolist() for n in lengths], 20, temperature=0)
    for n, (_, _, seen, _) in zip(lengths, found.values(), strict=True):
        assert seen == [next(s for s in range(0, 99, 4) if m - s <= 8) for m in range(n, n + 20)]
    one = make(block_size=1, update="replace")
    assert assert_same(one, [[1, 2, 3]], 3)[0][2] == [2, 3, 4]


# ---- many sequences at once

def near(model, given, tokens):
    """Whether rounding may have decided what follows the tokens: a score within 1e-5 of its threshold, or two tokens
    as likely as that."""
    exact = copy.deepcopy(model).double()
    idx = torch.tensor([given + tokens])
    logits, record = generate.read_whole(exact, idx, trace=True, last=True)
    gap = logits[0].topk(2).values.diff().abs().item()
    return gap < 1e-5 or bool(((record["score"] - model.config.halt_threshold).abs() < 1e-5).any())


@pytest.mark.parametrize("rule", ["confidence", "entropy", "kl", "delta", "gate"])
def test_alone_and_in_a_batch(rule):
    """float32: the products of another number of rows may round otherwise, but what is written is the same."""
    model = make(**drawn(halt=rule, n_layer=1)).float()
    given = prompts(7, 20)
    together = written(model, given, 5, temperature=0)
    for row, prompt in enumerate(given):
        alone = written(model, [prompt], 5, temperature=0)[0][:2]
        if alone == together[row][:2]:
            continue
        same = next(i for i, pair in enumerate(zip(zip(*alone, strict=True), zip(*together[row][:2], strict=True),
                                                   strict=True)) if pair[0] != pair[1])
        assert near(model, prompt, alone[0][:same])


def test_draws_are_a_sequences_own(monkeypatch):
    """Neither its neighbours nor the memory there is for them changes what a seed draws; its place among them does."""
    model, given, seed = make(halt="confidence", pos="rope", update="replace"), prompts(4, 12), 2 ** 61 + 5
    found = written(model, given, 12, seed=seed)
    others = written(model, [[1], given[1], [2] * 20, given[3]], 12, seed=seed)
    assert [found[i] for i in (1, 3)] == [others[i] for i in (1, 3)]
    monkeypatch.setattr(generate, "CACHE_BYTES", 1)  # one after the other
    assert written(model, given, 12, seed=seed) == found
    same = written(model, [given[0]] * 3, 30, seed=seed)
    assert len({tuple(tokens) for tokens, *_ in same.values()}) == 3
    assert written(model, given, 12, seed=seed + 1) != found


def test_noise_is_gumbels():
    """Its mean and variance, and no correlation between seeds, sequences, tokens written and vocabulary."""
    rows, noise = torch.arange(500), []
    for seed, t in ((7, 0), (7, 1), (8, 0), (2 ** 62, 10 ** 6)):
        noise.append(generate.gumbel_noise(seed, rows, t, 400).double())
        assert noise[-1].mean() == pytest.approx(0.577216, abs=6 * 1.2825 / 447)
        assert noise[-1].var() == pytest.approx(math.pi ** 2 / 6, abs=0.1)
    noise += [noise[0].roll(1, 0), noise[0].roll(1, 1), noise[0].roll((1, -1), (0, 1))]
    correlation = torch.corrcoef(torch.stack([x.flatten() for x in noise]))
    assert (correlation - torch.eye(len(noise))).abs().max() < 6 / 447


def test_each_sequence_ends_by_itself():
    """By its stop token, or where its room ends; a prompt without room is only read."""
    model = make(halt="none", update="replace", pos="rope")
    given, room = prompts(5, 9), [6, 0, 9, 1, 6]
    free = written(model, given, 9, temperature=0)
    stop = free[0][0][2]
    found, ends = written(model, given, room, temperature=0, stop=stop), {}
    for burst in generate.write(model, given, room, temperature=0, stop=stop):
        ends |= dict(zip(burst.rows, burst.done, strict=True))
    assert all(ends.values())
    for row, (tokens, *_) in found.items():
        until = free[row][0][:room[row]]
        assert tokens == (until[:until.index(stop) + 1] if stop in until else until)


# ---- what it costs

def count(model, monkeypatch):
    """A list to which every loop adds how many tokens it computed."""
    counted, loop = [], model.loop

    def counting(h, *args):
        counted.append(h.shape[0] * h.shape[1])
        return loop(h, *args)
    monkeypatch.setattr(model, "loop", counting)
    return counted


def test_a_token_costs_the_loops_it_takes(monkeypatch):
    """Nothing is read twice before a window ends; many at once take at most twice the loops that their tokens do."""
    model = make(halt="confidence", update="replace", pos="rope")
    counted = count(model, monkeypatch)
    prompt = torch.randint(V - 2, (7,)).tolist()
    tokens, loops, *_ = written(model, [prompt], 20, temperature=1.0)[0]
    assert PAD in tokens or counted[-sum(loops[1:]):] == [1] * sum(loops[1:])
    assert sum(counted) <= len(prompt) * L + sum(max(1, l) for l in loops[1:])
    counted.clear()
    found = written(model, [[1], [2], [3], [4], [5], [6], [7], [8]], 20, temperature=1.0)
    assert sum(counted) <= 2 * sum(max(1, l) for _, loops, *_ in found.values() for l in loops) + 8 * L
    fixed = make(halt="none", pos="learned", update="replace")
    counted = count(fixed, monkeypatch)
    written(fixed, [prompt], BLOCK - 7, temperature=1.0)
    assert sum(counted) == L * (BLOCK - 1)


@pytest.mark.parametrize("step_encoding", ["none", "learned"])
def test_memory(step_encoding):
    """At most 2 C numbers a token, loop, stage and block, and no loop that nobody takes, where all are alike."""
    model = make(halt="confidence", step_encoding=step_encoding, update="heun", pos="rope")
    model.config.halt_threshold = EASY["confidence"]  # all halt in loop 1
    cache = generate.KVCache(model, 3, 90)
    generate.prefill(model, torch.randint(V, (3, 70)), cache)
    generate.decode_one_token(model, torch.randint(V, (3, 1)), cache)
    assert sum(kv.numel() for kv in cache.kv) == 3 * 90 * 2 * C * 2 * (2 if step_encoding == "none" else L)
