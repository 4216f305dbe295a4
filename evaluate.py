"""Measure a checkpoint: exact match and loops per digit count (addition), validation loss per loop count (any data).

    python evaluate.py --out_dir=out/demo_addition
    python evaluate.py --checkpoint=out/x/ckpt_last.pt --digits=[4,8,12] --problems=2000 --halt=entropy \
        --halt_threshold=0.1 --control=True
    python evaluate.py --out_dir=out/demo_addition --digits=[1,2,3,4,5,6] --frontier=True --plot=True

A problem is solved if every token of its answer, the end symbol included, is the arg-max given the right ones before
it; that holds exactly when greedy decoding writes the answer, and takes one forward pass. Intervals are 95% (Wilson).
Loops of the answer are those of the tokens that write it, loops of the prompt those of the tokens before '='.
The random control halts each token after as many loops as the rule took for some other one, drawn with replacement,
prompt and answer apart: a rule is worth something if it beats that.
The loops of a problem are those of the slowest token of its answer; what a problem needs is known only if it is solved,
so loops against digits and carries are those of solved problems. The frontier is exact match, the mean over the digit
counts, against loops a token of the answer: every rule over a range of thresholds, each beside its random control, and
the fixed depths. Tokens before '=' do as the checkpoint says, and their loops do not count.
"""
import csv
import math
import os

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

import addition
import dataset as datasets
import figures
import runtime
from configurator import class_settings, configure
from model_loop import HALTING, LoopConfig, LoopGPT, from_checkpoint

checkpoint = ""                 # a checkpoint file; empty: ckpt_best.pt, else ckpt_last.pt, of out_dir
out_dir = "out"                 # where train.py wrote
digits: list[int] = [1, 2, 3, 4, 5, 6, 7, 8]  # addition: digit counts, both operands have exactly so many
kinds = "uniform,hard"          # addition: the kinds of problems to measure, of addition.KINDS, or all
problems = 2000                 # addition: problems a digit count and kind
grid = 0                        # addition: also all pairs of lengths 1..grid, with problems / 10 each
control = False                 # addition: also the random control of the halting rule
frontier = False                # addition: also accuracy against loops of every rule, with problems / 4 a digit count
plot = False                    # addition: draw <table>_loops.png and, with frontier, <table>_frontier.png
eval_iters = 50                 # batches of the validation loss; 0: skip it
batch_size = 250                # sequences a forward pass
csv_file = ""                   # where the table goes; empty: evaluate.csv beside the checkpoint
device = "auto"                 # auto, cpu, cuda
dtype = "float32"               # float32, or bfloat16 by autocast
seed = 0                        # of the random control

THRESHOLD_GRIDS = dict(confidence=(0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999),
                       entropy=(1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.005, 0.001),
                       delta=(1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.03, 0.01),
                       kl=(3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4),
                       gate=(0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999))


def predictions(X, exact_loops=None):
    """Arg-max tokens (N,T) and the loops of each token (N,T) for inputs X (N,T), in batches, on the CPU."""
    said, loops = [], []
    for i in range(0, len(X), batch_size):
        x = X[i:i + batch_size].to(device)
        with torch.no_grad(), runtime.autocast(device, dtype):
            if looped:
                h, record = model.think(x, trace=False, exact_loops=None if exact_loops is None
                                        else exact_loops[i:i + batch_size].to(device))
                loops.append(record["loops"].cpu())
                said.append(model.readout(h).argmax(-1).cpu())
            else:
                said.append(model.logits(x).argmax(-1).cpu())
    return torch.cat(said), torch.cat(loops) if looped else None


def random_loops(loops, groups, *key):
    """Loops (N,T) drawn with replacement from `loops`, within each of the groups (N,T) bool; as they are elsewhere."""
    drawn = loops.clone()
    for i, group in enumerate(groups):
        rng = np.random.default_rng([seed, *key, i])
        drawn[group] = torch.from_numpy(rng.choice(loops[group].numpy(), int(group.sum())))
    return drawn


