"""Run a tuning space, rows of settings times seeds, each run in a process of its own, and write the table of results.

    python sweep.py config/sweep_demo.py --dry_run=True       check it and print its commands
    python sweep.py config/sweep_demo.py --parallel=4

A row is a name and arguments of train.py: "wide @3: --n_embd=128 --weight_decay=0.1". @3 takes the first 3 seeds only;
a config file as the first word replaces base. All is checked before anything runs. A run is train.py, then evaluate.py
once for each entry of `evaluate` and, of the first seed, analyze.py as `analyze` says, always of ckpt_last.pt: nothing
is selected by a test. The same command again goes on after an interruption, skips what is finished, and runs what
failed or now has other settings. The tables are written after every run, a figure and the validation losses over the
iterations at the end; out_dir/<row>/seed<S>/ holds train.py's files, a log of each step, and row.json, what is known.
"""
import ast
import contextlib
import csv
import io
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta

import torch

import addition
import figures
from configurator import class_settings, configure, read_arguments, read_settings
from model_loop import FACTS, HALTING, LoopConfig

base = ""                       # config file of train.py; empty: its defaults
seeds: list[int] = [1337]       # a run of each row for each
rows: list[str] = []            # "name: --key=value ..." of train.py; "name @3: ..." with the first 3 seeds only
overrides: list[str] = []       # --key=value of train.py, for all rows; a row's own wins
evaluate: list[str] = []        # "--key=value ..." of evaluate.py, or "label: --key=value ..." with columns label_*
analyze = ""                    # "--key=value ..." of analyze.py, for runs of the first seed: results/<name>_states.csv
parallel = 0                    # processes at once; 0: one a core, on CUDA half as many and at most 8
timeout = 0.0                   # seconds after which a training, or an evaluation, is killed; 0: never
out_dir = ""                    # where the runs go; empty: out/<name of the file>
results = ""                    # path of the tables without .csv and .md; empty: results/<name of the file>
dry_run = False                 # check everything, print the commands and stop

HERE = os.path.dirname(os.path.abspath(__file__))
ENTRY = re.compile(r"(?:\s*(\w[^:@]*?)\s*(?:@(\d+)\s*)?:)?(.*)", re.DOTALL)  # name @3: words
FIRST = ("row", "seed", "parameters", "flops_per_token", "val_loss", "best_val_loss", "ms", "seconds", "device",
         "torch")  # columns
OF_TEXT = {"parameters": ("parameters", "{:,.0f}"), "flops_per_token": ("training FLOPs a token", "{:,.0f}"),
           "best_val_loss": ("best val loss", "{:.4f}"), "val_loss": ("last val loss", "{:.4f}"),
           "ms": ("ms a step", "{:.1f}")}  # columns of the Markdown where nothing is added up
STATES = ("delta", "norm", "loss", "converged_by", "push_ratio", "spectral_radius", "spectral_radius_highest",
          "limit_cycle")  # of the rows of analyze.py those that are kept, after the trained loops and at the end
running, stopping = set(), []   # the processes; the signals that told this one to stop


def refuse(entry, why):
    """End the program with one line, which says where in the tuning file the entry stands."""
    with open(file) as f:
        lines = {n.value: n.lineno for n in ast.walk(ast.parse(f.read())) if isinstance(n, ast.Constant)}
    raise SystemExit(f"{file}:{lines[entry]}: {why}" if entry in lines else str(why)) from None


def read_entry(entry, settings, *fixed):
    """'name @3: words' -> ('name', '3', [words]), checked; fixed: settings that only the sweep itself may make."""
    name, first, words = ENTRY.fullmatch(entry).groups("")
    try:
        words = shlex.split(words)
        read_arguments(words, settings)
    except (SystemExit, ValueError) as e:
        refuse(entry, e)
    if any(word.partition("=")[0].removeprefix("--") in fixed for word in words):
        refuse(entry, f"the sweep itself sets {', '.join(fixed)}")
    return name, first, words


