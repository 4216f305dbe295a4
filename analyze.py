"""The thinking protocol: what the states of a looped model do, loop by loop, trained weights beside untrained ones.

    python analyze.py --checkpoint=out/demo_addition/ckpt_last.pt --halting=True
    python analyze.py --out_dir=out/train_loop_1x12 --halt=entropy --halt_threshold=1.0

1 trajectories   entropy, delta, norm, arg-max flips and loss after each loop, on to 4 times the trained loops
2 halting        loops by the checkpoint's rule: histogram, by kind of token, against loss; text coloured by loops
3 --halting=True does `confidence` ever pass? its distribution against the threshold, and loops at that and at 0.5
4 probes         what a linear classifier reads from the frozen states (Alain & Bengio 1610.01644; fitted on training
                 data, tested on validation data), beside the model's own head after each loop, the logit lens
5 fixed points   do tokens converge (Huginn 2502.05171, figure on orbits; deep thinking 2202.05826), circle, forget a
                 push; the spectral radius of one loop

Everything is said twice, of the trained weights and of fresh ones of the same architecture: a residual stream that
merely grows has a falling delta, and a random network is already a fair feature map for a probe. Tokens of addition
are those that write the answer. Intervals are 95%, over sequences, whose tokens are not independent. It all stands in
analyze.csv: what, weights, loop, class, value, low, high, n; the pictures are drawn from its rows alone.
"""
import copy
import csv
import math
import os
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from tqdm import tqdm

import addition
import dataset as datasets
import figures
import runtime
from configurator import class_settings, configure
from looplm_kernels import RULES, passes, softmax_statistics, state_delta
from model_loop import INFERENCE_SETTINGS, LoopConfig, LoopGPT, build, from_checkpoint

checkpoint = ""                 # a checkpoint file; empty: ckpt_best.pt, else ckpt_last.pt, of out_dir
out_dir = ""                    # where train.py wrote, and where the results go; empty: the checkpoint's folder, or out
tokens = 20000                  # validation tokens to look at, in whole sequences; probes take as many for training
digits: list[int] = []          # addition: look at hard problems of exactly so many digits, not at validation rows
times = 4                       # loops to take, in multiples of those trained with
converged = 3e-2                # delta below it is convergence, where one number is asked for; 3e-2 is Huginn's exit
halting = False                 # also the diagnosis of halting by confidence
probes = True                   # also the linear probes, the slowest part
sequences = 8                   # sequences for the perturbation and the Jacobian, in float64
iterations = 200                # steps of the power iteration
device = "auto"                 # auto, cpu, cuda
seed = 1337                     # of the untrained weights, of the validation batch and of the perturbation

EPSILONS = (1e-1, 3e-2, 1e-2, 1e-3, 1e-4)  # the grid of thresholds of delta
PERIODS = range(2, 9)
PUSH, PUSHED_LOOPS = 1e-3, 4    # relative size of the perturbation, and the loops it is followed for
CHUNK = 2048                    # tokens a forward pass: states of all loops and logits of one must fit in memory
FIELDS = ("what", "weights", "loop", "class", "value", "low", "high", "n")
CLASSES = ("space", "punctuation", "first letter", "inside a word")


# ---- statistics: plain functions on tensors

def interval(x):
    """Mean of x (N,T) and its 95% interval over the N sequences, NaN counting as absent, as the columns of a row.

    Sums of a sequence are what is independent: the variance of a ratio of sums, clustered by sequence.
    """
    x = torch.as_tensor(x).double().reshape(len(x), -1)
    count, total = (~x.isnan()).sum(1), x.nansum(1)
    n, groups = int(count.sum()), int((count > 0).sum())
    mean = float(total.sum() / n) if n else math.nan
    error = math.nan
    if groups > 1:
        error = 1.96 * float((total - mean * count).square().sum() * groups / (groups - 1)) ** 0.5 / n
    return dict(value=mean, low=mean - error, high=mean + error, n=n)