def ask(n, m, kind, count):
    """Problems of exactly n and m digits: inputs and targets (N,T), and the longest carry chain (N,) of each."""
    problem = addition.with_zeros(addition.problem_set(n, count, kind, m), meta.zeros)
    rows = addition.write_rows(*problem, addition.row_length(max(n, m), meta.track), meta.track, meta.plain)
    X, Y = map(torch.from_numpy, addition.inputs_and_targets(rows, meta.track))
    return X, Y, torch.from_numpy(addition.chain_lengths(problem[0], problem[2]))


def parts(X, Y):
    """Which tokens (N,T) belong to the prompt, and which write the answer."""
    prompt = (X != model.config.pad_token) & ((X == model.config.think_token).cumsum(1) == 0)
    return prompt, Y >= 0  # an end symbol is only read in rows shorter than the longest


def solves(said, Y):
    """Which problems (N,) have every token of their answer right."""
    return ((said == Y) | (Y < 0)).all(1)


def share(solved, prefix=""):
    """The share of solved (N,) bool and its 95% interval, as columns."""
    interval = stats.binomtest(int(solved.sum()), len(solved)).proportion_ci(method="wilson")
    return {f"{prefix}accuracy": solved.double().mean().item(), f"{prefix}low": float(interval.low),
            f"{prefix}high": float(interval.high)}


def mean_interval(x, name):
    """The mean of x (N,) and its 95% interval (Student's t), as columns; without those that N is too small for."""
    found = {name: float(x.mean())} if len(x) else {}
    if len(x) > 1:
        half = stats.t.ppf(0.975, len(x) - 1) * stats.sem(x)
        found |= {f"{name}_low": float(x.mean() - half), f"{name}_high": float(x.mean() + half)}
    return found


def spearman(x, y):
    """Spearman's rank correlation of x and y (N,), NaN where either never changes."""
    return float(stats.spearmanr(x, y).statistic) if len(x) > 1 and np.ptp(x) and np.ptp(y) else math.nan


def measure(n, m, kind, count):
    """One row of the table, for operands of exactly n and m digits; with the loops of every problem."""
    X, Y, chain = ask(n, m, "uniform" if kind == "grid" else kind, count)
    said, loops = predictions(X)
    solved = solves(said, Y)
    row = dict(kind=kind, n=n, m=m, problems=count) | share(solved)
    if not looped:
        return row, None
    prompt, answer = parts(X, Y)
    per_problem = {"loops_prompt": (loops * prompt).sum(1) / prompt.sum(1),
                   "loops_answer": (loops * answer).sum(1) / answer.sum(1),
                   "loops_most": (loops * answer).amax(1).float()}
    row.update({key: x.mean().item() for key, x in per_problem.items()})
    row.update(mean_interval(per_problem["loops_most"][solved].double().numpy(), "loops_most_solved"))
    if control:
        again, _ = predictions(X, random_loops(loops, (prompt, answer), n, m,
                                                addition.KINDS.index("uniform" if kind == "grid" else kind)))
        row["accuracy_random"] = share(solves(again, Y))["accuracy"]
    return row, per_problem | dict(solved=solved, chain=chain)


def chain_rows(done):
    """Loops of the solved problems of both kinds, for every digit count and longest carry chain: (rows, the Spearman
    correlation of the two within each digit count, since longer numbers have longer chains too)."""
    rows, within = [], []
    for n in dict.fromkeys(r["n"] for r, _ in done):
        own = [p for r, p in done if r["n"] == n]
        solved, chain, loops = (torch.cat([p[k] for p in own]).numpy() for k in ("solved", "chain", "loops_most"))
        chain, loops = chain[solved], loops[solved].astype(float)
        within.append(spearman(chain, loops))
        for k in np.unique(chain):
            x = loops[chain == k]
            rows.append(dict(kind="chain", n=n, chain=int(k), problems=len(x)) | mean_interval(x, "loops"))
    return rows, within


