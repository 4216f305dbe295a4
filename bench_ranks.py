"""What a second GPU is worth in a training, for bench.py --ranks=2: train.py on one GPU and on several, by torchrun, a
model with loops beside one with layers; and what to expect of more GPUs.

First parity: captured steps of all ranks, interrupted and resumed, against plain ones of one process with as many
micro-steps. Then speed: a time is the median of the logged ms per step of a run of its own, on a text of random
characters, which costs a step what any other does. c(B) is a step of B sequences on one GPU, a(n) what n GPUs add.
"""
import json
import os
import random
import statistics
import string
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import outputs
import runtime

ROOT = os.path.dirname(os.path.abspath(__file__))
MODELS = {"1 x 12": ("config/train_loop_1x12.py", 0.60), "12 layers": ("config/train_gpt_12l.py", 0.65)}  # and bar
BATCH = 64                      # sequences of a step of one GPU
DOUBLED = 1.85                  # bar: tokens per second where each GPU has as many sequences as one alone
CLOSE = 1e-4                    # bar: losses of parity
TINY = ("--n_embd=32", "--n_head=2", "--block_size=16")  # on a CPU: that it works, nothing else
WITHIN, BETWEEN = 300, 50       # GB/s that an all-reduce moves: NVLink of one host, if not measured; a network card
TIMEOUT = 240                   # seconds of a run
COLUMNS = ("model", "what", "ranks", "sequences", "ms", "tokens_s", "gradient_mb", "ratio", "bar", "note")


