"""Let a checkpoint write, and print what it thinks: a row per token, a bar per loop.

    python sample.py --out_dir=out/demo_addition --start="123+456="
    python sample.py --checkpoint=out/x/ckpt_last.pt --start="1+2= 999+1=" --halt=entropy --halt_threshold=0.1
    python sample.py --out_dir=out/train_loop_1x12 --start="ROMEO:" --num_samples=3 --trace=True
    python sample.py --start=FILE:prompts.txt --trace_file=trace.html
    python sample.py --out_dir=out/novel                 asks for prompts until Ctrl-D; Ctrl-C ends a long answer
    echo "12+34=" | python sample.py --out_dir=out/demo_addition

Problems of a task are written as people write them; several are parted by lines, or as the task says. All problems and
samples are written at once, what each says does not depend on the others, and they are printed in their order. Where
learned positions end, at block_size, a text goes on with the second half of what it has read.
"""
import contextlib
import itertools
import json
import math
import os
import signal
import stat
import sys
import time
import unicodedata

import torch

import figures
import generate
import outputs
import runtime
import tasks
import think
import viewer
from checkpoint import inference_settings, open_model
from configurator import configure, open_text, say_without_effect
from dataset import decode, encode
from model_loop import LoopGPT, idle_settings

checkpoint = ""                 # a checkpoint file; empty: ckpt_best.pt, else ckpt_last.pt, of out_dir
out_dir = "out"                 # where train.py wrote
task = ""                       # the file of a task of your own, of which the checkpoint is
start = ""                      # the prompt or the problems, or FILE:path; if not given: asks, or reads a pipe
num_samples = 1                 # >= 1: samples of each prompt
max_new_tokens = 200            # >= 0: text: tokens to write
temperature: float | None = None  # 0 or >= 1e-6: 0 takes the likeliest token; None: 0.8 for text, 0 for tasks
top_k = 200                     # >= 0: text: only the likeliest so many tokens can be drawn; 0: all
seed = 1337                     # >= 0: of the draws, which are each sample's own
trace: bool | None = None       # print the thinking trace; None: of tasks only
trace_file = ""                 # also write the trace: name.jsonl, a line per token; name.html, to look at; name.png
reread = False                  # read every token's whole window again, instead of keeping keys and values: to compare
device = "auto"                 # auto, cpu, cuda, mps
dtype = "auto"                  # float32, bfloat16 by autocast, or auto: bfloat16 on a GPU that has it

BARS = "▁▂▃▄▅▆▇█"


def show(meta, token):
    """A token as one visible string."""
    return viewer.visible(decode(meta, [token]))


def default_prompt(meta):
    """A new line; where the text has none a space, else its first character, with a line that says so."""
    if meta.vocab is None or "\n" in meta.vocab:
        return "\n"
    text = " " if " " in meta.vocab else meta.vocab[0]
    print(f"start: {text!r}, for the text has no new line")
    return text


def examples(task, meta):
    """A text of problems for a start that names none."""
    if hasattr(task, "EXAMPLES"):
        return task.EXAMPLES
    tokens, *_ = tasks.problem_set(task, meta, tasks.sizes(task, meta)[0], 3)
    return "\n".join(tasks.show(task, row, meta).partition(task.THINK)[0] for row in tokens)


def start_text():
    """What --start says, "" if nothing."""
    if start == "FILE:":
        raise SystemExit("--start=FILE: names no file; write --start=FILE:prompts.txt")
    if not start.startswith("FILE:"):
        return start
    with open_text(start[5:]) as f:
        text = f.read()
    if not text:
        raise SystemExit(f"--start={start}: the file is empty, so there is no problem in it and no prompt")
    return text


def source():
    """Where the prompts come from, for a message about them."""
    return "--start" if start else "standard input"


