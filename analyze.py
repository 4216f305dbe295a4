"""The thinking protocol: what the states of a looped model do, loop by loop, trained weights beside untrained ones.

    python analyze.py --checkpoint=out/demo_addition/ckpt_last.pt --halting=True
    python analyze.py --out_dir=out/train_loop_1x12 --halt=entropy --halt_threshold=1.0
    python analyze.py --out_dir=out/train_loop_1x12 --beside=out/train_gpt_12l/ckpt_best.pt

1 trajectories   entropy, delta, norm, cosine with x0, arg-max flips, loss and who is right to stay after each loop, on
                 to 4 times the trained loops; from which loop on the guess is that of the last trained loop
2 halting        loops by the checkpoint's rule: histogram, by kind of token, against loss; text shaded by loops; and
                 thinking.html, a page that shows what tokens say after each loop
  difficulty     all three counts of loops (2, settling of 1, convergence of 5) against what may make a token hard: of a
                 task as that says; of a text length of the sentence, position in it, nesting of its clauses by
                 punctuation, surprise of the token and of its word by how often they occur
3 --halting=True does `confidence` ever pass? its distribution against the threshold, and loops at that and at 0.5
4 probes         what a linear classifier reads from the frozen states (Alain & Bengio 1610.01644; fitted on training
                 data, tested on validation data), of the token that is read, too; one for each loop, and that of the
                 trained loops after all; beside them the model's own head after each loop, the logit lens
5 fixed points   do tokens converge (Huginn 2502.05171, figure on orbits; deep thinking 2202.05826), circle, forget a
                 push; the spectral radius of one loop, and the largest Lyapunov exponent of all; do states that
                 begin elsewhere, at x0, at zero or at random, meet those that begin as in training
6 --beside=FILE  another model of the same data on the same tokens, its curves of 1 and 4; and each of its loops beside
                 each of this one's: on how many tokens the logit lenses guess alike, and how alike the states are, in
                 whatever basis (linear CKA)

7 --energy=True  of update 'energy' its energy after each loop, of right and wrong tokens, easy and hard ones; how often
                 it falls, with the past as it was and as it becomes; its course along the line from the first state
                 to the last; what it tells of wrong tokens beside entropy and delta. Of any other looped model the
                 same of a head that is taught to fall along its loops on training data. Of both whether a push from a
                 state raises it, as it does from a minimum

Of a plain GPT a layer counts as a loop, and there are as many as it has layers.

Everything is said twice, of the trained weights and of fresh ones of the same architecture: a residual stream that
merely grows has a falling delta, and a random network is already a fair feature map for a probe. Of a task the tokens
that write the answer count, of problems drawn afresh. Intervals are 95%, over sequences, whose tokens are not
independent; of correlations with a difficulty over problems or sentences. It all stands in analyze.csv, as soon as it
is known: what, weights, loop, class, value, low, high, n; the pictures are drawn from its rows alone. Where the numbers
come from (command, commit, versions, card, seconds) stands in analyze.json.
"""
import copy
import itertools
import math
import os
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

import figures
import outputs
import runtime
import tasks
import think
import viewer
from cache import looped
from checkpoint import inference_settings, open_model
from configurator import configure, say_without_effect
from dataset import decode, get_batch, model_facts, open_dataset, sequence_length, trained_on
from intervals import clustered_interval, clustered_spearman, half_width
from looplm_kernels import RULES, passes, softmax_statistics, state_delta
from model_loop import build, from_checkpoint, idle_settings

checkpoint = ""                 # a checkpoint file; empty: ckpt_best.pt, else ckpt_last.pt, of out_dir
out_dir = ""                    # where train.py wrote, and where the results go; empty: the checkpoint's folder, or out
beside = ""                     # another checkpoint of the same data, a plain GPT too, to compare state by state
tokens = 20000                  # >= 1: tokens to look at, in whole sequences, each once; probes are fitted to as many
task = ""                       # the file of a task of your own, of which the checkpoint is
sizes: list[int] = []           # >= 1: of a task: hard problems of exactly these sizes, instead of those of training
loop_multiple = 4               # >= 1: loops to take, in multiples of those trained with
converged = 3e-2                # > 0: delta below it is convergence, where one number is asked for; Huginn's exit
halting = False                 # also the diagnosis of halting by confidence
energy = False                  # also the energy of a loop, its own or that of a head which is taught to fall
probes = True                   # also the linear probes, the slowest part
sequences = 8                   # >= 1: sequences for the perturbation and the Jacobian, in float64
iterations = 200                # >= 1: steps of the power iteration
device = "auto"                 # auto, cpu, cuda
seed = 1337                     # >= 0: of the untrained weights, of problems and training text, of the perturbation

EPSILONS = (1e-1, 3e-2, 1e-2, 1e-3, 1e-4)  # the grid of thresholds of delta
PERIODS = range(2, 9)
PUSH, PUSHED_LOOPS = 1e-3, 4    # relative size of the perturbation, and the loops it is followed for
LINE = tuple(i / 4 for i in range(-2, 7))  # where the line between two states is looked at: 0 one of them, 1 the other
LIFTS, LIFT = 8, 1e-3           # pushes of a state that may raise its energy, their size relative to it
LESSONS = 500                   # steps in which a head is taught
DESCENT = 400                   # steps down an energy, from the state that is read to where it is flat
PAGE = 512                      # tokens that thinking.html shows, or one sequence if that is longer
PLACES = 12                     # of an answer at which probes read its symbols, where the task has no labels
CHUNK = 2048                    # tokens per forward pass: states of all loops and logits of one must fit in memory
FIELDS = ("what", "weights", "loop", "class", "value", "low", "high", "n")
CLASSES = ("space", "punctuation", "first letter", "inside a word")
SENTENCE = re.compile(r"""(?P<speaker>(?:(?<=\n\n)|\A)[^\n]+:(?=\n))|"""
                      r"""\S.*?(?:[.!?]+["')\]]*(?=\s|\Z)|(?=\n\s*\n)|\Z)""", re.DOTALL)
WORD = re.compile(r"\w+(?:'\w+)*")
LEVELS = 8                      # groups of equally many tokens by a difficulty that has more values than twice that
GROUPS = 20                     # of sequences, each left out once for the interval of CKA


# ---- statistics: plain functions on tensors

def readout_statistics(logits, targets):
    """Of logits (B,T,V) and targets (B,T): entropy and loss in nats (loss NaN where the target is -1), the largest
    probability, the arg-max; (B,T) each."""
    logp, confidence, entropy = softmax_statistics(logits)
    loss = -logp.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    return dict(entropy=entropy, confidence=confidence, loss=loss.masked_fill(targets < 0, math.nan),
                prediction=logits.argmax(-1))


