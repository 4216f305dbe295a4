"""analyze.py: every statistic on trajectories whose answer is known, then whole runs on addition and on text."""
import csv
import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import UNLIKELY
from scipy import stats

import analyze
import dataset
from intervals import clustered_interval, clustered_spearman
from model_loop import LoopConfig, LoopGPT, from_checkpoint
from tasks import addition


@pytest.fixture
def gen(rng):
    return torch.Generator().manual_seed(int(rng.integers(2**31)))


def matrix_with(eigenvalues, gen):
    """A real matrix with the eigenvalues given, of which complex ones stand for a pair, and random eigenvectors."""
    blocks = [torch.tensor([[z.real, -z.imag], [z.imag, z.real]] if z.imag else [[z.real]], dtype=torch.double)
              for z in map(complex, eigenvalues)]
    D = torch.block_diag(*blocks)
    Q = torch.eye(len(D), dtype=torch.double) + 0.3 * torch.randn(D.shape, generator=gen, dtype=torch.double
                                                                 ) / len(D) ** 0.5
    return Q @ D @ Q.inverse()


# ---- means and correlations

def test_interval_of_independent_tokens_and_of_copies(rng):
    x = rng.normal(3, 2, (500, 1))
    got = clustered_interval(x)
    assert got["value"] == pytest.approx(x.mean())
    assert got["high"] - got["value"] == pytest.approx(1.965 * x.std(ddof=1) / 500 ** 0.5, rel=1e-3)
    copies = clustered_interval(np.repeat(x, 7, axis=1))  # a sequence that says all 7 times tells no more than once
    assert copies["low"] == pytest.approx(got["low"])
    assert copies["n"] == 3500
    holes = np.repeat(x, 7, axis=1)
    holes[:, 1:] = np.nan
    assert clustered_interval(holes) == pytest.approx(got)
    empty = clustered_interval(np.full((3, 4), np.nan))
    assert empty["n"] == 0
    assert math.isnan(empty["value"])


def test_interval_covers(rng):
    """Sequences of unequal length, tokens that agree within one: the mean is in the interval 95 times of 100, of five
    sequences, whose lengths vary much, 93 times."""
    for n, times, share in ((60, 400, 0.945), (5, 2000, 0.927)):
        hits = 0
        for _ in range(times):
            x = rng.normal(size=(n, 1)) + rng.normal(size=(n, 9))
            x[np.arange(9) >= rng.integers(1, 10, (n, 1))] = np.nan
            got = clustered_interval(x)
            hits += got["low"] < 0 < got["high"]
        assert stats.binomtest(hits, times, share).pvalue > UNLIKELY


def test_spearman(rng):
    x = rng.normal(size=(300, 1))
    y = x + rng.normal(size=(300, 1))
    got = clustered_spearman(x, y)
    assert got["value"] == pytest.approx(stats.spearmanr(x[:, 0], y[:, 0]).statistic)
    draws = [stats.spearmanr(x[i, 0], y[i, 0]).statistic for i in rng.integers(0, 300, (600, 300))]
    assert (got["high"] - got["low"]) / 2 == pytest.approx(1.96 * np.std(draws), rel=0.25)
    y[::2] = np.nan
    assert clustered_spearman(x, y)["value"] == pytest.approx(stats.spearmanr(x[1::2, 0], y[1::2, 0]).statistic)
    for pair in ((x, np.ones((300, 1))), (np.ones((300, 1)), x)):
        assert math.isnan(clustered_spearman(*pair)["value"])


# ---- readout

def test_entropy_and_loss_of_known_distributions(rng):
    p = torch.from_numpy(rng.dirichlet(np.ones(7), (3, 5)))
    targets = torch.from_numpy(rng.integers(0, 7, (3, 5)))
    targets[0, 0] = -1
    got = analyze.readout_statistics(p.log() + 4, targets)
    torch.testing.assert_close(got["entropy"], -(p * p.log()).sum(-1))
    torch.testing.assert_close(got["confidence"], p.amax(-1))
    assert got["prediction"].equal(p.argmax(-1))
    assert got["loss"][0, 0].isnan()
    torch.testing.assert_close(got["loss"][1:], -p.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1).log()[1:])


def test_entropy_trend():
    falls = torch.tensor([2.0, 1.0, 0.5, 0.1])
    entropy = torch.stack([falls, falls.flip(0), torch.ones(4), falls[[0, 2, 1, 3]]], 1)[:, None]  # (L,1,4)
    rho, fell = analyze.entropy_trend(entropy)
    assert rho[0, 2].isnan()
    torch.testing.assert_close(rho[0, [0, 1, 3]], torch.tensor([-1, 1, -0.8], dtype=torch.double))
    assert fell[0].tolist() == [1, 0, 0, 1]


def test_a_guess_settles_where_it_is_the_last_one_for_good(rng):
    guess = torch.from_numpy(rng.integers(0, 3, (6, 4, 50)))
    for (b, t), first in np.ndenumerate(analyze.first_settled(guess).numpy()):
        of_one = guess[:, b, t].tolist()
        assert first == min(l for l in range(1, 7) if set(of_one[l - 1:]) == {of_one[-1]})


# ---- difficulty

