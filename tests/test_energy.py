"""update = 'energy': the gradient against autograd and differences, what holds by construction, halting by a slow loop,
and the cache against re-reading. In float64; every run draws new models and inputs."""
import math

import pytest
import torch
from models import EASY, NEVER, halfway, random_weights
from test_cache import assert_same, prompts
from test_halting import assert_same_tokens
from test_static import assert_same as assert_same_steps
from torch.utils.flop_counter import FlopCounterMode

import analyze
import energy
from model import Block
from model_loop import LoopConfig, LoopGPT, rules_of

V, T, C, L, NH = 13, 11, 16, 5, 2
TINY = ("--n_embd=16", "--n_head=2", "--batch_size=8", "--eval_iters=2", "--max_iters=2", "--device=cpu",
        "--compile=False")
PAD, THINK = 12, 11
VARIANTS = [dict(alpha=0.4), dict(alpha="backtrack"), dict(alpha=0.7, keys="x0", log_scale=3),
            dict(alpha="backtrack", log_scale=4, pos="place", number_tokens=tuple(range(10)), place_ids=99,
                 place_subset=0)]
by_variant = pytest.mark.parametrize("settings", VARIANTS, ids=str)


@pytest.fixture(autouse=True)
def seed(rng):
    torch.manual_seed(int(rng.integers(2 ** 31)))


def make(**overrides):
    settings = dict(vocab_size=V, block_size=24, n_head=NH, n_embd=C, num_loops=L, update="energy", inject="none",
                    tie_weights=False, pad_token=PAD, think_token=THINK) | overrides
    return random_weights(LoopGPT(LoopConfig(**settings)))


def tokens(B=3, length=T):
    idx = torch.randint(THINK, (B, length))
    idx[:, int(torch.randint(1, length - 3, ()))] = THINK
    idx[-1, -2:] = PAD
    return idx


def plain_energy(block, h, x0, before, trained=0):
    """E of one state h (C), input x0 (C), states `before` (S,C) whose keys it sees; token by token, head by head."""
    def g(x):
        return x / torch.sqrt((x * x).sum() / len(x) + 1e-5)
    hs, S = C // NH, len(before)
    beta = 1 / math.sqrt(2 * hs) * (max(1.0, math.log(S) / math.log(trained)) if trained else 1.0)
    q, total = block.c_q.weight @ g(h), ((h - x0) ** 2).sum() / 2
    for i in range(NH):
        own = torch.cat([torch.arange(i * hs, (i + 1) * hs) + half for half in (0, C)])
        score = torch.stack([beta * (block.c_k.weight @ g(x))[own] @ q[own] for x in before])
        total = total - block.head_strength[i] / beta * torch.log(torch.exp(score).sum())
    for w, c in zip(block.c_fc.weight, block.memory_strength, strict=True):
        total = total - c / 2 * torch.clamp(w @ g(h), min=0) ** 2
    return total


def drawn(model, B=2, length=5, loud=1.0):
    """States h, inputs x0, states of the past, (B,T,C) each."""
    return (loud * torch.randn(B, length, C, dtype=torch.double) for _ in range(3))


# ---- the energy and its gradient

@by_variant
def test_the_energy_is_the_formula(settings):
    model = make(**settings)
    block, (h, x0, of) = model.transformer.h[0], drawn(model)
    got = block.energy(h, x0, block.past(of))
    for b, t in ((b, t) for b in range(2) for t in range(5)):
        want = plain_energy(block, h[b, t], x0[b, t], of[b, :t + 1], settings.get("log_scale", 0))
        torch.testing.assert_close(got[b, t], want)