def read_prompts(meta, text=None):
    """The prompts as token ids (on track slots with the slots), each with its problem or None: the row (T,) with the
    right answer, and where that stands (T,). text: that of them all; None: as --start says."""
    text = start_text() if text is None else text
    if meta.kind != "rows":
        return [(encode(meta, text or default_prompt(meta)), None)]
    task, found = tasks.load(meta.task), []
    if not text:
        outputs.warn("no prompt given: these are examples of the task")
    for problem in tasks.split(task, text or examples(task, meta)):
        try:
            row, answer = tasks.read(task, problem, meta)
        except ValueError as e:
            raise SystemExit(f"{source()}: {e}") from None
        if is_slots(meta):
            asked = tasks.inputs_and_targets(task, row[None], answer[None], "slots")[0][0]
        else:
            asked = row[:answer.argmax()]
        found.append((asked.tolist(), (row, answer)))
    if not found:
        given = f"--start={start}" if start else f"standard input, {text!r}"
        raise SystemExit(f"{given}: no problem in it; the task's own are {examples(task, meta)!r}")
    return found


class Sequence:
    """A prompt (tokens), its problem (row, answer) or None, and what is written after it or into its slots."""

    def __init__(self, prompt, problem):
        self.prompt, self.problem, self.complete = prompt, problem, False
        self.written, self.printed = [], 0  # tokens, and how many of prompt and written have been printed
        self.thought = []  # the trace: a dict of plain values for each token read, None for NaN
        self.guesses = []  # of each token read the arg-max after each loop, as tokens

    def take(self, meta, tokens, start, record):
        """Tokens written, and the trace of those that were read for it: a dict of think.think, or None."""
        self.written += tokens
        if record is None:
            return
        n, reads, slots = len(self.prompt), self.prompt, is_slots(meta)
        if slots:
            places, end = self.problem[1].nonzero()[0].tolist(), n
        else:
            reads, places = reads + self.written, range(n - 1, n + len(self.written))
            end = len(reads) - bool(tokens)  # the last one is not read yet
        writes = dict(zip(places, self.written, strict=False))
        at = range(end - len(record["loops"]), end)
        rows = viewer.trace_rows(record, [show(meta, reads[t]) for t in at],
                                 [show(meta, writes[t]) if t in writes else None for t in at], lambda x: show(meta, x))
        self.thought += [dict(position=t, context_start=start, **row) for t, row in zip(at, rows, strict=True)]
        self.guesses += record["prediction"].tolist()

    def print(self, meta):
        """Print what has come since the last time: text as it comes, an answer once it is complete."""
        if self.problem:
            if self.complete:
                print(self.title(meta), flush=True)
            return
        tokens = (self.prompt + self.written)[self.printed:]
        text = decode(meta, tokens)
        if self.complete or not text.endswith("\ufffd"):  # a character of which a token has only a part waits
            self.printed += len(tokens)
            print(text, end="\n---------------\n" if self.complete else "", flush=True)

    def title(self, meta):
        """The line of the answer, "" for text."""
        return answer_line(meta, self.problem, self.written) if self.problem else ""


def is_slots(meta):
    """Whether answers stand in slots, all read out at once."""
    return meta.kind == "rows" and meta.track == "slots"


def into_slots(model, sequences, trace):
    """As generate.write, for prompts with slots: each is read once."""
    for i, sequence in enumerate(sequences):
        idx = torch.tensor([sequence.prompt], device=model.lm_head.weight.device)
        logits, record = generate.read_whole(model, idx, trace)
        slots = sequence.problem[1].nonzero()[0].tolist()
        loops = None if record is None else [record["loops"][0, slots].tolist()]
        record = [{k: x[0] for k, x in record.items()}] if trace else None
        yield generate.Burst([i], [logits[0, slots].argmax(-1).tolist()], loops, [0], record, [True])


def bursts(model, meta, sequences, trace):
    """What is written after the prompts of sequences: yields a generate.Burst whenever there is something."""
    if is_slots(meta):
        return into_slots(model, sequences, trace)
    degree, stop = 0.8 if temperature is None else temperature, None
    room = [max_new_tokens] * len(sequences)
    if meta.kind == "rows":
        task = tasks.load(meta.task)
        degree, stop = temperature or 0, meta.vocab.index(task.END)
        least = meta.row_len if hasattr(task, "check") else 0  # another right answer may be longer
        room = [max(int(s.problem[1].sum()) + 2, least - len(s.prompt)) for s in sequences]
    return generate.write(model, [s.prompt for s in sequences], room, degree, top_k, stop, seed, trace, reread)


