"""What more GPUs are worth in a training, for bench.py --ranks=8: train.py on one GPU, on two, four, eight, by
torchrun, a model with loops beside one with layers; what two GPUs lead to expect of more, and what more then reach.

First parity: captured steps of all ranks, interrupted and resumed, against plain ones of one process with as many
micro-steps. Then speed: a time is the median of the logged ms per step of a run of its own, after 50 steps, on a text
of random characters, which costs a step what any other does. c(B) is a step of B sequences on one GPU, a(n) what n GPUs
add: the share of the exchange is a(n) of c(B) + a(n), as far as it does not hide behind the arithmetic.

A run takes most of a minute, nearly all of it compiling. So the table is whole after each of them, and the same command
goes on with it on the same machine.
"""
import csv
import hashlib
import json
import os
import platform
import random
import statistics
import string
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed

import gpus
import outputs
import runtime

ROOT = os.path.dirname(os.path.abspath(__file__))
MODELS = {"1 x 12": ("config/train_loop_1x12.py", 0.60), "12 layers": ("config/train_gpt_12l.py", 0.65)}  # and bar
BATCH = 64                      # sequences of a step of one GPU
EACH = {2: 1.85, 4: 3.4, 8: 6}  # bar: times the tokens per second where each GPU has as many sequences as one alone
CLOSE = 1e-4                    # bar: losses of parity
TINY = ("--n_embd=32", "--n_head=2", "--block_size=16")  # on a CPU: that it works, nothing else
WITHIN, BETWEEN = 300, 50       # GB/s that an all-reduce moves: NVLink of one host, if not measured; a network card
TIMEOUT = 240                   # seconds of a run
COLUMNS = ("model", "what", "ranks", "sequences", "ms", "tokens_s", "gradient_mb", "ratio", "exchange", "expected_ms",
           "bar", "note", "machine", "commit")
NUMBERS = COLUMNS[2:10]
running, lock, ending = [], threading.Lock(), threading.Event()  # processes; whether all of them are to end


