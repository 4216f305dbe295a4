"""The kernels against float64: their sources on the CPU stand-in for cuda.tile, and the same tests on a GPU; every
kernel through the real compiler; the dispatch, and the operators under torch.compile and in CUDA graphs.
"""
import copy
import itertools
import subprocess
import sys
from pathlib import Path

import compile_all
import cutile_cpu
import pytest
import torch
import torch.nn.functional as F

import kernels as real
import looplm_kernels
import model
from looplm_kernels import RULES, halt_score, halt_update_reference, softmax_statistics

ROOT = Path(looplm_kernels.__file__).parent
WHY = real.backend.why_not_cutile(torch.device("cuda")) if torch.cuda.is_available() else "there is no GPU"
NO_COMPILER = real.tile.MISSING or ("" if real.backend.tileiras_version() else "tileiras is not installed")
GPU = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY), reason=f"needs a GPU that cuTile runs on: {WHY}")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
on_gpu = pytest.mark.parametrize("device", DEVICES[1:])
on_both = pytest.mark.parametrize("device", DEVICES)
by_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
CASES = ("random", "halted", "one", "huge", "inf")


@pytest.fixture(autouse=True)
def seed(rng):
    torch.manual_seed(int(rng.integers(2 ** 31)))


@pytest.fixture(scope="module")
def standin():
    """The kernels' source on the CPU; backend cutile is what its public functions take."""
    package = cutile_cpu.load_kernels()
    for module in (package.backend, package.halt, package.head, package.attention):
        module.choose_backend = lambda *args: "cutile"
    return package


@pytest.fixture
def kernels(device, standin):
    """The module under test; what it allocates is poisoned, with NaN or the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield standin if device == "cpu" else real
    torch.use_deterministic_algorithms(False)


@on_both
def test_outputs_are_poisoned(kernels, device):
    assert torch.empty(3, device=device).isnan().all()


# ---- inputs and references

def padded(N, V, dtype, device, scale, case):
    """Logits (N,V), mostly parts of longer rows that are multiples of 64, with NaN between them."""
    rows = V if case == "huge" or V == 13 else -(-V // 64) * 64
    buffer = torch.full((N, rows), torch.nan, dtype=dtype, device=device)
    buffer[:, :V] = scale * torch.randn(N, V, device=device)
    return buffer[:, :V]


def halt_inputs(N, C, V, dtype, case, device):
    h, new = torch.randn(2, N, C, device=device).to(dtype)
    logits, previous = (padded(N, V, dtype, device, 1e4 if case == "huge" else 3.0, case) for _ in range(2))
    if case == "inf":
        for x in (logits, previous):
            x[torch.rand(N, V, device=device) < 0.5] = -torch.inf
            x[:1] = -torch.inf  # a row of nothing else
            x[1:2, V // 2] = torch.nan
            if dtype != torch.float16:
                x[2:3] = -1e20
    active = torch.rand(N, device=device) < 0.7
    if case in ("halted", "one"):
        active[:] = False
        active[N // 2] = case == "one"
    given = dict(logits=logits, previous=previous, gate=torch.rand(N, device=device),
                 alpha=0.1 + torch.rand(N, device=device))
    return h, new, active, torch.randint(3, (N,), device=device), torch.randint(2, 6, (N,), device=device), given


def wide(given):
    return {key: x.double() for key, x in given.items() if x is not None}


def near(rule, h, new, given):
    """Thresholds a little above or below the tokens' scores, so that about half of them pass, far from ties."""
    score = halt_score(rule, h.double(), new.double(), **wide(given))
    score = torch.nan_to_num(score, nan=0.5, posinf=1e30, neginf=-1e30)
    side = torch.rand_like(score) < 0.5
    return torch.where(side, score + score.abs() * 0.01 + 1e-4, score - score.abs() * 0.01 - 1e-4).float()


def close(got, want, tolerance):
    torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def reference(rule, h, new, active, loops, threshold, limit, given):
    return halt_update_reference(rule, h.double(), new.double(), active, loops, 3, threshold, limit, 2, **wide(given))


def same_update(got, want, tolerance):
    """States, flags and counts to the bit, scores to rounding."""
    for x, y in zip(got[:3], want[:3], strict=True):
        assert torch.equal(x.to(y.dtype), y)
    close(got[3], want[3], tolerance)