def answered(meta, problem, written):
    """123+456=579, and whether that is right token for token, end symbol included, or as the task checks it."""
    task, (row, answer) = tasks.load(meta.task), problem
    whole = [*row[:answer.argmax()], *written]
    right = tasks.is_right(task, whole, meta) if hasattr(task, "check") else written == row[answer].tolist()
    return tasks.show(task, whole, meta), right


def answer_line(meta, problem, written):
    """What is answered, and the right answer beside a wrong one."""
    task, (line, right) = tasks.load(meta.task), answered(meta, problem, written)
    known = tasks.show(task, problem[0], meta).partition(task.THINK)[2]
    return line if right else f"{line}   (wrong: {known}{', for example' * hasattr(task, 'check')})"


def bar(values, largest):
    """A small bar per loop for values (L,) of 0..largest, blank where the token had halted."""
    return "".join(" " if math.isnan(v) else BARS[min(7, int(8 * v / largest))] for v in values)


def columns(text):
    """The columns of a terminal that a text takes: two of a Korean syllable or an emoji, none of what joins the
    character before it. As wcwidth has them, but for sequences of emoji, which terminals show differently."""
    wide = (unicodedata.east_asian_width(c) in "WF" for c in text)
    joins = (unicodedata.category(c) in ("Mn", "Me", "Cf") or "\u1160" <= c <= "\u11ff" or "\ud7b0" <= c <= "\ud7ff"
             for c in text)  # the ranges are vowels and finals of Korean syllables written letter by letter
    return sum(0 if j else 1 + w for w, j in zip(wide, joins, strict=True))


def in_columns(texts, least=0, right=False):
    """Texts as strings of equally many columns, as many as the widest takes and at least `least`."""
    most = max(least, *map(columns, texts))
    return [" " * (most - columns(t)) * right + t + " " * (most - columns(t)) * (not right) for t in texts]


def print_trace(rows, largest):
    """The trace of one sequence: what each token reads and writes, its loops, entropy and guesses loop by loop.

    largest: the entropy of a guess that knows nothing, a full bar.
    """
    width = max(7, *(r["loops"] for r in rows))
    reads = in_columns(["reads", *(r["reads"] for r in rows)], right=True)
    writes = in_columns(["writes", *(r["writes"] or "·" for r in rows)], right=True)
    guesses = [in_columns([r["prediction"][l] if l < r["loops"] else "" for r in rows])
               for l in range(max(r["loops"] for r in rows))]  # a list for each loop
    print(f"  {reads[0]} {writes[0]} loops  {'entropy':<{width}}  last  guess after each loop")
    for i, r in enumerate(rows):
        entropy = [math.nan if e is None else e for e in r["entropy"]]
        last = f"{entropy[r['loops'] - 1]:.2f}" if r["loops"] else ""  # a pad has taken no loop
        print(f"  {reads[i + 1]} {writes[i + 1]} {r['loops']:>5}  {bar(entropy[:width], largest):<{width}} "
              f"{last:>5}  {' '.join(g[i] for g in guesses)}".rstrip())


def write_trace(rows, first):
    """Write the trace of a sequence as JSON lines, in the place of what stood in trace_file or, if not first, after it.
    Raises OSError."""
    with outputs.whole_file(trace_file) if first else outputs.appending(trace_file) as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def say_what_no_trace_shows(rows):
    """A line on what the trace of a sequence beyond the context leaves out; no line if it leaves out nothing."""
    first, last = rows[0]["context_start"], rows[-1]["context_start"]
    left = [f"the first {first} tokens, which no pass read"] * (first > 0)
    if last > first:
        left += ["what was thought again of earlier tokens, each time half of the context had to go"]
    if left:
        print(f"trace: not shown, as the context ends at block_size: {'; '.join(left)}")


def answers_after_loops(meta, sequence):
    """Of a problem the answer that stands after each loop, (text, whether it is right); [] for a text."""
    written = [(r["loops"], guesses) for r, guesses in zip(sequence.thought, sequence.guesses, strict=True)
               if r["writes"] is not None]
    if not sequence.problem:
        return []
    return [answered(meta, sequence.problem, [guesses[min(l, n) - 1] for n, guesses in written])
            for l in range(1, max((n for n, _ in written), default=0) + 1)]