def spearman(x, y):
    """Rank correlation of x and y (N,T), NaN counting as absent, with its interval as above (delta method)."""
    x, y = torch.as_tensor(x).double(), torch.as_tensor(y).double()
    both = ~(x.isnan() | y.isnan())
    if both.sum() < 3 or x[both].unique().numel() < 2 or y[both].unique().numel() < 2:
        return dict(value=math.nan, low=math.nan, high=math.nan, n=int(both.sum()))
    z = torch.full((2, *x.shape), math.nan, dtype=torch.double)
    for i, a in enumerate((x, y)):
        z[i, both] = torch.from_numpy(stats.zscore(stats.rankdata(a[both].numpy())))
    product, rho = z[0] * z[1], float((z[0] * z[1]).nanmean())
    return interval(product - rho / 2 * z.square().sum(0) + rho)


def readout_statistics(logits, targets):
    """Of logits (B,T,V) and targets (B,T): entropy and loss in nats (loss NaN where the target is -1), the largest
    probability, the arg-max; (B,T) each."""
    logp, confidence, entropy = softmax_statistics(logits)
    loss = -logp.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    return dict(entropy=entropy, confidence=confidence, loss=loss.masked_fill(targets < 0, math.nan),
                prediction=logits.argmax(-1))


def state_statistics(path):
    """Of a trajectory (1+L,B,T,C), x0 first: delta and norm after each loop (L,B,T), and over the periods p (P,B,T)
    norm(h_l - h_{l-p}) / norm(h_l) at its end, with the period of a limit cycle (B,T), 0 where there is none."""
    delta = torch.stack([state_delta(new, h) for h, new in zip(path, path[1:], strict=False)])
    ends = [returns(path, p) for p in PERIODS]
    return dict(delta=delta, norm=path[1:].float().norm(dim=-1), returned=torch.stack([r[-1] for r in ends]),
                period=cycle_period(delta, dict(zip(PERIODS, ends, strict=True))))


def returns(path, p):
    """norm(h_l - h_{l-p}) / norm(h_l) of a trajectory (1+L,...,C) in its last p loops (p,...); NaN if 2p > L."""
    L = len(path) - 1
    if 2 * p > L:
        return path.new_full((p, *path.shape[1:-1]), math.nan)
    return state_delta(path[L - 2 * p + 1:L - p + 1], path[L - p + 1:])


def cycle_period(delta, returned):
    """The smallest period (...) of a limit cycle, 0 where there is none, of delta (L,...) and {p: returns (p,...)}:
    in each of the last p loops the state is back within a tenth of its step, and that step is no convergence.

    A decaying oscillation c z^l around a fixed point passes only if it hardly decays: z beyond -0.905 for p = 2.
    """
    period = torch.zeros(delta.shape[1:], dtype=torch.long, device=delta.device)
    for p, r in returned.items():
        step = delta[-p:] if 2 * p <= len(delta) else r
        cycle = ((r < 0.1 * step) & (step > converged)).all(0)  # NaN, where L is too small for p, is no cycle
        period = torch.where((period == 0) & cycle, p, period)
    return period


def first_loop(passed):
    """The first loop (...) in which passed (L,...) holds, counted from 1; L + 1 where it never does."""
    return torch.where(passed.any(0), passed.int().argmax(0) + 1, len(passed) + 1)


def entropy_trend(entropy):
    """Of the entropy (L,N,T): its rank correlation with l for each token, and whether it is lower in L than in 1."""
    L = len(entropy)
    ranks = torch.from_numpy(stats.rankdata(entropy.numpy(), axis=0)) - (L + 1) / 2
    l = (torch.arange(L, dtype=torch.double) - (L - 1) / 2).view(L, 1, 1)
    rho = (ranks * l).sum(0) / (ranks.square().sum(0) * l.square().sum()).sqrt()  # 0/0 where nothing changes: NaN
    return rho, (entropy[-1] < entropy[0]).double()


def perturbation_ratios(step, h, mask, size, count, generator):
    """How a random push of relative size `size` of the state h (B,T,C) grows or shrinks: the ratio of distances from
    one loop to the next (count,B), over the tokens of mask (B,T). step(h, k) is the k-th loop from h on, from 0."""
    mask = mask[..., None]
    noise = torch.randn(h.shape, generator=generator, dtype=torch.double).to(h) * mask
    pushed = h + noise * size * (h * mask).norm(dim=(1, 2), keepdim=True) / noise.norm(dim=(1, 2), keepdim=True)
    distance = [((pushed - h) * mask).norm(dim=(1, 2))]
    for k in range(count):
        h, pushed = step(h, k), step(pushed, k)
        distance.append(((pushed - h) * mask).norm(dim=(1, 2)))
    return torch.stack([b / a for a, b in zip(distance, distance[1:], strict=False)])


