"""Let a checkpoint write, and print what it thinks: a row a token, a bar a loop.

    python sample.py --out_dir=out/demo_addition --start="123+456="
    python sample.py --checkpoint=out/x/ckpt_last.pt --start="1+2= 999+1=" --halt=entropy --halt_threshold=0.1
    python sample.py --out_dir=out/train_loop_1x12 --start="ROMEO:" --num_samples=3 --trace=True
    python sample.py --start=FILE:prompts.txt --trace_file=trace.jsonl --trace_png=trace.png

Addition problems are written as people write them; several are parted by spaces, commas or lines.
"""
import json
import math

import numpy as np
import torch

import addition
import dataset as datasets
import runtime
from configurator import class_settings, configure
from model_loop import HALTING, LoopConfig, LoopGPT, from_checkpoint

checkpoint = ""                 # a checkpoint file; empty: ckpt_best.pt, else ckpt_last.pt, of out_dir
out_dir = "out"                 # where train.py wrote
start = ""                      # the prompt or the problems, or FILE:path; empty: a new line, or three problems
num_samples = 1                 # samples of each prompt
max_new_tokens = 200            # text: tokens to write
temperature: float | None = None  # 0 takes the likeliest token; None: 0.8 for text, 0 for addition
top_k = 200                     # text: only the likeliest so many tokens can be drawn; 0: all
seed = 1337                     # of the draws
trace: bool | None = None       # print the thinking trace; None: of addition only
trace_file = ""                 # also write the trace as JSON lines, one a token
trace_png = ""                  # also draw it as a heat map
device = "auto"                 # auto, cpu, cuda
dtype = "float32"               # float32, or bfloat16 by autocast

BARS = "▁▂▃▄▅▆▇█"
SHOWN = {"\n": "⏎", " ": "␣"}


def show(token):
    """A token as one visible string."""
    text = datasets.decode(meta, [token])
    return SHOWN.get(text, text)


def read_prompts():
    """The prompts as token ids, each with its problem (track N and P) or None."""
    text = start
    if start.startswith("FILE:"):
        try:
            with open(start[5:], encoding="utf-8") as f:
                text = f.read()
        except (OSError, UnicodeDecodeError) as e:
            raise SystemExit(f"--start={start}: {e}") from None
    if meta.kind != "rows":
        return [(datasets.encode(meta, text or "\n"), None)]
    problems = (text or "57+68= 999+1= 1234+8766=").replace(",", " ").split()
    found = []
    for p in problems:
        datasets.encode(meta, p)  # names characters outside the vocabulary
        try:
            problem = addition.with_zeros(addition.read_problem(p), meta.zeros)
        except ValueError as e:
            raise SystemExit(f"--start: {e}") from None
        found.append((addition.prompt_tokens(problem, meta.track, meta.plain).tolist(), problem))
    return found


@torch.no_grad()
def write(prompt, problem):
    """The whole sequence after a prompt, and the tokens that each of its positions wrote (None in the prompt)."""
    idx, n = torch.tensor([prompt], device=device), len(prompt)
    if problem is None:
        out = model.generate(idx, max_new_tokens, 0.8 if temperature is None else temperature, top_k)[0].tolist()
        return out, [None] * (n - 1) + out[n:] + [None]
    if meta.track == "slots":
        said = model.logits(idx)[0].argmax(-1).tolist()
        return prompt, [s if t == addition.ID[addition.SLOT] else None for t, s in zip(prompt, said, strict=True)]
    longest = int(max(problem[1][0], problem[3][0])) + 3
    out = model.generate(idx, longest, temperature or 0, top_k, stop=addition.ID[addition.END])[0].tolist()
    return out[:-1], [None] * (n - 1) + out[n:]


def answer_line(problem, written):
    """123+456=579, and the right sum beside an answer that is not right token for token, end symbol included."""
    a, la, b, lb = problem
    x, y = (int(addition.number_text(d[0][:n[0]])) for d, n in ((a, la), (b, lb)))
    written = [w for w in written if w is not None]
    row = addition.write_rows(*problem, addition.row_length(a.shape[1], meta.track), meta.track, meta.plain)
    right = written == row[addition.answer_mask(row)].tolist()
    return f"{x}+{y}={addition.number_text(written, meta.plain)}" + ("" if right else f"   (wrong: {x + y})")


def bar(values, largest):
    """A small bar a loop for values (L,) of 0..largest, blank where the token had halted."""
    return "".join(" " if math.isnan(v) else BARS[min(7, int(8 * v / largest))] for v in values)