def page_of(model, meta, sequence):
    """A sequence for the page of the viewer."""
    tokens = torch.tensor([sequence.prompt + sequence.written], device=model.lm_head.weight.device)
    threshold = generate.reading_plan(model, tokens).threshold[0].tolist()
    return viewer.sequence(sequence.thought, [threshold[r["position"]] for r in sequence.thought],
                           sequence.title(meta), answers_after_loops(meta, sequence))


def require_places(model, prompts):
    """SystemExit for a number that is too long, before the first answer is written."""
    for prompt, problem in prompts:
        if problem and not model.learned_positions:
            try:
                model.embed(torch.tensor([prompt], device=model.lm_head.weight.device))
            except ValueError as e:
                raise SystemExit(f"{source()}: {e}") from None


def samples(model, meta, trace, text=None):
    """Write after every prompt of a text, None: of --start, num_samples times each, and print it: yields each Sequence
    once it is complete, in the order of the prompts. Ends with a line on speed and loops."""
    prompts = read_prompts(meta, text)
    require_places(model, prompts)
    sequences = [Sequence(*prompt) for prompt in prompts for _ in range(num_samples)]
    seconds, tokens, steps, loops, at = 0.0, 0, 0, [], 0
    work = bursts(model, meta, sequences, trace)
    shown = outputs.Progress("writing", "tokens", sum(int(s.problem[1].sum()) if s.problem else max_new_tokens
                                                      for s in sequences))
    shown.live &= meta.kind == "rows" or not sys.stdout.isatty()  # where a text appears as it is written, that tells
    while at < len(sequences):
        before = time.perf_counter()
        try:
            burst = next(work)
        except ValueError as e:
            raise SystemExit(f"sample.py: {e}") from None
        seconds = seconds + time.perf_counter() - before
        steps += 1 if is_slots(meta) else max(map(len, burst.tokens))
        tokens, loops = tokens + sum(map(len, burst.tokens)), loops + sum(burst.loops or [], [])
        for i, row in enumerate(burst.rows):
            sequences[row].complete = burst.done[i]
            sequences[row].take(meta, burst.tokens[i], burst.start[i], burst.trace and burst.trace[i])
        if len(sequences) > 1:
            shown.add(sum(map(len, burst.tokens)))
        while at < len(sequences):
            if sequences[at].complete:
                shown.clear()
            sequences[at].print(meta)
            if not sequences[at].complete:
                break
            yield sequences[at]
            at += 1
    say_speed(model, seconds, tokens, steps, loops)


def say_speed(model, seconds, tokens, steps, loops):
    """A line on what writing took. steps: one after the other, in which all rows write a token or
    one row fills its slots; loops: of the tokens that wrote, [] of a GPT.
    On stderr, since what is written does not depend on it."""
    if tokens:
        line = f"{tokens} tokens in {steps} steps of {1000 * seconds / steps:.2f} ms, {tokens / seconds:.1f} tokens/s"
        if loops:
            mean, most = sum(loops) / len(loops), think.most_loops(model.config, model.trained_loops)
            line += f", {mean:.2f} loops per token (at most {most}, {1 - mean / most:.0%} not taken)"
        print(line, file=sys.stderr, flush=True)


def say_idle_settings(model, meta):
    """One line on keys of the command line that do nothing here."""
    rows, slots = meta.kind == "rows", is_slots(meta)
    greedy = not (temperature or temperature is None and not rows)
    say_without_effect(
        *idle_settings(model.config),
        (rows, "an answer has an end", "max_new_tokens"),
        (slots, "the slots are read out at once, nothing is drawn", "temperature", "top_k", "seed", "reread"),
        (greedy, "temperature is 0, nothing is drawn", "top_k", "seed"),
        (*tasks.idle(meta, task), "task"),
        (checkpoint, "checkpoint is given", "out_dir"))


def is_asking():
    """Whether a person at a terminal is to be asked for prompts."""
    return not start and all(stream and stream.isatty() for stream in (sys.stdin, sys.stdout))


