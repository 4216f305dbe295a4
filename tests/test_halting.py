"""Halting: the adaptive loop against a slow one that asks every token by itself, and what has to hold for any model.

The models run in float64, so that a score next to its threshold cannot tip over. Every run draws new inputs.
"""
import math

import pytest
import torch
from models import EASY, NEVER, RULES_OF_BLOCKS, halfway, random_weights
from torch.distributions import Categorical, kl_divergence

import think
from kernels import backend
from looplm_kernels import RULES, halt_score, halt_update, head_halt_reference, softmax_statistics
from model_loop import LoopConfig, LoopGPT, from_checkpoint

V, T, C, L = 13, 11, 16, 5
PAD, THINK = 12, 11
SCORED = [rule for rule in RULES_OF_BLOCKS if rule != "none"]
STEPS = [{"update": "replace"}, {"update": "euler", "alpha": 0.25}, {"update": "euler", "alpha": "learned"},
         {"update": "euler", "alpha": "gate"}, {"update": "heun", "alpha": "gate"}, {"update": "rk4", "alpha": 0.5}]
STEP_NAMES = ["replace", "euler", "learned", "gate", "heun", "rk4"]


@pytest.fixture(autouse=True)
def _fresh_seed():
    print("seed", torch.seed())  # pytest shows it when a test fails


def make(**overrides):
    settings = {"vocab_size": V, "block_size": T, "n_head": 2, "n_embd": C, "num_loops": L, "halt_head": "joint",
                "halt_threshold": 0.9, "pad_token": PAD, "think_token": THINK, "tie_weights": False} | overrides
    return random_weights(LoopGPT(LoopConfig(**settings)))


def tokens(B=3, length=T, think=True):
    """Rows of random tokens with one think token each; the later rows end in pads."""
    idx = torch.randint(THINK, (B, length))
    for b in range(B):
        if think:
            idx[b, int(torch.randint(1, length - 3, ()))] = THINK
        idx[b, length - b % 3:] = PAD
    return idx


# ---- the slow reference

def probabilities(logits):
    e = [math.exp(z - max(logits)) for z in logits]
    return [x / sum(e) for x in e]


def step_size(model, h, x0):
    """alpha of one token, a Python number."""
    c = model.config
    if c.update == "replace":
        return 1.0
    if c.alpha == "learned":
        return model.step_size.item()
    if c.alpha == "gate":
        return 1 / (1 + math.exp(-(model.step_gate.weight[0] @ torch.cat((h, x0)) + model.step_gate.bias).item()))
    return c.alpha


def gate(model, h, l):
    """What the halt head says of one state h (C,)."""
    s = torch.zeros(C) if model.step_encoding(l) is None else model.step_encoding(l)
    first, _, second = model.halt_head
    u = first.weight @ torch.cat((h, s)) + first.bias
    odds = second.weight[0] @ (u * 0.5 * (1 + torch.erf(u / math.sqrt(2)))) + second.bias[0]
    return 1 / (1 + math.exp(-odds.item()))


@torch.no_grad()
def ask_every_token(model, idx, rule, threshold, limit, loops_asked):
    """The adaptive loop, one token after the other: h, loops and the trace as nested lists of B, T, loop.

    threshold, limit: functions of (b, t). Every token takes every loop; those that have halted drop the result.
    """
    x0 = h = model.embed(idx)
    B, length = idx.shape
    pad = model.config.pad_token
    running = [[pad is None or int(idx[b, t]) != pad for t in range(length)] for b in range(B)]
    loops = [[0] * length for _ in range(B)]
    trace = {key: [[[math.nan] * loops_asked for _ in range(length)] for _ in range(B)]
             for key in ("entropy", "confidence", "delta", "score", "prediction")}
    for l in range(1, loops_asked + 1):
        candidate, kept = model.loop(h, x0, l, torch.tensor(running)), h.clone()
        said, would_say = model.readout(h).tolist(), model.readout(candidate).tolist()
        for b in range(B):
            for t in range(length):
                if not running[b][t]:
                    trace["prediction"][b][t][l - 1] = said[b][t].index(max(said[b][t]))
                    continue
                old, new, z = h[b, t], candidate[b, t], would_say[b][t]
                p, q = probabilities(z), probabilities(said[b][t])
                seen = {"confidence": max(p), "entropy": -sum(x * math.log(x) for x in p if x),
                        "delta": math.dist(new.tolist(), old.tolist()) / math.hypot(*old.tolist())}
                score = seen.get(rule, math.nan)
                if rule == "delta":
                    score /= step_size(model, old, x0[b, t])
                if rule == "kl" and l > 1:
                    score = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
                if rule == "gate":
                    score = gate(model, new, l)
                passes = score >= threshold(b, t) if rule in ("confidence", "gate") else score <= threshold(b, t)
                for key, x in {**seen, "score": score, "prediction": z.index(max(z))}.items():
                    trace[key][b][t][l - 1] = x
                kept[b, t], loops[b][t] = new, l
                running[b][t] = not (passes and l >= model.config.min_loops or l >= limit(b, t))
        h = kept
    return h, loops, trace


