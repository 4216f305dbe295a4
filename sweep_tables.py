"""The tables of sweep.py: which columns a finished step of a run gives, the CSV and the Markdown of all runs, and the
comparison of two rows, where a rule was tried at several thresholds also at equal accuracy. And tables of several
sweeps:

    python sweep_tables.py      results/block.md, its figure, results/energy.md and the figure anchor_states.png beside
                                them, anew from the tables in results/
"""
import functools
import json
import os
import re
import statistics

import numpy as np

import figures
import outputs
import runtime
from configurator import configure
from intervals import mean_interval

FIRST = ("row", "seed", "parameters", "flops_per_token", "val_loss", "best_val_loss", "ms", "seconds", "device",
         "torch")  # columns
OF_TEXT = {"parameters": ("parameters", "{:,.0f}"), "flops_per_token": ("training FLOPs a token", "{:,.0f}"),
           "best_val_loss": ("best val loss", "{:.4f}"), "val_loss": ("last val loss", "{:.4f}"),
           "ms": ("ms a step", "{:.1f}")}  # columns of the Markdown where nothing is added up
# of the rows of analyze.py those that are kept, after the trained loops and at the end
STATES = ("delta", "norm", "loss", "converged_by", "push_ratio", "spectral_radius", "spectral_radius_highest",
          "lyapunov_exponent", "lyapunov_exponent_highest", "start_distance", "limit_cycle",
          *(who + what for who in ("", "taught_") for what in (
              "energy", "energy_falls_until", "energy_slope", "energy_lifted", *(
                  f"minimum_{key}" for key in ("energy", "slope", "distance", "lifted", "loss", "right")))),
          "energy_falls_past_still_until", "energy_stands_until", "wrong_auc")
EVERY = ("delta", "norm", "start_distance")


# ---- the columns of a run

def columns_of_training(folder):
    """train.py's summary but for where it comes from, which stays in the run's folder."""
    with open(f"{folder}/summary.json", encoding="utf-8") as f:
        summary = json.load(f)
    return {k: v for k, v in summary.items() if k != "provenance"}


def columns_of_analysis(table):
    """`states`: the rows of analyze.py of which STATES speaks, after the trained loops and at the end; those of EVERY
    after all loops."""
    loops = {r["loop"] for r in table if r["what"] == "spectral_radius"}  # those trained with, and the last
    by_period = re.compile(r"one loop|\d+ loops")
    return dict(states=[r for r in table if r["what"] in STATES and (r["loop"] in loops or r["what"] in EVERY)
                        and not by_period.fullmatch(r["class"])])


def columns_of_evaluation(label, table):
    """uniform_8, equal_8, loops_answer_8, ... from the rows of evaluate.py, each with the label, if any, before it.
    read_3_write_24_8: read in 3 loops, written in 24, of --waiting=True; write_0 is by the rule.

    Loops are those of the uniform problems; loops_solved_8 of the slowest token of solved ones, and loops_chain_3 of
    those of size figures.DIFFICULTY_SIZE, of all kinds, whose difficulty `chain` is 3, where there are ten.
    """
    found, prefix = {}, f"{label}_" if label else ""
    names = dict(loops_answer="loops_answer", loops_most="loops_most", loops_most_solved="loops_solved",
                 accuracy_random="accuracy_random")
    for r in table:
        values, kind = {}, r["kind"]
        if r.get("m") and kind != "grid":
            kind = f"read_{r['read']}_write_{r['write']}".replace(".", "_") if kind == "waiting" else kind
            values[f"{kind}_{r['n']}"] = r["accuracy"]
        if r["kind"] == "uniform":
            values |= {f"{name}_{r['n']}": r.get(key) for key, name in names.items()}
        if r.get(kind) and int(r["n"]) == figures.DIFFICULTY_SIZE and int(r["problems"]) >= 10:
            values[f"loops_{kind}_{r[kind]}"] = r["loops"]
        found |= {prefix + name: round(float(x), 6) for name, x in values.items() if x}
    return found


def columns_of(step, folder):
    """The columns that a finished step of a run gives."""
    if step == "train":
        return columns_of_training(folder)
    table = outputs.read_csv(f"{folder}/{step}.csv")
    if step == "analyze":
        return columns_of_analysis(table)
    return columns_of_evaluation(step.removesuffix("evaluate").removesuffix("_"), table)


