"""Let a checkpoint write, and print what it thinks: a row per token, a bar per loop.

    python sample.py --out_dir=out/demo_addition --start="123+456="
    python sample.py --checkpoint=out/x/ckpt_last.pt --start="1+2= 999+1=" --halt=entropy --halt_threshold=0.1
    python sample.py --out_dir=out/train_loop_1x12 --start="ROMEO:" --num_samples=3 --trace=True
    python sample.py --start=FILE:prompts.txt --trace_file=trace.jsonl --trace_png=trace.png

Addition problems are written as people write them; several are parted by spaces, commas or lines.
"""
import json
import math
import re

import torch

import addition
import figures
import outputs
import runtime
from checkpoint import inference_settings, open_model
from configurator import configure, open_text, say_without_effect
from dataset import decode, encode
from model_loop import LoopGPT, idle_settings

checkpoint = ""                 # a checkpoint file; empty: ckpt_best.pt, else ckpt_last.pt, of out_dir
out_dir = "out"                 # where train.py wrote
start = ""                      # the prompt or the problems, or FILE:path; empty: a new line, or three problems
num_samples = 1                 # >= 1: samples of each prompt
max_new_tokens = 200            # >= 0: text: tokens to write
temperature: float | None = None  # 0 or >= 1e-6: 0 takes the likeliest token; None: 0.8 for text, 0 for addition
top_k = 200                     # >= 0: text: only the likeliest so many tokens can be drawn; 0: all
seed = 1337                     # >= 0: of the draws
trace: bool | None = None       # print the thinking trace; None: of addition only
trace_file = ""                 # also write the trace as JSON lines, one per token
trace_png = ""                  # also draw it as a heat map
device = "auto"                 # auto, cpu, cuda
dtype = "float32"               # float32, or bfloat16 by autocast

BARS = "▁▂▃▄▅▆▇█"
SHOWN = {"\n": "⏎", " ": "␣"}


def show(meta, token):
    """A token as one visible string."""
    text = decode(meta, [token])
    return SHOWN.get(text) or (text if text.isprintable() else repr(text)[1:-1])


def default_prompt(meta):
    """A new line; where the text has none a space, else its first character, with a line that says so."""
    if meta.vocab is None or "\n" in meta.vocab:
        return "\n"
    text = " " if " " in meta.vocab else meta.vocab[0]
    print(f"start: {text!r}, for the text has no new line")
    return text


def read_prompts(meta):
    """The prompts as token ids, each with its problem (track N and P) or None."""
    text = start
    if start == "FILE:":
        raise SystemExit("--start=FILE: names no file; write --start=FILE:prompts.txt")
    if start.startswith("FILE:"):
        with open_text(start[5:]) as f:
            text = f.read()
    if meta.kind != "rows":
        if start and not text:
            raise SystemExit(f"--start={start}: the file is empty")
        return [(encode(meta, text or default_prompt(meta)), None)]
    found, text = [], text if start else "57+68= 999+1= 1234+8766="
    for word in re.sub(r"\s*\+\s*|\s+(?==)", lambda m: m[0].strip(), text).replace(",", " ").split():
        encode(meta, word)  # names characters outside the vocabulary
        try:
            problem = addition.with_zeros(addition.read_problem(word), meta.zeros)
        except ValueError as e:
            raise SystemExit(f"--start: {e}") from None
        found.append((addition.prompt_tokens(problem, meta.track, meta.plain).tolist(), problem))
    if not found:
        raise SystemExit(f"--start={start!r}: no problem in it; write one as 123+456=")
    return found


@torch.no_grad()
def write(model, meta, prompt, problem):
    """The whole sequence after a prompt, and the tokens that each of its positions wrote (None in the prompt)."""
    idx, n = torch.tensor([prompt], device=model.lm_head.weight.device), len(prompt)
    if problem is None:
        out = model.generate(idx, max_new_tokens, 0.8 if temperature is None else temperature, top_k)[0].tolist()
        return out, [None] * (n - 1) + out[n:] + [None]
    if meta.track == "slots":
        said = model.logits(idx)[0].argmax(-1).tolist()
        return prompt, [s if t == addition.ID[addition.SLOT] else None for t, s in zip(prompt, said, strict=True)]
    longest = int(max(problem[1][0], problem[3][0])) + 3
    out = model.generate(idx, longest, temperature or 0, top_k, stop=addition.ID[addition.END])[0].tolist()
    return out[:-1], [None] * (n - 1) + out[n:]


