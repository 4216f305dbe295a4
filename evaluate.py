"""Measure a checkpoint: exact match and loops per size of a task's problems, validation loss per loop count (any data).

    python evaluate.py --out_dir=out/demo_addition
    python evaluate.py --checkpoint=out/x/ckpt_last.pt --sizes=[4,8,12] --problems=2000 --halt=entropy \
        --halt_threshold=0.1 --control=True
    python evaluate.py --out_dir=out/demo_addition --sizes=[1,2,3,4,5,6] --frontier=True --plot=True
    python evaluate.py --checkpoint=pretrained/addition.pt --problems_file=problems.txt
    torchrun --standalone --nproc_per_node=2 evaluate.py --out_dir=out/demo_addition      two GPUs, the same table

A size is what the task says, of addition the digits of both operands; --digits is another name of --sizes.
A problem is solved if every token of its answer, the end symbol included, is the arg-max given the right ones before
it; that holds exactly when greedy decoding writes the answer, and takes one forward pass. Intervals are 95% (Wilson).
Where a task has `check`, as several answers are right, the model writes its own, a pass per token, which is checked.
Loops of the answer are those of the tokens that write it, loops of the prompt those of the tokens before the think
token, '=' of an addition.
The random control halts each token after as many loops as the rule took for some other one, drawn with replacement,
prompt and answer apart: a rule is worth something if it beats that.
The loops of a problem are those of the slowest token of its answer. Against sizes and difficulties only those of solved
problems count: an unsolved one does not tell how many it needed.
The frontier is exact match, the mean over the sizes, against loops per token of the answer: every rule over a
range of thresholds, each beside its random control, and the fixed depths. Tokens of the prompt do as the checkpoint
says, and their loops do not count.
Waiting to think is exact match by the loops that the prompt is read with and those that the answer is written with.
The table is a CSV file, written row by row. It is named after what was measured, so that no other kind of measurement
overwrites it: evaluate.csv, evaluate_frontier.csv, evaluate_halt=kl.csv, evaluate_ckpt_last.csv where there is a
ckpt_best.pt, ... It stands beside the checkpoint, for those of pretrained/ in out/pretrained/<name>. Beside it stands
<table>.json, where it comes from: command, commit, versions, card, whether it is finished, seconds.
"""
import contextlib
import math
import os
import re
from types import SimpleNamespace

import numpy as np
import torch

import figures
import outputs
import runtime
import tasks
from checkpoint import find_checkpoint, inference_settings, open_model
from configurator import configure, open_text, say_without_effect
from dataset import get_batch, open_dataset, sequence_length, trained_on
from intervals import mean_interval, share_interval, spearman
from looplm_kernels import RULES
from model_loop import LoopGPT, idle_settings, rules_of

checkpoint = ""                 # a checkpoint file; empty: ckpt_best.pt, else ckpt_last.pt, of out_dir
out_dir = "out"                 # where train.py wrote
task = ""                       # the file of a task of your own, of which the checkpoint is
sizes: list[int] = []           # >= 1: sizes of the problems to measure; if not given those of the task
kinds = ""                      # the kinds of problems to measure, of the task's KINDS, or all; empty: the first two
problems = 2000                 # >= 1: problems per size and kind
problems_file = ""              # a file of problems to measure, one a line; sizes then only if given
grid = 0                        # >= 0: also all pairs of sizes 1..grid, with problems / 10 each
control = False                 # also the random control of the halting rule
frontier = False                # also accuracy against loops of every rule, with problems / 4 per size
waiting = False                 # also each number of loops to read the problem with each one to write the answer
plot = False                    # draw <table>_loops.png and, with frontier, <table>_frontier.png
eval_iters = 50                 # >= 0: batches of the validation loss; 0: skip it
batch_size = 250                # >= 1: sequences per forward pass
csv_file = ""                   # where the table goes; empty: evaluate_<what>.csv beside the checkpoint
device = "auto"                 # auto, cpu, cuda, mps
dtype = "float32"               # float32, or bfloat16 by autocast
seed = 0                        # >= 0: of the random control