# ---- the tables

def has_sizes(found):
    """True for rows of a task, which have columns uniform_<size>; False for those of a text.

    found: rows as `execute` of sweep.py returns them, here and below.
    """
    return any(re.search(r"uniform_\d+$", k) for r in found for k in r)


def cell(runs, column, form, scale=1.0):
    """The median of a column over the seeds, and the range where there are several; "" where nothing is known."""
    values = [scale * float(r[column]) for r in runs if r.get(column, "") != ""]
    if not values:
        return ""
    middle, low, high = (form.format(f(values)) for f in (statistics.median, min, max))
    fixed = column in ("parameters", "flops_per_token")  # the same for all seeds
    return f"{middle} ({low}-{high})" if len(values) > 1 and not fixed else middle


def markdown(kind, label, found, wanted):
    """A table of what an evaluation says of a kind of problems, a line per row; with the validation loss if it is the
    uniform kind of the evaluation without a label, of a text also what a model costs. "" where nothing was measured.

    kind: as figures.kinds_told names them; label: of an entry of `evaluate`; wanted: the name of the row of every run.
    """
    measured = {k: n for n, k in sorted(figures.size_columns(found, kind, label).items())}
    loops, difficulty = kind.startswith("loops_"), kind.removeprefix("loops_")
    head = {k: (str(n), "{:.2f}" if loops else "{:.1f}") for k, n in measured.items()}
    if kind == "uniform" and not label:
        head = ({"val_loss": ("val loss", "{:.4f}")} if has_sizes(found) else OF_TEXT) | head
    if not head or loops and not figures.halts(found, measured):
        return ""
    lines = [["row", "seeds", *(name for name, _ in head.values())], ["---"] * (2 + len(head))]
    for name in dict.fromkeys(wanted):
        own = [r for r in found if r["row"] == name]
        lines.append([name.replace("|", "\\|"), f"{sum(not r['error'] for r in own)}/{wanted.count(name)}"] + [
            cell(own, k, form, 100 if k in measured and not loops else 1) for k, (_, form) in head.items()])
    title = "Validation loss"
    if measured:
        title = "Mean loops of the slowest token of solved problems" if loops else f"Exact match in %, {kind} problems"
        title += (f" of size {figures.DIFFICULTY_SIZE}, by {difficulty}" if loops and difficulty != "solved" else
                  ", by size")
    title += f", `{label}`" if label else ""
    return f"\n{title}; median (lowest-highest) over seeds:\n\n" + "".join(f"| {' | '.join(x)} |\n" for x in lines)


def write_tables(found, wanted, target, labels, head):
    """The CSV, a line per run, and the Markdown, a line per row; found in the order of the table, wanted as above.
    labels: of the evaluations, "" for one without; head: lines on what ran, of which the first one goes on with where.
    """
    further = [k for k in dict.fromkeys(k for r in found for k in r) if re.search(r"_\d+$|^ran_on$", k)]
    outputs.write_csv(f"{target}.csv", (*FIRST, *further, "error"), found)
    several = len({r["seed"] for r in found if r.get("states")}) > 1
    states = [dict(row=r["row"]) | (dict(seed=r["seed"]) if several else {}) | state
              for r in found for state in r.get("states", [])]
    if states:
        outputs.write_csv(f"{target}_states.csv", states[0], states)
    device, version = (", ".join(dict.fromkeys(r[k] for r in found if k in r)) for k in ("device", "torch"))
    lines = [f"{head[0]}; {device}, torch {version}; {head[1]}", *head[2:]]
    tables = []
    for label in dict.fromkeys(["", *labels]):
        kinds, loops = figures.kinds_told(found, label, labels)
        tables += [markdown(kind, label, found, wanted) for kind in dict.fromkeys(["uniform", *kinds, *loops])]
    known = outputs.provenance(card=device if device not in ("", "cpu") else outputs.card_name())
    with outputs.whole_file(f"{target}.md") as f:
        f.write("\n\n".join(lines) + "\n" + "".join(tables) + f"\n{outputs.provenance_line(known)}\n")