def assert_as_asked(model, idx, threshold=None, limit=None, loops_asked=L, **think):
    """model.think equals the slow loop in its state, its loops and its trace. Returns the loops."""
    c = model.config
    rule = "none" if "exact_loops" in think else c.halt
    threshold, limit = threshold or (lambda b, t: c.halt_threshold), limit or (lambda b, t: loops_asked)
    h, loops, trace = ask_every_token(model, idx, rule, threshold, limit, loops_asked)
    got, record = model.think(idx, **think)
    assert record["loops"].tolist() == loops
    torch.testing.assert_close(got, h, rtol=1e-9, atol=1e-9)
    for key, expected in trace.items():
        expected = torch.tensor(expected, dtype=record[key].dtype)
        torch.testing.assert_close(record[key], expected, rtol=1e-4, atol=1e-6, equal_nan=True)
    return record["loops"]


def varied(loops):
    """Tokens that are no pads took different numbers of loops."""
    return len(loops[loops > 0].unique()) > 1


# ---- the adaptive loop

@pytest.mark.third
@pytest.mark.parametrize("step", STEPS, ids=STEP_NAMES)
@pytest.mark.parametrize("rule", SCORED)
def test_every_rule_equals_the_slow_loop(rule, step):
    model = make(inject="decay", step_encoding="learned", **step)
    idx = tokens()
    loops = assert_as_asked(halfway(model, idx, rule), idx)
    assert varied(loops)


@pytest.mark.third
@pytest.mark.parametrize("settings", [
    {"min_loops": 3}, {"pos": "rope", "step_encoding": "rope", "n_layer": 2}, {"loop_norm": True, "inject": "concat"},
    {"pad_token": None, "think_token": None, "vocab_size": 29, "pos": "none", "inject": "none"},
    {"num_loops": [2, L, 3], "step_encoding": "sinusoid", "tie_weights": True}], ids=lambda s: next(iter(s)))
@pytest.mark.parametrize("rule", SCORED)
def test_every_rule_in_other_models(rule, settings):
    model = make(**settings)
    idx = tokens(2) if "vocab_size" not in settings else torch.randint(29, (2, 7))
    assert varied(assert_as_asked(halfway(model, idx, rule), idx))


@pytest.mark.parametrize("rule", SCORED)
def test_forward_reads_the_state_of_the_adaptive_loop(rule):
    """Logits, loss, and the last logits alone; with and without a trace."""
    model, idx = make(), tokens()
    h, loops, _ = ask_every_token(halfway(model, idx, rule), idx, rule, lambda b, t: model.config.halt_threshold,
                                  lambda b, t: L, L)
    expected = model.readout(h)
    targets = torch.where(idx == PAD, -1, torch.randint(V, idx.shape))
    loss = -expected.log_softmax(-1).gather(-1, targets.clamp(0)[..., None])[..., 0][targets >= 0].mean()
    logits, got, record = model(idx, targets, trace=True)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(got, loss)
    assert record["loops"].tolist() == loops
    torch.testing.assert_close(model(idx, targets), (expected, loss))
    torch.testing.assert_close(model(idx)[0], expected[:, -1:])


@pytest.mark.parametrize("block", ["nanogpt", "qk", "modern"])
def test_the_head_kernel_serves_layer_norm_alone(block, monkeypatch):
    """It norms states as a LayerNorm does: with an RMSNorm the halt update takes logits instead."""
    model, idx, called = make(block=block, n_kv_head=1), tokens(), []
    halfway(model, idx, "entropy")
    expected = model.think(idx, trace=False)
    model.config.backend = "torch"  # for the halt update
    monkeypatch.setattr(think, "choose_backend", lambda *args: "cutile")
    monkeypatch.setattr(think, "product_dtype", lambda x: x.dtype)  # which is not float32
    monkeypatch.setattr(think, "head_halt", lambda *args: called.append(1) or head_halt_reference(*args[:-1]))
    h, record = model.think(idx, trace=False)
    assert bool(called) == (block != "modern")
    assert torch.equal(record["loops"], expected[1]["loops"])