@by_variant
def test_the_gradient_by_autograd_and_by_differences(settings):
    model = make(**settings)
    block, (h, x0, of) = model.transformer.h[0], drawn(model)
    past = block.past(of)
    h.requires_grad_(True)
    exact, = torch.autograd.grad(block.energy(h, x0, past).sum(), h)  # each token's energy is of its own state alone
    got = block.gradient(h, x0, past)
    torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)
    eps, step = 1e-6, torch.randn_like(h)
    with torch.no_grad():
        change = (block.energy(h + eps * step, x0, past) - block.energy(h - eps * step, x0, past)) / (2 * eps)
    torch.testing.assert_close((got * step).sum(-1), change, rtol=1e-5, atol=1e-6)


def test_a_step_is_down_the_gradient_and_trains_every_weight():
    """The past's keys are constants of E, and yet trained: by the steps of the tokens that look at them."""
    model, idx = make(alpha=0.4).train(), tokens()
    block, x0 = model.transformer.h[0], model.embed(idx)
    h = torch.randn_like(x0).detach().requires_grad_(True)
    past = block.past(h)
    frozen = past._replace(keys=past.keys.detach())
    slope, = torch.autograd.grad(block.energy(h, x0, frozen).sum(), h)
    torch.testing.assert_close(model.loop(h, x0, 1), h - 0.4 * slope, rtol=1e-9, atol=1e-9)
    model(idx, tokens())[1].backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in model.parameters())


def test_it_has_the_weights_of_a_block():
    for width in (64, 128, 256, 384):
        config = LoopConfig(n_embd=width, n_head=4, update="energy", inject="none")
        own, blocks = (sum(p.numel() for p in made(config).parameters()) for made in (energy.EnergyBlock, Block))
        assert 0.996 < own / blocks <= 1


# ---- what holds by construction

@pytest.mark.parametrize("loud", [1e-3, 1.0, 1e3])
def test_it_is_bounded_from_below(loud):
    """|g|^2 <= C bounds every term but the anchor's, which is not below 0; whatever the weights."""
    for scale in (0.1, 3.0):
        model = make(alpha=0.4)
        block, (h, x0, of) = model.transformer.h[0], drawn(model, 8, T, loud)
        for p in block.parameters():
            p.data.copy_(scale * torch.randn_like(p))
        hs, bound = C // NH, 0.0
        of_head = [torch.cat([torch.arange(i * hs, (i + 1) * hs) + half for half in (0, C)]) for i in range(NH)]
        for a, rows in zip(block.head_strength, of_head, strict=True):
            most = C * torch.linalg.matrix_norm(block.c_q.weight[rows], 2) * torch.linalg.matrix_norm(
                block.c_k.weight[rows], 2)
            bound = bound - a.abs() * (most + math.sqrt(2 * hs) * math.log(T))
        bound = bound - (block.memory_strength.clamp(min=0) * C * block.c_fc.weight.square().sum(1)).sum() / 2
        found, slopes = block.energy(h, x0, block.past(of)), block.gradient(h, x0, block.past(of))
        assert (found >= bound).all()
        down = block.energy(h - 0.3 * slopes, x0, block.past(of))
        assert (down >= bound).all()
        anchor = (h - x0).square().sum(-1) / 2  # and no state far away is low: level sets are bounded
        assert (found >= anchor + bound).all()


@pytest.mark.parametrize("keys", ["state", "x0"])
def test_a_backtracked_step_never_lifts_a_token_above_a_frozen_past(keys):
    """Whatever the weights; and it moves most of the tokens. With keys of x0 no past moves, so E falls all the way."""
    for loud in (0.3, 1.0, 5.0):
        model, idx = make(alpha="backtrack", keys=keys), tokens(8)
        for p in model.transformer.h[0].parameters():
            p.data.mul_(loud)
        with torch.no_grad():
            h = x0 = model.embed(idx)
            block, first, moved = model.transformer.h[0], None, []
            for l in range(1, 3 * L):
                new = model.loop(h, x0, l)
                before, after = model.energies(x0, h, h, new)
                assert (after <= before).all()
                moved.append((after < before).float().mean())
                last = block.energy(new, x0, block.past(x0))
                assert keys == "state" or first is None or (last <= first).all()
                h, first = new, last
        assert moved[0] > 0