def two_rows(compare, names):
    """The A and B of --compare=A,B, each of which is one of the names, that may have commas themselves."""
    words = compare.split(",")
    for n in range(1, len(words)):
        pair = [",".join(part).strip() for part in (words[:n], words[n:])]
        if set(pair) <= set(names) and len(set(pair)) == 2:
            return pair
    raise SystemExit(f"--compare={compare}: two rows, parted by a comma, of {'; '.join(names)}")


def runs_of(table, *names):
    """{seed: run} of each of the rows so named, without those that failed."""
    return [{r["seed"]: r for r in table if r["row"] == name and not r["error"]} for name in names]


def differences(table, a, b):
    """For every measured column of the rows a and b of a table which seeds have both: {column: (mean of
    a, mean of b, the seeds, {mean, mean_low, mean_high} of a - b by seed)}."""
    own, found = runs_of(table, a, b), {}
    of_settings = ("row", "seed", "error", "device", "torch", "ran_on", "parameters", "flops_per_token",
                   "ms", "seconds")  # times of a device that several runs shared compare nothing
    for column in [k for k in table[0] if k not in of_settings]:
        shared = [seed for seed in own[0] if seed in own[1] and all(r[seed][column] not in ("", None) for r in own)]
        x, y = (np.array([float(r[seed][column]) for seed in shared]) for r in own)
        if shared:
            found[column] = x.mean(), y.mean(), shared, mean_interval(x - y, "mean")
    return found


def frontiers(run):
    """{(rule, size): (3,K) loops of an answer's token, accuracy, accuracy of random halting}, by loops, of a run whose
    evaluations gate_90, gate_98, ... try a rule at K >= 2 thresholds. What fewer loops reach counts for more, too."""
    points = {}
    for column in run:
        match = re.fullmatch(r"(([a-z]+)_\w+)_accuracy_random_(\d+)", column)
        if match and run[column] != "":
            label, rule, size = match.groups()
            points.setdefault((rule, int(size)), []).append(
                [float(run[f"{label}_{name}_{size}"]) for name in ("loops_answer", "uniform", "accuracy_random")])
    found = {k: np.array(sorted(x)).T for k, x in points.items() if len(x) > 1}
    for _, accuracy, _ in found.values():
        np.maximum.accumulate(accuracy, out=accuracy)
    return found


def at_accuracy(frontier, levels):
    """(2,len(levels)): the fewest loops with which a frontier, lines between its points, has these accuracies, each
    within its range, and what random halting has with as many."""
    loops, accuracy, random = frontier
    after = np.searchsorted(accuracy, levels).clip(1, len(loops) - 1)  # a point with this accuracy at least
    before, rise = after - 1, accuracy[after] - accuracy[after - 1]
    share = (levels - accuracy[before]) / np.where(rise > 0, rise, 1)
    taken = loops[before] + share * (loops[after] - loops[before])
    return np.stack((taken, np.interp(taken, loops, random)))


def equal_accuracy(table, a, b):
    """Loops of the rows a and b at equal accuracy, seed by seed: {(rule, size, which): (seeds, accuracies, {loops and
    random halting of a and of b} (4,seeds))}; which: the mean over all accuracies that both runs reach, or the highest
    of them. A seed whose two runs share none is left out."""
    own, found = runs_of(table, a, b), {}
    for seed in [s for s in own[0] if s in own[1]]:
        x, y = (frontiers(runs[seed]) for runs in own)
        for key in [k for k in x if k in y]:
            low, high = (f(z[key][1][i] for z in (x, y)) for f, i in ((max, 0), (min, -1)))
            for which, levels in (("all", np.linspace(low, high, 101)), ("highest", np.array([high]))):
                if low < high:
                    both = np.concatenate([at_accuracy(z[key], levels) for z in (x, y)]).mean(1)
                    found.setdefault((*key, which), []).append((seed, levels.mean(), *both))
    return {k: (s, np.array(level), np.array(rest)) for k, (s, level, *rest) in
            ((k, zip(*x, strict=True)) for k, x in found.items())}