def test_sentences_and_the_nesting_of_their_clauses():
    text = ("ROMEO:\nO, she (so, I say) is rich: in beauty!' Stop?\n\nFirst Citizen:\nWe are, sir, poor--\nso poor, "
            "3.5 of us\n\nThey said:\nno")
    deep = {"O, she (so, I say) is rich: in beauty!'": "001111112223333333111111111000000000000", "Stop?": "00000",
            "We are, sir, poor--\nso poor, 3.5 of us": "00000001111122222220000000001111111111", "They said:": None,
            "no": "00"}
    ids, found = analyze.sentence_measures(text)
    known, places = [s for s in deep if deep[s]], [np.flatnonzero(ids == i) for i in np.unique(ids[ids >= 0])]
    assert [text[at[0]:at[-1] + 1] for at in places] == known
    for name, x in found.items():
        assert (np.isnan(x) == (ids < 0)).all(), name
    for s in known:
        at = slice(text.index(s), text.index(s) + len(s))
        assert (found["sentence_length"][at] == len(s)).all()
        assert found["position"][at].tolist() == [*range(len(s))]
        assert "".join(str(int(d)) for d in found["nesting"][at]) == deep[s], s


def test_surprise_of_words():
    got = analyze.word_surprises("Is it new?", "it is so; is IT? It's it")
    # is 2, it 3, so 1, it's 1: 7; once more each and all new ones together: 12
    wanted = [-math.log(p / 12) for p in (3, 3, 4, 4, 1, 1, 1)]
    assert got[[0, 1, 3, 4, 6, 7, 8]].tolist() == pytest.approx(wanted)
    assert np.isnan(got[[2, 5, 9]]).all()


def test_levels_are_values_or_equal_shares(rng):
    few = torch.from_numpy(rng.integers(0, 2 * analyze.LEVELS, (20, 30))).double()
    few[rng.random((20, 30)) < 0.1] = math.nan
    for v, mask in analyze.levels(few):
        assert mask.equal(few == v)
    many = torch.from_numpy(rng.normal(size=(20, 40)))
    many[3] = math.nan
    found = analyze.levels(many)
    assert sum(mask.int() for _, mask in found).equal((~many.isnan()).int())
    assert {int(mask.sum()) for _, mask in found} <= {94, 95, 96}  # 760 of 8
    for (v, mask), (_, above) in zip(found, found[1:], strict=False):
        assert many[mask].max() < many[above].min()
        assert many[mask].min() <= v <= many[mask].max()


def synthetic(loops, rng):
    """Sentences of 1 to 30 tokens in sequences of 40, and loops(length, position, rng) that they take: the sample and
    the loops."""
    lengths = rng.integers(1, 31, 400)
    lengths = lengths[:np.searchsorted(lengths.cumsum(), 4000)]
    ids = np.repeat(np.arange(len(lengths)), lengths)
    ids = np.pad(ids, (0, 4000 - len(ids)), constant_values=-1).reshape(100, 40)
    length = np.where(ids < 0, np.nan, lengths[ids])
    position = np.where(ids < 0, np.nan, np.arange(4000).reshape(100, 40) - np.r_[0, lengths.cumsum()][ids])
    of = dict(length=torch.from_numpy(length), position=torch.from_numpy(position))
    every = torch.ones(100, 40, dtype=torch.bool)
    return analyze.SimpleNamespace(main=every, first="all", difficulty=of, together=torch.from_numpy(ids)
                                   ), torch.from_numpy(np.nan_to_num(loops(length, position, rng), nan=99.0))


def test_difficulty_whose_part_in_the_loops_is_known(rng):
    """Loops that are the length, that fall with it, that a sentence draws; intervals are those of a bootstrap over
    sentences, and wider than tokens would have them where a sentence agrees with itself."""
    def of(loops):
        sample, taken = synthetic(loops, rng)
        rows = analyze.difficulty_rows("loops_spearman_with_", "loops", "trained", taken, sample)
        return sample, taken, {r["what"].rpartition("_")[2]: r for r in rows if "spearman" in r["what"]}, rows

    sample, _, found, rows = of(lambda length, position, rng: length)
    assert found["length"]["value"] == pytest.approx(1)
    assert found["length"]["n"] == int((sample.together >= 0).sum())
    for v, mask in analyze.levels(sample.difficulty["length"]):
        (level,) = (r for r in rows if r["class"] == f"length {v:.6g}")
        assert level["value"] == pytest.approx(sample.difficulty["length"][mask].mean())
    assert of(lambda length, position, rng: -length ** 3)[2]["length"]["value"] == pytest.approx(-1)
    sample, taken, found, _ = of(lambda length, position, rng: rng.normal(0, 9, 31)[np.nan_to_num(length).astype(int)])
    sentences = [(sample.difficulty["length"][sample.together == i].numpy(), taken[sample.together == i].numpy())
                 for i in range(int(sample.together.max()) + 1)]
    draws = []
    for _ in range(300):
        some = [sentences[i] for i in rng.integers(0, len(sentences), len(sentences))]
        draws.append(stats.spearmanr(*(np.concatenate(x) for x in zip(*some, strict=True))).statistic)
    width = found["length"]["high"] - found["length"]["low"]
    assert width == pytest.approx(2 * 1.96 * np.std(draws), rel=0.5)  # of fresh draws 7% narrower, give or take 6%
    alone = torch.arange(4000).view(100, 40).masked_fill(sample.together < 0, -1)  # tokens as if independent
    sample.together = alone
    row = analyze.difficulty_rows("loops_spearman_with_", "loops", "trained", taken, sample)[0]
    assert row["value"] == pytest.approx(found["length"]["value"])
    assert row["high"] - row["low"] < 0.7 * width