MARGIN = 0.005                  # a rule that loses no more against the best fixed depth is as good
READING = (3, 4, 8, 0.9)        # loops to read with, or below 1 the probability at which confidence halts
WRITING = (0, 8, 16, 24, 32)    # loops to write with; 0: by the checkpoint's rule


def is_looped(model):
    return isinstance(model, LoopGPT)


def predictions(model, X, exact_loops=None):
    """Arg-max tokens (N,T) and the loops of each token (N,T) for inputs X (N,T), in batches, on the CPU.

    exact_loops: (N,T), instead of the halting rule. The loops of a plain GPT are None.
    """
    said, loops, place = [], [], model.lm_head.weight.device
    for i in range(0, len(X), batch_size):
        x = X[i:i + batch_size].to(place)
        if is_looped(model):
            exact = None if exact_loops is None else exact_loops[i:i + batch_size].to(place)
            h, record = model.think(x, trace=False, exact_loops=exact)
            loops.append(record["loops"].cpu())
            said.append(model.readout(h).argmax(-1).cpu())
        else:
            said.append(model.logits(x).argmax(-1).cpu())
    return torch.cat(said), torch.cat(loops) if loops else None


def random_loops(loops, groups, *key):
    """Loops (N,T) drawn with replacement from `loops`, within each of the groups (N,T) bool, for tokens that took none
    from those of the others; as they are elsewhere."""
    drawn = loops.clone()
    for i, group in enumerate(groups):
        rng, pool = np.random.default_rng([seed, *key, i]), loops[group & (loops > 0)]
        drawn[group] = torch.from_numpy(rng.choice(pool.numpy(), int(group.sum())))
    return drawn


def writes(meta):
    """Whether the model has to write its answers, token by token, to be measured: several are right."""
    return hasattr(tasks.load(meta.task), "check") and meta.track == "next"


def kinds_asked(task):
    """The kinds of problems that `kinds` asks for, a list of task.KINDS. SystemExit if it names another."""
    asked = list(task.KINDS[:2]) if not kinds else list(task.KINDS) if kinds == "all" else kinds.split(",")
    if not set(asked) <= set(task.KINDS):
        raise SystemExit(f"--kinds={kinds}: all, or one or more of {','.join(task.KINDS)}")
    return asked


def batch(meta, rows):
    """Rows as a task draws them, their answers first of what follows: inputs and targets (N,T). Where the model is to
    write an answer of its own, targets are all places that it may take, as many as rows have, or those in training."""
    task, (tokens, answer) = tasks.load(meta.task), rows[:2]
    if writes(meta):
        more = max(0, meta.row_len - tokens.shape[1])
        tokens = np.pad(tokens, ((0, 0), (0, more)), constant_values=task.VOCAB.index(task.PAD))
        answer = np.arange(tokens.shape[1]) >= answer.argmax(1)[:, None]
    return map(torch.from_numpy, tasks.inputs_and_targets(task, tokens, answer, meta.track))


def problem_set(meta, *which):
    """Test problems of the data's task, of (size, count, kind)."""
    return tasks.problem_set(tasks.load(meta.task), meta, *which)


def read_problems(meta, path):
    """The problems of a file, one a line, whatever their sizes: rows and answers (N,T). SystemExit that names the line
    if one is none; empty lines are skipped."""
    task, found = tasks.load(meta.task), []
    with open_text(path) as f:
        for number, line in enumerate(f, 1):
            try:
                found += [[x[None] for x in tasks.read(task, line.strip(), meta)]] if line.strip() else []
            except ValueError as e:
                raise SystemExit(f"--problems_file={path}: line {number}: {e}") from None
    if not found:
        raise SystemExit(f"--problems_file={path}: no problem in it; write one a line")
    return tasks.together(task, found)


def prompt_and_answer_masks(model, X, Y):
    """Which tokens (N,T) belong to the prompt, and which write the answer."""
    prompt = (X != model.config.pad_token) & ((X == model.config.think_token).cumsum(1) == 0)
    return prompt, Y >= 0  # an end symbol is only read in rows shorter than the longest