def print_equal_accuracy(table, a, b):
    """The same in words, if the table has thresholds of a rule."""
    found = equal_accuracy(table, a, b)
    if found:
        print("\nloops of an answer's token at equal accuracy (in %), lines between thresholds: the mean over all that"
              "\nboth runs of a seed reach, and at the highest of them; random: of random halting with as many loops\n")
        print(f"{'rule':<10} {'size':>4} {'reached':<8} {'accuracy':>8} {'A':>6} {'random':>6} {'B':>6} {'random':>6} "
              f"{'A - B':>7}  {'95%':<16} seeds")
    for (rule, size, which), (seeds, level, rest) in sorted(found.items()):
        mean, (x, x_random, y, y_random) = mean_interval(rest[0] - rest[2], "mean"), rest.mean(1)
        span = f"{mean['mean_low']:+.2f} to {mean['mean_high']:+.2f}" if len(seeds) > 1 else "needs two seeds"
        print(f"{rule:<10} {size:>4} {which:<8} {100 * level.mean():>8.1f} {x:>6.2f} {100 * x_random:>6.1f} {y:>6.2f} "
              f"{100 * y_random:>6.1f} {mean['mean']:>+7.2f}  {span:<16} {', '.join(seeds)}")


def print_comparison(path, compare):
    """The differences between the two rows compare, "A,B", of the table at a path, each with its interval."""
    if not os.path.exists(path):
        raise SystemExit(f"{path} does not exist: --compare needs a table that a sweep has written")
    table = outputs.read_csv(path)
    a, b = two_rows(compare, [*dict.fromkeys(r["row"] for r in table)])
    found = differences(table, a, b)
    if not found:
        raise SystemExit(f"--compare={compare}: no seed has both rows in {path}")
    print(f"A: {a}\nB: {b}\nthe same seeds of both; 95% intervals of the mean difference over seeds (Student's t)\n")
    print(f"{'column':<28} {'A':>12} {'B':>12} {'A - B':>12}  {'95%':<26} seeds")
    for column, (x, y, shared, mean) in found.items():
        span = f"{mean['mean_low']:+.6g} to {mean['mean_high']:+.6g}" if len(shared) > 1 else "needs two seeds"
        print(f"{column:<28} {x:>12.6g} {y:>12.6g} {mean['mean']:>+12.6g}  {span:<26} {', '.join(shared)}")
    outside = sum(m["mean_low"] > 0 or m["mean_high"] < 0 for *_, shared, m in found.values() if len(shared) > 1)
    print(f"\nwith no true difference an interval leaves 0 out once in 20; {outside} of {len(found)} do here")
    print_equal_accuracy(table, a, b)


# ---- several tables beside each other

# rows on text, track N and track P, and how their blocks are called
TEXT, TRACK_N, TRACK_P = r"(?:1 x 12(?:, |$)|(?=12 layers))(.*)", r"(?!1 x 12|12 layers|P, )(.*)", r"P, (.*)"
# tables in results/, with which of their rows, and what those are called
ON_TEXT, ON_N = [("sweep_block", TEXT)], [("sweep_block_digits", TRACK_N)]
WHOLE_RECIPE = [("sweep_track_n", "16 of 64 ids()"), ("sweep_block_long", "(.*)")]
# title: tables, column, scale, form
BLOCK = {"text, nats": (ON_TEXT, "best_val_loss", 1, "{:.3f}"),
         "N, 12 digits, %": (ON_N, "uniform_12", 100, "{:.1f}"),
         "N, 24 digits, %": (ON_N, "uniform_24", 100, "{:.1f}"),
         "P, 12 digits, %": ([("sweep_block_digits", TRACK_P)], "uniform_12", 100, "{:.1f}"),
         "N, whole recipe, 24 digits, %": (WHOLE_RECIPE, "uniform_24", 100, "{:.1f}"),
         "parameters of text": (ON_TEXT, "parameters", 1, "{:,.0f}"),
         "of N": (ON_N, "parameters", 1, "{:,.0f}"),
         "ms a step, text, 24 on two H100": (ON_TEXT, "ms", 1, "{:.1f}"),
         "N, the same": (ON_N, "ms", 1, "{:.1f}"),
         "text, H200 alone": ([("block_ms", TEXT)], "ms", 1, "{:.1f}"),
         "ms a token, text, one core": ([("block_decode_cpu", TEXT)], "microseconds", 1e-3, "{:.2f}"),
         "N, one core": ([("block_decode_cpu", TRACK_N)], "microseconds", 1e-3, "{:.2f}"),
         "text, H200": ([("block_decode", TEXT)], "microseconds", 1e-3, "{:.2f}"),
         "N, H200": ([("block_decode", TRACK_N)], "microseconds", 1e-3, "{:.2f}")}
