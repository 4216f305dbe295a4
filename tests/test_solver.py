"""The loop as a dynamical system: orders of the solvers, their fixed points, and Anderson acceleration.

A Block that is a known field stands in for the transformer where a solution is to be known. Every run draws new inputs.
"""
import math

import pytest
import torch
import torch.nn as nn
from models import halfway, random_weights
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import think
from looplm_kernels import HaltingPlan
from model_loop import LoopConfig, LoopGPT, from_checkpoint

V, T, C, L = 13, 9, 16, 5
PAD = 12
ORDER = {"euler": 1, "heun": 2, "rk4": 4}
TINY = ("--dataset=addition", "--device=cpu", "--dtype=float32", "--compile=False", "--n_embd=16", "--n_head=2",
        "--num_loops=2", "--batch_size=8", "--max_iters=2", "--eval_iters=1", "--pos=place", "--tie_weights=False")


@pytest.fixture(autouse=True)
def seed(rng):
    torch.manual_seed(int(rng.integers(2 ** 31)))


def make(field=None, **overrides):
    """A model in float64; field: a function u -> G(u) that replaces the transformer's, so that Block(u) = u + G(u)."""
    settings = {"vocab_size": V, "block_size": T, "n_head": 2, "n_embd": C, "num_loops": L, "inject": "none",
                "tie_weights": False} | overrides
    model = random_weights(LoopGPT(LoopConfig(**settings)))
    if field:
        model.transformer.h = nn.ModuleList([Field(field)])
    return model


class Field(nn.Module):
    def __init__(self, field):
        super().__init__()
        self.field = field

    def forward(self, x, *others):
        return x + self.field(x)


def tokens(B=2, vocab=V):
    return torch.randint(vocab, (B, T))


def contraction(*shape, radius=0.9):
    """Symmetric matrices (*shape,C,C) of this spectral radius: with m = 5 they take 0.16 to 0.41 of the plain loops."""
    A = torch.randn(*shape, C, C, dtype=torch.float64)
    A = A + A.mT
    return A * (radius / torch.linalg.eigvalsh(A).abs().amax(-1))[..., None, None]


# ---- order of convergence

def slopes(errors):
    """How often an error halves each time that alpha does."""
    return [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]


def linear():
    """dh/dt = M h, solved by exp(M t) h0."""
    M = torch.randn(C, C, dtype=torch.float64) / math.sqrt(C)
    return (lambda u: u @ M.T), lambda h0, t: h0 @ torch.matrix_exp(M * t).T


def logistic():
    """dh/dt = h (1 - h) channel by channel: orders that a linear field cannot tell apart."""
    return (lambda u: u * (1 - u)), lambda h0, t: h0 * math.exp(t) / (1 - h0 + h0 * math.exp(t))


@pytest.mark.parametrize("field", [linear, logistic])
@pytest.mark.parametrize("update", ORDER)
def test_order_of_convergence(update, field):
    """The error at time 1 falls as alpha ** order where alpha * L stays."""
    G, solution = field()
    errors, x0 = [], torch.rand(2, T, C).double()
    for n in (16, 32, 64):
        model = make(G, update=update, alpha=1 / n)
        h = think.fixed_depth(model, x0, n)
        errors.append(((h - solution(x0, 1)).norm() / x0.norm()).item())
    print(update, errors, slopes(errors))
    assert slopes(errors)[-1] == pytest.approx(ORDER[update], abs=0.2)


@pytest.mark.parametrize(("first", "order"), [(2, ORDER), (1, dict.fromkeys(ORDER, 1))])
@pytest.mark.parametrize("update", ORDER)
def test_order_with_an_injection(update, first, order):
    """dh/dt = M (h + x0) is solved to full order from loop 2 on; from x0 on the one slope of loop 1 without an
    injection costs all but the first order."""
    G, solution = linear()
    h0 = x0 = torch.randn(2, T, C).double()
    errors = []
    for n in (16, 32, 64):
        model, h = make(G, update=update, alpha=1 / n, inject="add"), h0
        for l in range(first, first + n):
            h = model.loop(h, x0, l)
        errors.append((h - (solution(h0 + x0, 1) - x0)).norm().item())
    assert slopes(errors)[-1] == pytest.approx(order[update], abs=0.25)


# ---- fixed points

@pytest.mark.third
@pytest.mark.parametrize("settings", [
    {"update": "replace"}, *({"update": u, "alpha": a} for u in ORDER for a in (0.3, "learned", "gate"))],
    ids=lambda x: "-".join(map(str, x.values())))