def jobs(ranks):
    """The runs of a model on one GPU, on two, and so on to all: (what, ranks, sequences of each rank, settings)."""
    counts = [n for n in (2, 4, 8) if n < ranks] + [ranks]
    plain = ("--cuda_graph=False",)
    return [("one", 1, BATCH, ()), ("one, plain", 1, BATCH, plain)] + [
        ("one, its share", 1, BATCH // n, ()) for n in counts] + [job for n in counts for job in (
            ("same batch", n, BATCH // n, ()), ("batch of each", n, BATCH, ()),
            ("same batch, plain", n, BATCH // n, plain), ("batch of each, plain", n, BATCH, plain))]


def write_text(folder):
    """A dataset data/noise in the folder: characters at random, as many different ones as tinyshakespeare has."""
    symbols = (string.ascii_letters + string.digits + " .\n")[:65]
    with open(os.path.join(folder, "noise.txt"), "w", encoding="utf-8") as f:
        f.write(symbols + "".join(random.Random(0).choices(symbols, k=400_000)))
    subprocess.run([sys.executable, os.path.join(ROOT, "data/text/prepare.py"), "--input=noise.txt"], cwd=folder,
                   check=True, capture_output=True)


def launch(folder, config, ranks, device, *words, environment=None):
    """Run train.py with a config on the noise in a folder. RuntimeError if it fails, once its last lines are shown."""
    command = [os.path.join(ROOT, "train.py"), os.path.join(ROOT, config), "--dataset=noise", f"--device={device}",
               "--eval_iters=1", *words, *(TINY if device == "cpu" else ())]
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as f:
        with lock:
            if ending.is_set():
                raise KeyboardInterrupt
            process = subprocess.Popen([sys.executable, *start, *command], cwd=folder, stdout=f,
                                       stderr=subprocess.STDOUT, env=environment)
            running.append(process)
        late = False
        try:
            process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            late = True
            process.terminate()  # torchrun, which then ends its ranks
            process.wait()
        f.seek(0)
        said = f.read()
    if ending.is_set():
        raise KeyboardInterrupt
    if process.returncode:
        print(*said.splitlines()[-60:], sep="\n", flush=True)
        raise RuntimeError(f"more than {TIMEOUT} s" if late else f"exit status {process.returncode}, see above")


def end_all():
    """End the runs, and have no other one start."""
    with lock:
        ending.set()
        for process in running:  # those that have ended get no signal
            process.terminate()
    for process in running:
        process.wait()


def of_run(folder, out_dir, name):
    """A JSON file of a run, or the rows of its log that have a loss."""
    path = os.path.join(folder, out_dir, name)
    if name == "log.csv":
        return [r for r in outputs.read_log(path)[0] if r.get("loss")]
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def sequences_here(count, device):
    return max(1, count // 16) if device == "cpu" else count


# ---- parity

def parity(folder, model, ranks, device):
    """A row: how far the losses and the weights of captured steps of all ranks, resumed in the middle, are from those
    of plain ones of one process with as many micro-steps; float32, without dropout."""
    config, steps = MODELS[model][0], 20
    count = sequences_here(BATCH // ranks, device)
    common = [f"--gradient_accumulation_steps={ranks}", f"--batch_size={count}", f"--lr_decay_iters={steps}",
              "--warmup_iters=5", "--ema_decay=0.9", "--dropout=0", "--dtype=float32", "--deterministic=True",
              "--compile=False", "--log_interval=1", f"--eval_interval={steps}"]
    one, several = (f"{config[7:-3]}_parity_{name}" for name in ("one", "several"))
    launch(folder, config, 1, device, *common, "--cuda_graph=False", f"--max_iters={steps}", f"--out_dir={one}")
    half = (*common, f"--out_dir={several}")
    launch(folder, config, ranks, device, *half, f"--max_iters={steps // 2}")
    launch(folder, config, ranks, device, *half, f"--max_iters={steps}", "--init_from=resume")
    losses = [[float(r["loss"]) for r in of_run(folder, name, "log.csv")] for name in (one, several)]
    apart = max(abs(x - y) for x, y in zip(*losses, strict=True))
    weights = [runtime.load_checkpoint(os.path.join(folder, name, "ckpt_last.pt"))["ema"] for name in (one, several)]
    far = max((x - weights[1][k]).abs().max().item() for k, x in weights[0].items())
    met = apart <= CLOSE and len(losses[0]) == steps
    return dict(model=model, what="parity", ranks=ranks, sequences=count * ranks,
                bar=f"losses within {CLOSE:g} {'met' if met else 'MISSED'}",
                note=f"losses differ by {apart:.1e} at most, averaged weights by {far:.1e}, {steps} steps, resumed")


# ---- speed

def speed(folder, model, job, device, quick, environment):
    """A row: the time of a step of train.py with the settings of a job."""
    (what, ranks, sequences, more), config = job, MODELS[model][0]
    steps, count = 30 if device == "cpu" else 100 if quick else 250, sequences_here(sequences, device)
    out_dir = f"{config[7:-3]}_{what}_{ranks}_{sequences}".replace(" ", "_").replace(",", "")
    launch(folder, config, ranks, device, f"--out_dir={out_dir}", f"--batch_size={count}", f"--max_iters={steps}",
           f"--gradient_accumulation_steps={ranks}", f"--eval_interval={steps}", "--log_interval=10",
           *["--compile=False"] * quick, *more, environment=environment)
    settings, found = (of_run(folder, out_dir, f"{name}.json") for name in ("config", "summary"))
    # without those of compilers and captures
    ms = [float(r["ms"]) for r in of_run(folder, out_dir, "log.csv") if int(r["iter"]) > min(50, steps // 2)]
    weights = found["parameters"] + settings["block_size"] * settings["n_embd"]  # positions are not counted there
    return dict(model=model, what=what, ranks=ranks, sequences=count * ranks, ms=round(statistics.median(ms), 3),
                tokens_s=round(count * ranks * settings["block_size"] / statistics.median(ms) * 1e3),
                gradient_mb=round(4e-6 * weights, 2), note=f"{min(ms):.2f} to {max(ms):.2f}")


def exchange(mb, n, bandwidth):
    """a(n) in ms: of gradients of so many MB, 2 (n - 1) / n times that travels in and out of each of n GPUs; GB/s."""
    return mb * 2 * (n - 1) / n / bandwidth


def seen_on_two(rows, model):
    """The milliseconds a step of BATCH sequences takes on one GPU and what two GPUs add to it, the gradients in MB, and
    the MB per ms, which are GB/s, that this shows, if it shows any; None without both."""
    seen = {r["what"]: r for r in rows if r["model"] == model and r["ranks"] <= 2 and "ms" in r}
    if not {"one", "batch of each"} <= seen.keys():
        return None
    alone, mb = seen["one"]["ms"], seen["one"]["gradient_mb"]
    added = seen["batch of each"]["ms"] - alone
    return alone, added, mb, mb / added if added > 0 else WITHIN  # on two all of it travels once


def judge(row, rows):
    """The row beside the model on one GPU: its ratio, of steps as plain as its own; the share of its exchange; what two
    GPUs led to expect; and the bar that this is held against."""
    plain = ", plain" if row["what"].endswith("plain") else ""
    model, n, what = row["model"], row["ranks"], row["what"].removesuffix(plain)
    one = next((r for r in rows if r["model"] == model and r["what"] == f"one{plain}" and "ms" in r), None)
    if one is None or "ms" not in row or n == 1:
        return row
    time, per_second = row["ms"] / one["ms"], row["tokens_s"] / one["tokens_s"]
    row = row | dict(ratio=round(per_second if what == "batch of each" else time, 3))
    if plain:
        return row
    alone = one if what == "batch of each" else next((r for r in rows if r["model"] == model and "ms" in r and (
        r["what"] == "one, its share") and r["sequences"] * n == row["sequences"]), None)
    if alone:
        row["exchange"] = round(1 - alone["ms"] / row["ms"], 3)
        if n > 2 and (two := seen_on_two(rows, model)):
            row["expected_ms"] = round(alone["ms"] + exchange(two[2], n, two[3]), 3)
    if what == "same batch" and n == 2:
        bar = MODELS[model][1]
        return row | dict(bar=f"time <= {bar} {'met' if time <= bar else 'MISSED'}")
    if what == "batch of each" and n in EACH and (n == 2 or model == "1 x 12"):
        met = "met" if per_second >= EACH[n] else "MISSED"
        return row | dict(bar=f"tokens per second >= {EACH[n]} {met}")
    return row


def expected(rows):
    """Lines on the step to expect where each of n GPUs has as many sequences as one alone has: c(64) + a(n), by the
    bandwidth that a(2) shows within a host, between hosts by an assumed one."""
    lines = []
    for model in MODELS:
        if (two := seen_on_two(rows, model)) is None:
            continue
        alone, added, mb, within = two
        cells = []
        for n in (2, 4, 8, 64):
            ms = alone + exchange(mb, n, within if n <= 8 else min(within, BETWEEN))
            cells.append(f"{n} GPUs {ms:.2f} ms ({100 * alone / ms:.0f}% of each)")
        lines.append(f"{model}: gradients {mb:.1f} MB, c({BATCH}) {alone:.2f} ms, a(2) {added:.2f} ms "
                     f"({within:.0f} GB/s); expected: {', '.join(cells)}")
    return lines


# ---- all of it

def fingerprint(device, *settings):
    """What tells these GPUs, or this host, and the settings from others: all rows of a table have it in common."""
    names = sorted(gpus.visible()) if device != "cpu" else platform.node()
    return hashlib.sha256(json.dumps([names, *settings]).encode()).hexdigest()[:12]


def rows_there(path, machine):
    """The rows of a table that have not failed, if it is of the machine of this fingerprint; a line if it is not.
    SystemExit if it cannot be read, since it would be lost."""
    try:
        found = outputs.read_csv(path) if os.path.isfile(path) else []
        if any(r.get("machine") != machine for r in found):
            print(f"{path} is of another machine, of other versions or settings, or does not say: all is run anew")
            return []
        return [{k: json.loads(x) if k in NUMBERS else x for k, x in r.items() if x or k == "note"}
                for r in found if "FAILED" not in r["note"]]
    except (OSError, ValueError, TypeError, csv.Error) as e:
        raise SystemExit(f"{path} cannot be read ({e}): mend or remove it, or give another --out") from None


def todo(ranks, device, tables, only, rows):
    """The runs that are not among the rows, (model, job), of models whose names contain `only`: those of parity and of
    speed, as far as tables has them, plain steps last."""
    models = [model for model in MODELS if only in model]
    runs = [(model, ("parity", ranks, BATCH // ranks, ())) for model in models if "parity" in tables]
    runs += sorted([(model, job) for model in models for job in jobs(ranks) if "speed" in tables],
                   key=lambda run: ("plain" in run[1][0], run[1][1]))
    there = {tuple(r[k] for k in ("model", "what", "ranks", "sequences")) for r in rows}
    return [(model, job) for model, job in runs
            if (model, *job[:2], job[1] * sequences_here(job[2], device)) not in there]


def measure(runs, ranks, device, quick, emit, before=()):
    """Do the runs, as todo gives them: all rows, those before first; emit(rows, how many runs are left) after each.
    Runs go side by side where GPUs are free, and one that fails costs its row."""
    rows, on_gpu = list(before), device != "cpu"
    places = gpus.Places(gpus.visible() if on_gpu else [str(i) for i in range(ranks)], 1)

    def done(model, what, count, function, *args):
        try:
            row = function(*args)
        except (RuntimeError, OSError, ValueError, SystemExit) as e:
            row = dict(model=model, what=what, ranks=count, note=f"FAILED: {e}")
        return row

    def keep(row):
        rows.append(row)
        rows[:] = [judge(r, rows) for r in rows]  # those before, too: what they are held against may be new
        emit(rows, len(before) + len(runs) - len(rows))

    def speed_somewhere(model, job):
        names = places.take(job[1])
        environment = os.environ | (dict(CUDA_VISIBLE_DEVICES=",".join(names)) if on_gpu else {})
        try:
            return speed(folder, model, job, device, quick, environment)
        finally:
            places.give_back(names)

    def timed(task):
        model, job = task
        return done(model, job[0], job[1], speed_somewhere, model, job)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(ranks if on_gpu else 1) as pool:
        try:
            write_text(folder)
            for model in (model for model, job in runs if job[0] == "parity"):
                keep(done(model, "parity", ranks, parity, folder, model, ranks, device))
            # as they end: what has ended behind one that still runs is not lost to a stop
            for future in as_completed([pool.submit(timed, (model, job)) for model, job in runs if job[0] != "parity"]):
                keep(future.result())
        except BaseException:  # a signal; without this the pool waits for the end of each run, and for others
            end_all()
            raise
    return rows


def markdown(rows):
    lines = ["| model | run | GPUs | sequences | ms per step | expected from two | tokens per second | of one GPU | "
             "exchange | bar |", f"|{' --- |' * 10}"]
    for r in rows:
        hoped = f"{r['expected_ms']:.2f}" if "expected_ms" in r else ""
        measured = [f"{r['ms']:.2f}", hoped, f"{r['tokens_s']:,}"] if "ms" in r else [r["note"], "", ""]
        cells = [r["model"], r["what"], r["ranks"], r.get("sequences", ""), *measured, r.get("ratio", ""),
                 f"{r['exchange']:.1%}" if "exchange" in r else "", r.get("bar", "")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
