"""The loop kernel against LoopGPT.think in torch: its source on the CPU stand-in, the kernel itself on a GPU, and a
trained checkpoint on both paths. On a GPU the backend is forced, so that a fallback cannot pass for a kernel.
"""
import copy
import os
from functools import partial
from pathlib import Path
from unittest import mock

import cutile_cpu
import numpy as np
import pytest
import torch
from helpers import inputs_and_targets, prompt_tokens
from models import RULES_OF_BLOCKS

import kernels as real
import looplm_kernels
import model as model_module
import model_loop
import runtime
import think
from looplm_kernels import RULES, HaltingPlan
from model_loop import LoopConfig, LoopGPT, from_checkpoint
from tasks import addition

ROOT = Path(looplm_kernels.__file__).parent
WHY = real.backend.why_not_cutile(torch.device("cuda")) if torch.cuda.is_available() else "there is no GPU"
GPU = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY), reason=f"needs a GPU that cuTile runs on: {WHY}")]
STATISTICS = ("entropy", "confidence", "delta", "score")
PAD, THINK = 0, 1


@pytest.fixture(autouse=True)
def seed(rng):
    torch.manual_seed(int(rng.integers(2 ** 31)))


@pytest.fixture(scope="module")
def standin():
    """The kernels' source on the CPU, where cuTile counts as able to run."""
    package = cutile_cpu.load_kernels()
    package.backend.why_not_cutile = lambda device: ""
    return package


@pytest.fixture
def on_cpu(standin, monkeypatch):
    """Models run the stand-in's loop kernel, and nothing else can run with backend cutile. Memory is poisoned."""
    monkeypatch.setattr(think, "adaptive_loop", standin.paths.adaptive_loop)
    monkeypatch.setattr(model_loop, "forget_weights", standin.loop.forget_weights)
    torch.use_deterministic_algorithms(True)
    yield standin
    torch.use_deterministic_algorithms(False)


# ---- models, thresholds and what is the same

@torch.no_grad()
def make(rule="none", T=13, V=13, C=64, L=4, n_head=2, gain=4.0, device="cpu", **settings):
    """A model far from its initial state, in which every token would be undecided."""
    head = "joint" if rule == "gate" else "none"
    model = LoopGPT(LoopConfig(vocab_size=V, n_head=n_head, n_embd=C, num_loops=L, block_size=T, halt=rule,
                               halt_head=head, **settings)).eval().requires_grad_(False)
    for p in model.parameters():
        p.mul_(gain) if p.dim() > 1 else p.add_(0.1 * torch.randn_like(p))
    return model.to(device)


def twin(model):
    """The same model on the torch path, in float32."""
    other = copy.deepcopy(model).float()
    other.config.backend = "torch"
    return other


def scored(model, idx, **given):
    """Scores (B,T,L) of active tokens by the torch path, and the thresholds (B,T,1) that they are compared with."""
    return (twin(model).think(idx, trace=True, **given)[1]["score"],
            model.halting_plan(idx, model.trained_loops).threshold[..., None])


