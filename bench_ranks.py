"""What a second GPU is worth in a training, for bench.py --ranks=2: train.py on one GPU and on several, by torchrun, a
model with loops beside one with layers; and what to expect of more GPUs.

A time is the median of the logged ms per step of a run of its own, on a text of random characters, which train.py sees
no difference in. c(B) is a step of B sequences on one GPU, a(n) what n GPUs add to it.
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

ROOT = os.path.dirname(os.path.abspath(__file__))
MODELS = {"1 x 12": ("config/train_loop_1x12.py", 0.60), "12 layers": ("config/train_gpt_12l.py", 0.65)}  # and bar
BATCH = 64                      # sequences of a step of one GPU
DOUBLED = 1.85                  # bar: tokens per second where each GPU has as many sequences as one alone
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


def read_json(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def train(folder, model, job, device, quick):
    """A row of the table: train.py run with the settings of a job, in a folder."""
    (what, ranks, sequences, more), (config, _) = job, MODELS[model]
    steps, sequences = (60, sequences // 16) if device == "cpu" else (100 if quick else 300, sequences)
    out_dir = f"{model} {what}".replace(" ", "_").replace(",", "")
    command = [os.path.join(ROOT, "train.py"), os.path.join(ROOT, config), "--dataset=noise", f"--out_dir={out_dir}",
               f"--device={device}", f"--batch_size={sequences}", f"--gradient_accumulation_steps={ranks}",
               f"--max_iters={steps}", "--eval_iters=1", f"--eval_interval={steps}", "--log_interval=10", *more]
    command += TINY if device == "cpu" else ["--compile=False"] if quick else []
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    row = dict(model=model, what=what, ranks=ranks, sequences=sequences * ranks)
    log_path = os.path.join(folder, f"{out_dir}.log")
    with open(log_path, "w+", encoding="utf-8", errors="replace") as f:
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
        why = f"more than {TIMEOUT} s" if late else f"exit status {process.returncode}, see above"
        return row | dict(note=f"FAILED: {why}")
    log, _ = outputs.read_log(os.path.join(folder, out_dir, "log.csv"))
    config, found = (read_json(os.path.join(folder, out_dir, name)) for name in ("config.json", "summary.json"))
    ms = [float(r["ms"]) for r in log if r.get("ms") and int(r["iter"]) > steps // 3]  # after compilers and captures
    tokens = row["sequences"] * config["block_size"]
    weights = found["parameters"] + config["block_size"] * config["n_embd"]  # positions are not counted there
    return row | dict(ms=round(statistics.median(ms), 3), tokens_s=round(tokens / statistics.median(ms) * 1e3),
                      gradient_mb=round(4e-6 * weights, 2), note=f"{min(ms):.2f} to {max(ms):.2f}")


def judge(row, rows):
    """The row with its ratio to the model on one GPU, and the bar that this is held against."""
    one = next((r for r in rows if r["model"] == row["model"] and r["what"] == "one" and "ms" in r), None)
    if one is None or "ms" not in row or row["ranks"] == 1:
        return row
    time, speed = row["ms"] / one["ms"], row["tokens_s"] / one["tokens_s"]
    if row["what"] == "same batch":
        met, words = time <= MODELS[row["model"]][1], f"time <= {MODELS[row['model']][1]}"
    elif row["what"] == "batch of each":
        met, words = speed >= DOUBLED, f"tokens per second >= {DOUBLED}"
    else:
        return row | dict(ratio=round(time, 3))
    return row | dict(ratio=round(speed if "tokens" in words else time, 3),
                      bar=f"{words} {'met' if met else 'MISSED'}")


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
        moved = mb * 2 * (ranks - 1) / ranks
        within = moved / added if added > 0 else WITHIN  # MB per ms are GB/s
        cells = []
        for n in (2, 8, 64):
            ms = alone + mb * 2 * (n - 1) / n / (within if n <= 8 else min(within, BETWEEN))
            cells.append(f"{n} GPUs {ms:.2f} ms ({100 * alone / ms:.0f}% of each)")
        lines.append(f"{model}: gradients {mb:.1f} MB, c({seen['one']['sequences']}) {alone:.2f} ms, a({ranks}) "
                     f"{added:.2f} ms ({within:.0f} GB/s); expected: {', '.join(cells)}")
    return lines


def measure(ranks, device, quick, emit):
    """Run everything, emit(row) after each; the lines of `expected`. Runs on one GPU go side by side."""
    rows = []

    def done(row):
        rows.append(judge(row, rows))
        emit(rows[-1])
    with tempfile.TemporaryDirectory() as folder:
        write_text(folder)
        alone = [(model, job) for model in MODELS for job in jobs(ranks) if job[1] == 1]
        at_once = 1 if device == "cpu" else min(ranks, len(alone))
        free = list(range(at_once))

        def on_one(task):
            number = free.pop()
            try:
                return train(folder, *task, device if device == "cpu" else f"cuda:{number}", quick)
            finally:
                free.append(number)
        with ThreadPoolExecutor(at_once) as pool:
            for row in pool.map(on_one, alone):
                done(row)
        for model in MODELS:
            for job in jobs(ranks):
                if job[1] > 1:
                    done(train(folder, model, job, device, quick))
    return expected(rows, ranks)


def markdown(rows):
    lines = ["| model | run | GPUs | sequences | ms per step | tokens per second | of one GPU | bar |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for r in rows:
        measured = [f"{r['ms']:.2f}", f"{r['tokens_s']:,}"] if "ms" in r else [r["note"], ""]
        cells = [r["model"], r["what"], r["ranks"], r["sequences"], *measured, r.get("ratio", ""), r.get("bar", "")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