def frontier_row(sets, rule, at):
    """One point of the frontier: a rule with threshold `at`, or a fixed depth of `at` loops, over all digit counts."""
    c, fixed = model.config, rule == "fixed"
    c.halt, c.halt_threshold = ("none", None) if fixed else (rule, at)
    solved, again, answers, most = [], [], [], []
    for n, X, Y, prompt, answer in sets:
        said, loops = predictions(X, torch.where(prompt, c.prompt_loops or at, at) if fixed else None)
        solved.append(solves(said, Y))
        answers.append((loops * answer).sum(1) / answer.sum(1))
        most.append((loops * answer).amax(1))
        if not fixed:
            said, _ = predictions(X, random_loops(loops, (prompt, answer), n, n, False))
            again.append(solves(said, Y))
    loops, most = (torch.cat(x).double().mean().item() for x in (answers, most))
    row = dict(kind="frontier", rule=rule, problems=sum(map(len, solved)), loops=loops, loops_most=most)
    row |= share(torch.cat(solved))
    return row if fixed else row | dict(threshold=at) | share(torch.cat(again), "random_")


def frontier_rows():
    """The fixed depths, and every rule that the checkpoint can use with each threshold of its grid."""
    c, sets = model.config, []
    for n in digits:
        X, Y, _ = ask(n, n, "uniform", max(1, problems // 4))
        sets.append((n, X, Y, *parts(X, Y)))
    points = [("fixed", l) for l in range(1, model.trained_loops + 1)]
    points += [(rule, at) for rule, thresholds in THRESHOLD_GRIDS.items() for at in thresholds
               if rule != "gate" or c.halt_head != "none"]
    kept = dict(vars(c))
    c.think_threshold, c.think_loops = None, 0  # the point alone says when the answer halts
    rows = [frontier_row(sets, *p) for p in tqdm(points, desc="frontier", unit="point", disable=None)]
    vars(c).update(kept)
    return rows


def cheapest(rows):
    """{rule: its point of the fewest loops among those within 0.5 points of the best fixed depth, or None}."""
    enough = max(r["accuracy"] for r in rows if r["rule"] == "fixed") - 0.005 - 1e-9  # which rounding must not miss
    return {rule: min((r for r in rows if r["rule"] == rule and r["accuracy"] >= enough), default=None,
                      key=lambda r: (r["loops"], -r["accuracy"])) for rule in dict.fromkeys(r["rule"] for r in rows)}


def print_table(rows):
    """Accuracy per digit count, the kinds of problems side by side, and the loops of the first kind."""
    head = f"{'digits':>6}" + "".join(f" {kind:>9} {'95%':>15}" for kind in kinds)
    print(head + ("  loops: prompt answer most" if looped else "") + ("  random" if control else ""))
    for i in range(0, len(rows), len(kinds)):
        first = rows[i]
        line = f"{first['n']:>6}"
        for r in rows[i:i + len(kinds)]:
            span = f"{100 * r['low']:.1f}-{100 * r['high']:.1f}"
            line += f" {100 * r['accuracy']:>8.1f}% {span:>15}"
        if looped:
            line += f" {first['loops_prompt']:>14.2f} {first['loops_answer']:>6.2f} {first['loops_most']:>4.1f}"
        print(line + (f" {100 * first['accuracy_random']:>6.1f}%" if control else ""))


def print_correlation(rows, loops, within):
    """Spearman correlation of a problem's loops with its digit count, for the tokens before '=' and from it on, and
    within each digit count with its longest carry chain."""
    n = np.concatenate([np.full(r["problems"], r["n"]) for r in rows])
    for key, what in (("loops_prompt", "a token of the prompt"), ("loops_answer", "a token of the answer"),
                      ("loops_most", "the slowest token of the answer")):
        x = np.concatenate([p[key].numpy() for p in loops])  # after the last turn, of the slowest token
        rho = spearman(n, x)
        print(f"loops of {what}: mean {x.mean():.2f}, " +
              (f"Spearman with the digit count {rho:+.2f}" if not math.isnan(rho) else "the same for every problem"))
    solved = np.concatenate([p["solved"].numpy() for p in loops])
    means = {r["n"]: r["loops_most_solved"] for r in rows if "loops_most_solved" in r}
    if len(means) > 1:
        rho, of_means = spearman(n[solved], x[solved]), spearman([*means], [*means.values()])
        print(f"  of solved problems: Spearman with the digit count {rho:+.2f} over problems, {of_means:+.2f} over the "
              f"means of {len(means)} digit counts")
    within = [rho for rho in within if not math.isnan(rho)]
    if within:
        print(f"  of solved problems, hard ones too: Spearman with the longest carry chain {np.mean(within):+.2f}, "
              f"mean of {len(within)} digit counts, each by itself")
    if {4, 12} <= set(means):
        print(f"  of solved problems: mean loops at 12 digits / at 4 digits {means[12] / means[4]:.2f}")


def print_frontier(rows):
    """The fixed depths; then, for every rule, where it is as good as the best of them, and what that saves."""
    print(f"frontier: exact match, {rows[0]['problems']} problems, and loops a token of the answer")
    print("  fixed depth  " + "  ".join(f"{r['loops']:.0f}: {100 * r['accuracy']:.1f}%"
                                        for r in rows if r["rule"] == "fixed"))
    found = cheapest(rows)
    base = found.pop("fixed")
    print(f"  within 0.5 points of the best fixed depth: fixed depth {base['loops']:.0f}, and the rules")
    print("        rule threshold  loops  saving  accuracy  random  margin  slowest token")
    for rule, r in found.items():
        print(f"  {rule:>10} " + ("nowhere" if r is None else
              f"{r['threshold']:>9g} {r['loops']:>6.2f} {100 * (1 - r['loops'] / base['loops']):>6.1f}% "
              f"{100 * r['accuracy']:>8.1f}% {100 * r['random_accuracy']:>6.1f}% "
              f"{100 * (r['accuracy'] - r['random_accuracy']):>+7.1f} {r['loops_most']:>14.2f}"))


def addition_tables():
    """All rows, and the printed tables, of an addition model."""
    pairs = [(n, n, kind, problems) for n in digits for kind in kinds]
    cells = [(n, m, "grid", max(1, problems // 10)) for n in range(1, grid + 1) for m in range(1, grid + 1)]
    done = [measure(*p) for p in tqdm(pairs + cells, desc="evaluating", unit="set", disable=None)]
    rows = [row for row, _ in done]
    print_table(rows[:len(pairs)])
    if looped and digits:
        chains, within = chain_rows(done[:len(pairs)])
        rows += chains if plot else []
        first = done[:len(pairs):len(kinds)]  # of the kinds
        print_correlation([r for r, _ in first], [p for _, p in first], within)
    if grid:
        print("accuracy (%) by the lengths of A (down) and B (across)")
        print("     " + "".join(f"{m:>6}" for m in range(1, grid + 1)))
        for n in range(grid):
            cell = rows[len(pairs) + n * grid:][:grid]
            print(f"{n + 1:>5}" + "".join(f"{100 * r['accuracy']:>6.0f}" for r in cell))
    if frontier:
        rows += frontier_rows()
        print_frontier([r for r in rows if r["kind"] == "frontier"])
    return rows


def loss_table(data):
    """Validation loss after each loop, every token taking all of them; then by the halting rule, if there is one."""
    T = datasets.sequence_length(data, model.config.block_size)
    losses, halted, loops = [], [], []
    with torch.no_grad(), runtime.autocast(device, dtype):
        for index in tqdm(range(eval_iters), desc="validation loss", unit="batch", disable=None):
            X, Y = datasets.get_batch(data, "val", (index,), min(batch_size, 64), T, device)
            losses.append((model.loss_per_loop(X, Y) if looped else model(X, Y)[1][None]).float().cpu())
            if looped and model.config.halt != "none":
                h, record = model.think(X, trace=False)
                halted.append(model.loss(model.readout(h), Y).item())
                loops.append((record["loops"].sum() / (record["loops"] > 0).sum()).item())
    losses = torch.stack(losses)
    mean, error = losses.mean(0), 1.96 * losses.std(0) / math.sqrt(len(losses))
    print("validation loss (nats a token, 95% over batches)")
    for l, (x, e) in enumerate(zip(mean.tolist(), error.tolist(), strict=True), 1):
        print(f"  {'loop ' + str(l) if looped else 'model':>8}  {x:.4f} +- {e:.4f}")
    if halted:
        print(f"  halting  {np.mean(halted):.4f} at {np.mean(loops):.2f} loops a token ({model.config.halt})")
    return [dict(kind="val_loss", loop=l, loss=x, low=x - e, high=x + e)
            for l, (x, e) in enumerate(zip(mean.tolist(), error.tolist(), strict=True), 1)]


settings, overrides, given = configure(__file__, {
    "halting settings, by default as in the checkpoint": class_settings(LoopConfig, HALTING)})
globals().update(settings)
kinds = list(addition.KINDS) if kinds == "all" else kinds.split(",")
if not set(kinds) <= set(addition.KINDS):
    raise SystemExit(f"--kinds={','.join(kinds)}: all, or one or more of {','.join(addition.KINDS)}")
device = runtime.choose_device(device)
dtype = runtime.choose_dtype(dtype, device)
path = runtime.find_checkpoint(checkpoint, out_dir)
saved = runtime.load_checkpoint(path)
try:
    model = from_checkpoint(saved, **{k: v for k, v in overrides.items() if k in given}).to(device)
except (ValueError, RuntimeError) as e:
    raise SystemExit(f"{path}: {e}") from None
looped = isinstance(model, LoopGPT)
control = control and looped
meta = datasets.checkpoint_meta(saved)
if (frontier or plot) and not (looped and meta.kind == "rows" and digits):
    raise SystemExit("frontier and plot need a looped model of the addition task, and digits")
data_name = saved.get("config", {}).get("dataset", "")
print(f"{path}: {'looped' if looped else 'plain'} model, {model.get_num_params():,} parameters, iteration "
      f"{saved.get('iter_num', '?')}, {'averaged' if 'ema' in saved else 'raw'} weights"
      + (f", {model.trained_loops} loops, halting: {model.config.halt}" if looped else "")
      + (f", prompt {model.config.prompt_loops} loops" if looped and model.config.prompt_loops else ""))
target = csv_file or os.path.join(os.path.dirname(path), "evaluate.csv")
runtime.open_output(target, "a").close()  # a wrong path should fail now, not after the work; an old table stays
found = os.path.exists(os.path.join("data", data_name, "meta.json"))
data = datasets.open_dataset(data_name, like=saved.get("meta")) if eval_iters and found else None  # the same for data
table = []
try:
    if meta.kind == "rows":
        table += addition_tables()
    if data:
        table += loss_table(data)
    elif eval_iters:
        print(f"no validation loss: data/{data_name} is not there")
except ValueError as e:
    raise SystemExit(f"evaluate.py: {e}") from None
if table:
    with runtime.open_output(target) as f:
        writer = csv.DictWriter(f, list(dict.fromkeys(key for row in table for key in row)))
        writer.writeheader()
        writer.writerows(table)
    print(f"table: {target}")
if plot:
    stem = os.path.splitext(target)[0]
    figures.draw_loops(table, f"{stem}_loops.png")
    if frontier:
        figures.draw_frontier(table, f"{stem}_frontier.png")