def set_threshold(model, idx, margin=1e-4):
    """A threshold near the median of all scores, so that tokens halt in different loops, with no score next to it;
    as much next as margin says, less where the scores lie close."""
    c = model.config
    if c.halt == "none":
        return
    c.halt_threshold = float("inf") if RULES[c.halt].above else float("-inf")
    score = scored(model, idx)[0]
    score = score[score.isfinite()].sort().values
    score = score[len(score) // 5:-len(score) // 5] if len(score) > 20 else score  # empty for kl in a single loop
    gap, between = score.diff(), (score[1:] + score[:-1]) / 2
    for least in (margin, margin / 4, margin / 16):
        wide = (gap > 4 * least * (between.abs() + 0.01)).nonzero()[:, 0]
        for i in sorted(wide.tolist(), key=lambda i: abs(i - len(gap) / 2)):
            c.halt_threshold = between[i].item()
            score, threshold = scored(model, idx)
            if not ((score - threshold).abs() < least * (threshold.abs() + 0.01)).any():
                return
    assert not len(score), "no threshold is far from every score"


@torch.no_grad()
def close_calls(model, h, tolerance):
    """Whether the two largest logits of the states h (...,C) are too near to each other for a certain arg-max."""
    top = LoopGPT.readout(model, h).float().topk(2, dim=-1).values
    return top[..., 0] - top[..., 1] < tolerance


def think_of(model, idx, trace, tie=1e-4, follow=False, **given):
    """think by the kernel and by the torch path; and (B,T,L) whether a prediction so far was a close call.

    follow: in the torch path tokens halt in the loops in which they did in the kernel.
    """
    model.config.backend, reference, seen = "cutile", twin(model), []
    got = model.think(idx, trace=trace, **given)
    reference.readout = lambda h: seen.append(close_calls(reference, h, tie)) or LoopGPT.readout(reference, h)
    want = reference.think(idx, trace=trace, **(dict(exact_loops=got[1]["loops"]) if follow else given))
    if not trace:
        return got, want, None
    ties = torch.stack(seen + [seen[-1]] * (want[1]["score"].size(-1) + 1 - len(seen)), -1)
    return got, want, ties.cummax(-1).values[..., 1:]


def far(got, want):
    """The largest relative distance of a token's state."""
    return ((got - want).norm(dim=-1) / want.norm(dim=-1)).max().item()


def same_thinking(got, want, ties, h_tolerance, tolerance):
    (h, record), (wanted, expected) = got, want
    assert h.shape == wanted.shape
    assert h.isfinite().all()
    assert far(h.float(), wanted) < h_tolerance
    assert record["loops"].dtype == torch.int64
    assert torch.equal(record["loops"], expected["loops"])
    assert set(record) == set(expected)
    if ties is not None:
        for key in STATISTICS:
            torch.testing.assert_close(record[key], expected[key], rtol=tolerance, atol=tolerance, equal_nan=True,
                                       msg=lambda text, key=key: f"{key}: {text}")
        differs = record["prediction"] != expected["prediction"]
        assert not (differs & ~ties).any()


def tokens(model, B, T):
    device = model.lm_head.weight.device
    idx = torch.randint(2, model.config.vocab_size, (B, T), device=device)
    if model.config.think_token is not None:
        for b in range(B):
            idx[b, int(torch.randint(1, max(2, T - 1), ()))] = THINK
    if model.config.pad_token is not None:  # at the end of rows, all of one row, none of another
        for b in range(B):
            idx[b, T - (b % 3) * T // 4:] = PAD
        idx[-1] = PAD
    return idx


# ---- the source on the stand-in

CASES = [
    dict(B=2, rule="none", T=5, L=2),
    dict(B=17, rule="confidence", T=5, L=12),  # 8 sequences a block
    dict(B=3, rule="entropy", T=13, V=65, C=128, L=12, n_head=4, inject="none"),  # two tiles of the vocabulary
    dict(B=2, rule="delta", T=64, L=2, inject="decay", loop_norm=True),
    dict(B=2, rule="kl", T=70, V=65, inject="concat", L=3),
    dict(B=2, rule="gate", T=130, step_encoding="learned", L=3),
    dict(B=2, rule="entropy", T=130, L=2, step_encoding="sinusoid", n_head=1),
    dict(B=2, rule="delta", T=70, L=3, update="euler", alpha=0.5, loop_norm=True),
    dict(B=5, rule="delta", T=13, update="euler", alpha="learned", inject="concat"),
    dict(B=3, rule="kl", T=5, L=12, min_loops=3, inject="decay", tie_weights=False),
    dict(B=2, rule="gate", T=64, C=128, n_head=2, step_encoding="sinusoid", min_loops=2, gate_encoding=True),
    dict(B=2, rule="confidence", T=70, L=1, V=65),
    dict(B=3, rule="kl", T=13, L=1),
    dict(B=2, rule="entropy", T=5, C=256, n_head=8, L=2, inject="concat", loop_norm=True),
    dict(B=2, rule="gate", T=5, C=384, n_head=6, L=2, pos="none"),
    dict(B=3, rule="gate", T=13, gate_encoding=True),
    dict(B=6, rule="confidence", T=13, pad_token=PAD, think_token=THINK, prompt_loops=2),
    dict(B=5, rule="entropy", T=16, L=3, pad_token=PAD, think_token=THINK, think_loops=5),
    dict(B=4, rule="delta", T=70, L=3, pad_token=PAD, think_token=THINK, prompt_loops=1, think_loops=2),
]


def label(case):
    return "-".join(str(x) for x in case.values())


@pytest.mark.third
@pytest.mark.parametrize("case", CASES, ids=label)
def test_source(on_cpu, monkeypatch, case):
    """Every rule and option, the trace on and off, with blocks of several sequences and sequences of several blocks."""
    case = dict(case)
    if case["rule"] == "kl":  # a NaN would hide that the first loop reads what no loop wrote
        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    B, T = case.pop("B"), case["T"]
    model = make(**case)
    if case.get("alpha") == "learned":
        model.step_size.fill_(-0.7)  # delta is divided by its size
    idx = tokens(model, B, T)
    set_threshold(model, idx)
    with cutile_cpu.schedule("random" if T > 64 else "forward", int(torch.randint(1000, ()))):
        same_thinking(*think_of(model, idx, True), 1e-5, 5e-5)
    if case["rule"] in ("confidence", "entropy") and case.get("L", 4) > 2:
        loops = model.think(idx, trace=False)[1]["loops"]
        assert len(loops.unique()) > 1  # else the case would show little
    same_thinking(*think_of(model, idx, False), 1e-5, 5e-5)


@pytest.mark.parametrize("case", [dict(T=13, L=12), dict(T=70, L=2, C=128, loop_norm=True, update="euler", alpha=0.3),
                                  dict(T=130, L=1)], ids=label)
def test_fixed_depth(on_cpu, case):
    """No rule, and no flags in the kernel: the last of all states."""
    model = make("none", **case, backend="cutile")
    idx = tokens(model, 3, case["T"])
    with cutile_cpu.schedule("reverse"):
        got = model.last_state(idx)
    want = list(twin(model).states(idx))[-1]
    assert far(got, want) < 1e-5
    with torch.no_grad():
        torch.testing.assert_close(model.logits(idx), model.readout(want), rtol=1e-4, atol=1e-4)
    plan = HaltingPlan(idx > 0, idx.float(), case["L"], case["L"], "none")
    h, loops, _ = on_cpu.paths.adaptive_loop(model.loop_spec(), model.embed(idx), plan, backend="cutile")
    assert torch.equal(h, got)
    assert (loops == case["L"]).all()


@pytest.mark.parametrize("T", [13, 70])
def test_limits(on_cpu, T):
    """Tokens that halt after a number of loops of their own, 0 of them included, or before the first."""
    model = make("confidence", T=T, L=3)
    idx = tokens(model, 3, T)
    exact = torch.randint(5, idx.shape)
    for loops in (exact, 0 * exact):
        same_thinking(*think_of(model, idx, True, exact_loops=loops), 1e-5, 5e-5)
        assert torch.equal(model.think(idx, trace=False, exact_loops=loops)[1]["loops"], loops)
    x0, few, never = model.embed(idx), torch.full_like(idx, 1), torch.full(idx.shape, 2.0)
    short, long = (on_cpu.paths.adaptive_loop(model.loop_spec(), x0, HaltingPlan(idx >= 0, never, few, n, "confidence"),
                                              backend="cutile") for n in (1, 3))
    assert torch.equal(short[0], long[0])
    assert (long[1] == 1).all()


def test_weights_that_change(on_cpu):
    """What the kernel reads is kept from call to call, until a weight or the rule changes."""
    model = make("gate", L=2)
    idx = tokens(model, 2, 13)
    model.config.halt = "confidence"
    for rule in ("confidence", "gate"):
        model.config.halt = rule
        set_threshold(model, idx)
        same_thinking(*think_of(model, idx, True), 1e-5, 5e-5)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(-1)
    set_threshold(model, idx)
    same_thinking(*think_of(model, idx, False), 1e-5, 5e-5)


def recorded(monkeypatch, kernels, model, idx, trace):
    """The arguments of the operator in a call of think."""
    calls, op = [], kernels.loop.loop_op
    with monkeypatch.context() as patch:
        patch.setattr(kernels.loop, "loop_op", lambda *args: calls.append(args) or op(*args))
        model.config.backend = "cutile"
        model.think(idx, trace=trace)
    return calls[-1]


@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("T", [13, 70])
def test_operator(on_cpu, monkeypatch, T, trace):
    """The operator, here with the stand-in's launch, is what its schema and its fake say, and compiles."""
    model = make("confidence", T=T, L=2)
    x0, *others = recorded(monkeypatch, on_cpu, model, tokens(model, 2, T), trace)
    monkeypatch.setattr(real.loop, "launch_loop", on_cpu.loop.launch_loop)
    torch.library.opcheck(real.loop.loop_op, (x0, *others), test_utils=("test_schema", "test_faketensor"))

    def call(x0):
        return real.loop.loop_op(x0 + 0, *others)
    got = torch.compile(call, fullgraph=True, backend="aot_eager")(x0)
    torch.testing.assert_close(got[:2], call(x0)[:2], rtol=1e-6, atol=1e-6)


# ---- what the kernel does not do

@pytest.mark.parametrize(("says", "case"), [
    ("n_layer above 1", dict(n_layer=2)), ("biases", dict(bias=True)), ("rope", dict(pos="rope")),
    ("rope", dict(step_encoding="rope")), ("256 tokens", dict(T=300)), ("n_embd 96", dict(C=96, n_head=3)),
    ("blocks of their own", dict(tie_loops=False)), ("block 'modern'", dict(block="modern")),
    ("heads that share keys", dict(n_kv_head=1)), ("keys of x0", dict(keys="x0")),
    ("heads of 8 channels", dict(n_head=8)), ("alpha 'gate'", dict(update="euler", alpha="gate")),
    ("update 'energy'", dict(update="energy", inject="none", alpha=0.5)),
    ("update 'heun'", dict(update="heun", alpha=0.5)), ("update 'rk4'", dict(update="rk4")),
    ("start 'zero'", dict(start="zero")), ("start 'learned'", dict(start="learned")),
    ("Anderson acceleration", dict(anderson=2)), ("more tokens than log_scale", dict(log_scale=12)),
    ("", dict(log_scale=13)), ("logits of 200 tokens", dict(V=200)),
    ("float64", dict(double=True)), ("", dict(V=200, rule="delta"))],
    ids=lambda x: x if isinstance(x, str) else "")
def test_falls_back(on_cpu, capfd, says, case):
    """why_not_loop_kernel names the reason, auto gives what torch gives, and cutile refuses."""
    case = dict(rule="confidence", L=2) | case
    model = make(**{key: x for key, x in case.items() if key != "double"})
    model = model.double() if "double" in case else model
    idx = tokens(model, 2, case.get("T", 13))
    why_not = real.loop.why_not_loop_kernel(model.loop_spec(), model.embed(idx), 4, case["rule"], False)
    assert says in why_not
    assert bool(says) == bool(why_not)
    if not says:
        return
    on_cpu.backend.backend_choice.cache_clear()
    results = {}
    for backend in ("auto", "torch"):
        model.config.backend = backend
        results[backend] = model.think(idx, trace=False)
    assert torch.equal(results["auto"][0], results["torch"][0])
    assert torch.equal(results["auto"][1]["loops"], results["torch"][1]["loops"])
    assert says in capfd.readouterr().err
    model.config.backend = "cutile"
    with pytest.raises(RuntimeError, match="cutile cannot run here"):
        model.think(idx, trace=False)


def test_falls_back_to_train():
    model = make("confidence")
    x0 = model.embed(tokens(model, 2, 13))

    def why_not(model, x0):
        return real.loop.why_not_loop_kernel(model.loop_spec(), x0, 4, "confidence", False)
    assert why_not(model, x0) == ""
    assert "training" in why_not(model.train(), x0)
    assert "gradient" in why_not(model.eval(), x0.requires_grad_())
    with torch.no_grad():
        assert why_not(model, x0) == ""


# ---- L2: the kernel on a GPU

BARRIER = [*GPU, pytest.mark.timeout(900, method="thread")]  # blocks that wait for each other for ever end the run
MIXES = dict(
    none=dict(inject="none", pad_token=PAD, think_token=THINK, prompt_loops=2), confidence=dict(V=65),
    entropy=dict(inject="decay", loop_norm=True), kl=dict(inject="concat", min_loops=2),
    delta=dict(update="euler", alpha="learned", loop_norm=True, step_encoding="sinusoid"),
    gate=dict(step_encoding="learned", update="euler", alpha=0.5))


@pytest.mark.parametrize(("rule", "T"), [
    *(pytest.param(rule, 13, marks=GPU, id=f"{rule}-13") for rule in RULES_OF_BLOCKS),
    *(pytest.param(rule, 70, marks=BARRIER, id=f"{rule}-70") for rule in ("none", "confidence", "kl"))])
def test_kernel_in_float32(rule, T):
    """L2 in float32: one variant of the kernel a rule and length, every option in one of them."""
    for L in (1, 2, 12, 24):
        model = make(rule, T=T, L=L, device="cuda", **MIXES[rule])
        idx = tokens(model, 5, T)
        set_threshold(model, idx)
        same_thinking(*think_of(model, idx, True), 1e-4, 1e-4)


def judged_alike(record, model, idx, **given):
    """The loops of a trace are those that its own scores ask for."""
    active, threshold, limit, L, _ = model.halting_plan(idx, model.trained_loops)
    score, l = record["score"], torch.arange(1, L + 1, device=idx.device)
    passes = score >= threshold[..., None] if RULES[model.config.halt].above else score <= threshold[..., None]
    halts = (passes & (l >= model.config.min_loops)) | (l >= limit[..., None])
    assert torch.equal(record["loops"], torch.where(active, halts.float().argmax(-1) + 1, 0))
    for key in STATISTICS[:3]:
        assert torch.equal(record[key].isnan(), l > record["loops"][..., None])


@pytest.mark.parametrize("rule", [pytest.param(rule, marks=GPU) for rule in RULES_OF_BLOCKS])
def test_kernel_in_bfloat16(rule):
    """L2 in bf16: the loops are those that the kernel's own scores ask for, and all else is that of the same weights
    in float32 whose tokens halt in the same loops, since rounding moves a score past its threshold."""
    model = make(rule, T=64, V=65, C=128, L=12, n_head=4, gain=2.0, device="cuda").bfloat16()
    idx = tokens(model, 16, 64)
    set_threshold(model, idx, margin=0)
    (h, record), (wanted, expected), ties = think_of(model, idx, True, tie=0.1, follow=True)
    assert h.dtype == torch.bfloat16
    judged_alike(record, model, idx)
    assert torch.equal(record["loops"], expected["loops"])
    assert (h.float() - wanted).norm() / wanted.norm() < 2e-2
    L = int(record["loops"].max())  # the torch path's trace ends there
    for key in STATISTICS[:3]:
        assert (record[key][..., :L] - expected[key]).nan_to_num().abs().mean() < 2e-2, key
    assert not ((record["prediction"][..., :L] != expected["prediction"]) & ~ties).any()


@pytest.mark.parametrize("T", [pytest.param(64, marks=GPU), pytest.param(200, marks=BARRIER)])
def test_kernel_leaves_early(T):
    """A limit of L / 2 gives to the bit what num_loops L / 2 gives, adaptive and at fixed depth; and the launch ends,
    time after time (with a break some never did)."""
    model = make("confidence", T=T, V=65, C=128, L=12, n_head=4, gain=2.0, device="cuda").bfloat16()
    idx = tokens(model, 8, T)
    never, limit, x0 = torch.full(idx.shape, 2.0, device="cuda"), torch.full_like(idx, 6), model.embed(idx)
    def loops_of(limit, L):
        plan = HaltingPlan(idx >= 0, never, limit, L, "confidence")
        return real.paths.adaptive_loop(model.loop_spec(), x0, plan, backend="cutile")
    long, short = (loops_of(limit, L) for L in (12, 6))
    assert torch.equal(long[0], short[0])
    assert (long[1] == 6).all()
    for _ in range(100):
        limit = torch.randint_like(limit, 1, 13) if torch.rand(()) < 0.5 else torch.full_like(
            limit, int(torch.randint(1, 13, ())))
        _, loops, _ = loops_of(limit, 12)
        assert torch.equal(loops, limit)
    model.config.backend = "cutile"
    fixed = model.last_state(idx, 6)
    assert (fixed.float() - long[0].float()).norm() / fixed.float().norm() < 1e-2


@pytest.mark.parametrize("B", [pytest.param(B, marks=[*GPU, pytest.mark.timeout(900, method="thread")])
                               for B in (8, 33, 150)])
def test_kernel_with_a_barrier(B):
    """Sequences of four blocks each, 600 blocks in the last case, more than run at once: halting ends none too soon
    and none waits for ever, in the first run and in those after it."""
    model = make("confidence", T=200, V=65, C=128, L=12, n_head=4, gain=2.0, device="cuda").bfloat16()
    idx = tokens(model, B, 200)
    set_threshold(model, idx, margin=0)
    got, (wanted, expected), _ = think_of(model, idx, False, follow=True)
    assert len(expected["loops"].unique()) > 1
    assert (got[0].float() - wanted).norm() / wanted.norm() < 2e-2
    for _ in range(20):
        h, record = model.think(idx, trace=False)
        assert torch.equal(h, got[0])
        assert torch.equal(record["loops"], got[1]["loops"])


@pytest.mark.parametrize("T", [pytest.param(64, marks=GPU), pytest.param(200, marks=BARRIER)])
def test_kernel_compiled_and_captured(monkeypatch, T):
    """The operator under torch.compile(fullgraph=True) and in CUDA graphs, with fresh inputs in each replay."""
    model = make("confidence", T=T, V=65, C=128, L=12, n_head=4, gain=2.0, device="cuda").bfloat16()
    idx = tokens(model, 8, T)
    set_threshold(model, idx, margin=0)
    x0, *others = recorded(monkeypatch, real, model, idx, True)

    def call(x0):
        return real.loop.loop_op(x0 + 0, *others)
    torch.library.opcheck(real.loop.loop_op, (x0, *others), test_utils=("test_schema", "test_faketensor"))
    want = call(x0)
    for function in (call, torch.compile(call, fullgraph=True)):
        torch.testing.assert_close(function(x0), want, rtol=0, atol=0, equal_nan=True)
        graph, place = torch.cuda.CUDAGraph(), x0.clone()
        with torch.cuda.graph(graph):
            got = function(place)
        for _ in range(3):
            place.copy_(model.embed(tokens(model, 8, T)))
            graph.replay()
            torch.testing.assert_close(got, call(place), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("rule", "T"), [
    *(pytest.param(rule, 64, marks=GPU) for rule in ("none", "confidence", "delta")),
    pytest.param("confidence", 200, marks=BARRIER)])
def test_graphs_of_both_paths(monkeypatch, rule, T):
    """What auto replays gives, for fresh inputs and after weights changed, what a launch gives: the kernel's graph to
    the bit, that of the compiled loops within bf16. Limits decide the loops, so that rounding does not."""
    model = make(rule, T=T, V=65, C=128, L=6, n_head=4, gain=2.0, device="cuda").bfloat16()
    for change in (1, -1):
        model.transformer.h[0].mlp.c_fc.weight.mul_(change)
        for _ in range(2):
            idx = tokens(model, 8, T)
            never = torch.full(idx.shape, 2.0 if rule == "confidence" else -1.0, device="cuda")
            limit = 6 if rule == "none" else torch.randint_like(idx, 1, 7)
            plan = model.loop_spec(), model.embed(idx), HaltingPlan(idx >= 0, never, limit, 6, rule)
            h, loops, _ = real.paths.adaptive_loop(*plan, backend="cutile")
            assert rule == "none" or torch.equal(loops, limit)
            again, took, _ = real.paths.kernel_graph(*plan)
            assert torch.equal(again, h)
            assert torch.equal(took, loops)
            other, took, _ = real.paths.torch_graph(*plan)
            assert torch.equal(took, loops)
            assert (other.float() - h.float()).norm() / h.float().norm() < 2e-2
    case = real.paths.loop_case(128, 8, T, "fixed" if rule == "none" else rule, torch.bfloat16)
    for way in ("kernel", "graph"):
        monkeypatch.setattr(real.paths, "calls_by_shape", {})
        monkeypatch.setitem(real.paths.path_table(torch.cuda.get_device_name()), case, way)
        for _ in range(real.paths.CALLS_BEFORE_GRAPH + 2):
            got, took, _ = real.paths.adaptive_loop(*plan)
            assert torch.equal(took, loops)
            assert (got.float() - h.float()).norm() / h.float().norm() < 2e-2
    assert "graph" not in real.paths.failed_ops


@pytest.mark.parametrize("rule", [pytest.param(rule, marks=GPU) for rule in ("confidence", "entropy")])
def test_large_vocabularies_on_a_gpu(monkeypatch, rule):
    """Above the loop kernel's vocabulary auto loops in torch, with the head kernel and attention inside."""
    calls, halts = [], think.head_halt
    monkeypatch.setattr(think, "head_halt", lambda *args: calls.append(args) or halts(*args[:-1], "cutile"))
    model = make(rule, T=70, V=1003, C=128, L=5, n_head=4, gain=2.0, device="cuda").bfloat16()
    idx = tokens(model, 5, 70)
    model.config.halt_threshold = float(scored(model, idx)[0].nanmedian())
    monkeypatch.setattr(real.paths, "CALLS_BEFORE_KERNEL", 0)
    h, record = model.think(idx, trace=False)
    assert len(calls) == record["loops"].max()
    assert len(record["loops"].unique()) > 1
    wanted, _ = twin(model).think(idx, trace=False, exact_loops=record["loops"])
    assert (h.float() - wanted).norm() / wanted.norm() < 2e-2


# ---- L3: a trained checkpoint

CHECKPOINT = Path(os.environ.get("LOOPLM_CHECKPOINT", "out/demo_addition/ckpt_last.pt"))
PROBLEMS = 1000
trained = pytest.mark.skipif(
    not (ROOT / CHECKPOINT).exists(), reason=f"needs a checkpoint: no {CHECKPOINT}, which make demo or "
    "LOOPLM_CHECKPOINT would name")


@pytest.fixture(scope="module")
def problems():
    """A trained model on the GPU; and its 1,000 random additions: as written down (N,T), what to read and say."""
    checkpoint = runtime.load_checkpoint(ROOT / CHECKPOINT)
    meta = checkpoint["meta"]
    model = from_checkpoint(checkpoint).requires_grad_(False)
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"problems of seed {seed}")
    digits = meta["max_digits"]
    problem = addition.random_problems(np.random.default_rng(seed), PROBLEMS, digits)
    rows = addition.write_rows(*problem, addition.row_tokens(digits, meta["track"]), meta["track"], meta["plain"])
    X, Y = map(torch.from_numpy, inputs_and_targets(rows, meta["track"]))
    return model, problem, X, Y, meta


def answers(model, problem, meta, device):
    """What a model writes after each problem, greedily; prompts of one length go together."""
    prompts = [prompt_tokens([x[i:i + 1] for x in problem], meta["track"], meta["plain"])
               for i in range(PROBLEMS)]
    said, most = [None] * PROBLEMS, addition.row_tokens(meta["max_digits"], meta["track"])
    for length in {len(p) for p in prompts}:
        same = [i for i, p in enumerate(prompts) if len(p) == length]
        idx = torch.from_numpy(np.stack([prompts[i] for i in same])).to(device)
        written = model.generate(idx, most - length, temperature=0, stop=addition.ID[addition.END])[:, length:]
        for i, row in zip(same, written.tolist(), strict=True):
            said[i] = "".join(addition.VOCAB[t] for t in row).split(addition.END)[0]
    return said


def first_difference_is_a_tie(loops, others, score, threshold, within=1e-4):
    """In each row (T) whose loops differ from the others, the first loop in which one path halts a token and the
    other does not: there the score (B,T,L) must be near the threshold (B,T). What follows in the row follows from it.
    """
    differs, sooner = loops != others, torch.minimum(loops, others)
    first = torch.where(differs, sooner, 10 ** 6).amin(1, keepdim=True)
    at = (sooner.clamp(min=1) - 1)[..., None]
    near = (score.gather(-1, at)[..., 0] - threshold).abs() < within
    assert near[differs & (sooner == first)].all()


def check_in_float32(model, problem, X, meta, device):
    """Loops of all tokens, predictions of those that write, and greedy answers, by the kernel and by the torch path."""
    model = model.to(device)
    reference, X = twin(model), X.to(device)
    model.config.backend = "cutile"
    (h, record), (wanted, expected) = model.think(X), reference.think(X)
    threshold = reference.halting_plan(X, 1).threshold
    first_difference_is_a_tie(record["loops"], expected["loops"], expected["score"], threshold)
    same = (record["loops"] == expected["loops"]).all(1)
    assert same.float().mean() > 0.99
    assert far(h[same], wanted[same]) < 1e-3
    assert torch.equal(model.readout(h).argmax(-1)[same], reference.readout(wanted).argmax(-1)[same])
    if meta["track"] == "next":
        assert answers(model, problem, meta, device) == answers(reference, problem, meta, device)


@trained
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_checkpoint_in_float32(problems, device):
    model, problem, X, _, meta = problems
    check_in_float32(copy.deepcopy(model), problem, X, meta, device)


def check_in_bfloat16(model, X, Y, device):
    """At least 99.5% of the answers' tokens are equal under autocast, and the others are ties within rounding.

    What counts as one: bf16 moves each logit by e at most, measured on the torch path as the largest difference of
    its logits from those in float32, tokens halting in the same loops. Where two paths with such errors say different
    tokens i and j, the float32 logits of i and j are not 2 e apart, and if one path is right, nor are the largest two.
    """
    model = model.to(device)
    reference, X, write = twin(model), X.to(device), (Y >= 0).to(device)
    model.config.backend = "cutile"
    h, record = reference.think(X, trace=False)
    exact = reference.readout(h).float()
    with torch.autocast(device, torch.bfloat16), torch.no_grad():
        said, heard = (m.readout(m.think(X, trace=False)[0]).argmax(-1) for m in (model, reference))
        rounded = reference.readout(reference.think(X, trace=False, exact_loops=record["loops"])[0]).float()
    differs = (said != heard) & write
    assert differs.sum() <= 0.005 * write.sum()
    e = (rounded - exact)[write].abs().max().item()
    # seen: 0.0062 to 0.0067, and for e, a largest of some 60,000, 4.2 to 6.0% of the largest logit
    assert (rounded - exact)[write].norm() < 0.02 * exact[write].norm()
    assert e < 0.1 * exact[write].abs().max()
    top = exact.topk(2, dim=-1).values
    assert ((top[..., 0] - top[..., 1])[differs] <= 2 * e).all()


@trained
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_checkpoint_in_bfloat16(problems, device):
    model, _, X, Y, _ = problems
    check_in_bfloat16(copy.deepcopy(model), X, Y, device)


def test_large_vocabularies_halt_without_logits(standin, monkeypatch):
    """Where the loop kernel leaves the readout to torch, the head kernel takes it. Thresholds that all or no scores
    pass, and limits, since the torch path rounds the logits of a bf16 model and the kernel does not."""
    model = make("entropy", V=200, L=5).bfloat16()
    idx = tokens(model, 3, 13)
    plan = model.halting_plan(idx, 5)
    plan = plan._replace(threshold=torch.where(torch.rand(3, 13) < 0.5, 1e9, -1.0),
                         limit=torch.randint_like(plan.limit, 1, 5))
    calls = []
    monkeypatch.setattr(think, "choose_backend", lambda *args: "cutile")
    monkeypatch.setattr(think, "head_halt", lambda *args: calls.append(args) or standin.head.head_halt(
        *args[:-1], "cutile"))
    with torch.no_grad():
        x0 = model.embed(idx)
        (h, loops), (got, taken) = think.all_loops(model, x0, plan), think.adaptive(model, x0, plan)
    assert len(calls) == loops.max() > 1
    assert torch.equal(taken, loops)
    assert torch.equal(got, h)


# ---- which path auto takes

@pytest.fixture
def paths(monkeypatch):
    """What adaptive_loop takes, in order, on a machine where the kernel and graphs seem to run."""
    taken = []

    def graph(name):
        def replay(*args):
            taken.append(name)
            if taken.count(name) > 5:
                raise torch.OutOfMemoryError("no room for a graph")
            return name
        return replay
    monkeypatch.setattr(real.backend, "why_not_cutile", lambda device: "")
    monkeypatch.setattr(real.paths, "choose_backend", lambda *args: "cutile")
    monkeypatch.setattr(real.loop, "kernel_path", lambda *args, **named: taken.append("kernel") or "kernel")
    monkeypatch.setattr(real.paths, "torch_graph", graph("graph"))
    monkeypatch.setattr(real.paths, "kernel_graph", graph("kernel graph"))
    monkeypatch.setattr(real.paths, "fastest", lambda case, *args, **ways: taken.append(case) or real.best)
    monkeypatch.setattr(real, "best", "graph", raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(real.paths, "calls_by_shape", {})
    monkeypatch.setattr(real.paths, "failed_ops", {})
    return taken


@pytest.mark.parametrize(("best", "way"), [("graph", "graph"), ("kernel", "kernel graph")])
def test_auto_takes_the_faster_path_for_shapes_that_come_often(paths, monkeypatch, capfd, best, way):
    monkeypatch.setattr(real, "best", best)
    model = make("confidence", C=64)
    x0, some = torch.zeros(3, 13, 64), torch.ones(3, 13)

    def ask(limit, backend="auto"):
        plan = HaltingPlan(some > 0, some, limit, 4, model.config.halt)
        return real.paths.adaptive_loop(model.loop_spec(), x0, plan, backend=backend)
    case = "C64 T64 tokens256 confidence float32"
    for _ in range(real.paths.CALLS_BEFORE_GRAPH):
        ask(some.long())
    assert paths == ["kernel"] * (real.paths.CALLS_BEFORE_GRAPH - 1) + [case, way]
    assert ask(some.long(), "cutile") == "kernel"
    torch.use_deterministic_algorithms(True)
    assert ask(some.long()) == "kernel"
    torch.use_deterministic_algorithms(False)
    for _ in range(4):
        assert ask(some.long()) == way
    assert ask(some.long()) == "kernel"  # where a graph fails, and from then on
    assert "without CUDA graphs from now on: no room" in capfd.readouterr().err
    assert paths[-2:] == [way, "kernel"]
    assert ask(some.long()) == "kernel"
    assert paths[-1] == paths[-2] == "kernel"


def test_what_is_asked_for_seldom_is_left_to_torch(monkeypatch):
    """Each variant for itself, by count; at once where no kernel can run, the rounding may not change, or a CUDA graph
    is being captured."""
    monkeypatch.setattr(real.paths, "CALLS_BEFORE_KERNEL", 3)
    monkeypatch.setattr(real.paths, "calls_by_variant", {})
    monkeypatch.setattr(real.paths, "why_not_cutile", lambda device: "")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    gpu = torch.device("cuda")

    def seldom(*variant, device=gpu):
        return real.paths.comes_seldom(device, *variant)
    assert [seldom("kl", 64) for _ in range(5)] == [True] * 3 + [False] * 2
    assert seldom("kl", 128)
    assert seldom("none", 64)
    assert not seldom("delta", device=torch.device("cpu"))
    for module, name, value in ((torch.cuda, "is_current_stream_capturing", True),
                                (torch, "are_deterministic_algorithms_enabled", True),
                                (torch.compiler, "is_compiling", True)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda value=value: value)
            assert not seldom("delta")
    with monkeypatch.context() as patch:
        patch.setattr(real.paths, "why_not_cutile", lambda device: "its compiler is not installed")
        assert not seldom("delta")
    assert seldom("delta")


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("given", ["auto", "torch"])
def test_a_call_that_comes_seldom_asks_for_no_kernel(monkeypatch, given, early):
    """Neither the loop's nor those inside it, with a trace or without, nor for losses; the setting stays as it was."""
    model, asked, variants = make("kl", backend=given), [], []
    idx = tokens(model, 3, 13)
    monkeypatch.setattr(think, "comes_seldom", lambda *variant: variants.append(variant) or early)
    monkeypatch.setattr(think, "adaptive_loop", lambda *args, **named: asked.append(named.get("backend") or args[-1]))
    update = think.halt_update
    monkeypatch.setattr(think, "halt_update", lambda *args, **named: asked.append(args[9]) or update(*args, **named))
    attend = model_module.attention
    monkeypatch.setattr(model_module, "attention", lambda *args: asked.append(args[4]) or attend(*args))
    with torch.no_grad():
        for call in (partial(model.think, idx, trace=True), partial(model.think, idx, trace=False),
                     partial(model.last_state, idx), partial(model.loss_per_loop, idx, idx)):
            asked.clear()
            call()
            assert len(asked) >= model.config.num_loops  # attention of each loop at least
            assert set(asked) == {"torch" if early and given == "auto" else given}
            assert model.config.backend == given
    assert len(set(variants)) == len(variants) == 4 * (given == "auto")
    monkeypatch.setattr(think, "adaptive_loop", mock.Mock(side_effect=RuntimeError("a launch")))
    with pytest.raises(RuntimeError, match="a launch"):
        model.think(idx)
    assert model.config.backend == given


@pytest.mark.parametrize("rule", [pytest.param(rule, marks=GPU) for rule in ("none", "confidence")])
def test_kernels_come_in_with_what_is_asked_for_often(monkeypatch, rule):
    """On a GPU, by auto: no kernel in the first calls, then they are there, and give the same."""
    monkeypatch.setattr(real.paths, "CALLS_BEFORE_KERNEL", 2)
    monkeypatch.setattr(real.paths, "CALLS_BEFORE_GRAPH", 2)
    monkeypatch.setattr(real.paths, "calls_by_variant", {})
    monkeypatch.setattr(real.paths, "calls_by_shape", {})
    ways, choose = [], real.paths.choose_path
    monkeypatch.setattr(real.paths, "choose_path", lambda *args: ways.append(choose(*args)) or ways[-1])
    model = make(rule, T=60, V=65, C=128, L=6, n_head=4, gain=2.0, device="cuda").bfloat16()
    idx = tokens(model, 8, 60)
    states = [model.think(idx, trace=False)[0].float() for _ in range(4)]
    assert ways == ["torch", "torch", "kernel", "graph"]
    assert torch.equal(states[0], states[1])
    for h in states[2:]:
        assert (h - states[0]).norm() / states[0].norm() < 2e-2


def test_a_failed_launch_does_not_excuse_a_forced_one(paths):
    real.paths.failed_ops["loop of n_embd 64"] = "its compiler"
    model, x0, some = make(C=64), torch.zeros(3, 13, 64), torch.ones(3, 13)
    call = partial(real.paths.adaptive_loop, model.loop_spec(), x0, HaltingPlan(some > 0, some, 4, 4, "none"))
    assert call() is None
    assert call(backend="cutile") == "kernel"


def test_a_compiler_that_fails_or_too_many_shapes(paths, monkeypatch):
    """What keeps auto from a graph is no error of the call, and too many shapes leave the other shapes their graphs."""
    model, x0, some = make(C=64), torch.zeros(3, 13, 64), torch.ones(3, 13)
    call = partial(real.paths.adaptive_loop, model.loop_spec(), x0, HaltingPlan(some > 0, some, 4, 4, "none"))
    for _ in range(real.paths.CALLS_BEFORE_GRAPH):
        call()
    assert real.paths.replay(dict.fromkeys(range(real.paths.MAX_GRAPHS)), "one more", (x0,), None) is None
    monkeypatch.setattr(real.paths, "torch_graph", lambda *args: None)
    assert call() == "kernel"
    assert "graph" not in real.paths.failed_ops
    for error in real.tile.ERRORS:
        monkeypatch.setattr(real.paths, "failed_ops", {})
        monkeypatch.setattr(real.paths, "torch_graph", mock.Mock(side_effect=error("of a compiler")))
        assert call() == "kernel"
        assert real.paths.failed_ops["graph"] == "of a compiler"


def test_a_case_is_measured_once(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(real.paths, "milliseconds", lambda call: call())
    case = real.paths.loop_case(128, 64, 64, "fixed", torch.bfloat16)
    assert case == "C128 T64 tokens4096 fixed bfloat16"
    for kernel, graph, best in ((2.0, float("inf"), "kernel"), (2.0, 1.0, "graph"), (None, None, "graph")):
        real.paths.path_table.cache_clear()  # as a new process would; a path that failed is tried again by it
        assert real.paths.fastest(case, "cuda", lambda t=kernel: t, lambda t=graph: t) == best
    assert "kernel 2.000 ms, graph 1.000 ms" in capfd.readouterr().err
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert real.paths.fastest("C384 T64 tokens1024 fixed bfloat16", "cuda", None, None) == "graph"
    for broken in ("[1]", "{", None):  # tables that cannot be read, and a cache that cannot be written
        real.paths.path_table.cache_clear()
        monkeypatch.setattr(real.paths, "TABLE", tmp_path / "table.json")
        (tmp_path / "table.json").write_text(broken) if broken else (tmp_path / "table.json").unlink()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "looplm" / "Some_GPU.json"))
        assert real.paths.fastest(case, "cuda", lambda: 1.0, lambda: 2.0) == "kernel"
    real.paths.path_table.cache_clear()


def test_weights_that_change_unseen(on_cpu):
    """A CUDA graph of a training step changes weights without PyTorch's counting it."""
    model = make(L=2)
    idx = tokens(model, 2, 13)
    same_thinking(*think_of(model, idx, False), 1e-5, 5e-5)
    model.train()
    model.transformer.h[0].mlp.c_fc.weight.data.mul_(-1)
    model.eval()
    same_thinking(*think_of(model, idx, False), 1e-5, 5e-5)


@pytest.mark.parametrize("rule", RULES_OF_BLOCKS)
def test_loops_that_never_leave_are_the_same(rule):
    """What the graph captures, which cannot ask the host whether a token is still active, gives what think gives."""
    model = make(rule, L=4)
    idx = tokens(model, 3, 13)
    set_threshold(model, idx)
    plan = model.halting_plan(idx, 4)
    with torch.no_grad():
        (h, loops), (wanted, record) = think.all_loops(model, model.embed(idx), plan), model.think(idx, trace=False)
        fixed, none = think.all_loops(model, model.embed(idx), think.fixed_plan(idx, 4))
        assert torch.equal(fixed, list(model.states(idx, 4))[-1])
    assert none is None
    assert torch.equal(h, wanted)
    assert torch.equal(loops, record["loops"])


@pytest.mark.third
@pytest.mark.parametrize("rule", [*RULES_OF_BLOCKS, "fixed"])
def test_what_the_graph_of_torch_loops_compiles(rule):
    """All loops as one compiled graph without a break, for inputs other than those it was made for."""
    model = make("none" if rule == "fixed" else rule, L=3)
    idx, spec = tokens(model, 3, 13), model.loop_spec()
    set_threshold(model, idx)
    plan = think.fixed_plan(idx, 3) if rule == "fixed" else model.halting_plan(idx, 3)
    compiled = torch.compile(lambda x0, *tensors: spec.in_torch(x0, real.paths.with_inputs(plan, *tensors)),
                             dynamic=False, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for _ in range(2):
            x0, fresh = model.embed(tokens(model, 3, 13)), plan._replace(threshold=plan.threshold.roll(1, 0))
            h, loops = compiled(*real.paths.graph_inputs(x0, fresh))
            wanted, taken = think.all_loops(model, x0, fresh)
            assert torch.equal(h, wanted)
            assert loops is None if rule == "fixed" else torch.equal(loops, taken)
