"""Run a tuning space, rows of settings times seeds, each run in a process of its own, and write the table of results.

    python sweep.py config/sweep_demo.py --dry_run=True       check it and print its commands, a line per run
    python sweep.py config/sweep_demo.py --parallel=4
    python sweep.py config/sweep_demo.py --collect=True       the tables, of what others ran by these commands
    python sweep.py config/sweep_demo.py --compare="8 of 24 ids,16 of 64 ids"    their difference, seed by seed
    python sweep.py config/sweep_demo.py --redraw=True         its figures anew, from the tables in results/

A row is a name and arguments of train.py: "wide @3: --n_embd=128 --weight_decay=0.1". @3 takes the first 3 seeds only;
"wide on 2: ..." takes two GPUs that it has to itself; a config file as the first word replaces base. All is checked
before anything runs. A run is train.py, then evaluate.py once for each entry of `evaluate` and, of the first
`analyze_seeds` seeds, analyze.py as `analyze` says, always of ckpt_last.pt: nothing is selected by a test. Runs spread
over all GPUs there are; where one drops out, its runs go on elsewhere. The same command again goes on after an
interruption, skips what is finished, and runs what failed or now has other settings. The tables are written after every
run, figures and the validation losses over the iterations at the end; out_dir/<row>/seed<S>/ holds train.py's files, a
log of each step, and row.json, what is known.
"""
import ast
import collections
import contextlib
import copy
import functools
import heapq
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from datetime import timedelta

import torch

import figures
import gpus
import outputs
import runtime
import tasks
from checkpoint import model_settings
from configurator import class_settings, configure, open_text, read_arguments, read_settings
from dataset import model_facts, read_meta
from model_loop import FROM_DATASET, INFERENCE_SETTINGS, LoopConfig, build, check_halting, loop_counts, override
from sweep_tables import columns_of, has_sizes, print_comparison, write_tables

base = ""                       # config file of train.py; empty: its defaults
seeds: list[int] = [1337]       # >= 0: each row runs once per seed
rows: list[str] = []            # "name: --key=value ..." of train.py; "name @3: ..." with the first 3 seeds only
overrides: list[str] = []       # --key=value of train.py, for all rows; a row's own wins
evaluate: list[str] = []        # "--key=value ..." of evaluate.py, or "label: --key=value ..." with columns label_*
analyze = ""                    # "--key=value ..." of analyze.py, for runs of the first seed: results/<name>_states.csv
analyze_seeds = 1               # >= 1: for runs of so many seeds, which the table then names
parallel = 0                    # >= 0: runs at once; 0: one per core, on CUDA half as many and at most 8 per GPU
mps: bool | str = "auto"        # NVIDIA's MPS for runs that share a GPU; auto: where it is installed
timeout = 0.0                   # >= 0: seconds after which a training, or an evaluation, is told to end; 0: never
out_dir = ""                    # where the runs go; empty: out/<name of the file>
results = ""                    # path of the tables without .csv and .md; empty: results/<name of the file>
dry_run = False                 # check everything, print the commands, a line per run, and stop
collect = False                 # run nothing: only write the tables, of what stands in out_dir
compare = ""                    # A,B: names of two rows of the finished table, of which the differences are printed
redraw = False                  # draw the figures anew from the tables, run nothing

HERE = os.path.dirname(os.path.abspath(__file__))
TORCHRUN = "torch.distributed.run"
ENTRY = re.compile(r"(?:\s*(\w[^:@]*?)\s*(?:@(\d+)\s*)?(?:\bon (\d+)\s*)?:)?(.*)", re.DOTALL)  # name @3 on 2: words
# processes, which a signal ends, too; those of them that have been told to end; the signal that told this one to stop
running, told, stopping = set(), set(), []


# ---- the plan

def config_error(file, entry, why):
    """End the program with one line, which says where in the tuning file the entry stands."""
    with open_text(file) as f:
        lines = {n.value: n.lineno for n in ast.walk(ast.parse(f.read())) if isinstance(n, ast.Constant)}
    raise SystemExit(f"{file}:{lines[entry]}: {why}" if entry in lines else str(why)) from None