# ---- halt update

def sizes(device):
    N, V = (1, 3, 65, 127), (13, 65, 257)
    return itertools.product(N, V) if device == "cpu" else itertools.product((*N, 1003), (*V, 50257, 50304))


@pytest.mark.third
@on_both
@by_dtype
@pytest.mark.parametrize("rule", RULES)
def test_halt_update(kernels, device, dtype, rule):
    first = int(torch.randint(10, ()))
    for i, (N, V) in enumerate(sizes(device), first):
        ways = itertools.product(CASES, (False, True))
        for case, inplace in ways if device == "cuda" else [(CASES[i % 5], i % 2 > 0)]:
            h, new, active, loops, limit, given = halt_inputs(N, 40, V, dtype, case, device)
            threshold = near(rule, h, new, given)
            want = reference(rule, h, new, active, loops, threshold, limit, given)
            kept = [x.clone() for x in (h, active, loops)]
            got = kernels.halt.halt_update(rule, h, new, active, loops, 3, threshold, limit, 2, backend="cutile",
                                      inplace=inplace, **given)
            same_update(got, want, 2e-5)
            if inplace:
                assert all(x is y for x, y in zip((h, active, loops), got[:3], strict=True))
            else:
                assert all(torch.equal(x, y) for x, y in zip((h, active, loops), kept, strict=True))


@on_both
def test_halt_update_takes_what_the_model_gives(kernels, device):
    """Tokens (B,T), alpha as a number in a tensor of the host, no readout before loop 1."""
    h, new = torch.randn(2, 2, 5, 24, device=device)
    threshold, limit = torch.full((2, 5), 2.0, device=device), torch.full((2, 5), 9, device=device)
    active, loops = limit > 0, torch.zeros_like(limit)
    for alpha in (0.5, torch.tensor(0.5), torch.tensor(0.5, device=device)):
        got = kernels.halt.halt_update("delta", h, new, active, loops, 1, threshold, limit, backend="cutile",
                                       alpha=alpha)
        want = halt_update_reference("delta", h, new, active, loops, 1, threshold, limit, alpha=0.5)
        same_update(got, want, 1e-5)
    logits = torch.randn(2, 5, 13, device=device)
    got = kernels.halt.halt_update("kl", h, new, active, loops, 1, threshold, limit, backend="cutile", logits=logits,
                              previous=None)
    assert got[3].isnan().all()
    assert got[1].all()
    assert kernels.halt.halt_update("none", h[:0], new[:0], active[:0], loops[:0], 1, threshold[:0], limit[:0],
                               backend="cutile")[3].numel() == 0


@on_both
def test_halted_tokens_have_no_score(kernels, device):
    """Blocks in which all have halted write NaN over whatever the outputs held."""
    h, new, active, loops, limit, given = halt_inputs(65, 32, 13, torch.float32, "halted", device)
    active[-1] = True
    scores, confidence, entropy = torch.full((3, 65), 7.0, device=device)
    said, threshold, head = loops + 5, torch.ones(65, device=device), torch.randn(13, 32, device=device)
    tokens = (h.clone(), new, active.clone(), loops.clone(), scores, threshold, limit)
    kernels.halt.halt_update_op("entropy", *tokens, given["logits"], None, None, None, 1.0, 1, 1, True)
    assert scores.isnan().tolist() == [True] * 64 + [False]
    scores.fill_(7)
    tokens = (h.clone(), new, active.clone(), loops.clone(), scores, threshold, limit)
    kernels.head.head_halt_op("entropy", *tokens, head, h[0].contiguous(), None, confidence, entropy, said, None, None,
                              1.0, 1, 1, 1e-5, True)
    for x in (scores, confidence, entropy):
        assert x.isnan().tolist() == [True] * 64 + [False]
    assert torch.equal(said[:-1], loops[:-1] + 5)