@pytest.mark.parametrize("anderson", [0, 3])
def test_every_update_keeps_a_fixed_point(settings, anderson):
    """Where Block(u) = u, no loop moves the state, to the bit."""
    star, M = torch.randn(2, T, C).double(), torch.randn(C, C).double()
    model = make(lambda u: (u - star) @ M, anderson=anderson, **settings)
    assert torch.equal(think.fixed_depth(model, star, 6), star)
    every = torch.ones(2, T, dtype=torch.bool)
    plan = HaltingPlan(every, every.float(), 6 * every, 6, "none")
    assert torch.equal(think.all_loops(model, star, plan)[0], star)
    if settings["update"] != "replace":  # whose fixed point is Block(u) = h, which an injection parts from Block(u) = u
        model.inject.kind, x0 = "add", torch.randn(2, T, C).double()
        assert_close(model.loop(star - x0, x0, 2), star - x0, rtol=1e-13, atol=1e-13)


def trajectory(model, x0, loops):
    """h_1, h_2, ... from x0 (B,T,C) on."""
    h, history = x0, []
    for l in range(1, loops + 1):
        h = think.accelerate(model, h, model.loop(h, x0, l), l, history)
        yield h


def loops_until(model, x0, goal, tolerance, most=400):
    """Loops from x0 until every token is within the tolerance of its goal."""
    for l, h in enumerate(trajectory(model, x0, most), 1):
        if ((h - goal).norm(dim=-1) <= tolerance * goal.norm(dim=-1)).all():
            return l
    return most