def read_entry(file, entry, settings, *fixed):
    """'name @3 on 2: words' -> ('name', '3', '2', [words]), checked; fixed: settings that only the sweep may make."""
    name, first, ranks, words = ENTRY.fullmatch(entry).groups("")
    try:
        words = shlex.split(words)
        read_arguments(words, settings)
    except (SystemExit, ValueError) as e:
        config_error(file, entry, e)
    if any(word.partition("=")[0].removeprefix("--") in fixed for word in words):
        config_error(file, entry, f"the sweep itself sets {', '.join(fixed)}")
    return name, first, ranks, words


def settings_of(script, names=None):
    """The settings of a script and of its model, those of `names`; read, not imported: a plan needs no more of it."""
    with open(os.path.join(HERE, script), encoding="utf-8") as f:
        own = read_settings(f.read())
    return own | {k: s for k, s in class_settings(LoopConfig, names).items() if k not in FROM_DATASET}


def read_evaluations(file, known):
    """{step: words} of the entries of `evaluate`; known: the settings of evaluate.py."""
    tests = {}
    for entry in evaluate:
        label, first, ranks, words = read_entry(file, entry, known, "checkpoint", "out_dir", "csv_file")
        step = f"{label}_evaluate" if label else "evaluate"
        if first or ranks or step in tests or not re.fullmatch(r"\w+", step):
            config_error(file, entry, f"'{entry}': each evaluation needs a label of its own, one word, "
                                      "'label: --key=value ...'")
        tests[step] = words
    return tests


def model_of(settings, given):
    """The model that train.py would make of a row's settings, those of the names `given` not by default, its weights as
    they are drawn; and the meta of its dataset, None where that is not there. ValueError, SystemExit."""
    try:
        meta = read_meta(os.path.join("data", settings["dataset"]))
        facts = model_facts(meta)
    except SystemExit:  # its data may still be to come: what it would have to say is left out
        meta, facts = None, dict(think_token=0, number_tokens=(0,))
    return build(model_settings(settings, given, facts)), meta


