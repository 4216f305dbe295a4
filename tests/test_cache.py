"""Generation with cached keys and values, against reading every token's whole window again: token for token, loop for
loop, in float64, where ties do not flip. Every run draws new models, prompts and settings."""
import itertools

import pytest
import torch
from models import halfway, random_weights

import generate
from looplm_kernels import RULES
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
        halfway(model, torch.randint(V - 2, (4, 20)), rule)
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
    halt=list(RULES), inject=["add", "none", "concat", "decay"], step_encoding=["none", "learned", "sinusoid", "rope"],
    pos=["learned", "rope", "place", "next", "none"], update=list(STAGES), n_layer=[1, 2],
    extra=[{}, dict(loop_norm=True), dict(log_scale=3), dict(bias=True), dict(min_loops=2), dict(alpha="gate"),
           dict(alpha="learned"), dict(prompt_loops=2), dict(think_loops=L + 2), dict(prompt_loops=L, think_loops=1)])


def drawn(**fixed):
    """Settings of a model: those that are fixed, all others at random."""
    one = {k: v[int(torch.randint(len(v), ()))] for k, v in SETTINGS.items()} | fixed
    extra, pos = one.pop("extra"), one["pos"]
    if one["update"] == "replace" and "alpha" in extra or one["step_encoding"] == "learned" and "think_loops" in extra:
        extra = {}
    if pos in ("place", "next"):
        one |= PLACE | dict(place_next=pos == "next")
    print(one, extra)
    return one | extra


@pytest.mark.third
@pytest.mark.parametrize(("rule", "inject", "step_encoding", "pos"), list(itertools.product(
    RULES, SETTINGS["inject"], SETTINGS["step_encoding"], SETTINGS["pos"])))
def test_cached_equals_reread(rule, inject, step_encoding, pos):
    """Updates, blocks in the loop, wait-to-think and the rest by chance; prompts of mixed lengths, pads among them."""
    model = make(**drawn(halt=rule, inject=inject, step_encoding=step_encoding, pos=pos))
    assert_same(model, prompts(3, 10), 4, temperature=0, trace=bool(torch.randint(2, ())))


@pytest.mark.parametrize("update", STAGES)
@pytest.mark.parametrize("n_layer", [1, 2])
def test_in_long_texts(update, n_layer):
    """Prompts of 1 to 300 tokens, beyond the window of learned positions too, and draws."""
    for pos in ("learned", "place"):
        model = make(**drawn(update=update, n_layer=n_layer, pos=pos, extra={}))
        given = [torch.randint(V, (n,)).tolist() for n in (1, int(torch.randint(1, 301, ())))]
        options = dict(temperature=1.3, top_k=int(torch.randint(0, V, ())), seed=int(torch.randint(2 ** 40, ())))
        assert_same(model, given, int(torch.randint(1, 2 * BLOCK, ())), **options)


def test_anderson():
    for rule in ("none", "delta", "confidence"):
        model = make(**drawn(halt=rule, step_encoding="none", extra=dict(anderson=2)))
        assert_same(model, prompts(6, 10), 6, temperature=0)


@pytest.mark.parametrize("n_layer", [1, 3])
def test_a_plain_gpt(n_layer):
    model = random_weights(GPT(GPTConfig(vocab_size=V, block_size=BLOCK, n_layer=n_layer, n_head=2, n_embd=C)))
    found = assert_same(model, prompts(4, 60), 30, temperature=1.0)
    assert all(loops == [] for _, loops, _, _ in found.values())


@pytest.mark.parametrize("reread", [False, True])
def test_windows(reread):
    """Where learned positions end, the window loses its first half of block_size, whatever the prompt's length."""
    model = make(block_size=8, update="replace")
    found = written(model, [[1] * n for n in (1, 8, 9, 30)], 10, temperature=0, reread=reread)
    starts = {n: next(s for s in range(0, 99, 4) if n - s <= 8) for n in range(1, 40)}
    for n, (_, _, seen, _) in zip((1, 8, 9, 30), found.values(), strict=True):
        assert seen == [starts[m] for m in range(n, n + 10)]
    one = make(block_size=1, update="replace")
    assert written(one, [[1, 2, 3]], 3, reread=reread)[0][2] == [2, 3, 4]