def answer_line(meta, problem, written):
    """123+456=579, and the right sum beside an answer that is not right token for token, end symbol included."""
    a, la, b, lb = problem
    x, y = (int(addition.number_text(d[0][:n[0]])) for d, n in ((a, la), (b, lb)))
    written = [w for w in written if w is not None]
    row = addition.write_rows(*problem, addition.row_length(a.shape[1], meta.track), meta.track, meta.plain)
    right = written == row[addition.answer_mask(row)].tolist()
    return f"{x}+{y}={addition.number_text(written, meta.plain)}" + ("" if right else f"   (wrong: {x + y})")


def bar(values, largest):
    """A small bar per loop for values (L,) of 0..largest, blank where the token had halted."""
    return "".join(" " if math.isnan(v) else BARS[min(7, int(8 * v / largest))] for v in values)


def print_trace(rows, largest):
    """The trace of one sequence: what each token reads and writes, its loops, entropy and guesses loop by loop.

    largest: the entropy of a guess that knows nothing, a full bar.
    """
    width = max(7, *(r["loops"] for r in rows))
    print(f"  reads writes loops  {'entropy':<{width}}  last  guess after each loop")
    for r in rows:
        guesses = " ".join(r["prediction"][:r["loops"]])
        entropy = [math.nan if e is None else e for e in r["entropy"]]
        last = f"{entropy[r['loops'] - 1]:.2f}" if r["loops"] else ""  # a pad has taken no loop
        print(f"  {r['reads']:>5} {r['writes'] or '·':>6} {r['loops']:>5}  {bar(entropy[:width], largest):<{width}} "
              f"{last:>5}  {guesses}".rstrip())


def passes(sequence, written, context):
    """The passes by which generate wrote a sequence, each over `context` tokens at most, as (start, end, own): over the
    positions start to end, of which the last `own` are shown. Up to the context's end the tokens of one are those of
    all before it; from there on every token was written from another window.
    """
    prompt = 1 + next((t for t, w in enumerate(written) if w is not None), len(sequence) - 1)
    start = max(0, prompt - context)
    end = min(start + context, len(sequence))
    return [(start, end, end - start)] + [(e - context, e, 1) for e in range(end + 1, len(sequence) + 1)]


def trace_rows(model, meta, sequence, written, number):
    """The trace of one sequence as dicts of plain values, one per token, of the pass that wrote what stands there; None
    for NaN. number: of the sequence."""
    context, rows = model.config.block_size if model.learned_positions else len(sequence), []
    for start, end, own in passes(sequence, written, context):
        _, record = model.think(torch.tensor([sequence[start:end]], device=model.lm_head.weight.device))
        record = {k: v[0, -own:].cpu() for k, v in record.items()}
        for i, t in enumerate(range(end - own, end)):
            row = dict(sample=number, position=t, context_start=start, reads=show(meta, sequence[t]),
                       writes=None if written[t] is None else show(meta, written[t]),
                       loops=int(record["loops"][i]), prediction=[show(meta, p) for p in record["prediction"][i]])
            for key in ("entropy", "confidence", "delta"):
                row[key] = [None if math.isnan(x) else round(x, 6) for x in record[key][i].tolist()]
            rows.append(row)
    return rows


def write_trace(rows, first):
    """Write the trace of a sequence as JSON lines, in the place of what stood in trace_file or, if not first, after it.
    Raises OSError."""
    with outputs.whole_file(trace_file) if first else outputs.appending(trace_file) as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def say_what_no_trace_shows(rows):
    """A line on what the trace of a sequence beyond the context leaves out; no line if it leaves out nothing."""
    first, last = rows[0]["context_start"], rows[-1]
    left = [f"the first {first} tokens, which no pass read"] * (first > 0)
    if last["context_start"] > first:
        size = last["position"] + 1 - last["context_start"]
        left += [f"from position {first + size} on, what each pass made of the {size - 1} tokens before its last one"]
    if left:
        print(f"trace: not shown, as the context ends at block_size: {'; '.join(left)}")