class DrawNothing(torch.overrides.TorchFunctionMode):
    """Weights keep what was allocated: on the meta device there is nothing to draw, and to try would load torch's
    compiler, which takes seconds. Of torch.nn.init a mode sees normal_, uniform_, constant_ and kaiming_uniform_, which
    name their tensor."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def check_model(given, of_train, entries):
    """ValueError or SystemExit for settings of a row, given, of which train.py could make no model, and for entries
    [(words, settings of their script)] that this model could not be measured by."""
    settings = {k: s.default for k, s in of_train.items()} | given
    if settings["init_from"] != "scratch":
        return  # then the rest is in a checkpoint
    with torch.device("meta"), DrawNothing():  # no weights, no time
        model, meta = model_of(settings, set(given))
    if settings["model_type"] == "loop":
        check_halting(model.config, set(given))
    for words, known in entries:
        asked, c = read_arguments(words, known), model.config
        override(copy.deepcopy(model), {k: v for k, v in asked.items() if k in INFERENCE_SETTINGS})
        if meta and settings["model_type"] == "loop" and c.pos == "place":
            task = tasks.load(meta.task)
            usual = tasks.sizes(task, meta) if "grid" in known else []
            size = max([*asked.get("sizes", usual), asked.get("grid", 0)], default=None)
            longest = task.longest_number(size, meta)
            if longest + c.place_ahead > c.place_ids:
                raise ValueError(f"'{shlex.join(words)}' asks for numbers of {longest} digits, but place_ids is "
                                 f"{c.place_ids}{', place_next takes one' if c.place_ahead else ''}")


def plan(file, root):
    """Every run as a dict of its row, seed, folder, settings and steps {name: command}; all checked, none started."""
    if not rows or not seeds or len(set(seeds)) < len(seeds):
        raise SystemExit(f"{file}: needs rows, and seeds, each once")
    of_train, of_analyze = settings_of("train.py"), settings_of("analyze.py", INFERENCE_SETTINGS)
    analysis = read_entry(file, analyze, of_analyze, "checkpoint", "out_dir")[-1]
    of_evaluate, runs, slugs = settings_of("evaluate.py", INFERENCE_SETTINGS), [], set()
    tests = read_evaluations(file, of_evaluate)
    entries = [(words, of_evaluate) for words in tests.values()]
    read_entry(file, base, of_train)
    common = [word for entry in overrides for word in read_entry(file, entry, of_train, "seed", "out_dir")[-1]]
    for entry in rows:
        name, first, ranks, words = read_entry(file, entry, of_train, "seed", "out_dir")
        slug = re.sub(r"[^\w.+=-]+", "_", name)
        if not name or slug in slugs or first and not 1 <= int(first) <= len(seeds) or ranks == "0":
            config_error(file, entry, f"'{entry}': a row is 'name: --key=value ...', or 'name @3 on 2: ...' of 3 seeds "
                                      "on 2 GPUs each, each name once, the number of seeds at most those there are, "
                                      f"{len(seeds)}")
        slugs.add(slug)
        config = words.pop(0) if words and not words[0].startswith("--") else base
        words = [*filter(None, [config]), *common, *words]
        settings = read_arguments(words, of_train)
        try:
            if "task" in settings:
                tasks.use(settings["task"])
            looped = settings.get("model_type") != "gpt"  # what analyze.py is told is of loops
            check_model(settings, of_train, entries + [(analysis, of_analyze)] * (looped and bool(analyze)))
        except (SystemExit, ValueError) as e:
            config_error(file, entry, e)
        for seed in seeds[:int(first or len(seeds))]:
            folder = f"{root}/{slug}/seed{seed}"
            last = f"--checkpoint={folder}/ckpt_last.pt"
            steps = {"train": ["train.py", *words, f"--seed={seed}", f"--out_dir={folder}"]} | {
                step: ["evaluate.py", *test, last, f"--csv_file={folder}/{step}.csv"] for step, test in tests.items()}
            own = settings | dict(seed=seed, out_dir=folder) | (dict(ranks=int(ranks)) if ranks else {})
            if analyze and seed in seeds[:analyze_seeds] and looped:
                steps["analyze"] = ["analyze.py", *analysis, last, f"--out_dir={folder}"]
            for step in steps.keys() - {"train"} if "task" in settings else ():  # which no checkpoint tells a script
                steps[step].append(f"--task={settings['task']}")
            runs.append(dict(row=name, seed=seed, ranks=int(ranks or 1), folder=folder, steps=steps, settings=own))
    # all rows with the first seed come first, so that a sweep cut short still compares them
    return sorted(runs, key=lambda run: seeds.index(run["seed"]))


def models(file):
    """Of each row of a tuning file its name, and a function that makes its model and the meta of its dataset, as
    `model_of` does. The settings of this module become those of the file."""
    globals().update(configure(__file__, argv=[file])[0])
    defaults = {k: s.default for k, s in settings_of("train.py").items()}
    return {run["row"]: functools.partial(model_of, defaults | run["settings"], set(run["settings"]))
            for run in plan(file, "out")}


# ---- a run

def torchrun_options(command, ranks):
    """What torchrun is told before the command of a step, [] where it does not start it; ranks: of a run."""
    several = ranks > 1 and command[0] in ("train.py", "evaluate.py")
    return ["--standalone", f"--nproc_per_node={ranks}"] if several else []


def as_typed(command, ranks):
    """The command of a step as one types it; ranks: processes of a run."""
    options = torchrun_options(command, ranks)
    return f"{'torchrun' if options else 'python'} {shlex.join([*options, *command])}"


def kill(process):
    """End a process that may not listen to less. torchrun is told instead: its ranks have sessions of their own, and
    would live on without it; it kills those that do not end within 30 seconds."""
    process.terminate() if TORCHRUN in process.args else process.kill()


def tell(process):
    """Have a process save and end, once: a second signal would end a training that saves (runtime.on_stop)."""
    if process not in told:
        told.add(process)
        process.terminate()


def launch(command, log, environment, ranks):
    """Run a command to its end, its output at the end of a log: what went wrong, "" if nothing."""
    with open(log, "a+", encoding="utf-8", errors="replace") as f:
        if stopping:
            return "interrupted"
        f.write(f"$ {as_typed(command, ranks)}\n")
        start = f.tell()
        # in a session of its own: Ctrl-C in a terminal reaches this process only, which passes it on, once
        options = torchrun_options(command, ranks)
        before = ["-m", TORCHRUN, *options] if options else []
        process = gpus.start([*before, os.path.join(HERE, command[0]), *command[1:]], f, environment)
        running.add(process)
        if stopping:  # since the line above
            tell(process)
        try:
            process.wait(timeout or None)
            late = ""
        except subprocess.TimeoutExpired:
            tell(process)  # a training saves; and MPS can lose all that share a GPU with one killed at work
            late = f"timeout after {timeout:g} s"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
        status = process.wait()
        running.discard(process)
        told.discard(process)
        if status == 0 and not late:
            return ""
        f.seek(start)
        last_line = f.read().strip().rpartition("\n")[2]
    killed = f"killed by {signal.Signals(-status).name}" if status < 0 else ""
    return "interrupted" if stopping else late or killed or last_line or f"exit status {status}"


def saved_state(run):
    """(what row.json of a run says: its settings, and of each step that is done what it found; whether it is there, of
    these settings)."""
    state = {}
    with contextlib.suppress(OSError, ValueError), open(f"{run['folder']}/row.json", encoding="utf-8") as f:
        state = json.load(f)
    same = isinstance(state, dict) and state.get("settings") == run["settings"]  # those of the config file, too
    done = state.get("done") if same else None
    return dict(settings=run["settings"], done=done if isinstance(done, dict) else {}), same


def keys_of(run):
    """{step: its key in the state of a run}: its command, but of the training, whose settings stand beside."""
    return {step: step if step == "train" else shlex.join(command) for step, command in run["steps"].items()}


def missing(run, state):
    """The steps of a run that are not done: {step: its key}."""
    return {step: key for step, key in keys_of(run).items() if key not in state["done"]}


def execute(run, environment, ran_on=""):
    """Do what is missing of a run: (its row of the table, the log of its last step, '' if nothing was missing)."""
    folder, log, error = run["folder"], "", ""
    last, path = f"{folder}/ckpt_last.pt", f"{folder}/row.json"
    state, same = saved_state(run)
    try:
        if not (same and (state["done"] or os.path.exists(last))):
            os.makedirs(folder, exist_ok=True)
            outputs.move_aside(folder)  # what is there must be neither resumed nor evaluated as this run's
            outputs.write_json(path, state)
        for step, key in missing(run, state).items():
            log, resume = f"{folder}/{step}.log", step == "train" and os.path.exists(last)
            error = launch(run["steps"][step] + ["--init_from=resume"] * resume, log, environment, run["ranks"])
            if error:
                break
            state["done"][key] = columns_of(step, folder) | (dict(ran_on=ran_on) if ran_on and step == "train" else {})
            if resume:
                state["done"][key]["seconds"] = ""  # it says those of the last part only
            outputs.write_json(path, state)
    except (OSError, ValueError, SystemExit) as e:  # a file of the run cannot be written, or read
        error = str(e)
    row = dict(row=run["row"], seed=run["seed"], error=error)
    for key in keys_of(run).values():
        row |= state["done"].get(key, {})
    return row, log


def execute_somewhere(run, places, environment, alone):
    """execute, where there is a place; again at another one if the GPU was lost. environment: of a process that
    shares a GPU; alone: of one that does not."""
    while True:
        try:
            names = places.take(run["ranks"])
        except RuntimeError as e:
            return dict(row=run["row"], seed=run["seed"], error=str(e)), ""
        on_gpu, lost = names[0].startswith("GPU"), []
        own = alone if run["ranks"] > 1 else environment
        try:
            row, log = execute(run, own | dict(CUDA_VISIBLE_DEVICES=",".join(names)), places.said(names)) \
                if on_gpu else execute(run, own)
            if on_gpu and row["error"] and not stopping:
                lost = [name for name in names if not gpus.works(name, alone)]
        finally:
            places.give_back(names, lost)
        if not lost:
            return row, log
        print(f"{run['row']}, seed {run['seed']}: {places.said(lost)} is lost, trying elsewhere", flush=True)


def require_finished(stem, command):
    """ValueError where the table <stem>.csv is not, or not yet, all that a command measures: it grows row by row."""
    with open(f"{stem}.json", encoding="utf-8") as f:
        known = json.load(f)
    if not set(command) <= set(shlex.split(known["command"])):
        raise ValueError(f"{stem}.csv is of another command: {known['command']}")
    if not known["finished"]:
        raise ValueError(f"not finished: {stem}.csv has only a part of its rows")


def collect_run(run):
    """The row of a run whose commands were run by somebody else, a cluster's scheduler for example."""
    folder, row = run["folder"], dict(row=run["row"], seed=run["seed"], error="")
    try:
        with open(f"{folder}/config.json", encoding="utf-8") as f:
            saved = json.load(f)
        other = [k for k, v in run["settings"].items() if k in saved and saved[k] != v]
        if other:
            raise ValueError(f"{folder} was trained with other settings: {', '.join(other)}")
        for step, command in run["steps"].items():
            if step != "train":
                require_finished(f"{folder}/{step}", command)
            row |= columns_of(step, folder)
    except OSError as e:
        row["error"] = f"not finished: {e.filename} is not there"
    except (ValueError, KeyError) as e:
        row["error"] = str(e)
    return row, ""