def jobs(ranks):
    """The runs of a model: (what, ranks, sequences of each rank, further settings)."""
    return [("one", 1, BATCH, ()), ("one, its share", 1, BATCH // ranks, ()),
            ("same batch", ranks, BATCH // ranks, ()), ("batch of each", ranks, BATCH, ()),
            ("same batch, plain", ranks, BATCH // ranks, ("--cuda_graph=False",))]


def write_text(folder):
    """A dataset data/noise in the folder: characters at random, as many different ones as tinyshakespeare has."""
    symbols = (string.ascii_letters + string.digits + " .\n")[:65]
    with open(os.path.join(folder, "noise.txt"), "w", encoding="utf-8") as f:
        f.write(symbols + "".join(random.Random(0).choices(symbols, k=400_000)))
    subprocess.run([sys.executable, os.path.join(ROOT, "data/text/prepare.py"), "--input=noise.txt"], cwd=folder,
                   check=True, capture_output=True)


def launch(folder, config, ranks, device, *words):
    """Run train.py with a config on the noise in a folder. RuntimeError if it fails, once its last lines are shown."""
    command = [os.path.join(ROOT, "train.py"), os.path.join(ROOT, config), "--dataset=noise", f"--device={device}",
               "--eval_iters=1", *words, *(TINY if device == "cpu" else ())]
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as f:
        process = subprocess.Popen([sys.executable, *start, *command], cwd=folder, stdout=f, stderr=subprocess.STDOUT)
        late = False
        try:
            process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            late = True
            process.terminate()  # torchrun, which then ends its ranks
            process.wait()
        f.seek(0)
        said = f.read()
    if process.returncode:
        print(*said.splitlines()[-60:], sep="\n", flush=True)
        raise RuntimeError(f"more than {TIMEOUT} s" if late else f"exit status {process.returncode}, see above")


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

def speed(folder, model, job, device, quick):
    """A row: the time of a step of train.py with the settings of a job."""
    (what, ranks, sequences, more), config = job, MODELS[model][0]
    steps, count = 60 if device == "cpu" else 100 if quick else 300, sequences_here(sequences, device)
    out_dir = f"{config[7:-3]}_{what}".replace(" ", "_").replace(",", "")
    launch(folder, config, ranks, device, f"--out_dir={out_dir}", f"--batch_size={count}", f"--max_iters={steps}",
           f"--gradient_accumulation_steps={ranks}", f"--eval_interval={steps}", "--log_interval=10",
           *["--compile=False"] * quick, *more)
    settings, found = (of_run(folder, out_dir, f"{name}.json") for name in ("config", "summary"))
    # without those of compilers and captures
    ms = [float(r["ms"]) for r in of_run(folder, out_dir, "log.csv") if int(r["iter"]) > steps // 3]
    weights = found["parameters"] + settings["block_size"] * settings["n_embd"]  # positions are not counted there
    return dict(model=model, what=what, ranks=ranks, sequences=count * ranks, ms=round(statistics.median(ms), 3),
                tokens_s=round(count * ranks * settings["block_size"] / statistics.median(ms) * 1e3),
                gradient_mb=round(4e-6 * weights, 2), note=f"{min(ms):.2f} to {max(ms):.2f}")


def judge(row, rows):
    """The row with its ratio to the model on one GPU, and the bar that this is held against."""
    one = next((r for r in rows if r["model"] == row["model"] and r["what"] == "one" and "ms" in r), None)
    if one is None or "ms" not in row or row["ranks"] == 1:
        return row
    time, per_second = row["ms"] / one["ms"], row["tokens_s"] / one["tokens_s"]
    if row["what"] == "same batch":
        bar = MODELS[row["model"]][1]
        return row | dict(ratio=round(time, 3), bar=f"time <= {bar} {'met' if time <= bar else 'MISSED'}")
    if row["what"] == "batch of each":
        met = "met" if per_second >= DOUBLED else "MISSED"
        return row | dict(ratio=round(per_second, 3), bar=f"tokens per second >= {DOUBLED} {met}")
    return row | dict(ratio=round(time, 3))


def expected(rows, ranks):
    """Lines on the step to expect where each of n GPUs has as many sequences as one alone has: c(64) + a(n), a(n) the
    bytes of the gradients times 2 (n - 1) / n over the bandwidth; within a host that which a(`ranks`) shows, between
    hosts an assumed one."""
    lines = []
    for model in MODELS:
        seen = {r["what"]: r for r in rows if r["model"] == model and "ms" in r}
        if not {"one", "batch of each"} <= seen.keys():
            continue
        alone, mb = seen["one"]["ms"], seen["one"]["gradient_mb"]
        added = seen["batch of each"]["ms"] - alone
        within = mb * 2 * (ranks - 1) / ranks / added if added > 0 else WITHIN  # MB per ms are GB/s
        cells = []
        for n in (2, 8, 64):
            ms = alone + mb * 2 * (n - 1) / n / (within if n <= 8 else min(within, BETWEEN))
            cells.append(f"{n} GPUs {ms:.2f} ms ({100 * alone / ms:.0f}% of each)")
        lines.append(f"{model}: gradients {mb:.1f} MB, c({seen['one']['sequences']}) {alone:.2f} ms, a({ranks}) "
                     f"{added:.2f} ms ({within:.0f} GB/s); expected: {', '.join(cells)}")
    return lines


# ---- all of it

def measure(ranks, device, quick, tables, emit):
    """Run the tables, of parity and speed, emit(row) after each run; the lines of `expected`. Runs on one GPU go side
    by side, and one that fails costs its row."""
    rows = []

    def done(model, what, count, function, *args):
        try:
            row = function(*args)
        except (RuntimeError, OSError, ValueError, SystemExit) as e:
            row = dict(model=model, what=what, ranks=count, note=f"FAILED: {e}")
        return row

    def keep(row):
        rows.append(judge(row, rows))
        emit(rows[-1])
    at_once = 1 if device == "cpu" else ranks
    free = list(range(at_once))

    def alone(task):
        model, job = task
        number = free.pop()
        try:
            place = device if device == "cpu" else f"cuda:{number}"
            return done(model, job[0], 1, speed, folder, model, job, place, quick)
        finally:
            free.append(number)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(at_once) as pool:
        write_text(folder)
        for model in MODELS if "parity" in tables else ():
            keep(done(model, "parity", ranks, parity, folder, model, ranks, device))
        tasks = [(model, job) for model in MODELS for job in jobs(ranks)] if "speed" in tables else []
        for row in pool.map(alone, [task for task in tasks if task[1][1] == 1]):
            keep(row)
        for model, job in tasks:
            if job[1] > 1:
                keep(done(model, job[0], ranks, speed, folder, model, job, device, quick))
    return expected(rows, ranks)


def markdown(rows):
    lines = ["| model | run | GPUs | sequences | ms per step | tokens per second | of one GPU | bar |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for r in rows:
        measured = [f"{r['ms']:.2f}", f"{r['tokens_s']:,}"] if "ms" in r else [r["note"], ""]
        cells = [r["model"], r["what"], r["ranks"], r.get("sequences", ""), *measured, r.get("ratio", ""),
                 r.get("bar", "")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