def test_a_step_is_halved_until_the_energy_falls():
    """The largest of 1, 1/2, ... that does not lift the token, by a plain loop; 0 where there is none."""
    model, idx = make(alpha="backtrack"), tokens()
    block = model.transformer.h[0]
    with torch.no_grad():
        x0 = model.embed(idx)
        h = x0 + torch.randn_like(x0)
        past = block.past(h)
        slope, before, got, taken = block.gradient(h, x0, past), block.energy(h, x0, past), model.loop(h, x0, 2), set()
        for b in range(idx.size(0)):
            for t in range(T):
                tries = [0.5 ** i for i in range(energy.HALVINGS + 1)]
                alpha = next((a for a in tries if plain_energy(block, h[b, t] - a * slope[b, t], x0[b, t], h[b, :t + 1])
                              <= before[b, t]), 0.0)
                torch.testing.assert_close(got[b, t], h[b, t] - alpha * slope[b, t])
                taken.add(alpha)
    assert len(taken) > 1


@by_variant
@pytest.mark.parametrize("rule", ["none", "energy"])
def test_no_token_depends_on_a_later_one(rule, settings):
    """Its states, loops, scores and energies."""
    model, idx = make(**settings), tokens()
    if rule != "none":
        halfway(model, idx, rule)
    full, cut = model.think(idx), int(torch.randint(1, T, ()))
    other = torch.cat((idx[:, :cut], torch.randint(V, (len(idx), T - cut))), 1)
    assert_same_tokens(model.think(other), full, (slice(None), slice(0, cut)))
    with torch.no_grad():
        found = [model.energies(model.embed(x), h, h)[0] for x, h in ((idx, full[0]), (other, model.think(other)[0]))]
    torch.testing.assert_close(found[0][:, :cut], found[1][:, :cut])


# ---- halting

@by_variant
def test_halting_equals_a_slow_loop(settings):
    """A token halts in the first loop that lowered its own energy by no more than the threshold, given the keys that it
    saw in this loop."""
    model, idx = make(**settings), tokens(2, 9)
    halfway(model, idx, "energy")
    c, block = model.config, model.transformer.h[0]
    got, record = model.think(idx)
    with torch.no_grad():
        x0 = model.embed(idx)
        h = model.begin(x0)
        loops, active = torch.zeros_like(idx), idx != PAD
        for l in range(1, L + 1):
            new, seen = model.loop(h, x0, l), x0 if c.keys == "x0" else h
            kept, still = h.clone(), active.clone()
            for b, t in active.nonzero().tolist():
                fall = [plain_energy(block, x[b, t], x0[b, t], seen[b, :t + 1], c.log_scale) for x in (h, new)]
                fall = fall[0] - fall[1]
                torch.testing.assert_close(record["score"][b, t, l - 1].double(), fall, rtol=1e-4, atol=1e-5)
                kept[b, t], loops[b, t] = new[b, t], l
                still[b, t] = bool(fall > c.halt_threshold)
            h, active = kept, still
    assert torch.equal(record["loops"], loops)
    assert len(loops[idx != PAD].unique()) > 1
    torch.testing.assert_close(got, h)


def test_thresholds_at_the_extremes():
    model, idx = make(alpha=0.4, halt="energy"), tokens()
    for threshold, loops in ((EASY, 1), (NEVER, L)):
        model.config.halt_threshold = threshold["energy"]
        assert torch.equal(model.think(idx)[1]["loops"], loops * (idx != PAD))


def test_a_model_without_an_energy_cannot_halt_by_one():
    assert "energy" in rules_of(make().config)
    assert "energy" not in rules_of(LoopConfig())
    for settings in (dict(halt="energy"), dict(update="euler", alpha="backtrack")):
        with pytest.raises(ValueError, match="need a model of update 'energy'"):
            LoopGPT(LoopConfig(**dict(vocab_size=V, n_embd=C, n_head=NH) | settings))