def what_is_drawn(traces):
    """What a heat map shows of the traces, in brackets; "" if that is all."""
    part, longest = [], max(map(len, traces))
    if len(traces) > figures.TRACES:
        part.append(f"the first {figures.TRACES} of {len(traces)} sequences")
    if longest > figures.TOKENS:
        part.append(f"the first {figures.TOKENS} of up to {longest} tokens")
    return f" ({', '.join(part)}; --trace_file=FILE has all)" if part else ""


def samples(model, meta):
    """Write after every prompt, num_samples times each, and print it: yields (sequence, tokens written, title).

    The title is the line of the answer, "" for text.
    """
    prompts = read_prompts(meta)
    for prompt, problem in prompts:
        if problem and not model.learned_positions:
            try:  # numbers that are too long should fail before the first answer is written
                model.embed(torch.tensor([prompt], device=model.lm_head.weight.device))
            except ValueError as e:
                raise SystemExit(f"--start: {e}") from None
    for prompt, problem in prompts:
        for _ in range(num_samples):
            try:
                sequence, written = write(model, meta, prompt, problem)
            except ValueError as e:
                raise SystemExit(f"sample.py: {e}") from None
            title = answer_line(meta, problem, written) if problem else ""
            print(title if problem else decode(meta, sequence) + "\n---------------")
            yield sequence, written, title


def say_idle_settings(model, meta):
    """One line on keys of the command line that do nothing here."""
    rows, slots = meta.kind == "rows", meta.kind == "rows" and meta.track == "slots"
    greedy = not (temperature or temperature is None and not rows)
    say_without_effect(
        *idle_settings(model.config),
        (rows, "an answer has an end", "max_new_tokens"),
        (slots, "the slots are read out at once, nothing is drawn", "temperature", "top_k", "seed"),
        (greedy, "temperature is 0, nothing is drawn", "top_k", "seed"),
        (checkpoint, "checkpoint is given", "out_dir"))


def main():
    settings, further, given = configure(__file__, inference_settings())
    globals().update(settings)
    machine = runtime.choose_device(device)
    overrides = {k: v for k, v in further.items() if k in given}
    model, meta, _, path = open_model(checkpoint, out_dir, machine, overrides)
    printing, looped = meta.kind == "rows" if trace is None else trace, isinstance(model, LoopGPT)
    if (trace or trace_file or trace_png) and not looped:
        raise SystemExit(f"{path} is a plain GPT, which has no loops to trace")
    say_idle_settings(model, meta)
    tracing, largest = looped and bool(trace_file or trace_png or printing), math.log(max(2, meta.vocab_size))
    runtime.seed_torch(seed)
    traces, titles, kept = [], [], 0
    if trace_file:
        outputs.require_writable(trace_file)
    with runtime.autocast(machine, runtime.choose_dtype(dtype, machine)), torch.no_grad():
        for sequence, written, title in samples(model, meta):
            if tracing:
                traces.append(trace_rows(model, meta, sequence, written, len(traces)))
                titles.append(title)
                if trace_file:
                    with outputs.going_on(trace_file):
                        write_trace(traces[-1], first=not kept)
                        kept += 1
                if printing:
                    print_trace(traces[-1], largest)
                say_what_no_trace_shows(traces[-1])
    if trace_png and figures.draw_traces(traces, titles, largest, trace_png):
        print(f"heat map: {trace_png}{what_is_drawn(traces)}")
    if trace_file and kept < len(traces):
        raise SystemExit(f"{trace_file} has {kept} of {len(traces)} traces, since it could not be written")
    if trace_file:
        print(f"trace: {trace_file}")


if __name__ == "__main__":
    runtime.run(main, "--max_new_tokens, or take a smaller model")