def test_num_loops_of_the_call_is_the_limit():
    model, idx = make(), tokens()
    halfway(model, idx, "delta")
    for n in (1, 3, L + 2):
        assert_as_asked(model, idx, loops_asked=n, num_loops=n)


@pytest.mark.parametrize("rule", SCORED)
def test_a_halted_token_does_not_move_while_others_do(rule):
    """Stopped after l loops, tokens that had halted before have, to the bit, the states of one loop earlier."""
    model, idx = make(), tokens()
    halfway(model, idx, rule)
    total = model.think(idx)[1]["loops"]
    assert varied(total)
    before = model.embed(idx)
    for l in range(1, L + 1):
        h, record = model.think(idx, num_loops=l)
        assert torch.equal(record["loops"], total.clamp(max=l))
        still = (h == before).all(-1)
        assert torch.equal(still, total < l)
        before = h


@pytest.mark.parametrize("rule", SCORED)
@pytest.mark.parametrize("min_loops", [1, 3])
def test_thresholds_at_the_extremes(rule, min_loops):
    """All pass: every token halts at once, kl in loop 2, none before min_loops. None passes: L loops."""
    model, idx = make(halt=rule, min_loops=min_loops), tokens()
    model.config.halt_threshold = EASY[rule]
    first = max(min_loops, 2 if rule == "kl" else 1)
    assert torch.equal(model.think(idx)[1]["loops"], (idx != PAD) * first)
    model.config.halt_threshold = NEVER[rule]
    h, record = model.think(idx)
    assert torch.equal(record["loops"], (idx != PAD) * L)
    real = idx != PAD
    torch.testing.assert_close(h[real], list(model.states(idx))[-1][real], rtol=0, atol=0)


