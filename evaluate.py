"""Measure a checkpoint: exact match and loops per digit count (addition), validation loss per loop count (any data).

    python evaluate.py --out_dir=out/demo_addition
    python evaluate.py --checkpoint=out/x/ckpt_last.pt --digits=[4,8,12] --problems=2000 --halt=entropy \
        --halt_threshold=0.1 --control=True

A problem is solved if every token of its answer, the end symbol included, is the arg-max given the right ones before
it; that holds exactly when greedy decoding writes the answer, and takes one forward pass. Intervals are 95% (Wilson).
Loops of the answer are those of the tokens that write it, loops of the prompt those of the tokens before '='.
The random control halts each token after as many loops as the rule took for some other one, drawn with replacement,
prompt and answer apart: a rule is worth something if it beats that.
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
import runtime
from configurator import class_settings, configure
from model_loop import HALTING, LoopConfig, LoopGPT, from_checkpoint

checkpoint = ""                 # a checkpoint file; empty: ckpt_best.pt, else ckpt_last.pt, of out_dir
out_dir = "out"                 # where train.py wrote
digits: list[int] = [1, 2, 3, 4, 5, 6, 7, 8]  # addition: digit counts, both operands have exactly so many
problems = 2000                 # addition: problems a digit count
grid = 0                        # addition: also all pairs of lengths 1..grid, with problems / 10 each
control = False                 # addition: also the random control of the halting rule
eval_iters = 50                 # batches of the validation loss; 0: skip it
batch_size = 250                # sequences a forward pass
csv_file = ""                   # where the table goes; empty: evaluate.csv beside the checkpoint
device = "auto"                 # auto, cpu, cuda
dtype = "float32"               # float32, or bfloat16 by autocast
seed = 0                        # of the random control


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


def measure(n, m, kind, count):
    """One row of the table, for operands of exactly n and m digits; with the loops of every problem."""
    problem = addition.problem_set(n, count, "uniform" if kind == "grid" else kind, m)
    rows = addition.write_rows(*problem, addition.row_length(max(n, m), meta.track), meta.track, meta.plain)
    X, Y = map(torch.from_numpy, addition.inputs_and_targets(rows, meta.track))
    said, loops = predictions(X)
    solved = ((said == Y) | (Y < 0)).all(1)
    interval = stats.binomtest(int(solved.sum()), count).proportion_ci(method="wilson")
    row = dict(kind=kind, n=n, m=m, problems=count, accuracy=solved.float().mean().item(),
               low=float(interval.low), high=float(interval.high))
    if not looped:
        return row, None
    answer = Y >= 0  # tokens that write; an end symbol is only read in rows shorter than the longest
    prompt = (X != model.config.pad_token) & ((X == model.config.think_token).cumsum(1) == 0)
    per_problem = {"loops_prompt": (loops * prompt).sum(1) / prompt.sum(1),
                   "loops_answer": (loops * answer).sum(1) / answer.sum(1),
                   "loops_most": (loops * answer).amax(1).float()}
    row.update({key: x.mean().item() for key, x in per_problem.items()})
    if control:
        again, _ = predictions(X, random_loops(loops, (prompt, answer), n, m, kind == "hard"))
        row["accuracy_random"] = ((again == Y) | (Y < 0)).all(1).float().mean().item()
    return row, per_problem


def print_table(rows):
    """Accuracy and loops per digit count, the uniform set beside the hard one."""
    head = f"{'digits':>6} {'uniform':>9} {'95%':>15} {'hard':>9} {'95%':>15}"
    print(head + ("  loops: prompt answer most" if looped else "") + ("  random" if control else ""))
    for u, h in zip(rows[::2], rows[1::2], strict=True):
        line = f"{u['n']:>6}"
        for r in (u, h):
            span = f"{100 * r['low']:.1f}-{100 * r['high']:.1f}"
            line += f" {100 * r['accuracy']:>8.1f}% {span:>15}"
        if looped:
            line += f" {u['loops_prompt']:>14.2f} {u['loops_answer']:>6.2f} {u['loops_most']:>4.1f}"
        print(line + (f" {100 * u['accuracy_random']:>6.1f}%" if control else ""))


def print_correlation(rows, loops):
    """Spearman correlation of a problem's loops with its digit count, for the tokens before '=' and from it on."""
    n = np.concatenate([np.full(r["problems"], r["n"]) for r in rows])
    for key, what in (("loops_prompt", "a token of the prompt"), ("loops_answer", "a token of the answer"),
                      ("loops_most", "the slowest token of the answer")):
        x = np.concatenate([p[key].numpy() for p in loops])
        rho = stats.spearmanr(n, x).statistic if np.ptp(n) and np.ptp(x) else math.nan
        print(f"loops of {what}: mean {x.mean():.2f}, " +
              (f"Spearman with the digit count {rho:+.2f}" if not math.isnan(rho) else "the same for every problem"))


def addition_tables():
    """All rows, and the printed tables, of an addition model."""
    pairs = [(n, n, kind, problems) for n in digits for kind in ("uniform", "hard")]
    cells = [(n, m, "grid", max(1, problems // 10)) for n in range(1, grid + 1) for m in range(1, grid + 1)]
    done = [measure(*p) for p in tqdm(pairs + cells, desc="evaluating", unit="set", disable=None)]
    rows = [row for row, _ in done]
    print_table(rows[:len(pairs)])
    if looped and digits:
        uniform = done[:len(pairs):2]
        print_correlation([r for r, _ in uniform], [p for _, p in uniform])
    if grid:
        print("accuracy (%) by the lengths of A (down) and B (across)")
        print("     " + "".join(f"{m:>6}" for m in range(1, grid + 1)))
        for n in range(grid):
            cell = rows[len(pairs) + n * grid:][:grid]
            print(f"{n + 1:>5}" + "".join(f"{100 * r['accuracy']:>6.0f}" for r in cell))
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
data_name = saved.get("config", {}).get("dataset", "")
meta = datasets.checkpoint_meta(saved)
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