REFUSED = dict(inject=("add", "none"), step_encoding=("learned", "none"), loop_norm=(True, False),
               tie_loops=(False, True), n_layer=(2, 1), block=("modern", "nanogpt"), n_kv_head=(1, 0),
               bias=(True, False), dropout=(0.1, 0.0), place_margin=(0.5, 0.0), pos=("rope", "learned"),
               anderson=(2, 0), start=("zero", "x0"), alpha=("gate", 0.5))


def test_what_does_not_go_with_an_energy_is_refused_by_name(rng):
    """Each alone, and any of them in one line, with the flags that make the settings good."""
    for key in (*REFUSED, *(tuple(rng.permutation([*REFUSED])[:n]) for n in (2, 3, 5, len(REFUSED)))):
        keys = (key,) if isinstance(key, str) else key
        with pytest.raises(ValueError, match="update 'energy' goes without") as e:
            make(**{k: REFUSED[k][0] for k in keys})
        said, _, flags = str(e.value).partition(": take ")
        assert sorted(flags.split()) == sorted(f"--{k}={REFUSED[k][1]}" for k in keys)
        assert all(f"{k} {REFUSED[k][0]!r}" in said for k in keys)
        make(**{k: REFUSED[k][1] for k in keys})
    for settings in (dict(alpha="learned"), dict(start="learned"), dict(start="random")):
        (key, value), = settings.items()
        with pytest.raises(ValueError, match=f"{key} '{value}' .not tried with an energy.: take --{key}="):
            make(**settings)


@pytest.fixture(scope="module")
def trained(scripts):
    """A folder with a model of backtracked steps."""
    scripts("train.py", *TINY, "--update=energy", "--inject=none", "--alpha=backtrack", "--out_dir=energy")
    return "energy"


def test_a_first_run_is_told_at_once_what_to_type(scripts):
    """And what it is told works."""
    run = scripts("train.py", *TINY, "--update=energy", "--loop_norm=True", "--out_dir=first", status=1)
    assert run.err.count("\n") == 1
    flags = run.err.partition(": take ")[2].split()
    assert flags == ["--inject=none", "--loop_norm=False"]
    scripts("train.py", *TINY, "--update=energy", *flags, "--out_dir=first")


@pytest.mark.parametrize("script", ["evaluate", "analyze", "sample"])
def test_no_script_accelerates_a_descent(scripts, trained, script):
    """Anderson's mixture of backtracked steps may lift E."""
    run = scripts(f"{script}.py", f"--out_dir={trained}", "--anderson=2", status=1)
    assert "anderson 2 (may lift E again): take --anderson=0" in run.err
    assert run.err.count("\n") == 1


def test_a_loss_that_is_not_finite_may_be_of_alpha(scripts):
    run = scripts("train.py", *TINY, "--update=energy", "--inject=none", "--alpha=1e30", "--out_dir=nan", status=1)
    assert "not finite" in run.err
    assert "try a smaller alpha, lower learning_rate" in run.err


# ---- what it costs

@by_variant
def test_flops_are_the_products_that_are_done(settings):
    """As torch counts those of a whole step of training, backward too; of other sizes than the rest of the tests."""
    width, heads, length, loops = (int(torch.randint(*of, ())) for of in ((2, 9), (1, 4), (3, 20), (1, 5)))
    model = make(n_embd=4 * heads * width, n_head=heads, num_loops=loops, **settings).train()
    idx = torch.randint(V, (3, length))
    with FlopCounterMode(display=False) as count:
        model(idx, torch.randint(V, (3, length)))[1].backward()
    assert count.get_total_flops() == idx.numel() * model.flops_per_token(length, loops)


# ---- writing