@on_gpu
def test_more_logits_than_an_int32_counts(device):
    N, V = 43000, 50304
    logits = torch.zeros(N, V, dtype=torch.bfloat16, device=device)
    logits[-3:] = 3 * torch.randn(3, V, device=device)
    h, new = torch.randn(2, N, 8, device=device)
    active, loops = torch.ones(N, dtype=torch.bool, device=device), torch.zeros(N, dtype=torch.long, device=device)
    got = real.halt.halt_update("confidence", h, new, active, loops, 3, torch.full((N,), 2.0, device=device), loops + 9,
                           backend="cutile", logits=logits)
    close(got[3][-5:], softmax_statistics(logits[-5:].double())[1], 2e-5)
    assert torch.equal(got[0], new)
    assert got[1].all()


# ---- head and halt in one

HEADS = [(3, 40, 65), (65, 24, 13), (130, 96, 257)]


@pytest.mark.third
@on_both
@by_dtype
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "kl"])
def test_head_halt(kernels, device, dtype, rule):
    larger = [(1, 128, 65), (127, 384, 50257), (1003, 128, 50304)] if device == "cuda" else []
    for (N, C, V), case in itertools.product(HEADS + larger, ("random", "halted", "one")):
        h, new, active, loops, limit, given = halt_inputs(N, C, 13, dtype, case, device)
        head = (torch.randn(V, C, device=device) * 4 / C ** 0.5).to(dtype)
        weight, bias = 1 + 0.1 * torch.randn(C, device=device), 0.1 * torch.randn(C, device=device)
        x = F.layer_norm(new.double(), (C,), weight.double(), bias.double()).to(dtype)  # what the head multiplies
        given["logits"] = x.double() @ head.double().T
        exact = dtype == torch.float32
        tolerance = 1e-4 if exact else 3e-2
        threshold = near(rule, h, new, dict(given, previous=None))
        if not exact:  # rounding of the operands may turn a close call
            threshold = torch.where(torch.rand(N, device=device) < 0.5, -1e30, 1e30)
        want = reference(rule, h, new, active, loops, threshold, limit, dict(given, previous=None))
        said = torch.full((N,), -5, device=device)
        for inplace in (False, True):
            *got, confidence, entropy, prediction = kernels.head.head_halt(
                rule, h, new, active.clone(), loops, 3, threshold, limit, head, weight, bias, 2, "cutile", inplace,
                gate=given["gate"], alpha=given["alpha"], prediction=said)
            same_update(got, want, tolerance)
            _, certain, unsure = softmax_statistics(given["logits"])
            close(confidence, certain.masked_fill(~active, torch.nan), tolerance)
            close(entropy, unsure.masked_fill(~active, torch.nan), tolerance)
            assert (prediction[~active] == -5).all()
            missed = given["logits"].max(-1).values - given["logits"].gather(1, prediction.clamp(min=0)[:, None])[:, 0]
            assert not active.any() or missed[active].max() < (1e-5 if exact else tolerance)
            assert (said == -5).all() or inplace


def test_head_halt_falls_back_to_the_same():
    """The torch reference by way of the public function, without a bias and without predictions so far."""
    h, new, active, loops, limit, given = halt_inputs(65, 24, 13, torch.float32, "random", "cpu")
    head, weight = torch.randn(13, 24), torch.rand(24)
    logits = F.layer_norm(new, (24,), weight) @ head.T
    threshold = near("entropy", h, new, dict(logits=logits))
    got = real.head.head_halt("entropy", h, new, active, loops, 3, threshold, limit, head, weight)
    same_update(got, reference("entropy", h, new, active, loops, threshold, limit, dict(logits=logits)), 1e-4)
    assert torch.equal(got[6], torch.where(active, logits.argmax(-1), 0))
    in_place = real.head.head_halt("entropy", h, new, active, loops, 3, threshold, limit, head, weight, inplace=True)
    torch.testing.assert_close(in_place, got, rtol=0, atol=0, equal_nan=True)
    assert in_place[0] is h
    with pytest.raises(ValueError, match="kl.*none, confidence"):
        real.head.head_halt("kl", h, new, active, loops, 3, threshold, limit, head, weight)


# ---- attention

ROUNDING = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the products, of p, of the output