def converse(respond):
    """respond(text) to each line that a person types, until Ctrl-D. Ctrl-C stops an answer and no more, and a mistake
    costs a line."""
    with contextlib.suppress(ImportError):  # not every system has it
        import readline  # noqa: F401 (arrow keys, and the lines typed before)
    print("type a prompt; Enter alone: examples; Ctrl-C stops an answer, Ctrl-D quits", file=sys.stderr)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while True:
            try:
                respond(input("> "))
            except KeyboardInterrupt as e:
                if e.args:  # another signal than Ctrl-C, which ends all
                    raise
                print()
            except SystemExit as e:
                print(str(e).removeprefix(f"{source()}: "), file=sys.stderr)
    except EOFError:
        print()
    finally:
        signal.signal(signal.SIGINT, before)


def piped():
    """The text that comes in a pipe or a file, None where there is neither. SystemExit if it is no text."""
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # of a stream that is closed or stands for one
        return None
    if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind)):
        return None
    try:
        return sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError:
        raise SystemExit(f"what comes in the pipe is not text in {sys.stdin.encoding.upper()}") from None


class Thoughts:
    """Where the traces of sequences go, as they come: the terminal and, of all of them, trace_file."""

    def __init__(self, model, meta, printing):
        self.model, self.meta, self.printing = model, meta, printing
        self.lines, self.page = (trace_file.endswith(end) for end in (".jsonl", ".html"))
        self.traces, self.titles, self.pages, self.kept = [], [], [], 0
        self.largest = math.log(max(2, meta.vocab_size))  # entropy of a guess that knows nothing
        if self.lines or self.page:
            outputs.require_writable(trace_file)

    def add(self, sequence):
        self.traces.append([dict(sample=len(self.traces), **row) for row in sequence.thought])
        self.titles.append(sequence.title(self.meta))
        if self.page:
            self.pages.append(page_of(self.model, self.meta, sequence))
        if self.lines:
            with outputs.going_on(trace_file):
                write_trace(self.traces[-1], first=not self.kept)
                self.kept += 1
        if self.printing:
            print_trace(self.traces[-1], self.largest)
        say_what_no_trace_shows(self.traces[-1])

    def close(self, path):
        """Write what shows all of them together, and say what stands in trace_file. path: of the checkpoint."""
        if self.lines and self.kept < len(self.traces):
            raise SystemExit(f"{trace_file} has {self.kept} of {len(self.traces)} traces, since it could not be "
                             "written")
        if self.page:
            c = self.model.config
            with outputs.one_line(trace_file):
                viewer.write(trace_file, self.pages, c.halt, f"{path}, halting rule {c.halt}.", c.min_loops)
        if self.lines or self.page:
            print(f"trace: {trace_file}")
        elif trace_file and figures.draw_traces(self.traces, self.titles, self.largest, trace_file):
            left = figures.shown_of(self.traces)[-1]
            print(f"heat map: {trace_file}" + f" ({left}; --trace_file=FILE.jsonl has all)" * bool(left))


def main():
    settings, further, given = configure(__file__, inference_settings())
    globals().update(settings)
    if trace_file and not trace_file.endswith((".jsonl", ".html", ".png")):
        raise SystemExit(f"--trace_file={trace_file}: take a name that ends in .html, a page to look at, in .jsonl, a "
                         "line per token, or in .png, a heat map")
    if task:
        tasks.use(task)
    machine = runtime.choose_device(device)
    overrides = {k: v for k, v in further.items() if k in given}
    model, meta, _, path = open_model(checkpoint, out_dir, machine, overrides)
    printing, looped = meta.kind == "rows" if trace is None else trace, isinstance(model, LoopGPT)
    if (trace or trace_file) and not looped:
        raise SystemExit(f"{path} is a plain GPT, which has no loops to trace")
    say_idle_settings(model, meta)
    thoughts = Thoughts(model, meta, printing) if looped and (trace_file or printing) else None
    seeds = itertools.count(seed)  # so that the same prompt, typed again, says something else

    def respond(text):
        globals().update(seed=next(seeds))
        for sequence in samples(model, meta, thoughts is not None, text):
            if thoughts:
                thoughts.add(sequence)
    with runtime.autocast(machine, runtime.choose_dtype(dtype, machine)), torch.no_grad():
        converse(respond) if is_asking() else respond(None if start else piped())
    if thoughts and thoughts.traces:
        thoughts.close(path)


if __name__ == "__main__":
    runtime.run(main, "--max_new_tokens, or take a smaller model")