def logged(run):
    """A run's rows of <name>_curves.csv: the losses at the iterations of which its log.csv has a validation loss."""
    log = {int(r["iter"]): r for r in outputs.read_log(f"{run['folder']}/log.csv")[0] if r.get("val_loss")}
    return [dict(row=run["row"], seed=run["seed"], iter=it) | {
        k: float(r[k]) for k in ("train_loss", "val_loss") if r.get(k)} for it, r in log.items()]


def curves(rows):
    """{row: {seed: {iteration: validation loss}}} of the rows of <name>_curves.csv."""
    losses = {}
    for r in rows:
        losses.setdefault(r["row"], {}).setdefault(r["seed"], {})[int(r["iter"])] = float(r["val_loss"])
    return losses


# ---- all runs

def labels():
    """The labels of the evaluations, "" for one without."""
    return [ENTRY.fullmatch(entry)[1] or "" for entry in evaluate]


def pass_on(name):
    """Pass a signal on: train.py saves and ends, evaluate.py just ends."""
    stopping.append(name)
    print(f"{name}: the runs save and end; the same command goes on later", file=sys.stderr, flush=True)
    for process in list(running):
        tell(process)


def kill_all():
    """A second signal: what is not saved by now is lost."""
    for process in list(running):
        kill(process)