# ---- states

def test_linear_contraction(rng, gen):
    """h_l = goal + rate^l c, with c at right angles to goal: every delta, and the loop of convergence, by hand."""
    rate = torch.from_numpy(rng.uniform(0.3, 0.9, (2, 5, 1)))
    l = torch.arange(33).view(-1, 1, 1, 1)
    goal, c = torch.zeros(8, dtype=torch.double), torch.zeros(8, dtype=torch.double)
    goal[:4], c[4:] = torch.randn(4, generator=gen), torch.randn(4, generator=gen)
    path = goal + rate ** l * c  # (33,2,5,8)
    got = analyze.state_statistics(path)
    delta = ((1 - rate) * rate ** l * c.norm() / (goal.norm() ** 2 + (rate ** l * c.norm()) ** 2).sqrt())[:-1, ..., 0]
    torch.testing.assert_close(got["delta"], delta)
    torch.testing.assert_close(got["norm"], path[1:].norm(dim=-1).float())
    assert not got["period"].any()
    for eps in (0.1, 1e-3, 1e-9):
        first = analyze.first_loop(got["delta"] < eps)
        for b, t in np.ndindex(2, 5):
            passed = (delta[:, b, t] < eps).nonzero()
            assert first[b, t] == (passed[0, 0] + 1 if len(passed) else 33)


@pytest.mark.parametrize("period", range(2, 9))
def test_limit_cycles_are_found_with_their_period(gen, period):
    L = 2 * period + int(torch.randint(9, (), generator=gen))
    points = torch.randn(period, 2, 3, 16, generator=gen)
    path = points.repeat(L // period + 1, 1, 1, 1)[:L + 1]
    got = analyze.state_statistics(path + 1e-4 * torch.randn(path.shape, generator=gen))
    assert (got["period"] == period).all()
    assert (got["returned"][period - 2] < 1e-3).all()
    assert (got["returned"][:period - 2] > 0.1).all()
    short = analyze.state_statistics(path[:2 * period])  # one loop too few to see it come back p times
    assert not (short["period"] == period).any()
    assert short["returned"][period - 2].isnan().all()


@pytest.mark.parametrize("z", [-0.8, 0.95, 0.9 * complex(math.cos(2), math.sin(2)), 1.2])
def test_what_decays_or_grows_is_no_cycle(gen, z):
    turn = torch.tensor([[z.real, -z.imag], [z.imag, z.real]]) if isinstance(z, complex) else z * torch.eye(2)
    path = [torch.randn(3, 4, 2, generator=gen)]
    for _ in range(24):
        path.append(path[-1] @ turn.T)
    path = torch.stack(path)
    for states in (path, F.pad(path, (0, 1), value=1.0)):  # the fixed point at 0, and elsewhere
        assert not analyze.state_statistics(states)["period"].any()


def test_a_push_of_a_linear_map_shrinks_by_its_rate(rng, gen):
    rate = float(rng.uniform(0.2, 1.5))
    turn = torch.linalg.qr(torch.randn(6, 6, generator=gen, dtype=torch.double)).Q
    goal, h = (torch.randn(3, 4, 6, generator=gen, dtype=torch.double) for _ in range(2))
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0, 2:] = False

    def step(h, k):
        seen.append(k)
        return goal + rate * (h - goal) @ turn.T

    seen = []
    ratio = analyze.perturbation_ratios(step, h, mask, 1e-3, 4, gen)
    torch.testing.assert_close(ratio, torch.full((4, 3), rate, dtype=torch.double))
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3]
    radius, residual = analyze.spectral_radius(lambda h: step(h, 0), h, mask, 30, gen)
    assert residual.max() < 1  # all eigenvalues have that length, so no direction wins
    assert radius.max() < 1.001 * rate


@pytest.mark.parametrize("eigenvalues", [(1.3, 0.9, -0.5, 0.2), (-0.7, 0.4, 0.3, 0.1), (1e-3, 1e-4, 1e-5, 0.0),
                                         (0.9 + 0.3j, 0.5, 0.3), (0.2j, 0.1 + 0.05j), (0.0, 0.0, 0.0, 0.0)])
def test_spectral_radius_of_known_maps(gen, eigenvalues):
    """Real, negative, tiny, complex, zero; tokens coupled; a pad with a larger eigenvalue does not count."""
    A = torch.stack([matrix_with(eigenvalues, gen) for _ in range(3)])  # (B,4,4) on tokens 0, 1 of two channels
    size = max(abs(z) for z in map(complex, eigenvalues))

    def step(h):
        first = torch.einsum("bij,bj->bi", A, h[:, :2].flatten(1)).view(-1, 2, 2)
        return torch.cat((first, 3 * h[:, 2:] + h[:, :1]), 1) + 5

    mask = torch.tensor([True, True, False]).expand(3, 3)
    radius, residual = analyze.spectral_radius(step, torch.randn(3, 3, 2, generator=gen, dtype=torch.double), mask,
                                               150, gen)
    assert radius.tolist() == pytest.approx([size] * 3, rel=1e-4, abs=1e-12)
    assert residual.max() < 1e-4