def exact_match(said, Y):
    """Which problems (N,) have every token of their answer right."""
    return ((said == Y) | (Y < 0)).all(1)


def write(model, meta, X, Y, exact_loops=None):
    """Rows (N,T+1) of which the model writes the answers itself, and the loops of each token (N,T) that it read, 0 of
    the others, None of a GPT; X, Y, as batch gives them, say what it may read and where it may write.

    Not by generate.write, which cannot be told the loops of each token, as fixed depths and the random control need.
    """
    task = tasks.load(meta.task)
    pad, end = (task.VOCAB.index(symbol) for symbol in (task.PAD, task.END))
    rows = torch.nn.functional.pad(torch.where((Y >= 0).cumsum(1) > 1, pad, X), (0, 1), value=pad)
    at, going, loops = (Y >= 0).int().argmax(1), torch.arange(len(X)), torch.zeros_like(X)  # at: the last one read
    while len(going):
        T = int(at[going].max()) + 1
        said, taken = predictions(model, rows[going, :T], None if exact_loops is None else exact_loops[going, :T])
        if taken is not None:
            loops[going, :T] = torch.where(torch.arange(T) <= at[going, None], taken, 0)
        at[going] += 1
        rows[going, at[going]] = new = said[torch.arange(len(going)), at[going] - 1]
        going = going[(new != end) & (new != pad) & (at[going] < X.shape[1])]
    return rows, loops if is_looped(model) else None


def solve(model, meta, X, Y, exact_loops=None):
    """Which problems (N,) of inputs and targets (N,T) a model solves, and the loops of each token (N,T), None of a
    GPT."""
    task = tasks.load(meta.task)
    if writes(meta):
        rows, loops = write(model, meta, X, Y, exact_loops)
    else:
        said, loops = predictions(model, X, exact_loops)
        if not hasattr(task, "check"):
            return exact_match(said, Y), loops
        rows = torch.where(Y >= 0, said, X)
    return torch.tensor([tasks.is_right(task, row, meta) for row in rows.numpy()]), loops


def loops_within(loops, mask):
    """Mean loops (N,) of the tokens of a mask (N,T) that were read."""
    return (loops * mask).sum(1) / (mask & (loops > 0)).sum(1)


def measure(model, meta, rows, key, **row):
    """One row of the table, which begins as told, for rows as a task draws them; with the loops, and the difficulty if
    they have one, of each, None of a GPT.

    key: integers that seed the random control.
    """
    X, Y = batch(meta, rows)
    solved, loops = solve(model, meta, X, Y)
    row |= dict(problems=len(X)) | share_interval(solved)
    if loops is None:
        return row, None
    prompt, answer = prompt_and_answer_masks(model, X, Y)
    per_problem = {"loops_prompt": loops_within(loops, prompt), "loops_answer": loops_within(loops, answer),
                   "loops_most": (loops * answer).amax(1).float()}
    row.update({k: x.mean().item() for k, x in per_problem.items()})
    row.update(mean_interval(per_problem["loops_most"][solved].double().numpy(), "loops_most_solved"))
    if control:
        again, _ = solve(model, meta, X, Y, random_loops(loops, (prompt, answer), *key))
        row["accuracy_random"] = share_interval(again)["accuracy"]
    return row, per_problem | dict(solved=solved, difficulty=rows[2] if len(rows) > 2 else {})


def measure_kind(model, meta, size, kind, count):
    """measure of `count` problems of a size and a kind, or of a pair of sizes of the grid."""
    of, (n, m) = "uniform" if kind == "grid" else kind, tasks.pair(size)
    key = n, m, tasks.load(meta.task).KINDS.index(of)
    return measure(model, meta, problem_set(meta, size, count, of), key, kind=kind, n=n, m=m)