@pytest.mark.parametrize("alpha", [0.01, "learned", "gate"])
def test_a_small_step_cannot_pass_for_convergence(alpha):
    """With euler the score of delta is the change per unit of alpha: how far a whole step would go."""
    model, idx = make(update="euler", alpha=alpha, halt="delta", halt_threshold=-1.0), tokens()
    h, first, real = model.embed(idx), next(iter(model.states(idx))), idx != PAD
    whole = (model.transformer.h[0](h) - h).norm(dim=-1) / h.norm(dim=-1)
    taken = (first - h).norm(dim=-1) / h.norm(dim=-1)
    record = model.think(idx)[1]
    score, delta = record["score"][..., 0], record["delta"][..., 0]
    torch.testing.assert_close(score[real], whole[real].float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(delta[real], taken[real].float(), rtol=1e-4, atol=1e-6)
    model.config.halt_threshold = 0.99 * score[real].min().item()
    assert (model.think(idx)[1]["loops"][real] > 1).all()
    model.config.halt_threshold = 1.01 * score[real].max().item()
    assert (model.think(idx)[1]["loops"][real] == 1).all()


# ---- wait-to-think

def written(idx):
    """True (B,T) from the think token on, by a plain loop."""
    return torch.tensor([[THINK in row[:t + 1] for t in range(len(row))] for row in idx.tolist()])


@pytest.mark.parametrize("rule", SCORED)
def test_another_rule_starts_from_its_own_threshold(rule):
    """A threshold of another rule does not leak into the one that evaluation or sampling asks for."""
    old = "kl" if rule == "entropy" else "entropy"
    model = make(halt=old, halt_threshold=EASY[old], think_threshold=EASY[old])
    saved = {"model": model.state_dict(), "model_args": vars(model.config)}

    def loops(**overrides):
        return from_checkpoint(saved, halt=rule, **overrides).double().think(idx, trace=False)[1]["loops"]
    idx = tokens()
    assert torch.equal(loops(), loops(halt_threshold=RULES[rule].threshold))
    if RULES[rule].above:  # a probability, so it could never pass
        with pytest.raises(ValueError, match=r"halt_threshold 1\.5 is above 1"):
            loops(halt_threshold=NEVER[rule])
    else:
        assert torch.equal(loops(halt_threshold=NEVER[rule]), L * (idx != PAD))


@pytest.mark.parametrize(("prompt", "think"), [(2, 0), (0, 3), (2, 4), (4, 2), (1, L + 3), (L + 2, 1), (0, L + 3)])
def test_exact_loops_for_reading_and_writing(prompt, think):
    """Without a rule: loops are prompt_loops, think_loops, or L where the key is 0, and the trace is as long."""
    model, idx = make(prompt_loops=prompt, think_loops=think), torch.cat((tokens(), tokens(1, think=False)))
    at = written(idx)
    expected = torch.where(at, think or L, prompt or L) * (idx != PAD)
    longest = max(prompt or L, think or L)
    loops = assert_as_asked(model, idx, limit=lambda b, t: expected[b, t], loops_asked=longest)
    assert torch.equal(loops, expected)
    assert varied(loops)


@pytest.mark.parametrize("rule", SCORED)
def test_think_threshold_holds_from_the_think_token_on(rule):
    idx = tokens()
    at, real, first = written(idx), idx != PAD, 2 if rule == "kl" else 1
    model = make(halt=rule, halt_threshold=NEVER[rule], think_threshold=EASY[rule])
    assert torch.equal(model.think(idx)[1]["loops"], torch.where(at, first, L) * real)
    model = make(halt=rule, halt_threshold=EASY[rule], think_threshold=NEVER[rule])
    assert torch.equal(model.think(idx)[1]["loops"], torch.where(at, L, first) * real)


@pytest.mark.parametrize("rule", SCORED)
@pytest.mark.parametrize("think", [NEVER, EASY], ids=["never", "easy"])
def test_one_threshold_for_reading_and_one_for_writing(rule, think):
    model, idx = make(), tokens()
    halfway(model, idx, rule)
    model.config.think_threshold = think[rule]
    at, read = written(idx), model.config.halt_threshold
    assert_as_asked(model, idx, threshold=lambda b, t: think[rule] if at[b, t] else read)


@pytest.mark.parametrize("rule", SCORED)
@pytest.mark.parametrize("settings", [{"prompt_loops": 2}, {"think_loops": L + 2}, {"think_loops": 2, "min_loops": 3}],
                         ids=str)
def test_one_half_by_count_and_the_other_by_rule(rule, settings):
    """An exact count overrides the rule and min_loops where it holds, and elsewhere nothing changes."""
    model, idx = make(min_loops=settings.get("min_loops", 1)), tokens()
    halfway(model, idx, rule)
    c, at = model.config, written(idx)
    c.prompt_loops, c.think_loops = settings.get("prompt_loops", 0), settings.get("think_loops", 0)
    counted = at if c.think_loops else ~at
    count = c.think_loops or c.prompt_loops
    loops = assert_as_asked(model, idx, threshold=lambda b, t: NEVER[rule] if counted[b, t] else c.halt_threshold,
                            limit=lambda b, t: count if counted[b, t] else L, loops_asked=max(L, count))
    assert (loops[counted & (idx != PAD)] == count).all()
    assert loops[~counted].max() <= L


# ---- what a token may depend on

def assert_same_tokens(a, b, where=slice(None)):
    """Two results (h, record) agree in the given tokens; one trace may be of more loops than the other."""
    torch.testing.assert_close(a[0][where], b[0][where], rtol=1e-9, atol=1e-9)
    assert torch.equal(a[1]["loops"][where], b[1]["loops"][where])
    for key in ("entropy", "confidence", "delta", "score", "prediction"):
        torch.testing.assert_close(a[1][key][where], b[1][key][where], rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("rule", SCORED)
@pytest.mark.parametrize("settings", [{}, {"prompt_loops": 2, "think_loops": L + 1}], ids=["rule", "counts"])
def test_a_token_depends_on_no_later_one(rule, settings):
    """Neither another suffix, pads included, nor none at all changes h, loops or trace of the tokens before."""
    model, idx = make(), tokens(4)
    halfway(model, idx, rule)
    for key, x in settings.items():
        setattr(model.config, key, x)
    full = model.think(idx)
    for t in torch.randperm(T - 1)[:4] + 1:
        other = torch.cat((idx[:, :t], torch.randint(V, (4, T - t))), 1)
        assert_same_tokens(model.think(other), full, (slice(None), slice(0, int(t))))
        h, record = model.think(idx[:, :t])
        cut = full[0][:, :t], {key: x[:, :t] for key, x in full[1].items()}
        assert_same_tokens((h, record), cut)


@pytest.mark.parametrize("rule", SCORED)
def test_rows_of_a_batch_do_not_influence_each_other(rule):
    """Each row alone, where the loop may end earlier, gives what it gives beside others; so does a row of pads."""
    model, idx = make(), torch.cat((tokens(4), torch.full((1, T), PAD)))
    halfway(model, idx, rule)
    h, record = model.think(idx)
    for b in range(len(idx)):
        assert_same_tokens(model.think(idx[[b]]), (h[[b]], {key: x[[b]] for key, x in record.items()}))
    assert record["loops"][-1].eq(0).all()


def test_pads_take_no_loops_and_keep_their_embedding():
    """Also in front of a row, where others attend to them."""
    model, idx = make(), tokens()
    idx[:, :2] = PAD
    assert_as_asked(halfway(model, idx, "entropy"), idx)
    h, record = model.think(idx)
    pads = idx == PAD
    assert torch.equal(h[pads], model.embed(idx)[pads])
    assert record["loops"][pads].eq(0).all()
    assert all(record[key][pads].isnan().all() for key in ("entropy", "confidence", "delta", "score"))


# ---- the trace

@pytest.mark.parametrize("rule", RULES_OF_BLOCKS)
@pytest.mark.parametrize("easy", [True, False])
def test_trace(rule, easy):
    """Keys, shapes and types also where the loop ends early; NaN exactly after halting; predictions freeze."""
    model, idx = make(), tokens()
    if rule != "none":
        halfway(model, idx, rule)
        model.config.halt_threshold = EASY[rule] if easy else model.config.halt_threshold
    logits, _, record = model.float()(idx, trace=True)
    assert set(record) == {"loops", "entropy", "confidence", "delta", "score", "prediction"}
    assert (record["loops"].shape, record["loops"].dtype) == ((3, T), torch.int64)
    assert (record["prediction"].shape, record["prediction"].dtype) == ((3, T, L), torch.int64)
    over = torch.arange(1, L + 1) > record["loops"][..., None]
    for key in ("entropy", "confidence", "delta"):
        assert (record[key].shape, record[key].dtype) == ((3, T, L), torch.float32)
        assert torch.equal(record[key].isnan(), over), key
    assert logits.shape == (3, T, V)
    assert torch.equal(record["prediction"][..., -1], logits.argmax(-1))
    last = (record["loops"] - 1).clamp(0)[..., None]
    frozen = record["prediction"].gather(-1, last).expand(-1, -1, L)
    assert torch.equal(record["prediction"][over], frozen[over])


def test_without_a_trace_only_loops():
    model, idx = make(), tokens()
    halfway(model, idx, "gate")
    traced, plain = model.think(idx), model.think(idx, trace=False)
    assert set(plain[1]) == {"loops"}
    assert torch.equal(plain[0], traced[0])
    assert torch.equal(plain[1]["loops"], traced[1]["loops"])


@pytest.mark.parametrize("rule", SCORED)
def test_training_never_halts(rule):
    model, idx, targets = make(step_encoding="sinusoid", halt_head="joint"), tokens(), torch.randint(V, (3, T))
    expected = model.train()(idx, targets)
    for key, x in {"halt": rule, "halt_threshold": EASY[rule], "prompt_loops": 1, "think_loops": 2}.items():
        setattr(model.config, key, x)
    torch.testing.assert_close(model(idx, targets), expected, rtol=0, atol=0)
    assert not torch.allclose(model.eval()(idx, targets)[0], expected[0])  # and in eval mode it does


@pytest.mark.parametrize("trace", [True, False])
@pytest.mark.parametrize("settings", [{"halt": "confidence", "halt_threshold": 0.0},
                                      {"min_loops": 2, "prompt_loops": 1, "think_loops": 2}], ids=["rule", "counts"])
def test_exact_loops_override_every_rule(settings, trace):
    """Each token takes the loops that it is given, 0 and more than num_loops too; pads none."""
    model, idx = make(**settings), tokens()
    exact = torch.randint(0, L + 4, idx.shape)
    exact[0, :2] = torch.tensor([0, L + 3])
    limit = exact * (idx != PAD)
    h, record = model.think(idx, trace=trace, exact_loops=exact)
    assert torch.equal(record["loops"], limit)
    x0 = state = model.embed(idx)
    for l in range(1, L + 4):
        state = torch.where((l <= limit)[..., None], model.loop(state, x0, l), state)
    torch.testing.assert_close(h, state, rtol=1e-9, atol=1e-9)
    if trace:
        assert torch.equal(record["entropy"].isnan(), torch.arange(1, L + 4) > limit[..., None])


# ---- the numbers behind the rules

@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [13, 65, 50257, 50304])
def test_softmax_statistics(size, dtype):
    """1 / sum exp(z - z_max) is the largest probability, for vocabularies of any size; entropy as torch has it."""
    scale = torch.tensor([0.0, 0.1, 1, 10, 100, 3, 3])[:, None]
    logits = (scale * torch.randn(7, size)).to(dtype)
    logits[5] += 1e4
    logits[6, torch.rand(size) < 0.5] = -torch.inf
    logits[6, 0] = 1
    logp, largest, entropy = softmax_statistics(logits)
    wide = logits.double()
    eps = 1e-12 if dtype == torch.float64 else 2e-5
    assert logp.dtype == largest.dtype == entropy.dtype == (dtype if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(largest.double(), torch.softmax(wide, -1).max(-1).values, rtol=eps, atol=0)
    torch.testing.assert_close(entropy.double(), Categorical(logits=wide).entropy(), rtol=eps, atol=eps)
    torch.testing.assert_close(logp.double().exp(), torch.softmax(wide, -1), rtol=10 * eps, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [13, 65, 50257])
def test_kl_score(size, dtype):
    p, q = (3 * torch.randn(5, size, dtype=dtype) for _ in range(2))
    q[1] = p[1] + 0.01 * q[1]
    p[2, :size // 2] = -torch.inf
    q[3] = p[3]
    h = torch.randn(5, C, dtype=dtype)
    score = halt_score("kl", h, h, logits=p, previous=q)
    expected = kl_divergence(*(Categorical(logits=x.double()) for x in (p, q)))
    eps = 1e-10 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(score.double(), expected, rtol=20 * eps, atol=eps)
    assert (score >= 0).all()
    assert (halt_score("kl", h, h, logits=p, previous=p + 3) >= 0).all()  # equal but for rounding
    assert halt_score("kl", h, h, logits=p).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_extreme_logits_give_no_nan(dtype):
    """+-1e4, -inf in places, in all but one, and in all: probabilities, entropies and divergences stay numbers."""
    z = torch.stack([torch.where(torch.rand(V) < 0.5, 1e4, -1e4), torch.full((V,), -1e4), torch.randn(V),
                     torch.full((V,), -torch.inf), torch.full((V,), -torch.inf), torch.zeros(V)]).to(dtype)
    z[2, ::2] = z[1, 3] = -torch.inf
    z[3, 4] = 5
    logp, largest, entropy = softmax_statistics(z)
    assert logp.isfinite().all()
    assert ((largest >= 1 / V * 0.99) & (largest <= 1)).all()
    assert ((entropy >= 0) & (entropy <= math.log(V) * 1.01)).all()
    assert largest[3] == 1
    assert entropy[3] == 0
    h = torch.randn(V, C)
    for q in z:
        score = halt_score("kl", h[:6], h[:6], logits=z, previous=q.expand(6, V))
        assert score.isfinite().all()
        assert (score > -1e-5).all()


def test_delta_of_a_zero_state_is_no_nan():
    h = torch.zeros(2, C)
    assert halt_score("delta", h, h).tolist() == [0, 0]
    assert halt_score("delta", h, h + 1).isfinite().all()


# ---- halt_update, the public function

def update_inputs(rule, shape, dtype, loop):
    """Random inputs of halt_update, with a threshold a little above or below each token's score at random.

    Returns the inputs as a dict, the scores as float64 has them, and which tokens pass.
    """
    h, new = torch.randn(2, *shape, C).to(dtype)
    logits, previous = (2 * torch.randn(2, *shape, V)).to(dtype)
    probability, alpha = torch.rand(shape).to(dtype), torch.rand(shape).to(dtype) + 0.1
    p, q = (Categorical(logits=x.double()) for x in (logits, previous))
    change = (new.double() - h.double()).square().sum(-1).sqrt() / h.double().square().sum(-1).sqrt()
    score = {"none": torch.full(shape, torch.nan), "confidence": p.probs.max(-1).values, "entropy": p.entropy(),
             "delta": change / alpha.double(), "kl": kl_divergence(p, q), "gate": probability.double(),
             "energy": probability.double()}[rule]
    if rule == "kl" and loop == 1:
        score, previous = torch.full(shape, torch.nan), None
    passes = (torch.rand(shape) < 0.5) & ~score.isnan()
    margin = 1e-3 * (1 + score.nan_to_num().abs())
    below = passes if rule in ("confidence", "gate") else ~passes  # thresholds below the score
    threshold = torch.where(below, score.nan_to_num() - margin, score.nan_to_num() + margin).float()
    inputs = {"h": h, "new": new, "active": torch.rand(shape) < 0.7, "loops": torch.randint(loop, shape),
              "loop": loop, "threshold": threshold, "limit": torch.randint(loop, loop + 3, shape),
              "logits": logits, "previous": previous, "gate": probability, "alpha": alpha}
    return inputs, score, passes


@pytest.mark.third
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("loop", [1, 4])
@pytest.mark.parametrize("rule", RULES)
def test_halt_update(rule, loop, dtype):
    for shape in ((3, 7), (5,), (1, 1)):
        for active in ("random", "none", "one"):
            inputs, score, passes = update_inputs(rule, shape, dtype, loop)
            if active != "random":
                inputs["active"].fill_(False)
            if active == "one":
                inputs["active"].view(-1)[-1] = True
            was, min_loops = inputs["active"], int(torch.randint(1, 6, ()))
            h, now, loops, got = halt_update(rule, **inputs, min_loops=min_loops, backend="torch")
            assert torch.equal(h[was], inputs["new"][was])  # to the bit
            assert torch.equal(h[~was], inputs["h"][~was])
            assert h.dtype == dtype
            halts = (passes & (loop >= min_loops)) | (inputs["limit"] == loop)
            assert torch.equal(now, was & ~halts)
            assert torch.equal(loops, torch.where(was, torch.tensor(loop), inputs["loops"]))
            torch.testing.assert_close(got.double(), score.double().masked_fill(~was, torch.nan), rtol=1e-4, atol=1e-5,
                                       equal_nan=True)


def test_halt_update_leaves_its_inputs_alone():
    inputs, _, _ = update_inputs("entropy", (3, 7), torch.float32, 2)
    before = {key: x.clone() for key, x in inputs.items() if torch.is_tensor(x)}
    halt_update("entropy", **inputs)
    assert all(torch.equal(inputs[key], x) for key, x in before.items())


@pytest.mark.parametrize("rule", SCORED)
def test_an_infinite_threshold_switches_the_rule_off(rule):
    inputs, _, _ = update_inputs(rule, (3, 7), torch.float32, 2)
    inputs["threshold"].fill_(torch.inf if rule in ("confidence", "gate") else -torch.inf)
    inputs["limit"].fill_(9)
    assert torch.equal(halt_update(rule, **inputs)[1], inputs["active"])


def test_a_halted_token_may_hold_anything():
    """A NaN in the candidate or the logits of a halted token reaches nothing."""
    inputs, _, _ = update_inputs("confidence", (6,), torch.float32, 2)
    inputs["active"][:] = torch.tensor([True, False] * 3)
    expected = halt_update("confidence", **inputs)
    inputs["new"][1::2], inputs["logits"][1::2] = torch.nan, torch.nan
    torch.testing.assert_close(halt_update("confidence", **inputs), expected, rtol=0, atol=0, equal_nan=True)


def test_backends(capfd):
    """On a CPU auto is torch and says nothing of kernels; torch is always there; others say what is wrong."""
    inputs, _, _ = update_inputs("entropy", (3, 7), torch.float32, 2)
    backend.backend_choice.cache_clear()
    auto = [halt_update("entropy", **inputs) for _ in range(3)][-1]
    assert capfd.readouterr().err == ""
    torch.testing.assert_close(halt_update("entropy", **inputs, backend="torch"), auto, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(RuntimeError, match="cutile.*cpu"):
        halt_update("entropy", **inputs, backend="cutile")
    with pytest.raises(ValueError, match="cudnn.*auto, cutile, torch"):
        halt_update("entropy", **inputs, backend="cudnn")
    with pytest.raises(ValueError, match="boredom.*confidence"):
        halt_update("boredom", **inputs)