BLOCK_HEAD = """`python sweep_tables.py`: the block of today beside nanoGPT's, best validation loss of a text, exact
match of additions on tracks N and P, and what they cost; median (lowest-highest) of the seeds, those of text, of
additions. From [sweep_block.csv](sweep_block.csv), [sweep_block_digits.csv](sweep_block_digits.csv), the whole recipe's
[sweep_block_long.csv](sweep_block_long.csv) and [sweep_track_n.csv](sweep_track_n.csv) (five seeds),
[block_ms.csv](block_ms.csv), [block_decode_cpu.csv](block_decode_cpu.csv) and [block_decode.csv](block_decode.csv).

A training step is the first seed's, of 24 trainings that shared two H100: what the sweep cost, which orders the rows
otherwise than a step alone. Alone on an H200, the host's other GPUs busy, 8 rows of text were timed, one seed, 300
steps; [scale_third_host.csv](scale_third_host.csv) has 10.5 ms of 12 layers. Tokens are written one by one with the
cache, by all loops, on one core of a CPU and on an H200, there by the fastest way that was timed: nanoGPT's block
writes text by a kernel, all else is written by a CUDA graph, on text by that of the compiled step. Track N's nanogpt
has a kernel, too, which that run did not reach. The graph timed a second time takes 5% less to 7% more on text, 20%
less to 26% more on track N: the last column orders nothing. An empty cell was not measured."""

RUNS, STATE = [("sweep_energy", "(.*)")], [("sweep_energy_states", "(.*)")]
ENERGY = {"size 4, %": (RUNS, "uniform_4", 100, "{:.1f}"),
          "size 12, %": (RUNS, "uniform_12", 100, "{:.1f}"),
          "val loss, nats": (RUNS, "val_loss", 1, "{:.4f}"),
          "E falls, past still, %": (STATE, "trained energy_falls_past_still_until L", 100, "{:.1f}"),
          "the same, untrained": (STATE, "untrained energy_falls_past_still_until L", 100, "{:.1f}"),
          "E falls, past moves, %": (STATE, "trained energy_falls_until L", 100, "{:.1f}"),
          "that untrained": (STATE, "untrained energy_falls_until L", 100, "{:.1f}"),
          "wrong tokens": (STATE, "trained energy wrong L, tokens", 1, "{:.0f}"),
          "told by E": (STATE, "trained wrong_auc energy L", 1, "{:.2f}"),
          "by entropy": (STATE, "trained wrong_auc entropy L", 1, "{:.2f}"),
          "by delta": (STATE, "trained wrong_auc delta L", 1, "{:.2f}"),
          "loss, L loops": (STATE, "trained loss L", 1, "{:.4f}"),
          "loss, 4 L": (STATE, "trained loss 4 L", 1, "{:.4f}")}
ENERGY_HEAD = """`python sweep_tables.py`: descent of an energy beside Block at equal parameters. Exact match and
validation loss: median (lowest-highest) of the seeds, from [sweep_energy.csv](sweep_energy.csv). All that follows is of
seed 0, tokens of the answer, from [sweep_energy_states.csv](sweep_energy_states.csv): the share of (token, loop) steps
of the L trained loops in which E falls, given the keys that the step saw (past still) or, the past having moved, its
own; how many tokens are wrong after L loops, and the area under the curve by which E, entropy and delta tell them from
right ones (0.5: not at all); the loss after L loops and after 4 L. In rows of replace E is a head that was taught
afterwards to fall along the loops, which knows no past. `keys of x0` has a fixed step of 0.5 as well: no past moves
there, so both shares are one. No times: 13 trainings shared a GPU."""