def plan():
    """Every run as a dict of its row, seed, folder, settings and steps {name: command}; all checked, none started."""
    if not rows or not seeds or len(set(seeds)) < len(seeds) or min(*seeds, parallel, timeout) < 0:
        raise SystemExit(f"{file}: needs rows, seeds (each once, none negative), and no negative parallel or timeout")
    tests, runs, slugs, known = {}, [], set(), []
    # not by importing them: they would run
    for script, names in (("train.py", None), ("evaluate.py", HALTING), ("analyze.py", HALTING)):
        with open(os.path.join(HERE, script)) as f:
            of_model = {k: s for k, s in class_settings(LoopConfig, names).items() if k not in FACTS}
            known.append(read_settings(f.read()) | of_model)
    of_train, of_evaluate, of_analyze = known
    look = read_entry(analyze, of_analyze, "checkpoint", "out_dir")[2]
    for entry in evaluate:
        label, first, words = read_entry(entry, of_evaluate, "checkpoint", "out_dir", "csv_file")
        step = f"{label}_evaluate" if label else "evaluate"
        if first or step in tests or not re.fullmatch(r"\w+", step):
            refuse(entry, f"'{entry}': each evaluation needs a label of its own, one word, 'label: --key=value ...'")
        tests[step] = words
    read_entry(base, of_train)
    common = [word for entry in overrides for word in read_entry(entry, of_train, "seed", "out_dir")[2]]
    for entry in rows:
        name, first, words = read_entry(entry, of_train, "seed", "out_dir")
        slug = re.sub(r"[^\w.+=-]+", "_", name)
        if not name or slug in slugs or first and not 1 <= int(first) <= len(seeds):
            refuse(entry, f"'{entry}': a row is 'name: --key=value ...' or 'name @3: ...', each name once, "
                          f"the number at most that of the seeds, {len(seeds)}")
        slugs.add(slug)
        config = words.pop(0) if words and not words[0].startswith("--") else base
        words = [*filter(None, [config]), *common, *words]
        for seed in seeds[:int(first or len(seeds))]:
            folder = f"{out_dir}/{slug}/seed{seed}"
            steps = {"train": ["train.py", *words, f"--seed={seed}", f"--out_dir={folder}"]} | {
                step: ["evaluate.py", *test, f"--checkpoint={folder}/ckpt_last.pt", f"--csv_file={folder}/{step}.csv"]
                for step, test in tests.items()}
            settings = read_arguments(steps["train"][1:], of_train)
            if analyze and seed == seeds[0] and settings.get("model_type") != "gpt":  # which has no loops to look at
                steps["analyze"] = ["analyze.py", *look, f"--checkpoint={folder}/ckpt_last.pt", f"--out_dir={folder}"]
            runs.append(dict(row=name, seed=seed, folder=folder, steps=steps, settings=settings))
    # all rows with the first seed come first, so that a sweep cut short still compares them
    return sorted(runs, key=lambda run: seeds.index(run["seed"]))


def write(path, text):
    """Write a text file, whole or not at all."""
    with open(f"{path}.part", "w", encoding="utf-8") as f:
        f.write(text)
    os.replace(f"{path}.part", path)