def spectral_radius(step, h, mask, iterations, generator):
    """Spectral radius (B,) of the Jacobian of step at h (B,T,C), and the residual (B,), by power iteration.

    Attention couples the tokens, so the vector is the state of a whole sequence; mask (B,T) leaves out pads, which
    nothing before them reads. The largest eigenvalues are often a complex pair, around which the plain iteration
    turns for ever; so the last vectors are fitted by J^2 v = p Jv + q v, and the larger root of z^2 = pz + q is taken.
    The residual is what the fit leaves, relative to J^2 v.
    """
    mask = mask[..., None]

    def apply(v):
        return torch.func.jvp(step, (h,), (v,))[1] * mask

    def length(v):
        return v.norm(dim=(1, 2), keepdim=True).clamp(min=1e-300)

    b = torch.randn(h.shape, generator=generator, dtype=torch.double).to(h) * mask
    for _ in range(max(1, iterations)):
        a = b / length(b)
        b = apply(a)
    twice, radius, residual = apply(b / length(b)) * length(b), [], []
    for sequence in zip(b, a, twice, strict=True):
        y, x, z = (v.flatten().cpu().numpy() for v in sequence)
        fit = np.linalg.lstsq(np.stack([y, x], 1), z, rcond=1e-8)[0]  # v and Jv may be parallel, then it is of rank 1
        radius.append(np.abs(np.roots([1, *-fit])).max(initial=0))
        residual.append(np.linalg.norm(z - fit[0] * y - fit[1] * x) / max(np.linalg.norm(z), 1e-300))
    return torch.tensor(radius), torch.tensor(residual)