def places_here(runs):
    """Where the runs go, as gpus.Places: on all GPUs, or on this machine's cores; and the environment of a process."""
    cores = runtime.usable_cores()
    on_gpu = any(run["settings"].get("device") != "cpu" for run in runs)
    names = gpus.visible() if on_gpu else []
    count = parallel or (max(1, min(8 * len(names), cores // 2)) if names else cores)
    environment = os.environ | dict(PYTHONUNBUFFERED="1")  # a log as it happens, its lines in order
    for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):  # or each would take all cores
        environment.setdefault(name, str(max(1, cores // count)))
    if names:
        return gpus.Places(names, -(-count // len(names))), environment
    most = max(run["ranks"] for run in runs)
    return gpus.Places([f"process {i}" for i in range(max(count, most))], 1), environment


def run_all(runs, target):
    """Execute the runs, some at once, and write the tables after each; returns what failed, a text each."""
    places, environment = places_here(runs)
    works = not collect and any(missing(run, saved_state(run)[0]) for run in runs)
    shared = mps and places.each > 1 and works
    if works:
        with contextlib.suppress(OSError):  # then each script starts as ever
            gpus.start_server(environment)  # it loads while MPS starts
    with gpus.mps(mps if shared else False, environment) as sharing:
        return run_at(places, lambda run: collect_run(run) if collect else execute_somewhere(
            run, places, sharing, environment), runs, target)


def seconds_left(usual, elapsed, waiting):
    """Seconds until runs end that take `usual` seconds each: those that began `elapsed` seconds ago, one per place, and
    `waiting` others, each of which begins where the next one ends."""
    ends = sorted(max(0.0, usual - s) for s in elapsed)
    for _ in range(waiting):
        heapq.heapreplace(ends, ends[0] + usual)
    return max(ends)


def run_at(places, function, runs, target):
    """Call function(run), which gives what `execute` gives, for all runs, as many at once as there are places."""
    from concurrent.futures import ThreadPoolExecutor, as_completed
    began, found, failed, skipped, wanted = time.monotonic(), [], [], 0, [run["row"] for run in runs]
    count = min(parallel or len(runs), places.each * len(places.room))
    begun, ended = {}, {}  # of the n-th run when it began, and the seconds that it took
    tells = not os.path.exists(f"{target}.csv")  # a table is not replaced by one in which every run has failed

    def timed(n):
        begun[n] = time.monotonic()
        row, log = function(runs[n])
        # one that failed, or was finished before, does not tell how long the others take
        ended[n] = time.monotonic() - begun[n] if log and not row["error"] else None
        return row, log

    def seconds_to_go():
        known, now = [s for s in ended.values() if s is not None], time.monotonic()
        usual = sum(known) / max(1, len(known))
        elapsed = [now - begun[n] for n in list(begun) if n not in ended]
        free = [usual] * (count - len(elapsed))
        return seconds_left(usual, elapsed + free, len(runs) - len(begun))

    print(f"{len(runs)} runs, {min(count, len(runs))} at once; a line as each ends, what each says now is in "
          f"{os.path.dirname(os.path.dirname(runs[0]['folder']))}/*/seed*/*.log", flush=True)
    head = [f"`{shlex.join(['python', 'sweep.py', *sys.argv[1:]])}`",
            f"seeds {', '.join(map(str, seeds))}; {count} at once", *(f"`evaluate.py`: `{x}`" for x in evaluate),
            *([f"`analyze.py`: `{analyze}`"] if analyze else [])]
    with ThreadPoolExecutor(count) as pool:
        for n, future in enumerate(as_completed([pool.submit(timed, n) for n in range(len(runs))]), 1):
            row, log = future.result()
            if row["error"] == "interrupted":
                continue
            found.append(row)
            found.sort(key=lambda r: (wanted.index(r["row"]), seeds.index(r["seed"])))
            tells = tells or not row["error"]
            if tells:
                with outputs.going_on(f"{target}.csv"):  # the results of a run stand in its folder, too
                    write_tables(found, wanted, target, labels(), head)
            skipped += not log and not row["error"]
            took, left = (timedelta(seconds=round(s)) for s in (time.monotonic() - began, seconds_to_go()))
            name = f"{row['row']}, seed {row['seed']}"
            failed += [f"{name} ({log or row['error']})"] if row["error"] else []
            print(f"{n}/{len(runs)} {name}: {'FAILED: ' + row['error'] if row['error'] else row['val_loss']}, "
                  + (f"{took}, ETA {left}" if log or row["error"] else "finished before"), flush=True)
    if tells:
        with outputs.going_on(f"{target}_curves.csv"):
            finish(runs, found, target)
    ran_on = collections.Counter(r["ran_on"] for r in found if r.get("ran_on"))
    print("---", *(f"{place}: {n} runs" for place, n in sorted(ran_on.items())), sep="\n")
    print(f"runs: {len(runs)}\nfinished: {len(found) - len(failed)}\nfinished_before: {skipped}\n"
          f"seconds: {time.monotonic() - began:.1f}\ncsv: {target}.csv\ntable: {target}.md"
          + ", both as they were, since every run failed" * (not tells))
    return failed


def finish(runs, found, target):
    """The validation losses over the iterations, and the figure."""
    names = [run["row"] for run in runs]
    rows = [r for run in sorted(runs, key=lambda run: names.index(run["row"])) for r in logged(run)]
    outputs.write_csv(f"{target}_curves.csv", ("row", "seed", "iter", "train_loss", "val_loss"), rows)
    draw(runs, found, rows, target)


def draw(runs, found, rows, target):
    """The figure of the rows of the table and of `rows`, those of <name>_curves.csv; of trainings on fixed rows that of
    both losses; that of the states, if any."""
    trained = [max(loop_counts(run["settings"].get("num_loops", LoopConfig.num_loops))) for run in runs]
    common = trained[0] if min(trained) == max(trained) else None  # of an evaluation that asks for none
    asked = [re.search(r"--num_loops=(\d+)", entry) for entry in evaluate]
    ceilings = {label: int(n[1]) if n else common for label, n in zip(labels(), asked, strict=True)}
    drawn = False
    if has_sizes(found):
        drawn = figures.draw_sweep(found, ceilings, f"{target}.png")
    elif any("best_val_loss" in row for row in found):
        drawn = figures.draw_losses(found, curves(rows), f"{target}.png")
    if drawn:
        print(f"figure: {target}.png")
    if any(figures.WAITED.fullmatch(k) for row in found for k in row) and figures.draw_waiting(
            found, f"{target}_waiting.png"):
        print(f"figure: {target}_waiting.png")
    fixed = any(run["settings"].get("fresh_rows") is False for run in runs)
    if fixed and rows and figures.draw_fit(rows, f"{target}_fit.png"):
        print(f"figure: {target}_fit.png")
    states = figures.read_table(path) if os.path.exists(path := f"{target}_states.csv") else []
    of_every_loop = any((r["what"], r["loop"]) == ("norm", 1) for r in states)  # older tables have the last ones alone
    if of_every_loop and figures.draw_states(states, f"{target}_states.png"):
        print(f"figure: {target}_states.png")


def draw_again(runs, target):
    """The figures from tables that are there already. SystemExit if they are not."""
    path = f"{target}_curves.csv"
    if not os.path.exists(f"{target}.csv"):
        raise SystemExit(f"{target}.csv is not there: nothing to draw")
    found = outputs.read_csv(f"{target}.csv")
    rows = figures.read_table(path) if os.path.exists(path) else []
    draw(runs, found, [r | dict(row=str(r["row"])) for r in rows], target)


def main():
    globals().update(configure(__file__)[0])
    files = [x for x in sys.argv[1:] if not x.startswith("--")]
    if len(files) != 1:
        raise SystemExit("usage: python sweep.py config/sweep_demo.py [--key=value ...]; --help lists all keys")
    name = os.path.splitext(os.path.basename(files[0]))[0]
    root, tables = out_dir or f"out/{name}", results or f"results/{name}"
    if compare:
        return print_comparison(f"{tables}.csv", compare)
    runs = plan(files[0], root)
    if dry_run:
        raise SystemExit(print("\n".join(" && ".join(as_typed(c, run["ranks"]) for c in run["steps"].values())
                                         for run in runs)))
    if redraw:
        return draw_again(runs, tables)
    for end in ("csv", "md"):
        outputs.require_writable(f"{tables}.{end}")
    outputs.lock_folder(root)
    runtime.on_stop(pass_on, kill_all)
    failed = run_all(runs, tables)
    if failed:
        print(f"failed: {'; '.join(failed)}")
    raise SystemExit(130 if stopping else bool(failed))


if __name__ == "__main__":
    runtime.run(main)