def write_csv(end, fields, table):
    """One of the tables of results, whole or not at all; columns that are not among fields are left out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write(f"{results}{end}.csv", text.getvalue())


def launch(command, log):
    """Run a command to its end, its output at the end of a log: (the output, what went wrong or '')."""
    with open(log, "a+", errors="replace") as f:
        if stopping:
            return "", "interrupted"
        f.write(f"$ python {shlex.join(command)}\n")
        start = f.tell()
        # in a session of its own: Ctrl-C in a terminal reaches this process only, which passes it on, once
        process = subprocess.Popen([sys.executable, os.path.join(HERE, command[0]), *command[1:]], stdout=f,
                                   stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
                                   start_new_session=True)
        running.add(process)
        if stopping:  # since the line above
            process.terminate()
        try:
            process.wait(timeout or None)
            late = ""
        except subprocess.TimeoutExpired:
            process.kill()  # what hangs may not listen to less
            late = f"timeout after {timeout:g} s"
        status = process.wait()
        running.discard(process)
        f.seek(start)
        said = f.read()
    killed = f"killed by {signal.Signals(-status).name}" if status < 0 else ""
    last_line = said.strip().rpartition("\n")[2] or f"exit status {status}"
    return said, "" if status == 0 else ("interrupted" if stopping else late or killed or last_line)


def columns_of(step, path, said):
    """The columns that a step gives: train.py's closing lines, `states`, the rows of analyze.py of which STATES speaks,
    or uniform_8, equal_8, loops_answer_8, ... from the table of evaluate.py; loops are those of the uniform problems,
    loops_solved_8 of the slowest token of solved ones, and chain_3 of those with figures.CHAIN_DIGITS digits, hard ones
    too, whose longest carry chain is 3."""
    if step == "train":
        return dict(re.findall(r"^(\w+): (.+)$", said.rpartition("---\n")[2], re.MULTILINE))
    if step == "analyze":
        with open(path, encoding="utf-8") as f:
            table = list(csv.DictReader(f))
        loops = {r["loop"] for r in table if r["what"] == "spectral_radius"}  # those trained with, and the last
        return dict(states=[r for r in table if r["what"] in STATES and r["loop"] in loops
                            and not re.fullmatch(r"one loop|\d+ loops", r["class"])])
    found, prefix = {}, step.removesuffix("evaluate")
    with open(path, encoding="utf-8") as f:
        for r in csv.DictReader(f):
            keys = {"accuracy": r["kind"]} if r["kind"] in addition.KINDS else {}
            if r["kind"] == "uniform":
                keys |= dict(loops_answer="loops_answer", loops_most="loops_most", loops_most_solved="loops_solved",
                             accuracy_random="accuracy_random")
            found |= {f"{prefix}{name}_{r['n']}": round(float(r[k]), 6) for k, name in keys.items() if r.get(k)}
            if r["kind"] == "chain" and int(r["n"]) == figures.CHAIN_DIGITS and int(r["problems"]) >= 10:
                found[f"{prefix}chain_{r['chain']}"] = round(float(r["loops"]), 6)
    return found


def execute(run):
    """Do what is missing of a run: (its row of the table, the log of its last step, '' if nothing was missing)."""
    folder, log, error, state = run["folder"], "", "", {}
    last, path = f"{folder}/ckpt_last.pt", f"{folder}/row.json"
    with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as f:
        state = json.load(f)
    try:
        if state.get("settings") != run["settings"]:  # those of the config file are among them
            state = dict(settings=run["settings"], done={})
            os.makedirs(folder, exist_ok=True)
            if os.path.exists(last):
                os.replace(last, f"{last}.old")  # it must be neither resumed nor evaluated as this run's
            write(path, json.dumps(state, indent=1))
        for step, command in run["steps"].items():
            key = step if step == "train" else shlex.join(command)
            if key in state["done"]:
                continue
            log, resume = f"{folder}/{step}.log", step == "train" and os.path.exists(last)
            said, error = launch(command + ["--init_from=resume"] * resume, log)
            if error:
                break
            state["done"][key] = columns_of(step, f"{folder}/{step}.csv", said)
            if resume:
                state["done"][key]["seconds"] = ""  # it says those of the last part only
            write(path, json.dumps(state, indent=1))
    except OSError as e:
        error = str(e)
    row = dict(row=run["row"], seed=run["seed"], error=error) | state["done"].get("train", {})
    for command in run["steps"].values():
        row |= state["done"].get(shlex.join(command), {})
    return row, log


def adds(found):
    """Do these rows, as `execute` returns them, say how well problems are solved, and not of a text?"""
    return any(re.search(r"uniform_\d+$", k) for r in found for k in r)


def markdown(kind, label, found, wanted):
    """A table of what an evaluation says of a kind of problems, a line a row; with the validation loss if it is the
    uniform kind of the evaluation without a label, of a text also what a model costs. "" where nothing was measured.

    kind: one of figures.KINDS; label: of an entry of `evaluate`; found: rows as `execute` returns them;
    wanted: the name of the row of every run.
    """
    columns = {k: n for n, k in figures.digit_columns(found, kind, label).items()}
    loops = kind in figures.OF_LOOPS
    head = {k: (str(n), "{:.2f}" if loops else "{:.1f}") for k, n in columns.items()}
    if kind == "uniform" and not label:
        head = ({"val_loss": ("val loss", "{:.4f}")} if adds(found) else OF_TEXT) | head
    if not head or loops and not figures.halts(found, columns):
        return ""
    lines = [["row", "seeds", *(name for name, _ in head.values())], ["---"] * (2 + len(head))]
    for name in dict.fromkeys(wanted):
        own = [r for r in found if r["row"] == name]
        line = [name.replace("|", "\\|"), f"{sum(not r['error'] for r in own)}/{wanted.count(name)}"]
        for k, (_, form) in head.items():
            values = [float(r[k]) * (100 if k in columns and not loops else 1) for r in own if r.get(k, "") != ""]
            middle, low, high = (form.format(f(values)) if values else "" for f in (statistics.median, min, max))
            line.append(f"{middle} ({low}-{high})" if len(values) > 1 and k not in ("parameters", "flops_per_token")
                        else middle)
        lines.append(line)
    what = "Mean loops of the slowest token of solved problems" if loops else f"Exact match in %, {kind} problems"
    by = f" of {figures.CHAIN_DIGITS} digits, by the longest carry chain" if kind == "chain" else ", by digits"
    title = (what + by if columns else "Validation loss") + (f", `{label}`" if label else "")
    return f"\n{title}; median (lowest-highest) over seeds:\n\n" + "".join(f"| {' | '.join(x)} |\n" for x in lines)


def write_tables(found, wanted):
    """The CSV, a line a run, and the Markdown, a line a row; arguments as of `markdown`, found in their order."""
    further = [k for k in dict.fromkeys(k for r in found for k in r) if re.search(r"_\d+$", k)]
    write_csv("", (*FIRST, *further, "error"), found)
    states = [dict(row=r["row"], **state) for r in found for state in r.get("states", [])]
    if states:
        write_csv("_states", states[0], states)
    device, version = (", ".join(dict.fromkeys(r[k] for r in found if k in r)) for k in ("device", "torch"))
    lines = [f"`{shlex.join(['python', 'sweep.py', *sys.argv[1:]])}`; {device}, torch {version}; "
             f"seeds {', '.join(map(str, seeds))}; {parallel} at once", *(f"`evaluate.py`: `{x}`" for x in evaluate),
             *[f"`analyze.py`: `{analyze}`"] * bool(analyze)]
    labels = dict.fromkeys(["", *(ENTRY.fullmatch(entry)[1] or "" for entry in evaluate)])
    tables = [markdown(kind, label, found, wanted) for label in labels for kind in figures.KINDS]
    write(f"{results}.md", "\n\n".join(lines) + "\n" + "".join(tables))


def curves(runs):
    """The validation losses of runs, from their log.csv: {row: {seed: {iteration: loss}}}."""
    found = {}
    for run in runs:
        with contextlib.suppress(OSError), open(f"{run['folder']}/log.csv", encoding="utf-8") as f:
            losses = {int(r["iter"]): float(r["val_loss"]) for r in csv.DictReader(f) if r["val_loss"]}
            found.setdefault(run["row"], {})[run["seed"]] = losses
    return found


def stop(number, frame):
    """Pass a signal on: train.py saves and ends, evaluate.py just ends. A second signal kills."""
    stopping.append(number)
    name = signal.Signals(number).name
    print(f"{name}: the runs save and end; the same command goes on later", file=sys.stderr, flush=True)
    for process in list(running):
        process.terminate()


def run_all(runs):
    """Execute the runs, `parallel` at once, and write the tables after each; returns what failed, a text each."""
    began, found, failed, skipped, wanted = time.monotonic(), [], [], 0, [run["row"] for run in runs]
    with ThreadPoolExecutor(parallel) as pool:
        for n, future in enumerate(as_completed([pool.submit(execute, run) for run in runs]), 1):
            row, log = future.result()
            if row["error"] == "interrupted":
                continue
            found.append(row)
            found.sort(key=lambda r: (wanted.index(r["row"]), seeds.index(r["seed"])))
            write_tables(found, wanted)
            skipped += not log
            spent = time.monotonic() - began
            took, left = (timedelta(seconds=round(s)) for s in (spent, spent / max(1, n - skipped) * (len(runs) - n)))
            name = f"{row['row']}, seed {row['seed']}"
            failed += [f"{name} ({log})"] if row["error"] else []
            print(f"{n}/{len(runs)} {name}: {'FAILED: ' + row['error'] if row['error'] else row['val_loss']}, "
                  + (f"{took}, ETA {left}" if log else "finished before"), flush=True)
    losses = curves(runs)
    write_csv("_curves", ("row", "seed", "iter", "val_loss"), [
        dict(row=name, seed=seed, iter=it, val_loss=loss) for name, own in losses.items()
        for seed, curve in own.items() for it, loss in curve.items()])
    if adds(found):
        figures.draw_sweep(found, f"{results}.png")
    elif any("best_val_loss" in row for row in found):
        figures.draw_losses(found, losses, f"{results}.png")
    print(f"---\nruns: {len(runs)}\nfinished: {len(found) - len(failed)}\nfinished_before: {skipped}\n"
          f"seconds: {time.monotonic() - began:.1f}\ncsv: {results}.csv\ntable: {results}.md")
    return failed


if __name__ == "__main__":
    globals().update(configure(__file__)[0])
    files = [x for x in sys.argv[1:] if not x.startswith("--")]
    if len(files) != 1:
        raise SystemExit("usage: python sweep.py config/sweep_demo.py [--key=value ...]; --help lists all keys")
    file, name = files[0], os.path.splitext(os.path.basename(files[0]))[0]
    out_dir, results = out_dir or f"out/{name}", results or f"results/{name}"
    runs = plan()
    if dry_run:
        raise SystemExit(print("\n".join(f"python {shlex.join(c)}" for run in runs for c in run["steps"].values())))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    on_gpu = torch.cuda.is_available() and any(run["settings"].get("device") != "cpu" for run in runs)
    parallel = parallel or (max(1, min(8, cores // 2)) if on_gpu else cores)
    environment = os.environ | dict(PYTHONUNBUFFERED="1")  # a log as it happens, its lines in order
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // parallel)))  # or each would take all cores
    try:
        os.makedirs(os.path.dirname(results) or ".", exist_ok=True)
        for end in ("csv", "md"):
            open(f"{results}.{end}", "a").close()  # a wrong path should fail now; an old table stays
    except OSError as e:
        raise SystemExit(f"{e.filename} cannot be written: {e.strerror}") from None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as it is for SIGHUP under nohup
            signal.signal(number, stop)
    failed = run_all(runs)
    if failed:
        print(f"failed: {'; '.join(failed)}")
    raise SystemExit(130 if stopping else bool(failed))