@by_variant
@pytest.mark.parametrize("rule", ["none", "energy", "kl"])
def test_cached_equals_reread(rule, settings):
    """Frozen tokens owe their keys in later loops, which are those of the frozen state."""
    model = make(**settings)
    if rule != "none":
        halfway(model, torch.randint(V - 2, (8, 16)), rule)
    assert_same(model, prompts(4, 10), 8, temperature=0, trace=True)


def test_steps_of_one_shape_equal_the_cache():
    """What a CUDA graph replays."""
    for rule in ("none", "energy"):
        model = make(alpha=0.4)
        if rule != "none":
            halfway(model, torch.randint(V - 2, (8, 16)), rule)
        assert_same_steps(model, prompts(3, 10), 20, temperature=0)


def test_a_loop_has_a_symmetric_jacobian_at_a_frozen_past():
    """The Hessian of E is symmetric; a Block's Jacobian is not."""
    model = make(alpha=1.0)
    block, (h, x0, of) = model.transformer.h[0], drawn(model, 1, 3)
    past = block.past(of)

    hessian = torch.autograd.functional.jacobian(lambda x: block.gradient(x, x0, past), h)[0, :, :, 0]  # (3,C,3,C)
    for t in range(3):
        torch.testing.assert_close(hessian[t, :, t], hessian[t, :, t].mT)
        assert not hessian[t, :, :t].any()  # another token's state is no part of it


# ---- what analyze.py says of it

def test_area_under_the_curve(rng):
    """Of all pairs, by a plain loop; ties count half."""
    score, wrong = torch.from_numpy(rng.integers(0, 6, 40)).double(), torch.from_numpy(rng.random(40) < 0.4)
    pairs = [(score[i] > score[j]).item() + 0.5 * (score[i] == score[j]).item()
             for i in wrong.nonzero()[:, 0] for j in (~wrong).nonzero()[:, 0]]
    assert analyze.area_under_curve(score, wrong) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(analyze.area_under_curve(score, torch.zeros(40, dtype=torch.bool)))


@pytest.mark.parametrize("keys", ["state", "x0"])
def test_energies_along_the_loops(keys):
    """Those of `energies`, by the states of `states`; ends of the line are states; with keys of x0 a backtracked E
    falls in every loop, the past moving or not, since it does not move."""
    model, idx = make(alpha="backtrack", keys=keys), tokens(5)
    seen = analyze.observe_energy(model, analyze.OwnEnergy(model), idx, 2 * L, L)
    E, still, block = seen.E, seen.still, model.transformer.h[0]
    with torch.no_grad():
        x0 = model.embed(idx)
        path = [x0, *model.states(idx, 2 * L)]
        for l, h in enumerate(path):
            torch.testing.assert_close(E[l], model.energies(x0, h, h)[0])
            torch.testing.assert_close(seen.slope[l], block.gradient(h, x0, model.past(x0, h)).norm(dim=-1))
        for l in range(2 * L):
            before, after = model.energies(x0, path[l], path[l], path[l + 1])
            torch.testing.assert_close(still[l], before - after)
        at = [analyze.LINE.index(s) for s in (0, 1)]
        torch.testing.assert_close(seen.line[at], torch.stack(model.energies(x0, path[L], path[0], path[L])))
    assert (still >= 0).all()
    assert ((seen.lifted >= 0) & (seen.lifted <= 1)).all()
    assert (seen.lowest_energy[0] <= E[L]).all()
    assert keys == "state" or (E[1:] <= E[:-1]).all()


def test_a_taught_head_falls_along_the_loops_that_it_learned_from():
    model, idx = LoopGPT(LoopConfig(vocab_size=V, block_size=24, n_head=NH, n_embd=C, num_loops=L)).eval(), tokens(40)
    of = analyze.TaughtEnergy(model, idx, idx != PAD, L)
    E = analyze.observe_energy(model, of, idx, L, L).E
    falls = (E[1:] < E[:-1])[:, idx != PAD].float().mean()
    assert falls > 0.9
    assert (E >= 0).all()