def print_trace(rows):
    """The trace of one sequence: what each token reads and writes, its loops, entropy and guesses loop by loop."""
    largest = math.log(meta.vocab_size)
    width = max(7, *(r["loops"] for r in rows))
    print(f"  reads writes loops  {'entropy':<{width}}  last  guess after each loop")
    for r in rows:
        guesses = " ".join(r["prediction"][:r["loops"]])
        entropy = [math.nan if e is None else e for e in r["entropy"]]
        last = entropy[r["loops"] - 1] if r["loops"] else math.nan
        print(f"  {r['reads']:>5} {r['writes'] or '·':>6} {r['loops']:>5}  {bar(entropy[:width], largest):<{width}} "
              f"{last:>5.2f}  {guesses}")


def trace_rows(sequence, written, sample):
    """The trace of one sequence as dicts of plain values, one a token; None for NaN."""
    _, record = model.think(torch.tensor([sequence], device=device))
    record = {k: v[0].cpu() for k, v in record.items()}
    rows = []
    for t, (reads, writes) in enumerate(zip(sequence, written, strict=True)):
        row = dict(sample=sample, position=t, reads=show(reads), writes=None if writes is None else show(writes),
                   loops=int(record["loops"][t]), prediction=[show(p) for p in record["prediction"][t]])
        for key in ("entropy", "confidence", "delta"):
            row[key] = [None if math.isnan(x) else round(x, 6) for x in record[key][t].tolist()]
        rows.append(row)
    return rows


def draw_trace(traces, titles, path):
    """Heat maps, one a sequence: tokens down, loops across, dark where the model is unsure; its guesses written in."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    traces, titles = traces[:6], titles[:6]
    longest = min(60, max(map(len, traces)))
    L = max(1, *(r["loops"] for rows in traces for r in rows))
    figure, axes = plt.subplots(1, len(traces), figsize=(1.2 + len(traces) * (0.9 + 0.42 * L), 1.2 + 0.28 * longest),
                                layout="constrained", squeeze=False)
    for ax, rows, title in zip(axes[0], traces, titles, strict=True):
        rows = rows[:longest]
        entropy = np.array([[math.nan if e is None else e for e in r["entropy"][:L]] for r in rows])  # (T,L)
        image = ax.imshow(entropy, cmap="Greys", vmin=0, vmax=math.log(meta.vocab_size), aspect="auto")
        ax.set_facecolor("#dfe9f2")  # where a token had halted
        for t, l in zip(*np.nonzero(~np.isnan(entropy)), strict=True):
            dark = entropy[t, l] > 0.6 * math.log(meta.vocab_size)
            ax.text(l, t, rows[t]["prediction"][l], ha="center", va="center", color="w" if dark else "k", fontsize=9)
        ax.set_xticks(range(L), range(1, L + 1))
        ax.set_yticks(range(len(rows)), [r["reads"] + (f" → {r['writes']}" if r["writes"] else "") for r in rows])
        ax.set(xlabel="loop", title=title)
        ax.title.set_fontsize(9)
    axes[0][0].set_ylabel("token read → written")
    figure.colorbar(image, ax=axes[0], label="entropy (nats); tinted: halted", shrink=min(1, 5 / longest + 0.3))
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as e:
        raise SystemExit(f"--trace_png={path}: {e}") from None
    plt.close(figure)


settings, overrides, given = configure(__file__, {
    "halting settings, by default as in the checkpoint": class_settings(LoopConfig, HALTING)})
globals().update(settings)
device = runtime.choose_device(device)
dtype = runtime.choose_dtype(dtype, device)
path = runtime.find_checkpoint(checkpoint, out_dir)
saved = runtime.load_checkpoint(path)
meta = datasets.checkpoint_meta(saved)
try:
    model = from_checkpoint(saved, **{k: v for k, v in overrides.items() if k in given}).to(device)
except (ValueError, RuntimeError) as e:
    raise SystemExit(f"{path}: {e}") from None
printing = meta.kind == "rows" if trace is None else trace
tracing = bool(trace_file or trace_png or printing)
if tracing and not isinstance(model, LoopGPT):
    if trace or trace_file or trace_png:
        raise SystemExit(f"{path} is a plain GPT, which has no loops to trace")
    tracing = False
runtime.seed_torch(seed)
traces, titles = [], []
with runtime.autocast(device, dtype), torch.no_grad():
    for prompt, problem in read_prompts():
        for _ in range(num_samples):
            try:
                sequence, written = write(prompt, problem)
            except ValueError as e:
                raise SystemExit(f"sample.py: {e}") from None
            titles.append(answer_line(problem, written) if problem else "")
            print(titles[-1] if problem else datasets.decode(meta, sequence) + "\n---------------")
            if tracing:
                context = model.config.block_size if model.learned_positions else len(sequence)  # of generate, too
                traces.append(trace_rows(sequence[-context:], written[-context:], len(traces)))
                if printing:
                    print_trace(traces[-1])
if trace_file:
    with runtime.open_output(trace_file) as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for rows in traces for row in rows)
    print(f"trace: {trace_file}")
if trace_png:
    draw_trace(traces, titles, trace_png)
    print(f"heat map: {trace_png}")