def difficulty_rows(done, name):
    """Loops of the solved problems of all kinds, for every size and value of a difficulty: (rows, the Spearman
    correlation of the two within each size, since larger problems are more difficult, too). Neither for a difficulty
    that never varies within a size."""
    rows, within, varies = [], [], False
    for n in dict.fromkeys(r["n"] for r, _ in done):
        own = [p for r, p in done if r["n"] == n]
        solved, loops = (torch.cat([p[k] for p in own]).numpy() for k in ("solved", "loops_most"))
        level = np.concatenate([p["difficulty"][name] for p in own])
        varies |= bool(np.ptp(level))
        level, loops = level[solved], loops[solved].astype(float)
        within.append(spearman(level, loops))
        for k in np.unique(level):
            x = loops[level == k]
            rows.append({"kind": name, "n": n, name: int(k), "problems": len(x)} | mean_interval(x, "loops"))
    return (rows, within) if varies else ([], [])


def frontier_row(model, meta, sets, rule, at):
    """One point of the frontier: a rule with threshold `at`, or a fixed depth of `at` loops, over all sizes."""
    c, fixed = model.config, rule == "fixed"
    c.halt, c.halt_threshold = ("none", None) if fixed else (rule, at)
    solved, again, answers, most = [], [], [], []
    for n, X, Y, prompt, answer in sets:
        right, loops = solve(model, meta, X, Y, torch.where(prompt, c.reading or at, at) if fixed else None)
        solved.append(right)
        answers.append(loops_within(loops, answer))
        most.append((loops * answer).amax(1))
        if not fixed:
            again.append(solve(model, meta, X, Y, random_loops(loops, (prompt, answer), n, n, False))[0])
    loops, most = (torch.cat(x).double().mean().item() for x in (answers, most))
    row = dict(kind="frontier", rule=rule, problems=sum(map(len, solved)), loops=loops, loops_most=most)
    row |= share_interval(torch.cat(solved))
    return row if fixed else row | dict(threshold=at) | share_interval(torch.cat(again), "random_")