def linear_probe(train, labels, test, classes, decay=1e-4, steps=60):
    """Softmax regression fitted to features train (n,C) and labels (n,), full-batch L-BFGS from zero weights, so the
    same every time; returns the classes (m,) that it says of test (m,C)."""
    mean, std = train.mean(0), train.std(0).clamp(min=1e-6)
    train, test = (F.pad((x - mean) / std, (0, 1), value=1.0) for x in (train, test))
    weight = torch.zeros(train.size(1), classes, device=train.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=steps, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(train @ weight, labels) + decay * weight[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return (test @ weight.detach()).argmax(-1)


def character_class(before, text):
    """Which of CLASSES the character (or token) `text` is, after `before`; 'don't' and 'I'll' are one word each."""
    first = text.lstrip()[:1]
    if not first:
        return 0
    if not first.isalnum():
        return 1
    starts = text[0].isspace() or not (before[-1:].isalnum() or before[-1:] == "'")
    return 2 if starts else 3


def character_classes(x, y, decode):
    """The class (N,T) of the tokens y (N,T), each after its x; decode turns a token into text."""
    pairs, inverse = torch.stack((x, y), -1).flatten(0, -2).unique(dim=0, return_inverse=True)
    return torch.tensor([character_class(decode(a), decode(b)) for a, b in pairs.tolist()])[inverse].view(x.shape)


def answer_labels(x, y, plain=False):
    """Of addition rows, inputs x and targets y (N,T): the place (N,T) of the answer's digit that a token writes,
    counted from the least significant, -1 where it writes none, and the carry into it (N,T); then of each problem the
    digits (N,) of its longer operand, leading zeros aside, and its longest carry chain (N,)."""
    x, y, t = x.numpy(), y.numpy(), np.arange(x.size(1))
    la, eq = (x == addition.ID["+"]).argmax(1), (x == addition.ID["="]).argmax(1)
    lb, longest = eq - la - 1, int(max(la.max(), (eq - la - 1).max()))
    numbers = []
    for start, length in ((np.zeros_like(la), la), (la + 1, lb)):
        d = np.arange(longest)
        at = start[:, None] + (length[:, None] - 1 - d if plain else d)
        numbers.append(np.where(d < length[:, None], np.take_along_axis(x, at.clip(0, len(t) - 1), 1), 0))
    a, b = (n.astype(np.int8) for n in numbers)
    writes = (y >= 0) & (y < 10)
    place = writes.cumsum(1) - 1
    place = np.where(writes, writes.sum(1, keepdims=True) - 1 - place if plain else place, -1)
    carry = np.take_along_axis(addition.add(a, b)[1], place.clip(0, longest), 1)
    digits = np.where((a | b) > 0, d + 1, 1).max(1)  # leading zeros are no digits
    return (*map(torch.from_numpy, (place, carry.astype(np.int64), digits, addition.chain_lengths(a, b))),)


# ---- a model under observation

def over(x, mask):
    """x (...,N,T) as float, NaN outside of mask (N,T)."""
    return x.double().masked_fill(~mask, math.nan)


def chunks(*tensors):
    """The tensors (N,T) in parts of at most CHUNK tokens, on the device."""
    for part in zip(*(x.split(max(1, CHUNK // tensors[0].size(1))) for x in tensors), strict=True):
        yield [x.to(device) for x in part]


def row(what, weights, statistic, loop="", group=""):
    return dict(statistic, what=what, weights=weights, loop=loop, **{"class": group})


def number(value, n=1):
    """A statistic without an interval."""
    return dict(value=float(value), low="", high="", n=n)


@torch.no_grad()
def observe(model, X, Y, loops):
    """Everything of state_statistics and readout_statistics, (loops,N,T) each, (P,N,T), (N,T), on the CPU."""
    seen = []
    for x, y in chunks(X, Y):
        path = torch.stack([model.embed(x), *model.states(x, loops)])
        read = [readout_statistics(model.readout(h), y) for h in path[1:]]
        seen.append(state_statistics(path) | {key: torch.stack([r[key] for r in read]) for key in read[0]})
        seen[-1] = {key: value.cpu() for key, value in seen[-1].items()}
    return {key: torch.cat([s[key] for s in seen], -2) for key in seen[0]}


@torch.no_grad()
def trajectory_rows(name, seen, s):
    """1: means over tokens after each loop."""
    moved = seen["prediction"][1:] != seen["prediction"][:-1]
    curves = {key: seen[key] for key in ("entropy", "delta", "norm", "loss", "confidence")}
    curves["flips"] = torch.cat((torch.full_like(moved[:1], math.nan, dtype=torch.double), moved.double()))
    rows = []
    for group, mask in s.groups.items():
        for key, x in curves.items():
            rows += [row(key, name, interval(v), l, group) for l, v in enumerate(over(x, mask), 1)]
        rho, fell = entropy_trend(seen["entropy"][:s.L])
        rows += [row("entropy_spearman_with_loop", name, interval(over(rho, mask)), "", group),
                 row("entropy_falls", name, interval(over(fell, mask)), "", group)]
    return [r for r in rows if r["n"]]


def taken(model, s):
    """Loops (N,T) by the model's own rule, and those tokens (N,T) whose score never passed."""
    found = []
    for (x,) in chunks(s.X):
        record = model.think(x)[1]
        score = record["score"].gather(-1, (record["loops"] - 1).clamp(min=0)[..., None]).squeeze(-1)
        passed = passes(model.config.halt, score, model.halting_plan(x, s.L).threshold)
        found.append((record["loops"].cpu(), ((record["loops"] > 0) & ~passed).cpu()))
    return map(torch.cat, zip(*found, strict=True))


def histogram(what, name, loops, group, mask):
    return [row(what, name, interval(over(loops == l, mask)), l, group) for l in range(1, int(loops.max()) + 1)]


def halting_rows(name, model, seen, s):
    """2: loops by the rule, and what they go with. The loss is that of loop L without halting."""
    loops, never = taken(model, s)
    s.loops[name], rows = loops, []
    for group, mask in s.groups.items():
        rows += histogram("loops_histogram", name, loops, group, mask)
        rows += [row("loops", name, interval(over(loops, mask)), "", group)]
    rows += [row("never_passes", name, number((never & s.main).sum(), int(s.main.sum())), "", s.first)]
    rows += [row("loops", name, interval(over(loops, m)), "", k) for k, m in s.kinds.items() if m.any()]
    rho = spearman(over(loops, s.main), seen["loss"][s.L - 1])
    return rows + [row("loops_spearman_with_loss", name, rho, "", s.first)]


def diagnosis_rows(name, model, seen, s):
    """3: halting by confidence, whose score is 1 / sum exp(z - z_max): a rule that never halts has another cause than
    its formula, and this shows which: a confidence below the threshold in every loop, or none that is counted right."""
    c, rows = model.config, []
    kept = c.halt, c.halt_threshold, c.think_threshold
    own = c.think_threshold if c.halt == "confidence" and c.think_threshold is not None else c.halt_threshold
    own = own if c.halt == "confidence" and own is not None else RULES["confidence"].threshold
    for l, x in enumerate(over(seen["confidence"][:s.L], s.main), 1):
        for q in (0.05, 0.25, 0.5, 0.75, 0.95):
            rows.append(row("confidence_quantile", name, number(x.nanquantile(q), int(s.main.sum())), l, f"{q:g}"))
        rows += [row("confidence_passes", name, interval(over(x >= t, s.main)), l, f"{t:g}") for t in (own, 0.5)]
    for t in (own, 0.5):  # really halting, the others attending to frozen states
        c.halt, c.halt_threshold, c.think_threshold = "confidence", t, None
        loops, never = taken(model, s)
        rows += histogram("confidence_loops_histogram", name, loops, f"{t:g}", s.main)
        never = number((never & s.main).sum(), int(s.main.sum()))
        rows += [row("confidence_never_passes", name, never, "", f"{t:g}")]
    c.halt, c.halt_threshold, c.think_threshold = kept
    return rows


@torch.no_grad()
def states_at(model, X, loops):
    """{l: h_l (N,T,C)} for the loops asked for, on the device; h_0 is x0."""
    found = []
    for (x,) in chunks(X):
        path = [model.embed(x)] + (list(model.states(x, max(loops))) if max(loops) else [])
        found.append({l: path[l] for l in loops})  # those between are freed
    return {l: torch.cat([f[l] for f in found]) for l in loops}


def probe_rows(name, model, s):
    """4: accuracy of a linear probe, of the head as it is (the logit lens) and of always saying the commonest label,
    on the same validation tokens."""
    loops = sorted({*range(s.L + 1), *range(s.L, s.total + 1, s.L)})
    train, test = states_at(model, s.train_X, loops), states_at(model, s.X, loops)
    rows = []
    for group, ((train_mask, train_label), (mask, label), classes, lens) in s.tasks.items():
        known, wanted = train_label[train_mask].to(device), label[mask]
        if min(len(known), len(wanted)) < 100 or min(len(known.unique()), len(wanted.unique())) < 2:
            continue  # too few to tell, or nothing to tell: the last digit of a sum is there only if it is 1
        common = known.bincount().argmax().item()
        rows.append(row("majority_accuracy", name, interval(over(label == common, mask)), "", group))
        for l in loops:
            said = {"probe_accuracy": linear_probe(train[l][train_mask], known, test[l][mask], classes)}
            if lens:
                said["lens_accuracy"] = model.readout(test[l][mask]).argmax(-1)
            for what, guess in said.items():
                right = torch.full(mask.shape, math.nan)
                right[mask] = (guess.cpu() == wanted).float()
                rows.append(row(what, name, interval(right), l, group))
    return rows


def fixed_point_rows(name, seen, s):
    """5: convergence within s.total loops, against difficulty; limit cycles. Convergence is the first passage of
    delta under eps; a token that never passes counts as s.total + 1 loops."""
    rows = []
    for eps in sorted({*EPSILONS, converged}):
        first = first_loop(seen["delta"] < eps)
        rows += [row("converged_by", name, interval(over(first <= l, s.main)), l, f"{eps:g}")
                 for l in range(1, s.total + 1)]
    first = over(first_loop(seen["delta"] < converged), s.main)
    rows += [row(f"convergence_spearman_with_{key}", name, spearman(first, over(x, s.main)), "", s.first)
             for key, x in (s.difficulty | dict(loss=seen["loss"][s.L - 1])).items()]
    for key, x in s.difficulty.items():
        rows += [row("convergence_loop", name, interval(over(first, s.main & (x == v))), "", f"{key} {int(v)}")
                 for v in x[s.main].unique()]
    for p, x in zip(PERIODS, seen["returned"], strict=True):
        if 2 * p <= s.total:
            rows += [row("return_after", name, interval(over(x, s.main)), s.total, f"{p} loops"),
                     row("limit_cycle", name, interval(over(seen["period"] == p, s.main)), s.total, f"{p} loops")]
    return rows + [row("limit_cycle", name, interval(over(seen["period"] > 0, s.main)), s.total, "any")]


@torch.no_grad()
def jacobian_rows(name, model, s):
    """5: what a push does, and the spectral radius of one loop; on a few sequences, in float64 and plain attention,
    through which forward-mode derivatives go."""
    model = copy.deepcopy(model).double()
    for block in model.transformer.h:
        block.attn.flash = False
    idx, mask = s.X[:sequences].to(device), s.reads[:sequences].to(device)
    x0 = model.embed(idx)
    path, rows = [x0, *model.states(idx, s.total)], []
    gen = torch.Generator().manual_seed(seed)
    at = s.L if s.L < s.limit else max(0, s.limit - PUSHED_LOOPS)
    count = min(PUSHED_LOOPS, s.limit - at)
    ratio = perturbation_ratios(lambda h, k: model.loop(h, x0, at + 1 + k), path[at], mask, PUSH, count, gen)
    rows += [row("push_ratio", name, interval(r), at + k, "one loop") for k, r in enumerate(ratio, 1)]
    rows += [row("push_ratio", name, interval(ratio.log().mean(0).exp()), at, f"mean of {count} loops")]
    for l in sorted({min(s.L, s.limit - 1), min(s.total, s.limit - 1)}):
        radius, residual = spectral_radius(lambda h, l=l: model.loop(h, x0, l + 1), path[l], mask, iterations, gen)
        rows += [row("spectral_radius", name, interval(radius), l, f"{iterations} iterations"),
                 row("spectral_radius_highest", name, number(radius.max(), len(radius)), l),
                 row("spectral_radius_residual", name, interval(residual), l, f"{iterations} iterations")]
    return rows


# ---- the run

def subject(model, data):
    """What is looked at: tokens, which of them count, their kinds, their difficulty, and what probes shall tell."""
    T = datasets.sequence_length(data, model.config.block_size)
    N = max(2, round(tokens / T))
    X, Y = datasets.get_batch(data, "val", (seed,), N, T)
    train_X, train_Y = datasets.get_batch(data, "train", (seed,), N, T)
    meta, L = data.meta, model.trained_loops
    limit = len(model.step_bias) if model.config.step_encoding == "learned" else math.inf
    s = SimpleNamespace(L=L, limit=limit, total=int(min(max(1, times) * L, limit)), rule=model.config.halt, loops={},
                        train_X=train_X, title=path, halting=halting, converged=converged, epsilons=EPSILONS, push=PUSH)
    if meta.kind == "text":
        every = torch.ones_like(X, dtype=torch.bool)
        kinds = character_classes(X, Y, lambda t: datasets.decode(meta, [t]))
        tasks = {"next token": ((every, train_Y), (every, Y), meta.vocab_size, True)}
        tasks = tasks if meta.vocab else {}  # the 50,257 classes of BPE are too many for so few tokens
        return SimpleNamespace(**vars(s), X=X, Y=Y, reads=every, main=every, first="all", groups=dict(all=every),
                               kinds={k: kinds == i for i, k in enumerate(CLASSES)}, difficulty={}, tasks=tasks)
    if digits:
        parts = [addition.write_rows(*addition.problem_set(n, max(2, N // len(digits)), "hard"), addition.row_length(
            max(digits), meta.track), meta.track, meta.plain) for n in digits]
        X, Y = map(torch.from_numpy, addition.inputs_and_targets(np.concatenate(parts), meta.track))
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(X)))  # all counts among the first ones
        X, Y = X[order], Y[order]
    main, reads = Y >= 0, X != model.config.pad_token
    place, carry, length, chain = answer_labels(X, Y, meta.plain)
    known, known_carry, *_ = answer_labels(train_X, train_Y, meta.plain)
    places = range(int(place.max()) + 1)
    tasks = {f"digit {k}": ((known == k, train_Y), (place == k, Y), 10, True) for k in places}
    tasks |= {f"carry into {k}": ((known == k, known_carry), (place == k, carry), 2, False) for k in places[1:]}
    kinds = {f"digit {k}, carry {c}": (place == k) & (carry == c) for k in places for c in (0, 1)}
    return SimpleNamespace(
        **vars(s), X=X, Y=Y, reads=reads, main=main, first="answer", tasks=tasks,
        groups=dict(answer=main, prompt=reads & ((X == model.config.think_token).cumsum(1) == 0)),
        kinds=kinds | {"end": main & (place < 0)},
        difficulty=dict(digits=length[:, None].expand_as(X), chain=chain[:, None].expand_as(X)))


def measure(name, model, s):
    """All rows of one set of weights."""
    seen = observe(model, s.X, s.Y, s.total)
    steps = [lambda: trajectory_rows(name, seen, s), lambda: fixed_point_rows(name, seen, s),
             lambda: jacobian_rows(name, model, s)]
    steps += [lambda: halting_rows(name, model, seen, s)] * (s.rule != "none")
    steps += [lambda: diagnosis_rows(name, model, seen, s)] * halting
    steps += [lambda: probe_rows(name, model, s)] * probes
    return [r for step in tqdm(steps, desc=name, unit="part", disable=None) for r in step()]


def print_summary(rows, s):
    """The main numbers as `key: value`, both weights: means at loop 1, L and the last; probes and lens at L."""
    first, found = (s.first, f"{converged:g}", "any", ""), {}
    for r in rows:
        what, loop, group = r["what"], r["loop"], r["class"]
        wanted = loop in (1, s.L, s.total) and what in ("entropy", "loss", "delta", "flips") and group == s.first
        wanted |= loop in (s.L, s.total) and what in ("converged_by", "limit_cycle") and group in first
        wanted |= what.startswith(("push", "spectral")) and group != "one loop"
        wanted |= loop == s.L and what in ("probe_accuracy", "lens_accuracy")
        wanted |= loop == "" and (group in first or what in ("majority_accuracy", "confidence_never_passes"))
        if wanted:
            key = "_".join(f"{what} {group if group != s.first else ''} {loop and f'loop {loop}'}".split())
            shown = f"{r['value']:{'.0f' if what.endswith('never_passes') else '.4g'}}"  # a count, or a mean
            found.setdefault(key, []).append(f"{key}_{r['weights']}: {shown}")
    print("---", *sum(found.values(), []), sep="\n")


def main():
    try:
        model = from_checkpoint(saved, **overrides).to(device)
        if not isinstance(model, LoopGPT):
            raise SystemExit(f"{path} is a plain GPT, which has no loops to look at")
        runtime.seed_torch(seed)
        fresh = build(saved["model_args"]).state_dict()
        fresh = from_checkpoint(dict(saved, model=fresh, ema=None), **overrides).to(device)
        data = datasets.open_dataset(saved.get("config", {}).get("dataset", "?"), like=saved.get("meta"))
        s = subject(model, data)
        print(f"{path}: {model.get_num_params():,} parameters, {s.L} loops, {s.X.size(0)} sequences of {s.X.size(1)} "
              f"tokens, up to {s.total} loops{', where the learned steps end' * (s.limit == s.total)}; halt: {s.rule}"
              + ", so there are no loops to count; a --halt would do" * (s.rule == "none"))
        rows = [r for name, m in (("trained", model), ("untrained", fresh)) for r in measure(name, m, s)]
    except (ValueError, RuntimeError) as e:
        raise SystemExit(f"{path}: {e}") from None
    with runtime.open_output(target) as f:
        writer = csv.DictWriter(f, FIELDS)
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)
    pictures = figures.draw_analysis(rows, s, out_dir, lambda t: datasets.decode(data.meta, [t]))
    print_summary(rows, s)
    print(f"csv: {target}\npictures: {', '.join(pictures)}")


if __name__ == "__main__":
    settings, overrides, given = configure(__file__, {
        "halting settings, by default as in the checkpoint": class_settings(LoopConfig, INFERENCE_SETTINGS)})
    globals().update(settings)
    overrides = {k: v for k, v in overrides.items() if k in given}
    device = runtime.choose_device(device)
    path = runtime.find_checkpoint(checkpoint, out_dir or "out")
    saved, out_dir = runtime.load_checkpoint(path), out_dir or os.path.dirname(path)
    target = os.path.join(out_dir, "analyze.csv")
    os.makedirs(out_dir or ".", exist_ok=True)
    runtime.open_output(target, "a").close()  # a wrong path should fail now, not after the work
    main()