def angles(rotation, T, hs, device):
    """No rotation; that of a step, of the queries alone; of the places and the step; of the keys' places alone."""
    place, step = torch.randn(T, hs // 2, device=device) * 3, torch.randn(1, hs // 2, device=device) * 3
    return [(None, None), (step, None), (place + step, place), (None, place)][rotation]


def exact_attention(qkv, nh, q_angle, k_angle, nkv=None):
    """(B,T,C) in float64, by the definition: pairs of channels as complex numbers, weights of the past alone."""
    (B, T, _), nkv = qkv.shape, nkv or nh
    heads = qkv.view(B, T, nh + 2 * nkv, -1).transpose(1, 2).double()
    of = [i * nkv // nh for i in range(nh)]  # whose keys a head of queries reads
    q, k, v = heads[:, :nh], heads[:, nh:][:, of], heads[:, nh + nkv:][:, of]  # (B,nh,T,hs)
    half = q.size(-1) // 2

    def turned(x, angle):
        if angle is None:
            return x
        z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((z.real, z.imag), -1)

    q, k = (turned(x, None if a is None else a.double()) for x, a in ((q, q_angle), (k, k_angle)))
    score = (q @ k.mT / (2 * half) ** 0.5).masked_fill(torch.ones(T, T, device=q.device).triu(1) > 0, -torch.inf)
    return (score.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1)


@pytest.mark.third
@on_both
@by_dtype
@pytest.mark.parametrize(("hs", "rotation"), [(32, 0), (48, 0), (64, 2), (96, 0), (96, 1), (128, 3)])
def test_attention(kernels, device, dtype, hs, rotation):
    for T, scale in itertools.product((1, 3, 65, 127, 256, 1003) if device == "cuda" else (1, 3, 65, 127), (1, 20)):
        gain = torch.tensor([scale] * 6 * hs + [1] * 3 * hs, device=device)  # of queries and keys
        qkv = (torch.randn(2, T, 9 * hs, device=device) * gain).to(dtype)
        pair = angles(rotation, T, hs, device)
        got, want = kernels.attention.attention(qkv, 3, *pair, "cutile"), exact_attention(qkv, 3, *pair)
        assert got.dtype == dtype
        if scale == 1:
            close(got, want, ROUNDING[dtype])
        else:  # scores of some hundreds: what rounding turns is no longer small, but all stays a mean of v
            assert got.isfinite().all()
            assert got.abs().max() <= qkv.abs().max()


@pytest.mark.third
@on_both
@by_dtype
@pytest.mark.parametrize(("hs", "rotation", "nkv"), [(32, 0, 2), (48, 1, 1), (64, 2, 3), (96, 0, 1)])
def test_attention_of_heads_that_share_keys(kernels, device, dtype, hs, rotation, nkv):
    """Six heads of queries; the kernel and the reference."""
    for T in (1, 3, 65, 127):
        qkv, pair = torch.randn(2, T, (6 + 2 * nkv) * hs, device=device).to(dtype), angles(rotation, T, hs, device)
        want = exact_attention(qkv, 6, *pair, nkv)
        got = kernels.attention.attention(qkv, 6, *pair, "cutile", nkv)
        assert got.dtype == dtype
        close(got, want, ROUNDING[dtype])
        close(kernels.attention.attention_reference(qkv, 6, *pair, nkv), want, ROUNDING[dtype])


@on_both
@torch.no_grad()
def test_attention_of_a_modern_block(kernels, device, monkeypatch):
    """The whole layer with normed queries and keys, as the kernel serves it, beside float64 and its manual path."""
    monkeypatch.setattr(model, "attention", kernels.attention.attention)
    for T, n_kv_head in ((1, 2), (65, 1), (127, 2)):
        config = model.GPTConfig(n_head=4, n_kv_head=n_kv_head, n_embd=128, block="modern")
        layer, x = model.CausalSelfAttention(config).to(device).eval(), torch.randn(2, T, 128, device=device)
        for norm in (layer.q_norm, layer.k_norm):
            norm.weight.normal_()
        torch.nn.init.normal_(layer.c_attn.weight, std=0.3)
        pair, exact = angles(2, T, 32, device), copy.deepcopy(layer).double()
        config.backend, exact.flash = "cutile", False
        close(layer(x, *pair), exact(x.double(), *pair), 1e-5)


@pytest.mark.parametrize("plan", [(16, 64, 4, 2), (64, 32, 4, 2), (32, 64, 8, None), (128, 64, 8, 1)], ids=str)
def test_attention_plans(standin, monkeypatch, plan):
    """Tiles of more rows than columns, of fewer, the diagonal in one tile and in several, one tile and many."""
    monkeypatch.setattr(standin.attention, "attention_plan", lambda *args: plan)
    for T in (1, 63, 64, 130, 200):
        qkv = torch.randn(1, T, 3 * 2 * 32)
        close(standin.attention.attention(qkv, 2, backend="cutile"), exact_attention(qkv, 2, None, None), 2e-5)


def test_attention_reference():
    for rotation, T in itertools.product(range(4), (1, 65)):
        qkv, pair = torch.randn(2, T, 3 * 2 * 48), angles(rotation, T, 48, "cpu")
        close(real.attention.attention(qkv, 2, *pair), exact_attention(qkv, 2, *pair), 2e-5)
    assert real.attention.attention(torch.randn(0, 5, 96), 1).shape == (0, 5, 32)


# ---- the real compiler

@pytest.mark.skipif(bool(NO_COMPILER), reason=f"needs cuTile's compiler: {NO_COMPILER}")
@pytest.mark.parametrize("target", [pytest.param(target, marks=[pytest.mark.full] * (target != "sm_90"))
                                    for target in compile_all.TARGETS])
def test_every_kernel_compiles(target):
    """One variant of each kernel; make compile-all does the others."""
    first = {}
    for (name, _), started in compile_all.everything(target).items():
        first.setdefault(name, started)
    modules = real.halt, real.head, real.attention, real.loop, real.decode, real.decode_rows
    assert set(first) == {name for module in modules for name in vars(module)
                          if name.startswith("looplm_") and name.endswith("_kernel")}
    for name, started in first.items():
        if target != "sm_90" and "decode" in name:
            continue  # made for Hopper, and refused elsewhere: ptxas takes minutes for them on sm_120
        size, seconds = compile_all.build(*started, target)
        print(f"{target} {name} {seconds:.1f} s")
        assert size > 1000


# ---- operators

def loop_of_three(x, inputs, backend):
    """Attention, the halt update in place, and head and halt, as a loop would call them."""
    h, new, active, loops, threshold, limit, logits, head, weight = inputs
    y = real.attention.attention(x, 2, backend=backend)
    tokens = h, new, active, loops, 2, threshold, limit
    update = real.halt.halt_update("entropy", *tokens, backend=backend, logits=logits)
    return y, *update, *real.head.head_halt("gate", *tokens, head, weight, gate=threshold, backend=backend)


def operator_inputs(device):
    h, new, active, loops, limit, given = halt_inputs(65, 32, 13, torch.float32, "random", device)
    threshold = near("entropy", h, new, dict(logits=given["logits"]))
    return torch.randn(2, 7, 3 * 64, device=device), (h, new, active, loops, threshold, limit, given["logits"],
                                                      torch.randn(65, 32, device=device),
                                                      torch.rand(32, device=device))


@on_both
def test_operators_under_torch_compile(device):
    x, inputs = operator_inputs(device)
    backend = "auto" if device == "cpu" else "cutile"
    compiled = torch.compile(loop_of_three, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, inputs, backend), loop_of_three(x, inputs, "torch"), rtol=1e-4, atol=1e-4,
                               equal_nan=True)


@on_both
def test_operators_are_what_they_say(device):
    """Schemas, fakes, what is mutated and what not; on a CPU they run the reference."""
    x, (h, new, active, loops, threshold, limit, logits, head, weight) = operator_inputs(device)
    scores, alpha = torch.full_like(threshold, 7), torch.rand(65, device=device)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    update = (h.clone(), new, active.clone(), loops.clone(), scores, threshold, limit)
    torch.library.opcheck(real.attention.attention_op, (x, 2, None, None, device == "cuda"), test_utils=checks)
    for rule in RULES:
        given = logits, logits * 0.5, alpha, alpha * 0.5 + 1
        torch.library.opcheck(real.halt.halt_update_op, (rule, *update, *given, 1.0, 2, 1, device == "cuda"),
                              test_utils=checks)
    outputs = scores + 1, scores + 2, loops + 3
    torch.library.opcheck(real.head.head_halt_op, ("delta", *update, head, weight, None, *outputs, None, alpha, 0.5, 2,
                                                   1, 1e-5, device == "cuda"), test_utils=checks)


@on_gpu
@pytest.mark.parametrize("compiles", [False, True])
def test_operators_in_a_cuda_graph(device, compiles):
    x, inputs = operator_inputs(device)
    call = torch.compile(loop_of_three, fullgraph=True) if compiles else loop_of_three
    call(x, inputs, "cutile")  # compiles the kernels, which a capture cannot
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call(x, inputs, "cutile")
    fresh, values = operator_inputs(device)
    x.copy_(fresh)
    for old, new in zip(inputs, values, strict=True):
        old.copy_(new)
    graph.replay()
    torch.testing.assert_close(got, loop_of_three(fresh, values, "torch"), rtol=1e-4, atol=1e-4, equal_nan=True)


# ---- dispatch

def python(*lines):
    """Run lines in a new Python, in which cuda.tile is not to be had."""
    block = "import sys; sys.modules['cuda'] = sys.modules['cuda.tile'] = None"
    return subprocess.run([sys.executable, "-c", "\n".join((block, *lines))], cwd=ROOT, text=True,
                          capture_output=True, timeout=600)


def test_without_cuda_tile():
    """The module can be imported, takes torch, and says what is missing where a GPU would have run the kernels."""
    out = python("import torch, looplm_kernels as K", "K.attention(torch.ones(1, 3, 96), 1)",
                 "K.torch.version.cuda = '13.0'", "print(K.why_not_cutile(torch.device('cuda')))", "K.report()")
    assert out.returncode == 0, out.stderr
    assert "cuda-tile is not installed" in out.stdout
    assert "cuda-tile none" in out.stdout
    assert out.stderr == ""  # on a CPU nobody expects a kernel


@pytest.mark.parametrize(("capability", "compiler", "driver", "says"), [
    ((7, 5), (13, 5), 13000, "7.5 is below 8.0"), ((9, 0), None, 13000, "tileiras, is not installed"),
    ((9, 0), (13, 2), 13000, "13.2 cannot compile for Hopper"), ((8, 0), (13, 2), 12080, "for CUDA 12.8"),
    ((8, 0), (13, 2), 13000, ""), ((12, 0), (13, 5), 13010, "")])
def test_what_keeps_cutile_from_running(monkeypatch, capability, compiler, driver, says):
    monkeypatch.setattr(real.backend, "MISSING", "")
    monkeypatch.setattr(real.backend, "tileiras_version", lambda: compiler)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(real.backend, "driver_version", lambda: driver)
    reason = real.backend.why_not_cutile(torch.device("cuda"))
    assert says in reason
    assert bool(says) == bool(reason)


def test_backends_that_cannot_be():
    x = torch.ones(1, 3, 96)
    with pytest.raises(RuntimeError, match="cutile cannot run here: .*the device is cpu"):
        real.attention.attention(x, 1, backend="cutile")
    with pytest.raises(ValueError, match="cudnn.*auto, cutile, torch"):
        real.attention.attention(x, 1, backend="cudnn")
    assert "float64" in real.backend.why_not_tensors(x, x.double())
    assert "gradient" in real.backend.why_not_tensors(x.clone().requires_grad_())
    with torch.no_grad():
        assert real.backend.why_not_tensors(x.clone().requires_grad_(), None, 1.0) == ""


def test_a_launch_that_fails_falls_back_once(standin, monkeypatch, capfd):
    """auto runs the reference and says why; cutile raises."""
    calls = []

    def fails(*args, **hints):
        calls.append(args)
        raise standin.tile.ct.TileError("no such target")
    monkeypatch.setattr(standin.tile, "launch", fails)
    monkeypatch.setattr(standin.backend, "failed_ops", {})
    qkv = torch.randn(1, 5, 96)
    for _ in range(2):
        torch.testing.assert_close(standin.attention.attention(qkv, 1),
                                   real.attention.attention(qkv, 1, backend="torch"))
    assert len(calls) == 1
    assert capfd.readouterr().err.count("attention, its launch failed: TileError: no such target") == 1
    with pytest.raises(standin.tile.ct.TileError):
        standin.attention.attention(qkv, 1, backend="cutile")


def test_report(capfd):
    looplm_kernels.report()
    out = capfd.readouterr().out
    assert torch.__version__ in out
    for name in ("halt_update", "head_halt", "attention"):
        assert f"{name}: {'torch (' if WHY else 'cutile'}" in out