def frontier_rows(model, meta, table):
    """The fixed depths, and every rule that the checkpoint can use with each threshold of its grid; also added to the
    table."""
    c, sets = model.config, []
    for n in sizes:
        X, Y = batch(meta, problem_set(meta, n, max(1, problems // 4)))
        sets.append((n, X, Y, *prompt_and_answer_masks(model, X, Y)))
    points = [("fixed", l) for l in range(1, model.trained_loops + 1)]
    points += [(rule, at) for rule in rules_of(c) for at in RULES[rule].grid]
    kept, rows = dict(vars(c)), []
    c.think_threshold, c.think_loops = None, 0  # the point alone says when the answer halts
    found = runtime.shared_out(lambda p: frontier_row(model, meta, sets, *p), points)
    for row in outputs.progress(found, "frontier", "points", len(points)):
        rows.append(row)
        table.add(row)
    vars(c).update(kept)
    return rows


def waiting_rows(model, meta, table):
    """For each size every loop count of READING with every one of WRITING, problems of the first kind; also added to
    the table. Where confidence reads, a rule of another name cannot write: that pair is left out, as are loops that the
    model has no weights for."""
    c, rows = model.config, []
    kept, (kind, *_) = dict(vars(c)), kinds_asked(tasks.load(meta.task))
    pairs = [(read, write) for read in READING for write in WRITING
             if (read >= 1 or write or c.halt == "confidence") and max(read, write) <= model.loop_limit]
    for read, write in outputs.progress(pairs, "waiting to think", "pairs"):
        c.prompt_loops, c.think_loops = read if read >= 1 else 0, write
        if read < 1:
            own = c.halt_threshold if c.think_threshold is None else c.think_threshold
            c.halt, c.halt_threshold, c.think_threshold = "confidence", read, own
        for n in sizes:
            rows.append(measure_kind(model, meta, n, kind, problems)[0] | dict(kind="waiting", read=read, write=write))
            table.add(rows[-1])
        vars(c).update(kept)
    return rows


def cheapest(rows):
    """{rule: its point of the fewest loops among those within MARGIN of the best fixed depth, or None}."""
    enough = max(r["accuracy"] for r in rows if r["rule"] == "fixed") - MARGIN - 1e-9  # which rounding must not miss
    return {rule: min((r for r in rows if r["rule"] == rule and r["accuracy"] >= enough), default=None,
                      key=lambda r: (r["loops"], -r["accuracy"])) for rule in dict.fromkeys(r["rule"] for r in rows)}


def print_table(rows, asked):
    """Accuracy per size, the kinds of problems side by side, and the loops of the first kind."""
    looped, random = "loops_answer" in rows[0], "accuracy_random" in rows[0]
    head = f"{'size':>6}" + "".join(f" {kind:>9} {'95%':>15}" for kind in asked)
    print(head + ("  loops: prompt answer most" if looped else "") + ("  random" if random else ""))
    for i in range(0, len(rows), len(asked)):
        first = rows[i]
        line = f"{first['n']:>6}"
        for r in rows[i:i + len(asked)]:
            span = f"{100 * r['low']:.1f}-{100 * r['high']:.1f}"
            line += f" {100 * r['accuracy']:>8.1f}% {span:>15}"
        if looped:
            line += f" {first['loops_prompt']:>14.2f} {first['loops_answer']:>6.2f} {first['loops_most']:>4.1f}"
        print(line + (f" {100 * first['accuracy_random']:>6.1f}%" if random else ""))


def print_correlation(rows, loops, within):
    """Spearman correlation of a problem's loops with its size, for the tokens of the prompt and of the answer, and
    within each size with its difficulties {name: [...]}; or why there is none."""
    n, none = np.concatenate([np.full(r["problems"], r["n"]) for r in rows]), "no correlation with the size"
    for key, what in (("loops_prompt", "a token of the prompt"), ("loops_answer", "a token of the answer"),
                      ("loops_most", "the slowest token of the answer")):
        x = np.concatenate([p[key].numpy() for p in loops])  # after the last turn, of the slowest token
        found = ("the same for every problem" if not np.ptp(x) else f"{none}, since only one was asked" if not np.ptp(n)
                 else f"Spearman with the size {spearman(n, x):+.2f}")
        print(f"loops of {what}: mean {x.mean():.2f}, {found}")
    solved = np.concatenate([p["solved"].numpy() for p in loops])
    means = {r["n"]: r["loops_most_solved"] for r in rows if "loops_most_solved" in r}
    if np.ptp(n) and len(means) < 2:
        print(f"  of solved problems: {none}, since {len(means) or 'none'} of the sizes has any")
    elif np.ptp(n) and not np.ptp(x[solved]):
        print(f"  of solved problems: {none}, since the loops are the same for every problem")
    elif np.ptp(n):
        rho, of_means = spearman(n[solved], x[solved]), spearman([*means], [*means.values()])
        shown = "none" if math.isnan(of_means) else f"{of_means:+.2f}"  # equal ones
        print(f"  of solved problems: Spearman with the size {rho:+.2f} over problems, {shown} over "
              f"the means of {len(means)} sizes")
    for name, rhos in within.items():
        rhos = [rho for rho in rhos if not math.isnan(rho)]
        if rhos:
            print(f"  of solved problems of all kinds: Spearman with {name} {np.mean(rhos):+.2f}, "
                  + (f"mean of {len(rhos)} sizes, each by itself" if len(rhos) > 1 else "within one size"))
    if len(means) > 1:
        least, most = min(means), max(means)
        print(f"  of solved problems: mean loops at size {most} / at size {least} {means[most] / means[least]:.2f}")


def print_frontier(rows):
    """The fixed depths; then, for every rule, where it is as good as the best of them, and what that saves."""
    print(f"frontier: exact match, {rows[0]['problems']} problems, of each size a quarter of --problems, and loops per "
          "token of the answer")
    print("  fixed depth  " + "  ".join(f"{r['loops']:.0f}: {100 * r['accuracy']:.1f}%"
                                        for r in rows if r["rule"] == "fixed"))
    if max(r["accuracy"] for r in rows if r["rule"] == "fixed") <= MARGIN:
        print(f"  no fixed depth solves more than {100 * MARGIN:g}% of the problems, so no rule can be as good with "
              "fewer loops; its points are in the table")
        return
    found = cheapest(rows)
    base = found.pop("fixed")
    print(f"  within {100 * MARGIN:g} points of the best fixed depth: fixed depth {base['loops']:.0f}, and the rules")
    print("        rule threshold  loops  saving  accuracy  random  margin  slowest token")
    for rule, r in found.items():
        print(f"  {rule:>10} " + ("nowhere" if r is None else
              f"{r['threshold']:>9g} {r['loops']:>6.2f} {100 * (1 - r['loops'] / base['loops']):>6.1f}% "
              f"{100 * r['accuracy']:>8.1f}% {100 * r['random_accuracy']:>6.1f}% "
              f"{100 * (r['accuracy'] - r['random_accuracy']):>+7.1f} {r['loops_most']:>14.2f}"))


def print_waiting(rows):
    """Exact match and loops per token of the prompt and the answer, a line per pair, the sizes side by side."""
    print("waiting to think: exact match, 95%, loops of the prompt and of the answer, by the size of a problem")
    print(f"{'reading':>9} {'writing':>8}" + "".join(f"{n:>32}" for n in sizes))
    for i in range(0, len(rows), len(sizes)):
        print(f"{rows[i]['read']:>9g} {rows[i]['write'] or 'rule':>8}" + "".join(
            f"{100 * r['accuracy']:>9.1f}% {100 * r['low']:>5.1f}-{100 * r['high']:>5.1f}"
            f" {r['loops_prompt']:>4.1f} {r['loops_answer']:>4.1f}" for r in rows[i:i + len(sizes)]))


def print_grid(rows):
    """Accuracy by both numbers of a size; rows: those of the grid, line by line."""
    print("accuracy (%) by size: the first number (down) and the second (across)")
    print("     " + "".join(f"{m:>6}" for m in range(1, grid + 1)))
    for n in range(grid):
        print(f"{n + 1:>5}" + "".join(f"{100 * r['accuracy']:>6.0f}" for r in rows[n * grid:][:grid]))


def check_lengths(model, meta, of_file):
    """ValueError that names the key if rows have more than the model has positions for; of_file: the rows of the file,
    or None."""
    kind = tasks.load(meta.task).KINDS[:2][-1]
    asked = [(f"--{key} goes up to {n}", problem_set(meta, (n, n) if key == "grid" else n, 2, kind))
             for key, n in (("sizes", max(sizes, default=0)), ("grid", grid)) if n]
    if of_file:
        first = of_file[1].cumsum(1)[:, -1].argmax()  # of the longest answer
        asked.append((f"--problems_file={problems_file}", [x[first:first + 1] for x in of_file]))
    for words, rows in asked:
        X, _ = batch(meta, rows)
        try:
            model.embed(X.to(model.lm_head.weight.device))
        except ValueError as e:
            raise ValueError(f"{words}: {e}") from None


def print_file(row):
    """One line on the problems of a file."""
    loops = ""
    if "loops_prompt" in row:  # not of a plain GPT
        loops = f", loops: prompt {row['loops_prompt']:.2f} answer {row['loops_answer']:.2f}"
    print(f"{problems_file}: {round(row['accuracy'] * row['problems']):,} of {row['problems']:,} right, "
          f"{100 * row['accuracy']:.2f}% ({100 * row['low']:.2f}-{100 * row['high']:.2f}){loops}")


def task_tables(model, meta, table):
    """Add all rows of a model of a task to the table, and print them."""
    of_file = read_problems(meta, problems_file) if problems_file else None
    check_lengths(model, meta, of_file)
    asked, done = kinds_asked(tasks.load(meta.task)), []
    sets = [(n, kind, problems) for n in sizes for kind in asked]
    cells = [((n, m), "grid", max(1, problems // 10)) for n in range(1, grid + 1) for m in range(1, grid + 1)]
    found = runtime.shared_out(lambda p: measure_kind(model, meta, *p), sets + cells)
    for one in outputs.progress(found, "evaluating", "sets of problems", len(sets + cells)):
        done.append(one)
        table.add(one[0])
    of_grid, done = [row for row, _ in done[len(sets):]], done[:len(sets)]
    if sizes:
        print_table([row for row, _ in done], asked)
    if is_looped(model) and sizes:
        within = {}
        for name in done[0][1]["difficulty"]:
            rows, within[name] = difficulty_rows(done, name)
            table.add(*(rows if plot else []))
        first = done[::len(asked)]  # of the kinds
        print_correlation([r for r, _ in first], [p for _, p in first], within)
    if grid:
        print_grid(of_grid)
    if of_file:
        row, _ = measure(model, meta, of_file, (len(tasks.load(meta.task).KINDS),), kind="file")
        table.add(row)
        print_file(row)
    if frontier:
        print_frontier(frontier_rows(model, meta, table))
    if waiting:
        print_waiting(waiting_rows(model, meta, table))


def loss_table(model, data, table):
    """Add the validation loss after each loop, every token taking all of them, to the table; print it, then that by
    the halting rule, if there is one."""
    T, place = sequence_length(data, model.config.block_size), model.lm_head.weight.device
    looped = is_looped(model)

    def of_batch(index):
        X, Y = get_batch(data, "val", (index,), min(batch_size, 64), T, place)
        loss = (model.loss_per_loop(X, Y) if looped else model(X, Y)[1][None]).float().cpu()
        if not looped or model.config.halt == "none":
            return loss, []
        h, record = model.think(X, trace=False)
        taken = (record["loops"].sum() / (record["loops"] > 0).sum()).item()
        return loss, [(model.loss(model.readout(h), Y).item(), taken)]
    found = runtime.shared_out(of_batch, range(eval_iters))
    losses, by_rule = zip(*outputs.progress(found, "validation loss", "batches", eval_iters), strict=True)
    by_rule, rows = sum(by_rule, []), [mean_interval(x, "loss") for x in torch.stack(losses, 1).double().numpy()]
    one = len(losses) == 1
    print(f"validation loss (nats per token, {'of one batch, so without an interval' if one else '95% over batches'})")
    for l, row in enumerate(rows, 1):
        print(f"  {'loop ' + str(l) if looped else 'model':>8}  {row['loss']:.4f}" + (
            "" if one else f" +- {row['loss_high'] - row['loss']:.4f}"))
    if by_rule:
        halted, loops = np.mean(by_rule, 0)
        print(f"  halting  {halted:.4f} at {loops:.2f} loops per token ({model.config.halt})")
    table.add(*(dict(kind="val_loss", loop=l) | {k.removeprefix("loss_"): x for k, x in row.items()}
                for l, row in enumerate(rows, 1)))
    if by_rule:
        table.add(dict(kind="val_loss_halting", loss=float(halted), loops=float(loops)))


def table_path(path, overrides):
    """Where the table of the checkpoint at a path goes, named after what is measured; overrides: settings given."""
    folder = outputs.folder_of_measurements(path)
    name = os.path.splitext(os.path.basename(path))[0]
    other = folder == os.path.dirname(path) and path != find_checkpoint("", folder)
    what = ["evaluate", *[name] * other, *[f"grid{grid}"] * bool(grid)]
    what += ["frontier"] * frontier + ["waiting"] * waiting
    what += [os.path.splitext(os.path.basename(problems_file))[0]] * bool(problems_file)
    what += [f"{k}={str(v).strip('[]')}" for k, v in overrides.items() if k != "backend"]
    return os.path.join(folder, re.sub(r"[^\w.=+-]+", "-", "_".join(what))[:200] + ".csv")


def describe(model, saved, path):
    """One line on what is measured."""
    averaged = "ema" in saved or bool(saved.get("config", {}).get("ema_decay"))  # pretrained/ has no others
    line = (f"{path}: {'looped' if is_looped(model) else 'plain'} model, {model.get_num_params():,} parameters, "
            f"iteration {saved.get('iter_num', '?')}{', averaged weights' * averaged}")
    if is_looped(model):
        c = model.config
        line += f", {model.trained_loops} loops, halting: {c.halt}"
        line += f", prompt {c.reading} loops" if c.reading else ""
    return line


@torch.no_grad()
def measure_all(model, meta, saved, table):
    """Add all rows to the table: those of its task, and the validation loss where the checkpoint's dataset is there."""
    name = trained_on(saved)
    data, why_not = None, f"data/{name} is not there"
    if eval_iters and os.path.exists(os.path.join("data", name, "meta.json")):
        try:
            data = open_dataset(name, like=saved)
        except SystemExit as e:
            why_not = str(e).splitlines()[0].removeprefix("dataset: ")  # without the advice to write it anew
    if meta.kind == "rows":
        task_tables(model, meta, table)
    if data:
        loss_table(model, data, table)
    elif eval_iters and meta.kind == "rows":
        print(f"no validation loss: {why_not}")
    elif eval_iters:
        raise SystemExit(f"no validation loss, and a text has nothing else to measure: {why_not}")


def main():
    """Measure, write, print; returns the model and the rows of the table."""
    settings, further, given = configure(__file__, inference_settings())
    globals().update(settings)
    if task:
        tasks.use(task)
    rank, world, machine = runtime.init_distributed(runtime.choose_device(device))
    if world > 1:
        runtime.end_if_stuck(lambda: "the table has the rows until then")
    number = runtime.choose_dtype(dtype, machine)
    with runtime.silence() if rank else contextlib.nullcontext():  # rank 0 says and writes all
        found = measure_checkpoint(further, given, machine, number, rank == 0)
    runtime.leave_group()
    return found


def measure_checkpoint(further, given, machine, number, master):
    """main, on a machine with numbers of a dtype: the model, and the rows of the table, which the master writes."""
    overrides = {k: v for k, v in further.items() if k in given}
    model, meta, saved, path = open_model(checkpoint, out_dir, machine, overrides)
    if meta.kind == "rows":
        known = tasks.load(meta.task)
        kinds_asked(known)  # a wrong one should fail now
        if grid and not getattr(known, "PAIRS", False):
            raise SystemExit(f"--grid={grid}: the sizes of task {meta.task} are no pairs")
        if "sizes" not in given:
            globals().update(sizes=[] if problems_file else tasks.sizes(known, meta))
    if (frontier or waiting or plot) and not (is_looped(model) and meta.kind == "rows" and sizes):
        raise SystemExit("frontier, waiting and plot need a looped model of a task, and sizes")
    say_without_effect(
        *idle_settings(model.config, every_rule=frontier),
        (meta.kind != "rows", "the data is a text", "sizes", "kinds", "problems", "problems_file", "grid",
         "control"),
        (not is_looped(model), "a plain GPT has no halting rule", "control"),
        (not (control or frontier), "there is no random control", "seed"),
        (*tasks.idle(meta, task), "task"),
        (checkpoint, "checkpoint is given", "out_dir"))
    print(describe(model, saved, path))
    target = csv_file or table_path(path, overrides)
    with (outputs.measuring(target, machine, checkpoint=path, trained=saved.get("provenance")) if master else
          contextlib.nullcontext(SimpleNamespace(rows=[], add=lambda *rows: None))) as table:
        try:
            with runtime.autocast(machine, number):
                measure_all(model, meta, saved, table)
        except ValueError as e:
            raise SystemExit(f"evaluate.py: {e}") from None
        if plot and master:
            stem = os.path.splitext(target)[0]
            draws = {f"{stem}_loops.png": figures.draw_loops}
            if frontier:
                draws[f"{stem.removesuffix('_frontier')}_frontier.png"] = figures.draw_frontier
            for name, draw in draws.items():
                if draw(table.rows, model.trained_loops, name):
                    print(f"figure: {name}")
    if table.rows:
        print(f"table: {target}")
    return model, table.rows


if __name__ == "__main__":
    runtime.run(main, "--batch_size or --problems")