@pytest.mark.parametrize("update", ["replace", "heun"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_anderson_reaches_the_fixed_point_sooner(dtype, tolerance, update):
    """Block(u) = A u + b, with A and b of each token's own: against a direct solve, in half the loops at most."""
    A, b = contraction(2, T), torch.randn(2, T, C).double()
    goal = torch.linalg.solve(torch.eye(C) - A, b[..., None])[..., 0].to(dtype)
    A, b, x0 = A.to(dtype), b.to(dtype), torch.randn(2, T, C).to(dtype)
    model = make(lambda u: (A @ u[..., None])[..., 0] + b - u, update=update)
    taken = {}
    for m in (0, 1, 5):
        model.config.anderson = m
        taken[m] = loops_until(model, x0, goal, tolerance)
    print(taken)
    assert taken[5] < taken[0] / 2
    assert taken[0] < 400


def test_anderson_of_a_transformer_keeps_its_fixed_point():
    """Attention couples the tokens, which mix by themselves: the end is still the plain loop's, and sooner there."""
    model = make(inject="decay")
    for p in model.transformer.h.parameters():
        p.data *= 0.5
    idx = tokens()
    x0, end = model.embed(idx), list(model.states(idx, 500))[-1]
    assert_close(model.loop(end, x0, 2), end, rtol=1e-10, atol=1e-10)
    plain = loops_until(model, x0, end, 1e-8)
    model.config.anderson = 4
    assert loops_until(model, x0, end, 1e-8) < plain
    assert_close(list(model.states(idx, 100))[-1], end, rtol=1e-7, atol=1e-7)


def test_anderson_with_one_loop_is_the_secant_method():
    """In one channel, up to the regularisation (Walker & Ni 2011); its history begins with loop 2."""
    model = make(lambda u: (0.5 * u.cos() - u) * (torch.arange(C) == 0), anderson=1)
    x0 = torch.randn(2, T, C).double() * (torch.arange(C) == 0)
    x = [h[..., 0] for h in (x0, *trajectory(model, x0, 4))]
    f = [0.5 * h.cos() - h for h in x]
    assert_close(x[1], x[0] + f[0])
    assert_close(x[2], x[1] + f[1])
    for k in (2, 3):
        assert_close(x[k + 1], x[k] - f[k] * (x[k] - x[k - 1]) / (f[k] - f[k - 1]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_anderson_by_least_squares(m):
    """A token at a time: the mean of the last m + 1 steps whose residual is least, old ones at a small price."""
    A, b = contraction(2, T), torch.randn(2, T, C).double()
    model = make(lambda u: (A @ u[..., None])[..., 0] + b - u, anderson=m)
    x0 = torch.randn(2, T, C).double()
    states = [x0, *trajectory(model, x0, 7)]
    for i, t in ((0, 0), (1, T - 1)):
        x = [h[i, t] for h in states]
        g = [A[i, t] @ h + b[i, t] for h in x]
        f = [new - h for new, h in zip(g, x, strict=True)]
        for k in range(1, 7):
            old = range(max(1, k - m), k)
            columns = [torch.cat((f[j] - f[k], 0.01 * (f[j] - f[k]).norm() * torch.eye(len(old))[n]))
                       for n, j in enumerate(old)]  # 0.01 ** 2 is the regularisation
            weights = torch.linalg.lstsq(torch.stack(columns, 1), -torch.cat((f[k], torch.zeros(len(old)))),
                                         driver="gelsd").solution if columns else []
            expected = g[k] + sum(w * (g[j] - g[k]) for w, j in zip(weights, old, strict=True))
            assert_close(x[k + 1], expected, rtol=1e-7, atol=1e-7)


# ---- a token and the others

SOLVERS = [{"update": "heun", "alpha": 0.5}, {"update": "rk4", "alpha": "gate"}, {"anderson": 3},
           {"update": "rk4", "anderson": 2, "loop_norm": True}]


@pytest.mark.parametrize("halt", [False, True])
@pytest.mark.parametrize("settings", SOLVERS, ids=lambda x: "-".join(map(str, x.values())))
def test_later_tokens_change_nothing(settings, halt):
    model, idx = make(inject="decay", **settings), tokens()
    if halt:
        halfway(model, idx, "delta")
    other = idx.clone()
    other[:, 5:] = (idx[:, 5:] + 1) % V
    (h, record), (changed, again) = model.think(idx), model.think(other)
    assert not torch.equal(h[:, 5:], changed[:, 5:])
    assert torch.equal(h[:, :5], changed[:, :5])
    for key, x in record.items():
        assert_close(x[:, :5], again[key][:, :5], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("settings", SOLVERS, ids=lambda x: "-".join(map(str, x.values())))
def test_a_halted_token_stays_to_the_bit(settings):
    """A run that stops a loop later has, where a token had halted, the same state."""
    model, idx = make(inject="decay", pad_token=PAD, **settings), tokens(vocab=PAD)
    idx[1, -2:] = PAD
    halfway(model, idx, "delta")
    total = model.think(idx)[1]["loops"]
    assert len(total[idx != PAD].unique()) > 1
    before = model.embed(idx)
    for l in range(1, L + 1):
        h, record = model.think(idx, num_loops=l)
        assert torch.equal(record["loops"], total.clamp(max=l))
        assert torch.equal((h == before).all(-1), total < l)
        before = h


@pytest.mark.parametrize("update", ["heun", "rk4"])
def test_others_see_a_halted_token_where_it_halted(update):
    """In every stage of every later loop: a Block that adds up the states of all tokens before says what it saw."""
    model = make(lambda u: 0.1 * u.cumsum(1), update=update, alpha=0.5)
    idx, exact = tokens(), torch.full((2, T), L)
    exact[:, 2] = 2
    h, record = model.think(idx, exact_loops=exact)
    assert torch.equal(record["loops"], exact)
    expected = model.embed(idx)
    for l in range(1, L + 1):
        moves = (exact >= l)[..., None].double()  # dh/dt = 0 for a halted token, in the slow solver below
        k = []
        for reach in {"heun": (0, 1), "rk4": (0, 0.5, 0.5, 1)}[update]:
            k.append(moves * 0.1 * (expected + (0.5 * reach * k[-1] if k else 0)).cumsum(1))
        mean = (k[0] + k[1]) / 2 if update == "heun" else (k[0] + 2 * k[1] + 2 * k[2] + k[3]) / 6
        expected = expected + 0.5 * mean
    assert_close(h, expected)


@pytest.mark.third
@pytest.mark.parametrize("alpha", [0.01, "learned", "gate"])
@pytest.mark.parametrize("anderson", [0, 2])
@pytest.mark.parametrize("update", ORDER)
def test_a_small_step_cannot_pass_for_convergence(update, anderson, alpha):
    """The score of delta is what a loop by itself would change per unit of alpha, whatever anderson takes instead."""
    model, idx = make(update=update, alpha=alpha, anderson=anderson, halt="delta", halt_threshold=-1.0), tokens()
    record, x0 = model.think(idx)[1], model.embed(idx)
    for l, h in enumerate((x0, *list(model.states(idx))[:-1]), 1):
        change = (model.loop(h, x0, l) - h).norm(dim=-1) / h.norm(dim=-1)
        step = torch.as_tensor(model.alpha(h, x0)).squeeze(-1)
        assert_close(record["score"][..., l - 1], (change / step).float(), rtol=1e-4, atol=1e-6)
    moved = torch.stack([(b - a).norm(dim=-1) / a.norm(dim=-1) for a, b in zip(
        (x0, *list(model.states(idx))[:-1]), model.states(idx), strict=True)], -1)
    assert_close(record["delta"], moved.float(), rtol=1e-4, atol=1e-6)


# ---- settings, dtypes, scripts

@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", SOLVERS, ids=lambda x: "-".join(map(str, x.values())))
def test_a_model_of_any_dtype_stays_in_it(settings, dtype):
    model = make(**settings).to(dtype)
    assert {h.dtype for h in model.states(tokens())} == {dtype}
    assert all(h.isfinite().all() for h in model.states(tokens(), 30))


def test_autocast_does_not_round_the_mixing():
    model = make(lambda u: 0.5 * u.cos() - u, anderson=3).float()
    x0 = torch.randn(2, T, C)
    expected = list(trajectory(model, x0, 6))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.stack(list(trajectory(model, x0, 6))), torch.stack(expected))


def test_training_ignores_anderson():
    model, idx, targets = make(inject="add"), tokens(), tokens()
    trained, read = model.train()(idx, targets)[1], model.eval()(idx, targets)[1]
    model.config.anderson = 2
    assert torch.equal(model.train()(idx, targets)[1], trained)
    assert not torch.allclose(model.eval()(idx, targets)[1], read)
    assert_close(model(idx, targets)[1], model.loss_per_loop(idx, targets)[-1])  # fixed depth, halting and states agree
    model.config.halt, model.config.halt_threshold = "delta", -1.0
    assert_close(model(idx, targets)[1], model.loss_per_loop(idx, targets)[-1])


def test_a_checkpoint_may_be_switched_to_anderson():
    model = make()
    saved = {"model": model.state_dict(), "model_args": dict(vars(model.config))}
    assert from_checkpoint(saved, anderson=4).config.anderson == 4
    assert from_checkpoint(saved).config.anderson == 0
    with pytest.raises(ValueError, match="anderson -1: .* must be >= 0"):
        from_checkpoint(saved, anderson=-1)
    saved["model_args"]["step_encoding"] = "rope"
    with pytest.raises(ValueError, match="fixed point.*'rope'"):
        from_checkpoint(saved, anderson=1)


@pytest.mark.parametrize("update", ["euler", "heun", "rk4"])
def test_alpha_belongs_to_every_solver(update):
    make(update=update, alpha="gate")
    for alpha in (0.0, -1.0, "large"):
        with pytest.raises(ValueError, match=f"alpha {alpha!r}"):
            make(update=update, alpha=alpha)
    with pytest.raises(ValueError, match="'replace' has none"):
        make(alpha="learned")


def test_flops_count_every_evaluation():
    one, two, four = (make(update=u).flops_per_token(T, 3) for u in ("euler", "heun", "rk4"))
    head = 6 * V * C
    assert two - head == 2 * (one - head)
    assert four - head == 4 * (one - head)


@pytest.mark.parametrize("start", ["x0", "zero"])
@pytest.mark.parametrize("update", ["euler", "heun"])
def test_flops_count_the_matrix_of_concat(update, start):
    """By the products that PyTorch counts, a third of a training's: those of concat beside those of add."""
    idx, known = tokens(), {}
    for inject in ("add", "concat"):
        model = make(update=update, inject=inject, start=start)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(idx, num_loops=3)
        known[inject] = counter.get_total_flops() / idx.numel(), model.flops_per_token(T, 3) / 3
    (add, said_add), (concat, said_concat) = known.values()
    assert concat - add == said_concat - said_add > 0


@pytest.mark.parametrize("update", ["replace", "euler", "heun", "rk4"])
def test_scripts(scripts, update):
    """A model of each update trains a step or two, writes, and is measured with anderson on."""
    out = f"out_{update}"
    scripts("train.py", *TINY, f"--update={update}", f"--out_dir={out}")
    scripts("sample.py", f"--out_dir={out}", "--start=1+2=", "--max_new_tokens=2", "--anderson=2", "--num_loops=5")
    run = scripts("evaluate.py", f"--out_dir={out}", "--digits=[1]", "--problems=4", "--eval_iters=1", "--anderson=2",
                  "--halt=delta", "--num_loops=5")
    assert "loop 5" in run.out