def of_states(rows):
    """Rows of a <name>_states.csv as one run per name of a row: its numbers after the trained loops, L, and after all,
    4 L, and of how many tokens: {"trained wrong_auc entropy L": ..., "trained wrong_auc entropy L, tokens": ...}. A
    taught energy counts as an energy."""
    loops = {}  # {name: those after which the loss is known}
    for r in rows:
        if r["what"] == "loss" and r["loop"] not in loops.setdefault(r["row"], []):
            loops[r["row"]].append(r["loop"])
    found = {name: dict(row=name) for name in loops}
    for r in rows:
        for at, loop in zip(("L", "4 L"), loops[r["row"]], strict=True):
            if loop == r["loop"]:
                group = "" if r["class"] in ("answer", "all") else r["class"]
                name = " ".join(filter(None, (r["weights"], r["what"], group, at))).replace("taught_", "")
                found[r["row"]] |= {name: r["value"], f"{name}, tokens": r["n"]}
    return [*found.values()]


def runs_in(table):
    """The runs of a table in results/."""
    rows = outputs.read_csv(f"results/{table}.csv")
    return of_states(rows) if table.endswith("_states") else rows


def named(tables, read):
    """{what a block is called: its runs} of rows of tables that match, as read(name) gives them; of ways to write the
    fastest one."""
    found = {}
    for table, pattern in tables:
        for r in read(table):
            match = re.fullmatch(pattern, r.get("row", r.get("case")))
            if match and not r.get("error"):
                runs = found.setdefault(match[1] or "nanogpt", [])
                if r.get("microseconds") is None:
                    runs.append(r)
                elif r["microseconds"]:
                    runs[:] = [min([*runs, r], key=lambda way: float(way["microseconds"]))]
    return found


def write_beside(target, head, name_of, columns, counted, drawn=(), first=()):
    """The Markdown of the columns, of tables in results/, with a head of text and a name of the rows; counted: the
    columns that tell the seeds of a row; drawn: those of the figure, which is left out without them; first: those of
    which the first seed alone counts."""
    read = functools.cache(runs_in)  # most columns are of the same tables
    known = {title: named(tables, read) for title, (tables, *_) in columns.items()}
    for title in first:
        known[title] = {name: runs[:1] for name, runs in known[title].items()}
    seeds = [{name: len(runs) for name, runs in known[title].items()} for title in counted]
    lines = [[name_of, "seeds", *columns], ["---"] * (2 + len(columns))]
    for name in dict.fromkeys(name for n in seeds for name in n):
        counts = ", ".join(str(n[name]) for n in seeds if name in n)
        lines.append([name, counts, *(cell(known[title].get(name, []), column, form, scale)
                                      for title, (_, column, scale, form) in columns.items())])
    with outputs.whole_file(f"{target}.md") as f:
        f.write(head + "\n\n" + "".join(f"| {' | '.join(x)} |\n" for x in lines))
    panels = {title: {name: [columns[title][2] * float(r[columns[title][1]]) for r in runs]
                      for name, runs in known[title].items()} for title in drawn}
    if drawn:
        figures.draw_parts([x[0] for x in lines[2:]], panels, f"{target}.png")


def write_block():
    """The Markdown and the figure of what BLOCK says; later seeds of a step's time ran beside trainings of another
    kind."""
    write_beside("results/block", BLOCK_HEAD, "block", BLOCK, ("text, nats", "of N"),
                 ("text, nats", "N, 24 digits, %", "P, 12 digits, %", "N, whole recipe, 24 digits, %"),
                 first=("ms a step, text, 24 on two H100", "N, the same"))


def write_energy():
    """The Markdown of what ENERGY says; the pictures of an energy are those of analyze.py."""
    write_beside("results/energy", ENERGY_HEAD, "row", ENERGY, ("val loss, nats",))


def draw_anchors():
    """The states of sweep_anchor.py and sweep_anchor_steps.py without loop norm, each step encoding: above with x0,
    below without."""
    names = {f"{x0}{encoding or ', no norm'}": f"{x0}{encoding}" for x0 in ("add", "none")
             for encoding in ("", ", learned", ", sinusoid", ", rope")}
    rows = [r for name in ("anchor", "anchor_steps") for r in figures.read_table(f"results/sweep_{name}_states.csv")]
    figures.draw_states([dict(r, row=new) for old, new in names.items() for r in rows if r["row"] == old],
                        "results/anchor_states.png")


def main():
    configure(__file__)
    write_block()
    write_energy()
    draw_anchors()


if __name__ == "__main__":
    runtime.run(main)