def state_statistics(path):
    """Of a trajectory (1+L,B,T,C), x0 first: delta, norm and the cosine with x0 after each loop (L,B,T), and over the
    periods p (P,B,T) norm(h_l - h_{l-p}) / norm(h_l) at its end, with the period of a limit cycle (B,T), 0 where there
    is none."""
    delta = torch.stack([state_delta(new, h) for h, new in zip(path, path[1:], strict=False)])
    ends = [returns(path, p) for p in PERIODS]
    return dict(delta=delta, norm=path[1:].float().norm(dim=-1), returned=torch.stack([r[-1] for r in ends]),
                cosine_x0=F.cosine_similarity(path[1:].float(), path[0].float(), dim=-1),
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


def first_settled(guess):
    """The first loop (...), counted from 1, from which on the guess (L,...) is that of loop L."""
    return guess.shape[0] - (guess == guess[-1]).flip(0).int().cumprod(0).sum(0) + 1


def right_to_stay(right):
    """Whether right (L,...) holds in a loop and in every later one (L,...)."""
    return right.flip(0).cumprod(0).flip(0).bool()


def entropy_trend(entropy):
    """Of the entropy (L,N,T): its rank correlation with l for each token, and whether it is lower in L than in 1."""
    from scipy import stats
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


def tangent_growth(step, h, mask, count, generator):
    """How an infinitesimal push of the states h (B,T,C) of a sequence grows in each of `count` loops: the log of the
    ratio (count,B). step(h, k) is the k-th loop from h on, from 0; mask (B,T) leaves out pads.

    The push turns into the direction that grows fastest, so that the mean over many loops is the largest Lyapunov
    exponent; its length is set to 1 after every loop (Benettin et al. 1980).
    """
    v = torch.randn(h.shape, generator=generator, dtype=torch.double).to(h) * mask[..., None]
    growth = []
    for k in range(count):
        v = v / v.norm(dim=(1, 2), keepdim=True).clamp(min=1e-300)
        h, v = torch.func.jvp(lambda h, k=k: step(h, k), (h,), (v,))
        v = v * mask[..., None]
        growth.append(v.norm(dim=(1, 2)).clamp(min=1e-300).log())
    return torch.stack(growth)


def spectral_radius(step, h, mask, steps, generator):
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
    for _ in range(max(1, steps)):
        a = b / length(b)
        b = apply(a)
    twice, radius, residual = apply(b / length(b)) * length(b), [], []
    for sequence in zip(b, a, twice, strict=True):
        y, x, z = (v.flatten().cpu().numpy() for v in sequence)
        fit = np.linalg.lstsq(np.stack([y, x], 1), z, rcond=1e-8)[0]  # v and Jv may be parallel, then it is of rank 1
        radius.append(np.abs(np.roots([1, *-fit])).max(initial=0))
        residual.append(np.linalg.norm(z - fit[0] * y - fit[1] * x) / max(np.linalg.norm(z), 1e-300))
    return torch.tensor(radius), torch.tensor(residual)


def linear_probe(train, labels, classes, decay=1e-4, steps=60):
    """Softmax regression fitted to features train (n,C) and labels (n,), full-batch L-BFGS from zero weights, so the
    same every time; returns a function of features (m,C), the classes (m,) that it says of them."""
    mean, std = train.mean(0), train.std(0).clamp(min=1e-6)

    def scaled(x):
        return F.pad((x - mean) / std, (0, 1), value=1.0)

    train = scaled(train)
    weight = torch.zeros(train.size(1), classes, device=train.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=steps, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(train @ weight, labels) + decay * weight[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return lambda test: (scaled(test) @ weight.detach()).argmax(-1)


def linear_cka(xs, ys):
    """Centred kernel alignment {(l, k): statistic} of states xs {l: G of (n,C)} and ys {k: G of (n,D)}, in G groups of
    the same n tokens each: 1 if a rotation, one scale and a shift turn one into the other, near 0 if they are
    independent (Kornblith et al. 2019, 1905.00414). The 95% interval is that of the jackknife over the groups.
    """
    def centred(parts):
        mean = torch.cat(parts).double().mean(0)
        return [p.double() - mean for p in parts]

    def product(x, y):  # (1+G): squared norms of X^T Y of all tokens, and without each of the groups
        parts = torch.stack([p.T @ q for p, q in zip(x, y, strict=True)])  # (G,C,D)
        return torch.cat((parts.sum(0, keepdim=True), parts.sum(0) - parts)).square().sum((1, 2))

    xs, ys = ({l: centred(z) for l, z in of.items()} for of in (xs, ys))
    own = [{l: product(z, z) for l, z in of.items()} for of in (xs, ys)]
    found = {}
    for l, k in itertools.product(xs, ys):
        value, *without = (product(xs[l], ys[k]) / (own[0][l] * own[1][k]).sqrt()).tolist()
        spread = half_width(math.sqrt(len(without) - 1) * np.std(without), len(without))
        found[l, k] = dict(value=value, low=value - spread, high=value + spread, n=sum(map(len, xs[l])))
    return found


def character_class(before, text):
    """Which of CLASSES the character (or token) `text` is, after `before`; 'don't' and 'I'll' are one word each."""
    first = text.lstrip()[:1]
    if not first:
        return 0
    if not first.isalnum():
        return 1
    starts = text[0].isspace() or not (before[-1:].isalnum() or before[-1:] == "'")
    return 2 if starts else 3


def character_classes(x, y, text_of):
    """The class (N,T) of the tokens y (N,T), each after its x; text_of turns a token into text."""
    pairs, inverse = torch.stack((x, y), -1).flatten(0, -2).unique(dim=0, return_inverse=True)
    return torch.tensor([character_class(text_of(a), text_of(b)) for a, b in pairs.tolist()])[inverse].view(x.shape)


def nesting(sentence):
    """How deep clauses are nested at each character, [int], by punctuation: a comma or an opening bracket leads one
    deeper, a closing bracket to where its opening one was, and ; : or a double dash back to none, or to the bracket's.
    """
    deep, depth, opened = [], 0, []
    for k, c in enumerate(sentence):
        deep.append(depth)
        if c in "([{":
            opened.append(depth)
        elif c in ")]}":
            depth = opened.pop() if opened else 0
        elif c in ";:" or sentence[k - 1:k + 1] == "--":
            depth = opened[-1] + 1 if opened else 0
        depth += c in ",([{"
    return deep


def sentence_measures(text):
    """Of each character of a text the number of its sentence (n,) int, -1 in none, and {name: (n,)} of what may make it
    hard: length of its sentence, characters before it there (position), nesting. Those are NaN in no sentence.

    A sentence ends with . ! or ? and what closes after it, or before an empty line. A line after such a one that ends
    in a colon names a speaker and is none, nor is the space between two."""
    ids = np.full(len(text), -1)
    found = {name: np.full(len(text), np.nan) for name in ("sentence_length", "position", "nesting")}
    for i, match in enumerate(SENTENCE.finditer(text)):
        start, end = match.span()
        if match["speaker"]:
            continue
        ids[start:end] = i
        for name, x in zip(found, (end - start, np.arange(end - start), nesting(match[0])), strict=True):
            found[name][start:end] = x
    return ids, found


def word_surprises(text, known):
    """Of each character of a text that is in a word the surprise (n,) of that word in nats, NaN elsewhere, by how often
    words occur in the text `known`, as if each, and all new ones together, had been seen once more."""
    counts = Counter(WORD.findall(known.lower()))
    total = sum(counts.values()) + len(counts) + 1
    found = np.full(len(text), np.nan)
    for match in WORD.finditer(text.lower()):
        found[slice(*match.span())] = math.log(total / (counts[match[0]] + 1))
    return found


# ---- a model under observation

def masked(x, mask):
    """x (...,N,T) as float, NaN outside of mask (N,T)."""
    return x.double().masked_fill(~mask, math.nan)


def chunks(model, *tensors):
    """The tensors (N,T) in parts of at most CHUNK tokens, on the model's device."""
    for part in zip(*(x.split(max(1, CHUNK // tensors[0].size(1))) for x in tensors), strict=True):
        yield [x.to(model.lm_head.weight.device) for x in part]


def row(what, weights, statistic, loop="", group=""):
    """A row of the table; what a statistic could not tell, NaN, is left empty."""
    statistic = {k: "" if isinstance(x, float) and math.isnan(x) else x for k, x in statistic.items()}
    return dict(statistic, what=what, weights=weights, loop=loop, **{"class": group})


def levels(x):
    """[(value, mask)] of x (N,T), NaN counting as absent: each of its values, or, where they are many, LEVELS groups of
    about equally many with their medians."""
    values = x[~x.isnan()].unique()
    if len(values) <= 2 * LEVELS:
        return [(v.item(), x == v) for v in values]
    group = torch.bucketize(x, x.nanquantile(torch.linspace(0, 1, LEVELS + 1, dtype=x.dtype))[1:-1], right=True)
    group = group.masked_fill(x.isnan(), -1)
    return [(x[group == i].median().item(), group == i) for i in range(LEVELS) if (group == i).any()]


def grouped(x, ids):
    """x (N,T) as rows of those with the same id, (groups, most of a group), filled up with NaN; without ids below 0."""
    x, ids = x[ids >= 0], ids[ids >= 0]
    counts = ids.unique(return_counts=True)[1].tolist()
    parts = x[ids.argsort(stable=True)].split(counts)
    return torch.nn.utils.rnn.pad_sequence(parts, True, math.nan) if counts else x[None]


def difficulty_rows(correlation, mean, name, loops, sample):
    """How loops (N,T) go with each difficulty: their rank correlation, a row of that name and its; and at its levels
    their mean."""
    rows, own = [], masked(loops, sample.main)
    for key, x in sample.difficulty.items():
        x = masked(x, sample.main)
        rho = clustered_spearman(grouped(own, sample.together), grouped(x, sample.together))
        rows.append(row(f"{correlation}{key}", name, rho, "", sample.first))
        rows += [mean_row(mean, name, loops, mask, "", f"{key} {v:.6g}") for v, mask in levels(x)]
    return rows


def mean_row(what, weights, x, mask, loop="", group=""):
    """The row of the mean of x (N,T) over the tokens of mask (N,T)."""
    return row(what, weights, clustered_interval(masked(x, mask)), loop, group)


def label_row(what, weights, right, mask, loop, group):
    """The row of how often is right (m,), of the m tokens of mask (N,T)."""
    spread = torch.full(mask.shape, math.nan)
    spread[mask] = right.float()
    return row(what, weights, clustered_interval(spread), loop, group)


def number(value, n=1):
    """A statistic without an interval."""
    return dict(value=float(value), low="", high="", n=n)


def how_many(mask, sample):
    """How many of the tokens that count are in mask (N,T), as a statistic."""
    return number((mask & sample.main).sum(), int(sample.main.sum()))


@torch.no_grad()
def observe(model, X, Y, loops):
    """Everything of state_statistics and readout_statistics, (loops,N,T) each, (P,N,T), (N,T), on the CPU."""
    seen = []
    for x, y in chunks(model, X, Y):
        path = torch.stack([model.embed(x), *model.states(x, loops)])
        read = [readout_statistics(model.readout(h), y) for h in path[1:]]
        seen.append(state_statistics(path) | {key: torch.stack([r[key] for r in read]) for key in read[0]})
        seen[-1] = {key: value.cpu() for key, value in seen[-1].items()}
    return {key: torch.cat([part[key] for part in seen], -2) for key in seen[0]}


@torch.no_grad()
def trajectory_rows(name, seen, sample):
    """1: means over tokens after each loop."""
    flips = seen["prediction"][1:] != seen["prediction"][:-1]
    curves = {key: seen[key] for key in ("entropy", "delta", "norm", "cosine_x0", "loss", "confidence")}
    curves["flips"] = torch.cat((torch.full_like(flips[:1], math.nan, dtype=torch.double), flips.double()))
    curves["right_to_stay"] = right_to_stay(seen["prediction"][:sample.L] == sample.Y).double()
    rows = []
    for group, mask in sample.groups.items():
        for key, curve in curves.items():
            told = mask & (sample.Y >= 0) if key == "right_to_stay" else mask
            rows += [mean_row(key, name, x, told, l, group) for l, x in enumerate(curve, 1)]
        rho, fell = entropy_trend(seen["entropy"][:sample.L])
        rows += [mean_row("entropy_spearman_with_loop", name, rho, mask, "", group),
                 mean_row("entropy_falls", name, fell, mask, "", group)]
    settled = first_settled(seen["prediction"][:sample.L])
    rows += [mean_row("settles_histogram", name, settled == l, sample.main, l, sample.first)
             for l in range(1, sample.L + 1)]
    kinds = {sample.first: sample.main} | sample.kinds
    rows += [mean_row("settles", name, settled, mask, "", kind) for kind, mask in kinds.items()]
    return [r for r in rows + difficulty_rows("settles_spearman_with_", "settles", name, settled, sample) if r["n"]]


def loops_taken(model, sample):
    """Loops (N,T) by the model's own rule, and those tokens (N,T) whose score never passed."""
    found = []
    for (x,) in chunks(model, sample.X):
        record = model.think(x)[1]
        score = record["score"].gather(-1, (record["loops"] - 1).clamp(min=0)[..., None]).squeeze(-1)
        passed = passes(model.config.halt, score, model.halting_plan(x, sample.L).threshold)
        found.append((record["loops"].cpu(), ((record["loops"] > 0) & ~passed).cpu()))
    return map(torch.cat, zip(*found, strict=True))


def histogram(what, name, loops, group, mask):
    return [mean_row(what, name, loops == l, mask, l, group) for l in range(1, int(loops.max()) + 1)]


def halting_rows(name, model, seen, sample):
    """2: loops by the rule, and what they go with. The loss is that of loop L without halting."""
    loops, never = loops_taken(model, sample)
    sample.loops[name], rows = loops, []
    for group, mask in sample.groups.items():
        rows += histogram("loops_histogram", name, loops, group, mask)
        rows += [mean_row("loops", name, loops, mask, "", group)]
    rows += [row("never_passes", name, how_many(never, sample), "", sample.first)]
    rows += [mean_row("loops", name, loops, mask, "", kind) for kind, mask in sample.kinds.items() if mask.any()]
    rho = clustered_spearman(masked(loops, sample.main), seen["loss"][sample.L - 1])
    rows += difficulty_rows("loops_spearman_with_", "loops", name, loops, sample)
    return rows + [row("loops_spearman_with_loss", name, rho, "", sample.first)]


def diagnosis_rows(name, model, seen, sample):
    """3: halting by confidence, whose score is 1 / sum exp(z - z_max): a rule that never halts has another cause than
    its formula, and this shows which: a confidence below the threshold in every loop, or none that is counted right."""
    c, rows, mask = model.config, [], sample.main
    kept = c.halt, c.halt_threshold, c.think_threshold
    own = c.think_threshold if c.halt == "confidence" and c.think_threshold is not None else c.halt_threshold
    own = own if c.halt == "confidence" and own is not None else RULES["confidence"].threshold
    for l, x in enumerate(masked(seen["confidence"][:sample.L], mask), 1):
        for q in (0.05, 0.25, 0.5, 0.75, 0.95):
            rows.append(row("confidence_quantile", name, number(x.nanquantile(q), int(mask.sum())), l, f"{q:g}"))
        rows += [mean_row("confidence_passes", name, x >= t, mask, l, f"{t:g}") for t in (own, 0.5)]
    for t in (own, 0.5):  # really halting, the others attending to frozen states
        c.halt, c.halt_threshold, c.think_threshold = "confidence", t, None
        loops, never = loops_taken(model, sample)
        rows += histogram("confidence_loops_histogram", name, loops, f"{t:g}", mask)
        rows += [row("confidence_never_passes", name, how_many(never, sample), "", f"{t:g}")]
    c.halt, c.halt_threshold, c.think_threshold = kept
    return rows


@torch.no_grad()
def states_at(model, X, loops):
    """{l: h_l (N,T,C)} for the loops asked for, on the device; h_0 is x0."""
    found = []
    for (x,) in chunks(model, X):
        path = [model.embed(x)] + (list(model.states(x, max(loops))) if max(loops) else [])
        found.append({l: path[l] for l in loops})  # those between are freed
    return {l: torch.cat([f[l] for f in found]) for l in loops}


def probe_rows(name, model, sample):
    """4: accuracy of a linear probe fitted after each loop, of the one of loop L after all of them, of the head as it
    is (the logit lens) and of always saying the commonest label, on the same validation tokens."""
    loops = sorted({*range(sample.L + 1), *range(sample.L, sample.total + 1, sample.L)})
    train, test = states_at(model, sample.train_X, loops), states_at(model, sample.X, loops)
    rows = []
    for group, ((train_mask, train_label), (mask, label), classes, lens) in sample.tasks.items():
        known, wanted = train_label[train_mask].to(test[0].device), label[mask]
        if min(len(known), len(wanted)) < 100 or min(len(known.unique()), len(wanted.unique())) < 2:
            continue  # too few to tell, or nothing to tell: the last digit of a sum is there only if it is 1
        common = known.bincount().argmax().item()
        rows.append(mean_row("majority_accuracy", name, label == common, mask, "", group))
        one, came = linear_probe(train[sample.L][train_mask], known, classes), []
        for l in loops:
            features = test[l][mask]
            fitted = one if l == sample.L else linear_probe(train[l][train_mask], known, classes)
            said = dict(probe_accuracy=fitted(features), one_probe_accuracy=one(features))
            if lens:
                said["lens_accuracy"] = model.readout(features).argmax(-1)
            right = {what: guess.cpu() == wanted for what, guess in said.items()}
            came += [right["one_probe_accuracy"]] * (l <= sample.L)
            rows += [label_row(what, name, x, mask, l, group) for what, x in right.items()]
        rows += [label_row("one_probe_right_to_stay", name, x, mask, l, group)
                 for l, x in enumerate(right_to_stay(torch.stack(came)))]
    return rows


def fixed_point_rows(name, seen, sample):
    """5: convergence within the loops taken, against difficulty; limit cycles. Convergence is the first passage of
    delta under eps; a token that never passes counts as one loop more than were taken."""
    rows, mask, total = [], sample.main, sample.total
    for eps in sorted({*EPSILONS, converged}):
        first = first_loop(seen["delta"] < eps)
        rows += [mean_row("converged_by", name, first <= l, mask, l, f"{eps:g}") for l in range(1, total + 1)]
    first = first_loop(seen["delta"] < converged)
    rho = clustered_spearman(masked(first, mask), seen["loss"][sample.L - 1])
    rows.append(row("convergence_spearman_with_loss", name, rho, "", sample.first))
    rows += difficulty_rows("convergence_spearman_with_", "convergence_loop", name, first, sample)
    for p, x in zip(PERIODS, seen["returned"], strict=True):
        if 2 * p <= total:
            rows += [mean_row("return_after", name, x, mask, total, f"{p} loops"),
                     mean_row("limit_cycle", name, seen["period"] == p, mask, total, f"{p} loops")]
    return rows + [mean_row("limit_cycle", name, seen["period"] > 0, mask, total, "any")]


def beside_rows(name, model, seen, sample):
    """6: this model's loops beside those of the other one, and of trained weights the other's own curves."""
    other, theirs = sample.other[name], sample.theirs
    of_other, rows = observe(other, sample.X, sample.Y, theirs.L), []
    if name == "trained":
        rows += trajectory_rows("beside", of_other, theirs) + (probe_rows("beside", other, theirs) if probes else [])
    for l, k in itertools.product(range(sample.L), range(theirs.L)):
        same = seen["prediction"][l] == of_other["prediction"][k]
        rows.append(mean_row("lens_agreement", name, same, sample.main, l + 1, f"beside {k + 1}"))
    masks = sample.main.to(model.lm_head.weight.device).chunk(GROUPS)
    states = ({l: [x[mask] for x, mask in zip(h.chunk(GROUPS), masks, strict=True)] for l, h in found.items()}
              for found in (states_at(m, sample.X, range(L + 1)) for m, L in ((model, sample.L), (other, theirs.L))))
    return rows + [row("cka", name, x, l, f"beside {k}") for (l, k), x in linear_cka(*states).items()]


def area_under_curve(score, positive):
    """The chance that of two tokens the positive one has the higher score; score, positive (n,). NaN without pairs."""
    from scipy import stats  # as in intervals.py
    n, m = int(positive.sum()), int((~positive).sum())
    ranks = torch.from_numpy(stats.rankdata(score.double().numpy()))
    return (float(ranks[positive].sum()) - n * (n + 1) / 2) / (n * m) if n and m else math.nan


def input_and_path(model, x, loops):
    """x0 of tokens x (B,T), the states before loop 1, and those after each of so many loops: (B,T,C) each."""
    x0 = model.embed(x)
    return [x0, model.begin(x0), *model.states(x, loops)]


class TaughtEnergy:
    """A function V >= 0 of a state and its input that is taught to fall along the loops of a model.

    In every loop it shall fall by the length of the step, so that a path which slows down has no flat end.
    """

    def __init__(self, model, X, counts, L):
        """X, counts (N,T): tokens to learn from in L loops, and which of them count."""
        c, device = model.config, model.lm_head.weight.device
        runtime.seed_torch(seed)
        self.net = torch.nn.Sequential(torch.nn.Linear(2 * c.n_embd, 2 * c.n_embd), torch.nn.GELU(),
                                       torch.nn.Linear(2 * c.n_embd, c.n_embd)).to(device)
        with torch.no_grad():
            parts = [torch.stack(input_and_path(model, x, L))[:, m] for x, m in chunks(model, X, counts)]
        x0, *path = torch.cat(parts, 1)  # (n,C) each
        path = torch.stack(path)
        self.size = path.square().mean().sqrt()
        length = (path[1:] - path[:-1]).norm(dim=-1) / self.size
        optimizer = torch.optim.Adam(self.net.parameters(), 1e-3)
        for _ in range(LESSONS):
            i = torch.randint(path.size(1), (256,), device=device)
            v = self(path[:, i], x0[i], None)
            loss = F.relu(length[:, i] + v[1:] - v[:-1]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.net.double()  # small differences of it count

    def __call__(self, h, x0, past):
        """V (...) of states h (...,C) and inputs x0; there is no past in it."""
        x = torch.cat((h, x0.expand_as(h)), -1) / self.size
        return self.net(x.to(self.net[0].weight.dtype)).square().sum(-1)

    def past(self, x0, h):
        return None


class OwnEnergy:
    """That of a model of update 'energy', called as a TaughtEnergy."""

    def __init__(self, model):
        self.block, self.past = model.transformer.h[0], model.past

    def __call__(self, h, x0, past):
        return self.block.energy(h, x0, past)


def slope_of(of, h, x0, past):
    """The gradient (B,T,C) of an energy at states h (B,T,C), with its past still."""
    with torch.enable_grad():
        h = h.detach().requires_grad_()
        return torch.autograd.grad(of(h, x0, past).sum(), h)[0]


def descend(of, h, x0, past):
    """States (B,T,C) DESCENT steps down an energy from states h, with its past still: of lengths of their own, half as
    long after one that would lift it and is left out, longer by a half after one that does not."""
    E, length = of(h, x0, past), h.new_full((*h.shape[:-1], 1), 0.1)
    for _ in range(DESCENT):
        new = h - length * slope_of(of, h, x0, past)
        after = of(new, x0, past)
        falls = after < E
        h, E = torch.where(falls[..., None], new, h), torch.where(falls, after, E)
        length = length * torch.where(falls[..., None], 1.5, 0.5)
    return h


@torch.no_grad()
def observe_energy(model, of, X, loops, L):
    """Along loops 0 to `loops` of tokens X (N,T), on the CPU, a namespace: E (1+loops,N,T), each state with the past of
    its own loop; still (loops,N,T), how much each loop lowered it with the past before it; slope (1+loops,N,T), the
    norm of its gradient; line, at loop L (LINE,N,T); lifted (3,N,T), the share of pushes that raise it from the states
    after loops L and all and from the lowest below that after L; lowest (1,N,T,C), that state, and of it energy, slope
    and distance (1,N,T)."""
    found, generator = [], torch.Generator(model.lm_head.weight.device).manual_seed(seed % 2**63)
    for (x,) in chunks(model, X):
        x0, *path = input_and_path(model, x, loops)
        pasts = [of.past(x0, h) for h in path]
        E = torch.stack([of(h, x0, p) for h, p in zip(path, pasts, strict=True)])
        still = E[:-1] - torch.stack([of(h, x0, p) for h, p in zip(path[1:], pasts, strict=False)])
        line = torch.stack([of(torch.lerp(path[0], path[L], s), x0, pasts[L]) for s in LINE])
        x0, *path = (h.double() for h in (x0, *path))
        slope = torch.stack([slope_of(of, h, x0, p).norm(dim=-1) for h, p in zip(path, pasts, strict=True)])
        lowest, lifted = descend(of, path[L], x0, pasts[L]), []
        for h, p in ((path[L], pasts[L]), (path[-1], pasts[-1]), (lowest, pasts[L])):
            pushes = torch.randn(LIFTS, *x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
            pushes *= LIFT * h.norm(dim=-1, keepdim=True) / pushes.norm(dim=-1, keepdim=True)
            level = of(h, x0, p)  # in the end that of the lowest
            lifted.append(torch.stack([of(h + push, x0, p) > level for push in pushes]).double().mean(0))
        found.append(dict(
            E=E, still=still, slope=slope, line=line, lifted=torch.stack(lifted), lowest=lowest.float()[None],
            lowest_energy=level[None],
            lowest_slope=slope_of(of, lowest, x0, pasts[L]).norm(dim=-1)[None],
            lowest_distance=((lowest - path[L]).norm(dim=-1) / path[L].norm(dim=-1))[None]))
    return SimpleNamespace(**{k: torch.cat([part[k].cpu() for part in found], 1) for k in found[0]})


def energy_rows(name, model, seen, sample):
    """7: the energy along the loops and along a line, and what it tells."""
    own = model.config.update == "energy"
    of = OwnEnergy(model) if own else TaughtEnergy(model, sample.train_X, sample.train_main, sample.total)
    at = observe_energy(model, of, sample.X, sample.total, sample.L)
    E, what, main, rows = at.E, "" if own else "taught_", sample.main, []
    right = seen["prediction"][sample.L - 1] == sample.Y
    groups = {sample.first: main, "right": main & right, "wrong": main & ~right}
    groups |= {f"{key} {v:.6g}": main & mask for key, x in sample.difficulty.items()
               for v, mask in levels(masked(x, main))}
    for group, mask in groups.items():
        rows += [mean_row(f"{what}energy", name, x, mask, l, group) for l, x in enumerate(E)]
    falls = dict(energy_falls=E[1:] < E[:-1])
    falls |= dict(energy_falls_past_still=at.still > 0, energy_rises_past_still=at.still < 0,
                  energy_stands=seen["delta"] == 0) if own else {}
    for key, fell in falls.items():
        rows += [mean_row(what + key, name, x, main, l, sample.first) for l, x in enumerate(fell, 1)]
        rows += [mean_row(f"{what}{key}_until", name, fell[:l].double().mean(0), main, l, sample.first)
                 for l in sorted({sample.L, sample.total})]
    for group in ("right", "wrong"):
        rows += [mean_row(f"{what}energy_on_line", name, x, groups[group], sample.L, f"{group} {s:g}")
                 for s, x in zip(LINE, at.line, strict=True)]
    rows += [mean_row(f"{what}energy_slope", name, x, main, l, sample.first) for l, x in enumerate(at.slope)]
    rows += [mean_row(f"{what}energy_lifted", name, x, main, l, sample.first)
             for l, x in {sample.L: at.lifted[0], sample.total: at.lifted[1]}.items()]
    read = [readout_statistics(model.readout(h), y) for h, y in chunks(model, at.lowest[0], sample.Y)]
    loss, guess = (torch.cat([part[key] for part in read]).cpu() for key in ("loss", "prediction"))
    told = dict(energy=at.lowest_energy[0], slope=at.lowest_slope[0], distance=at.lowest_distance[0],
                lifted=at.lifted[2], loss=loss, right=guess == sample.Y)
    rows += [mean_row(f"{what}minimum_{key}", name, x, main, sample.L, sample.first) for key, x in told.items()]
    scores = dict(entropy=seen["entropy"], delta=seen["delta"]) | {f"{what}energy": E[1:]}
    scores |= {f"{what}energy's fall": E[:-1] - E[1:]}
    rows += [row("wrong_auc", name, number(area_under_curve(x[sample.L - 1][main], ~right[main]), int(main.sum())),
                 sample.L, key) for key, x in scores.items()]
    return [r for r in rows if r["n"]]


@torch.no_grad()
def jacobian_rows(name, model, sample):
    """5: what a push does, and the spectral radius of one loop; on a few sequences, in float64 and plain attention,
    through which forward-mode derivatives go."""
    model = copy.deepcopy(model).double()
    for block in model.transformer.h:
        if hasattr(block, "attn"):  # an energy is plain already
            block.attn.flash = False
    idx, mask = (x[:sequences].to(model.lm_head.weight.device) for x in (sample.X, sample.reads))
    x0, L, limit = model.embed(idx), sample.L, sample.limit
    gen = torch.Generator().manual_seed(seed % 2**63)
    if looped(model):
        step, begun = model.loop, model.begin(x0)
    else:
        step, begun = (lambda h, x0, l: model.transformer.h[l - 1](h)), x0
    path, rows = [begun, *model.states(idx, sample.total)], []
    growth = tangent_growth(lambda h, k: step(h, x0, k + 1), begun, mask, sample.total, gen)
    rows += [row("tangent_growth", name, clustered_interval(g), l, "one loop") for l, g in enumerate(growth, 1)]
    half = sample.total // 2  # by then the push points where it grows fastest, and loop 1 is another map
    exponent = growth[half:].mean(0)
    rows += [row("lyapunov_exponent", name, clustered_interval(exponent), sample.total),
             row("lyapunov_exponent_highest", name, number(exponent.max(), len(exponent)), sample.total)]
    at = L if L < limit else max(0, limit - PUSHED_LOOPS)
    loops = min(PUSHED_LOOPS, limit - at)
    ratio = perturbation_ratios(lambda h, k: step(h, x0, at + 1 + k), path[at], mask, PUSH, loops, gen)
    rows += [row("push_ratio", name, clustered_interval(r), at + k, "one loop") for k, r in enumerate(ratio, 1)]
    rows += [row("push_ratio", name, clustered_interval(ratio.log().mean(0).exp()), at, f"mean of {loops} loops")]
    for l in sorted({min(L, limit - 1), min(sample.total, limit - 1)}):
        radius, residual = spectral_radius(lambda h, l=l: step(h, x0, l + 1), path[l], mask, iterations, gen)
        rows += [row("spectral_radius", name, clustered_interval(radius), l, f"{iterations} iterations"),
                 row("spectral_radius_highest", name, number(radius.max(), len(radius)), l),
                 row("spectral_radius_residual", name, clustered_interval(residual), l, f"{iterations} iterations")]
    elsewhere = looped(model) and model.config.inject != "none"
    return rows + (meeting_rows(name, model, x0, path[1:], mask, gen) if elsewhere else [])


@torch.no_grad()
def meeting_rows(name, model, x0, path, mask, generator):
    """5: how far states that begin elsewhere are from the model's own after each loop, those of path, (B,T,C) as x0 is;
    relative to their norm, mask (B,T) without pads."""
    chance = torch.randn(x0.shape, generator=generator, dtype=torch.double).to(x0)
    model, rows = copy.deepcopy(model), []  # its start changes
    for start, h in dict(x0=x0, zero=torch.zeros_like(x0), random=chance).items():
        model.config.start = start  # which says what loop 1 reads
        for l, own in enumerate(path, 1):
            h = model.loop(h, x0, l)
            rows.append(row("start_distance", name, clustered_interval(masked(state_delta(h, own), mask)), l, start))
    return rows


# ---- the run

def text_difficulty(meta, data, at):
    """Of the tokens at places `at` (N,T) of the validation text {name: (N,T)} of what may make them hard, NaN where it
    says nothing, and the number of the sentence of each (N,T), -1 in none. Of several characters the first one counts.
    """
    texts = {t: decode(meta, [t]) for t in np.unique(np.concatenate([*map(np.unique, data.splits.values())])).tolist()}
    pieces, known = ([texts[t] for t in data.splits[split].tolist()] for split in ("val", "train"))
    place = np.cumsum([0, *map(len, pieces)])[:-1][at]
    text = "".join(pieces) + " "  # a place for a token without a character
    ids, found = sentence_measures(text)
    counts = np.bincount(data.splits["train"], minlength=meta.vocab_size) + 1
    known = "".join(known)
    found = {key: x[place] for key, x in found.items()}
    found |= dict(surprise=-np.log(counts / counts.sum())[data.splits["val"][at]],
                  word_surprise=word_surprises(text, known)[place])
    ids = ids[place]
    return {key: torch.from_numpy(np.where(ids < 0, np.nan, x)) for key, x in found.items()}, torch.from_numpy(ids)


def text_sample(meta, data, N, T):
    """What make_sample takes from a text: sequences that lie evenly over the validation text, every token counts, its
    kinds are those of characters."""
    tokens = data.splits["val"]
    N = max(2, min(N, (len(tokens) - 1) // T))
    at = np.linspace(0, len(tokens) - 1 - T, N).astype(int)[:, None] + np.arange(T + 1)
    rows = torch.from_numpy(tokens[at].astype(np.int64))
    X, Y = rows[:, :-1], rows[:, 1:]
    train_X, train_Y = get_batch(data, "train", (seed,), N, T)
    difficulty, together = text_difficulty(meta, data, at[:, 1:])
    every = torch.ones_like(X, dtype=torch.bool)
    kinds = character_classes(X, Y, lambda t: decode(meta, [t]))
    probes = {}
    if meta.vocab:  # the 50,257 classes of BPE are too many for so few tokens
        probes["next token"] = (every, train_Y), (every, Y), meta.vocab_size, True
        probes["token read"] = (every, train_X), (every, X), meta.vocab_size, False
    return dict(X=X, Y=Y, reads=every, main=every, first="all", groups=dict(all=every), tasks=probes, train_X=train_X,
                train_main=torch.ones_like(train_X, dtype=torch.bool),
                difficulty=difficulty, together=together, kinds={name: kinds == i for i, name in enumerate(CLASSES)})


def fresh_rows(task, meta, split, N):
    """N rows as the task draws them to train on, for a split: tokens, answer (N,T), difficulty {name: (N,)}."""
    return task.draw(np.random.default_rng([seed, *split.encode()]), N, meta)


def sized_rows(task, meta, N):
    """About N problems of exactly `sizes`, of the second kind if there is one, mixed, so that all sizes are among the
    first ones: tokens, answer (N,T), difficulty {name: (N,)}."""
    parts = [tasks.problem_set(task, meta, n, max(2, N // len(sizes)), task.KINDS[:2][-1]) for n in sizes]
    tokens, answer = tasks.together(task, [p[:2] for p in parts])
    order = np.random.default_rng(seed).permutation(len(tokens))
    difficulty = {name: np.concatenate([p[2][name] for p in parts])[order] for name in parts[0][2]}
    return tokens[order], answer[order], difficulty


def answer_labels(task, meta, tokens, answer):
    """What probes are fitted to: {name: (N,T) int}, -1 elsewhere, at the tokens that write it. What the task says, or
    the symbol at each place of the answer, of many places at some."""
    tokens = tokens.astype(np.int64)  # in which -1 is a number
    if hasattr(task, "labels"):
        found = task.labels(tokens, answer, meta)
    else:
        place, count = np.where(answer, answer.cumsum(1) - 1, -1), int(answer.sum(1).max())
        found = {f"symbol {k}": np.where(place == k, tokens, -1)
                 for k in sorted({round(k) for k in np.linspace(0, count - 1, min(count, PLACES))})}
    ahead = int(meta.track == "next")  # the token before writes it
    return {name: torch.from_numpy(np.asarray(x, np.int64)[:, ahead:]) for name, x in found.items()}


def task_sample(meta, N):
    """What make_sample takes from a task: tokens of the answer count; kinds, probes, difficulty by its labels."""
    task, facts = tasks.load(meta.task), SimpleNamespace(**model_facts(meta))
    train, (tokens, answer, difficulty) = fresh_rows(task, meta, "train", N), (
        sized_rows(task, meta, N) if sizes else fresh_rows(task, meta, "val", N))
    (X, Y), (train_X, train_Y) = (map(torch.from_numpy, tasks.inputs_and_targets(task, *rows, meta.track))
                            for rows in ((tokens, answer), train[:2]))
    known, labels = answer_labels(task, meta, *train[:2]), answer_labels(task, meta, tokens, answer)
    written, probes, kinds = Y >= 0, {}, {}
    for name, label in labels.items():
        mask = label >= 0
        values = label[mask].unique().tolist()
        kinds |= {f"{name}: {v}": label == v for v in values} if len(values) <= 2 else {name: mask}
        if name in known:
            classes = int(max(label.max(), known[name].max())) + 1
            lens = bool((label == Y)[mask].all())
            probes[name] = (known[name] >= 0, known[name]), (mask, label), classes, lens
    other = written & ~torch.stack([label >= 0 for label in labels.values()]).any(0)
    prompt, train_prompt = ((x != facts.pad_token) & ~think.thinks(facts, x) for x in (X, train_X))
    probes["token read"] = (train_Y >= 0, train_X), (written, X), meta.vocab_size, False  # of slots always the same
    probes["token read, prompt"] = (train_prompt, train_X), (prompt, X), meta.vocab_size, False
    return dict(X=X, Y=Y, reads=facts.pad_token != X, main=written, first="answer",
                groups=dict(answer=written, prompt=prompt), train_X=train_X, train_main=train_Y >= 0, tasks=probes,
                kinds=kinds | {"other": other}, together=torch.arange(len(X))[:, None].expand_as(X),
                difficulty={k: torch.from_numpy(np.asarray(x))[:, None].expand_as(X) for k, x in difficulty.items()})


def depth(model):
    """Loops L trained with, those to take, and those beyond which there are none, as a dict; of a plain GPT its layers.
    """
    L = model.trained_loops if looped(model) else model.config.n_layer
    limit = model.loop_limit if looped(model) else L
    return dict(L=L, limit=limit, total=int(min(loop_multiple * L, limit)))


def make_sample(model, meta, data, title, other=None):
    """What is looked at, of a text's data or else of a task, as a namespace:

    X, Y, train_X (N,T)        inputs and targets; inputs for the fit of the probes
    train_main (N,T)           which of train_X count
    reads, main (N,T)          tokens that are no pads; tokens that count
    groups, kinds              {name: mask}: of which means are taken; by what a token writes, for loops
    first                      the name of main among the groups
    tasks                      {name: ((mask, label) to fit, (mask, label) to test, classes, is there a logit lens)}
    difficulty                 {name: (N,T)} of the problem that a token belongs to, or of a text's token; NaN for none
    together                   (N,T): the number of that problem or sentence, -1 for none; clusters of the intervals
    L, total, limit            of `depth`
    beside, other, theirs      the path of --beside, if any, {weights: model} of it, and this namespace for it, with its
                               own depth
    rule, loops                the halting rule; {weights: loops by it}, which halting_rows adds
    title, halting, energy, converged, epsilons, push      for the figures
    """
    block_size = min(m.config.block_size for m in (model, *(other or {}).values()))
    T = meta.row_len - (meta.track == "next") if data is None else sequence_length(data, block_size)
    N = max(2, round(tokens / T))
    own = task_sample(meta, N) if data is None else text_sample(meta, data, N, T)
    loops = looped(model)
    sample = SimpleNamespace(**own, **depth(model), rule=model.config.halt if loops else "none", loops={},
                             title=title + ", a plain GPT, whose layers count as loops" * (not loops),
                             halting=halting and loops, energy=energy and loops, converged=converged,
                             epsilons=EPSILONS, push=PUSH)
    sample.other, sample.beside = other, beside
    if other:
        theirs = depth(other["trained"])
        sample.theirs = SimpleNamespace(**vars(sample) | theirs | dict(total=theirs["L"]))
    return sample


def measure(name, model, sample, table):
    """All rows of one set of weights, also added to the table."""
    rows, parts = [], 3 + (sample.rule != "none") + sample.halting + probes + bool(sample.other)
    parts += sample.energy
    with outputs.Progress(f"analyzing the {name} weights", "parts", parts) as said:
        def add(more):
            rows.extend(more)
            table.add(*({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in more))
            said.add()

        seen = observe(model, sample.X, sample.Y, sample.total)
        add(trajectory_rows(name, seen, sample))
        add(fixed_point_rows(name, seen, sample))
        add(jacobian_rows(name, model, sample))
        if sample.rule != "none":
            add(halting_rows(name, model, seen, sample))
        if sample.halting:
            add(diagnosis_rows(name, model, seen, sample))
        if probes:
            add(probe_rows(name, model, sample))
        if sample.other:
            add(beside_rows(name, model, seen, sample))
        if sample.energy:
            add(energy_rows(name, model, seen, sample))
    return rows


def print_what_is_seen(model, sample, path):
    """One line on the model and the tokens."""
    shape = f"{sample.X.size(0)} sequences of {sample.X.size(1)} tokens"
    print(f"{path}: {model.get_num_params():,} parameters, " + (
        f"{sample.L} loops, {shape}, up to {sample.total} loops"
        f"{', where its weights end' * (sample.limit == sample.total)}; halt: {sample.rule}"
        + ", so there are no loops to count; a --halt would do" * (sample.rule == "none")
        if looped(model) else f"a plain GPT whose {sample.L} layers count as loops, {shape}"))


def is_main_number(r, sample):
    """Does a row belong to the summary: means at loop 1, L and the last; probes and lens at L; all that has no loop."""
    what, loop, group = r["what"], r["loop"], r["class"]
    if what in ("entropy", "loss", "delta", "flips", "cosine_x0") and loop in (1, sample.L, sample.total):
        return group == sample.first
    if what.startswith(("push", "spectral", "lyapunov")):
        return group != "one loop"
    if what in ("probe_accuracy", "lens_accuracy"):
        return loop == sample.L
    if what in ("cka", "lens_agreement"):  # loop l beside layer l
        return group == f"beside {loop}"
    if what in ("majority_accuracy", "confidence_never_passes", "wrong_auc") or "minimum_" in what:
        return True
    if what.endswith(("energy_lifted", "_until")):
        return loop in (sample.L, sample.total)
    usual = group in (sample.first, f"{converged:g}", "any", "")
    return usual and (loop == "" or what in ("converged_by", "limit_cycle") and loop in (sample.L, sample.total))


def print_summary(rows, sample):
    """The main numbers as `key: value`, both weights of each in turn; what could not be computed in one line."""
    found, missing = {}, []
    for r in rows:
        if is_main_number(r, sample):
            group = r["class"] if r["class"] != sample.first else ""
            loop = f"loop {r['loop']}" if r["loop"] else ""
            key = "_".join(f"{r['what']} {group} {loop}".split())
            if r["value"] == "":
                missing.append(f"{key}_{r['weights']}")
                continue
            shown = f"{r['value']:{'.0f' if r['what'].endswith('never_passes') else '.4g'}}"  # a count, or a mean
            found.setdefault(key, []).append(f"{key}_{r['weights']}: {shown}")
    print("---", *(line for lines in found.values() for line in lines), sep="\n")
    if missing:
        print(f"not computed, since nothing varies there or tokens are too few: {', '.join(missing)}")


def write_page(model, meta, sample, path):
    """Write the page of viewer.py about the first sequences, by the rule of the checkpoint and the trained loops."""
    n = max(1, PAGE // sample.X.size(1))
    idx = sample.X[:n].to(model.lm_head.weight.device)
    record, shown = model.think(idx, sample.L)[1], []
    threshold = think.halting_plan(model.config, idx, sample.L).threshold
    for i, reads in enumerate(sample.reads[:n]):
        own = {k: x[i].cpu()[reads] for k, x in record.items()}
        texts, last = ([viewer.visible(decode(meta, [t])) for t in tokens.tolist()]
                       for tokens in (sample.X[i][reads], own["prediction"][:, -1]))
        writes = [text if on else None for text, on in zip(last, sample.main[i][reads].tolist(), strict=True)]
        rows = viewer.trace_rows(own, texts, writes, lambda t: viewer.visible(decode(meta, [t])))
        shown.append(viewer.sequence(rows, threshold[i].cpu()[reads].tolist()))
    viewer.write(path, shown, sample.rule, f"{sample.title}, validation data, halting rule {sample.rule}.",
                 model.config.min_loops)


def untrained(trained, saved, overrides, other=0):
    """A model as the trained one of a checkpoint, of fresh weights, which `other` tells from those of another."""
    runtime.seed_torch(seed + other)
    weights = build(saved["model_args"]).state_dict()
    model = from_checkpoint(dict(saved, model=weights, ema=None), **overrides)
    model.crop_vocabulary(trained.config.vocab_size)
    return model.to(trained.lm_head.weight.device)


def open_other(meta, path, machine):
    """{weights: model} of --beside, None without it. SystemExit if its tokens are not those of meta, of a path."""
    if not beside:
        return None
    model, own, saved, _ = open_model(beside, device=machine)
    differ = [k for k in ("kind", "task", "track", "plain", "vocab", "encoding", "row_len")
              if getattr(own, k, None) != getattr(meta, k, None)]
    if differ:
        raise SystemExit(f"--beside={beside} reads other data than {path}: {', '.join(differ)} differ")
    return dict(trained=model, untrained=untrained(model, saved, {}, 1))


def main():
    settings, further, given = configure(__file__, inference_settings())
    globals().update(settings)
    machine = runtime.choose_device(device)
    machine = "cpu" if (device, machine) == ("auto", "mps") else machine  # Apple's GPUs have no float64
    overrides = {k: v for k, v in further.items() if k in given}
    if task:
        tasks.use(task)
    model, meta, saved, path = open_model(checkpoint, out_dir or "out", machine, overrides)
    folder = out_dir or outputs.folder_of_measurements(path)
    target = os.path.join(folder, "analyze.csv")
    outputs.require_writable(target)  # also of a folder that is none, before data are read
    other = open_other(meta, path, machine)
    data = None if meta.kind == "rows" else open_dataset(trained_on(saved) or "?", like=saved)
    say_without_effect(*idle_settings(model.config, every_rule=halting),
                       (meta.kind == "text", "the data is a text", "sizes"), (*tasks.idle(meta, task), "task"),
                       (not looped(model), "a plain GPT has no loops but its layers", "loop_multiple", "halting",
                        "energy"))
    with outputs.measuring(target, machine, FIELDS, checkpoint=path, trained=saved.get("provenance")) as table:
        try:
            sample = make_sample(model, meta, data, path, other)
            print_what_is_seen(model, sample, path)
            rows = measure("trained", model, sample, table)
            rows += measure("untrained", untrained(model, saved, overrides), sample, table)
        except (ValueError, RuntimeError) as e:
            if runtime.out_of_memory(e):
                raise
            raise SystemExit(f"{path}: {e}") from None
    pictures = figures.draw_analysis(rows, sample, folder, lambda t: decode(meta, [t]))
    if looped(model):
        with outputs.going_on(page := os.path.join(folder, "thinking.html")):
            write_page(model, meta, sample, page)
            pictures.append("thinking.html")
    print_summary(rows, sample)
    print(f"csv: {target}\npictures: {', '.join(pictures)}")


if __name__ == "__main__":
    runtime.run(main, "--tokens or --sequences")