def test_spectral_radius_of_a_model(gen):
    """Against all eigenvalues of the whole Jacobian, which also are those of the tokens' own blocks on its diagonal."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=gen)))
        model = LoopGPT(LoopConfig(block_size=5, vocab_size=9, n_embd=8, n_head=2, num_loops=3)).double().eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
    model.transformer.h[0].attn.flash = False
    idx = torch.randint(9, (1, 5), generator=gen)
    with torch.no_grad():
        x0, h = model.embed(idx), list(model.states(idx))[-1]
        got, residual = analyze.spectral_radius(lambda h: model.loop(h, x0, 4), h, torch.ones(1, 5) > 0, 500, gen)
    J = torch.autograd.functional.jacobian(lambda h: model.loop(h, x0, 4), h).view(5, 8, 5, 8)
    wanted = torch.linalg.eigvals(J.reshape(40, 40)).abs().max()
    blocks = torch.stack([torch.linalg.eigvals(J[t, :, t]).abs().max() for t in range(5)]).max()
    torch.testing.assert_close(wanted, blocks, rtol=1e-6, atol=1e-8)
    assert got.item() == pytest.approx(wanted.item(), rel=0.1)  # two pairs of almost one length need more steps
    if residual < 1e-9:
        assert got.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_growth_of_a_push_is_the_lyapunov_exponent(gen):
    """Of the logistic map at 4 it is ln 2, though its orbits stay; of a linear map the log of its spectral radius, in
    every direction, whatever the loops before did; pads neither grow nor count."""
    start = torch.rand(50, 1, 1, generator=gen, dtype=torch.double)
    got = analyze.tangent_growth(lambda h, k: 4 * h * (1 - h), start, torch.ones(50, 1) > 0, 400, gen)
    assert got.mean().item() == pytest.approx(math.log(2), abs=0.03)
    M = matrix_with([0.3, 0.7 * complex(math.cos(1), math.sin(1)), 0.1, -0.2, 0.5], gen)
    mask = torch.tensor([[True, True, False]])
    mix = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 9]], dtype=torch.double)  # the pad reads the first token, grows
    goal = torch.randn(1, 3, 6, generator=gen, dtype=torch.double)
    got = analyze.tangent_growth(lambda h, k: goal + mix @ h @ M.T * (100 if k == 0 else 1), goal, mask, 200, gen)
    assert got[100:].mean().item() == pytest.approx(math.log(0.7), abs=0.03)
    again = analyze.tangent_growth(lambda h, k: h @ M.T, goal * 0, mask, 200, gen)
    assert again[100:].mean().item() == pytest.approx(math.log(0.7), abs=0.03)


@pytest.mark.parametrize("inject", ["add", "concat", "decay"])
@pytest.mark.parametrize("own", ["x0", "zero", "learned"])
def test_distance_of_states_that_begin_elsewhere(own, inject, gen):
    """Against models of the same weights that are made to begin there."""
    settings = dict(vocab_size=9, block_size=8, n_head=2, n_embd=16, num_loops=4, inject=inject, loop_norm=True)
    model = LoopGPT(LoopConfig(**settings, start=own)).double().eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=gen)
    idx, mask = torch.randint(9, (3, 8), generator=gen), torch.rand(3, 8, generator=gen) < 0.8
    path = list(model.states(idx))
    ends = {}
    for start in ("x0", "zero"):
        other = LoopGPT(LoopConfig(**settings, start=start)).double().eval()
        other.load_state_dict(model.state_dict(), strict=False)
        ends[start] = list(other.states(idx))
    x0 = model.embed(idx)
    for block in model.transformer.h:
        block.attn.flash = False
    growth = analyze.tangent_growth(lambda h, k: model.loop(h, x0, k + 1), model.begin(x0), mask, 3, gen)
    assert growth.isfinite().all()
    rows = analyze.meeting_rows("trained", model, x0, path, mask, gen)
    assert {(r["class"], r["loop"]) for r in rows} == {(s, l) for s in ("x0", "zero", "random") for l in range(1, 5)}
    for r in rows:
        if r["class"] != "random":
            far = ends[r["class"]][r["loop"] - 1] - path[r["loop"] - 1]
            far = (far.norm(dim=-1) / path[r["loop"] - 1].norm(dim=-1))[mask].mean().item()
            assert r["value"] == pytest.approx(far, abs=1e-9)
        else:
            assert r["value"] > 1e-6


def test_cosine_with_the_input(gen):
    """A state that turns by a known angle per loop, whatever its length."""
    angle, l = 0.4, torch.arange(9, dtype=torch.double)
    path = torch.stack((torch.cos(angle * l), torch.sin(angle * l)), 1)[:, None, None] * (1 + l).view(-1, 1, 1, 1)
    got = analyze.state_statistics(path)["cosine_x0"]
    torch.testing.assert_close(got[:, 0, 0].double(), torch.cos(angle * l[1:]), rtol=0, atol=1e-6)


def test_cka_knows_no_basis_and_is_that_of_the_gram_matrices(gen):
    """1 of a state turned, scaled and shifted; otherwise the correlation of two centred Gram matrices, with an interval
    that leaves out each group in turn."""
    G, n, C, D = 6, 30, 5, 8
    mix = torch.randn(C, D, generator=gen, dtype=torch.double)
    x = torch.randn(G, n, C, generator=gen, dtype=torch.double) * torch.arange(1, C + 1)
    turn = torch.linalg.qr(torch.randn(C, C, generator=gen, dtype=torch.double))[0]
    y = x @ mix + 3 * torch.randn(G, n, D, generator=gen, dtype=torch.double)
    found = analyze.linear_cka({0: list(x)}, {0: list(x), 1: list(7 * x @ turn - 4), 2: list(y),
                                              3: list(torch.randn(G, n, D, generator=gen))})
    assert [found[0, k][key] for k in (0, 1) for key in ("value", "low", "high")] == pytest.approx([1] * 6)
    assert found[0, 3]["value"] < 0.2 < found[0, 2]["value"] < 0.98

    def by_gram(x, y):
        (a, b) = ((z - m) @ (z - m).T for z, m in ((x, mean_x), (y, mean_y)))
        return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()

    mean_x, mean_y = x.mean((0, 1)), y.mean((0, 1))
    assert found[0, 2]["value"] == pytest.approx(by_gram(x.flatten(0, 1), y.flatten(0, 1)))
    left = [by_gram(*(torch.cat([z[:g], z[g + 1:]]).flatten(0, 1) for z in (x, y))) for g in range(G)]
    assert found[0, 2]["high"] - found[0, 2]["value"] == pytest.approx(
        stats.t.ppf(0.975, G - 1) * ((G - 1) * np.var(left)) ** 0.5)
    assert found[0, 2]["n"] == G * n


# ---- probes and labels

def test_who_is_right_to_stay(gen):
    right = torch.rand(7, 40, generator=gen) < 0.7
    stays = analyze.right_to_stay(right)
    for l, n in np.ndindex(7, 40):
        assert stays[l, n] == all(right[k, n] for k in range(l, 7))


def test_one_probe_of_the_last_loop_beside_one_per_loop(gen, monkeypatch):
    """States that a rotation takes from loop to loop: a probe fitted anew reads them in all loops, that of loop L only
    in loop L; and what was read is there as long as the state holds it."""
    L, C, N, T = 3, 8, 60, 10
    read = C
    while read > 3:  # of some rotations most states are read right even one or two loops earlier
        turn = torch.linalg.qr(torch.randn(C, C, generator=gen))[0]
        turns = [torch.linalg.matrix_power(turn, l) for l in range(1, L + 1)]
        read = max(int((t.argmax(0) == torch.arange(C)).sum()) for t in turns)
    X = {name: torch.randint(C, (N, T), generator=gen) for name in ("train", "test")}
    states = {key: {l: torch.eye(C)[x] @ torch.linalg.matrix_power(turn, l) for l in range(L + 1)}
              for key, x in X.items()}
    for s in states.values():  # then it is gone
        s[2 * L] = torch.zeros(N, T, C)
    monkeypatch.setattr(analyze, "states_at", lambda model, x, loops: states["train" if x is X["train"] else "test"])
    every = torch.ones(N, T, dtype=torch.bool)
    sample = analyze.SimpleNamespace(L=L, total=2 * L, train_X=X["train"], X=X["test"], tasks={
        "token read": ((every, X["train"]), (every, X["test"]), C, False)})
    found = {(r["what"], r["loop"]): r["value"] for r in analyze.probe_rows("trained", None, sample)}
    assert all(found["probe_accuracy", l] == 1 for l in range(L + 1))
    assert found["probe_accuracy", 2 * L] < 0.3
    assert found["one_probe_accuracy", L] == 1
    assert all(found["one_probe_accuracy", l] < 0.7 for l in range(L))
    assert found["one_probe_right_to_stay", L] == 1
    assert found["one_probe_right_to_stay", 0] <= found["one_probe_right_to_stay", L - 1] <= found[
        "one_probe_accuracy", L - 1]
    assert ("one_probe_right_to_stay", 2 * L) not in found



def test_probe_on_separable_and_on_random_labels(rng):
    centres = 5 * rng.normal(size=(4, 12))
    y = rng.integers(0, 4, 1200)
    x = torch.from_numpy((centres[y] + rng.normal(size=(1200, 12)) + 100) * 1e-5).float()  # scale and mean are no help
    y = torch.from_numpy(y)
    said = analyze.linear_probe(x[:800], y[:800], 4)(x[800:])
    assert (said == y[800:]).float().mean() > 0.97
    assert said.equal(analyze.linear_probe(x[:800], y[:800], 4)(x[800:]))
    noise = torch.from_numpy(rng.integers(0, 4, 1200))
    right = (analyze.linear_probe(x[:800], noise[:800], 4)(x[800:]) == noise[800:]).sum()
    assert stats.binomtest(int(right), 400, 0.25).pvalue > UNLIKELY


def test_character_classes():
    text = "\nHi, don't  go-now: 2 ax"
    classes = "".join(str(analyze.character_class(a, b)) for a, b in zip(text, text[1:], strict=False))
    #                  H i , _ d o n ' t _ _ g o - n o w : _ 2 _ a x
    assert classes == "2" "3" "1" "0" "2" "3" "3" "1" "3" "0" "0" "2" "3" "1" "2" "3" "3" "1" "0" "2" "0" "2" "3"
    tokens = torch.tensor([[ord(c) for c in text], [ord(c) for c in text[::-1]]])
    got = analyze.character_classes(tokens[:, :-1], tokens[:, 1:], chr)
    assert "".join(map(str, got[0].tolist())) == classes
    assert [analyze.character_class(*p) for p in (("the", " dog"), (" do", "gs"), ("dog", "."), ("a", "\n\n"))] == [
        2, 3, 1, 0]  # tokens of BPE


# ---- whole runs

TINY = ("--device=cpu", "--n_embd=16", "--n_head=2", "--batch_size=16", "--eval_iters=1", "--eval_interval=1000")
SMALL = ("--device=cpu", "--sequences=3", "--iterations=5")


def read(scripts, out_dir):
    """{(what, weights, loop, class): row} of an analyze.csv, and every row twice: trained and untrained."""
    with open(scripts.folder / out_dir / "analyze.csv") as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == list(analyze.FIELDS)
    found = {(r["what"], r["weights"], r["loop"], r["class"]): r for r in rows}
    assert len(found) == len(rows)
    for what in {r["what"] for r in rows if r["weights"] != "beside"}:
        assert {r["weights"] for r in rows if r["what"] == what} - {"beside"} == {"trained", "untrained"}
    return found


def value(found, *key):
    return float(found[tuple(map(str, key))]["value"])


def check_pictures(scripts, out_dir, *names):
    for name in names:
        assert (scripts.folder / out_dir / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name


@pytest.fixture(scope="module")
def adders(scripts):
    """{track: (dataset, out_dir, what analyze.py printed)} of addition models, barely trained."""
    done = {}
    for track in ("next", "slots"):
        name, out = f"an_{track}", f"an_out_{track}"
        scripts("data/addition/prepare.py", f"--out_dir=data/{name}", f"--track={track}", "--max_digits=2",
                "--train_rows=600", "--val_rows=300")
        scripts("train.py", f"--dataset={name}", *TINY, "--num_loops=3", "--pos=place", "--place_ids=8",
                "--place_subset=4", "--halt=entropy", "--halt_threshold=2.0", "--prompt_loops=2", "--max_iters=30",
                f"--out_dir={out}")
        run = scripts("analyze.py", f"--checkpoint={out}/ckpt_last.pt", *SMALL, "--tokens=2000", "--loop_multiple=2",
                      f"--halting={track == 'next'}")
        done[track] = name, out, run.out
    return done


@pytest.mark.parametrize("track", ["next", "slots"])
def test_run_on_addition(scripts, adders, track):
    """What the table says of the trained weights is what the model itself says of the same batch."""
    name, out, printed = adders[track]
    found = read(scripts, out)
    check_pictures(scripts, out, "trajectories", "halting", "probes", "fixed_points", "difficulty")
    checkpoint = torch.load(scripts.folder / out / "ckpt_last.pt", weights_only=True)
    model, data = from_checkpoint(checkpoint), dataset.open_dataset(name, scripts.folder / "data")
    T = dataset.sequence_length(data, 0)
    x, y = dataset.get_batch(data, "val", (analyze.seed,), round(2000 / T), T, fresh=True)
    loops = model.think(x)[1]["loops"]
    for l in (1, 2, 3):
        share = (loops[y >= 0] == l).float().mean().item()
        assert float(found.get(("loops_histogram", "trained", str(l), "answer"), {"value": 0})["value"]
                     ) == pytest.approx(share, abs=1e-5)
    model.config.halt, model.config.prompt_loops = "none", 0
    for l in (1, 3, 6):
        logits, loss, record = model(x, y, l, trace=True)
        assert value(found, "loss", "trained", l, "answer") == pytest.approx(loss.item(), rel=1e-4)
        for key in ("entropy", "delta", "confidence"):
            assert value(found, key, "trained", l, "answer") == pytest.approx(
                record[key][..., l - 1][y >= 0].mean().item(), rel=1e-4)
    rows, answer, _ = analyze.fresh_rows(addition, data.meta, "val", len(x))
    labels = analyze.answer_labels(addition, data.meta, rows, answer)
    place = labels["digit 1"] >= 0
    kind = labels["carry into 1"] == 1
    assert value(found, "loops", "trained", "", "carry into 1: 1") == pytest.approx(loops[kind].float().mean().item(),
                                                                                    abs=1e-5)
    right = (model(x, y, 2)[0].argmax(-1) == y)[place].float().mean().item()
    assert value(found, "lens_accuracy", "trained", 2, "digit 1") == pytest.approx(right, abs=1e-5)
    assert ("lens_accuracy", "trained", "6", "digit 1") in found
    assert ("probe_accuracy", "untrained", "0", "carry into 1") in found
    stays = torch.stack([model(x, y, l)[0].argmax(-1) == y for l in (2, 3)]).all(0)[y >= 0].float().mean().item()
    assert value(found, "right_to_stay", "trained", 2, "answer") == pytest.approx(stays, abs=1e-5)
    h, x0 = list(model.states(x, 3))[-1], model.embed(x)
    cosine = torch.nn.functional.cosine_similarity(h, x0, dim=-1)[y >= 0].mean().item()
    assert value(found, "cosine_x0", "trained", 3, "answer") == pytest.approx(cosine, abs=1e-4)
    assert value(found, "probe_accuracy", "trained", 0, "token read, prompt") == pytest.approx(1, abs=0.02)
    assert {int(k[2]) for k in found if k[0] == "tangent_growth"} == set(range(1, 7))
    page = (scripts.folder / out / "thinking.html").read_text(encoding="utf-8")
    shown = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])["sequences"]
    assert [[t["loops"] for t in s["tokens"]] for s in shown] == [
        row[row > 0].tolist() for row in loops[:analyze.PAGE // T]]
    assert "nan" not in printed
    assert all("nan" not in r.values() for r in found.values())
    keys = dict(line.split(": ", 1) for line in printed.split("---\n")[1].splitlines())
    assert float(keys["loss_loop_3_trained"]) == pytest.approx(value(found, "loss", "trained", 3, "answer"), rel=1e-3)
    assert "spectral_radius_5_iterations_loop_3_untrained" in keys
    known = json.loads((scripts.folder / out / "analyze.json").read_text())
    assert known["command"].startswith("python analyze.py ")
    assert known["trained"] == checkpoint["provenance"]


def test_descent_ends_at_the_minimum_of_a_bowl(rng):
    """Bowls up to 30 times as steep one way as another, a hundred times as steep for some tokens as for others."""
    torch.manual_seed(int(rng.integers(2**31)))
    x0, h = torch.randn(2, 3, 5, 8, dtype=torch.double)
    steep = torch.logspace(0, math.log10(30), 8, dtype=torch.double) * torch.tensor([0.1, 1, 10])[:, None, None]

    def bowl(h, x0, past):
        return (steep * (h - x0) ** 2).sum(-1)
    torch.testing.assert_close(analyze.descend(bowl, h, x0, None), x0, rtol=0, atol=1e-3)
    assert (analyze.slope_of(bowl, h, x0, None) == 2 * steep * (h - x0)).all()


def test_run_on_an_energy(scripts, adders):
    """Its energy along the loops is the model's own, also of right and of wrong tokens, and backtracked steps lift no
    token above a past that stands still; below the state that is read lies one that is nearly flat."""
    out = "an_energy"
    scripts("train.py", f"--dataset={adders['next'][0]}", *TINY, "--num_loops=3", "--pos=place", "--place_ids=8",
            "--place_subset=4", "--update=energy", "--inject=none", "--alpha=backtrack", "--max_iters=30",
            f"--out_dir={out}")
    scripts("analyze.py", f"--checkpoint={out}/ckpt_last.pt", *SMALL, "--tokens=600", "--loop_multiple=2",
            "--energy=True", "--probes=False")
    found = read(scripts, out)
    check_pictures(scripts, out, "energy")
    assert value(found, "energy_rises_past_still_until", "trained", 6, "answer") == 0
    model = from_checkpoint(torch.load(scripts.folder / out / "ckpt_last.pt", weights_only=True))
    data = dataset.open_dataset(adders["next"][0], scripts.folder / "data")
    T = dataset.sequence_length(data, 0)
    x, y = dataset.get_batch(data, "val", (analyze.seed,), round(600 / T), T, fresh=True)
    with torch.no_grad():
        x0, h = model.embed(x), list(model.states(x, 3))[-1]
        E, right = model.energies(x0, h, h)[0], model.readout(h).argmax(-1) == y
        slope = model.transformer.h[0].gradient(h, x0, model.past(x0, h)).norm(dim=-1)
    for group, mask in dict(answer=y >= 0, right=right & (y >= 0), wrong=~right & (y >= 0)).items():
        assert value(found, "energy", "trained", 3, group) == pytest.approx(E[mask].mean().item(), rel=1e-4, abs=1e-5)

    def at(what):
        return value(found, what, "trained", 3, "answer")
    assert at("energy_slope") == pytest.approx(slope[y >= 0].mean().item(), rel=1e-3)
    assert at("minimum_energy") < at("energy")
    assert at("minimum_slope") < at("energy_slope") / 3
    assert 0 < at("minimum_distance")
    assert at("energy_lifted") < at("minimum_lifted")


def test_diagnosis_of_halting_by_confidence(scripts, adders):
    """Untrained weights never reach 0.5 of 15 symbols, and the table says so for each threshold."""
    found = read(scripts, adders["next"][1])
    for t in ("0.9", "0.5"):
        row = found["confidence_never_passes", "untrained", "", t]
        assert row["value"] == row["n"]
        passes = [value(found, "confidence_passes", "untrained", l, t) for l in (1, 2, 3)]
        assert passes == [0, 0, 0]
        assert sum(float(r["value"]) for k, r in found.items() if k[0] == "confidence_loops_histogram" and
                   k[1] == "trained" and k[3] == t) == pytest.approx(1)
    quantiles = [value(found, "confidence_quantile", "trained", 3, q) for q in ("0.05", "0.5", "0.95")]
    assert quantiles == sorted(quantiles)


def test_run_on_longer_numbers(scripts, adders):
    args = ("analyze.py", f"--checkpoint={adders['next'][1]}/ckpt_last.pt", *SMALL, "--probes=False")
    scripts(*args, "--tokens=600", "--digits=[1,4]", "--out_dir=an_long", "--loop_multiple=1")
    found = read(scripts, "an_long")
    assert {k[3] for k in found if k[0] == "convergence_loop" and k[3].startswith("digits")} == {"digits 1", "digits 4"}
    assert "place_ids" in scripts(*args, "--digits=[9]", "--out_dir=an_long", status=None).err


def test_run_on_text(scripts):
    """Text, learned steps: the curves stop at the trained loops and say so; loops by character, the example."""
    train = ("train.py", *TINY, "--dataset=shakespeare_char", "--block_size=16", "--num_loops=4", "--max_iters=20")
    scripts(*train, "--step_encoding=learned", "--out_dir=an_text")
    run = scripts("analyze.py", "--out_dir=an_text", *SMALL, "--tokens=9999", "--halt=delta", "--halt_threshold=0.7")
    assert "up to 4 loops, where its weights end; halt: delta" in run.out
    found = read(scripts, "an_text")
    check_pictures(scripts, "an_text", "trajectories", "halting", "probes", "fixed_points", "difficulty", "example")
    data = dataset.open_dataset("shakespeare_char", scripts.folder / "data")
    T, val = 16, torch.from_numpy(data.splits["val"].astype(np.int64))
    N = (len(val) - 1) // T  # no more than there is, each token once
    X = analyze.text_sample(data.meta, data, 9999, T)["X"]
    at = torch.linspace(0, len(val) - 1 - T, N, dtype=torch.double).long()
    assert X.equal(torch.stack([val[i:i + T] for i in at]))
    assert (at.diff() >= T).all()
    assert max(int(k[2]) for k in found if k[0] == "entropy") == 4
    assert sum(float(found["loops", "trained", "", c]["n"]) for c in analyze.CLASSES if
               ("loops", "trained", "", c) in found) == N * T
    page = (scripts.folder / "an_text/thinking.html").read_text(encoding="utf-8")
    shown = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])["sequences"]
    assert [len(s["tokens"]) for s in shown] == [16] * 32
    assert all(t["threshold"] == 0.7 and (t["score"][-1] <= 0.7 or t["loops"] == 4) for s in shown for t in s["tokens"])
    assert ("lens_accuracy", "untrained", "4", "next token") in found
    plain = scripts("analyze.py", "--out_dir=an_text", *SMALL, "--tokens=200", "--probes=False")
    assert "no loops to count" in plain.out
    assert not any(k[0] == "loops" for k in read(scripts, "an_text"))


def test_run_on_a_plain_gpt_beside_a_loop_of_its_layers(scripts):
    """Layers count as loops; one loop of the same two layers ends where they do, so there everything agrees."""
    scripts("train.py", *TINY, "--dataset=shakespeare_char", "--block_size=16", "--model_type=gpt", "--n_layer=2",
            "--max_iters=20", "--out_dir=an_gpt")
    checkpoint = torch.load(scripts.folder / "an_gpt/ckpt_last.pt", weights_only=True)
    checkpoint["model_args"]["num_loops"] = 1
    torch.save(checkpoint, scripts.folder / "an_gpt/looped.pt")
    run = scripts("analyze.py", "--out_dir=an_gpt", "--beside=an_gpt/looped.pt", *SMALL, "--tokens=600",
                  "--halting=True")
    assert "a plain GPT whose 2 layers count as loops" in run.out
    assert "--halting (a plain GPT has no loops but its layers)" in run.err
    check_pictures(scripts, "an_gpt", "trajectories", "probes", "fixed_points", "difficulty", "beside")
    found = read(scripts, "an_gpt")
    assert {k[2] for k in found if k[0] == "entropy"} == {"1", "2"}
    last = {k: float(r["value"]) for k, r in found.items() if k[1:3] == ("beside", "1") and k[0] in (
        "entropy", "loss", "norm", "cosine_x0", "confidence", "lens_accuracy", "probe_accuracy")}
    assert len(last) == 8  # two probes
    assert last == pytest.approx({k: value(found, k[0], "trained", 2, k[3]) for k in last}, rel=1e-4)
    for what in ("cka", "lens_agreement"):
        assert value(found, what, "trained", 2, "beside 1") == pytest.approx(1)
        assert value(found, what, "trained", 1, "beside 1") < 1
        assert value(found, what, "untrained", 2, "beside 1") < 1  # other fresh weights
    assert value(found, "cka", "trained", 0, "beside 0") == pytest.approx(1)
    scripts("analyze.py", "--checkpoint=an_gpt/looped.pt", "--beside=an_gpt/ckpt_last.pt", *SMALL, "--tokens=600",
            "--probes=False", "--out_dir=an_turned")
    turned = read(scripts, "an_turned")
    for k in (1, 2):
        assert value(turned, "cka", "trained", 1, f"beside {k}") == pytest.approx(
            value(found, "cka", "trained", k, "beside 1"))


def test_run_on_a_plain_gpt_that_adds(scripts, adders):
    """Beside a looped model of the same data, from which it shares no weight; and what does not go together."""
    name, out, _ = adders["next"]
    scripts("train.py", f"--dataset={name}", *TINY, "--model_type=gpt", "--n_layer=3", "--max_iters=1",
            "--out_dir=an_adder")
    args = ("analyze.py", "--checkpoint=an_adder/ckpt_last.pt", *SMALL, "--tokens=600", "--probes=False")
    scripts(*args, f"--beside={out}/ckpt_last.pt")
    found = read(scripts, "an_adder")
    pairs = {(k[2], k[3]) for k in found if k[:2] == ("cka", "trained")}
    assert pairs == {(str(l), f"beside {k}") for l in range(4) for k in range(4)}
    x = analyze.task_sample(dataset.open_dataset(name, scripts.folder / "data").meta, 600 // 12)
    assert found["cka", "trained", "1", "beside 2"]["n"] == found["entropy", "trained", "1", "answer"]["n"]
    assert x["groups"]["prompt"].any()
    other = scripts(*args, f"--beside={adders['slots'][1]}/ckpt_last.pt", status=None).err
    assert "reads other data" in other
    assert "track" in other


def test_what_cannot_be_analyzed(scripts):
    assert "does not exist" in scripts("analyze.py", "--out_dir=an_none", status=None).err
