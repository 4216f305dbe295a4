"""What writing costs, for bench.py --decode=True: a token by every way of writing, of models of two widths or of the
rows of a tuning file; and a user's time.

C width, B sequences, T tokens of each, V vocabulary, L loops.
"""
import copy
import functools
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

import torch

import generate
import outputs
import runtime
import sweep
from bench_models import DIGITS, TOKENS, V, fresh_text
from cache import looped
from model_loop import LoopConfig, LoopGPT

MICRO = [(384, 1), (384, 16), (384, 64), (384, 256), (128, 1), (128, 16), (128, 256)]  # C, B
MODES = {1: ("whole", "half", "mixture")}  # of how many loops tokens take, by B; else the first one


# the first table: a token by every way -------------------------------------------------------------------------------
def micro_model(C, L, T, mode):
    """A model of one block with random weights, whose tokens take all L loops, half of them, or each its own number, in
    the mean about half."""
    torch.manual_seed(C)
    config = LoopConfig(vocab_size=V, block_size=T, n_head=max(1, C // 64), n_embd=C, num_loops=L, halt="confidence")
    model = LoopGPT(config).eval().requires_grad_(False)
    config.halt_threshold = 2.0  # which no probability passes
    if mode == "half":
        config.halt_threshold, config.min_loops = 0.0, max(1, L // 2)
    if mode == "mixture":
        for p in model.parameters():  # as they are drawn, weights change a guess too little
            p.data *= 3 if p.dim() > 1 else 1
        idx = torch.randint(V, (4, T))
        score = model.think(idx)[1]["confidence"].cummax(-1).values[..., max(0, L // 2 - 1)]
        config.halt_threshold = score.median().item()
    return model


def gap(exact, prompt, tokens, temperature, seed):
    """How far below the best one a written token stands, the mean over the tokens of the first sequence, by an exact
    model that reads all of them at once: the same draw may round to another token, but to no worse one."""
    place, exact.config.backend = exact.lm_head.weight.device, "torch"  # kernels of float32 compile for a minute
    idx = torch.tensor([prompt + tokens[:-1]], device=place)
    logits = generate.read_whole(exact, idx)[0][0, len(prompt) - 1:].float()  # (T,V)
    noise = torch.cat([generate.gumbel_noise(seed, torch.zeros(1, dtype=torch.long, device=place), t, logits.size(1))
                       for t in range(len(tokens))])
    score = logits / temperature + noise
    return (score.amax(1) - score.gather(1, torch.tensor(tokens, device=place)[:, None])[:, 0]).mean()


models_of = functools.cache(sweep.models)


def rows_that_write(file):
    """Those rows of a tuning file whose models write token by token. SystemExit where their data are not prepared."""
    for row, make in models_of(file).items():
        with torch.device("meta"):
            meta = make()[1]
        if meta is None:
            raise SystemExit(f"{file}: the data of '{row}' are not there; its first lines say how they are prepared")
        if getattr(meta, "track", "") != "slots":  # whose answers are read out at once
            yield row


def micro_shapes(gpu, files=()):
    """The groups of shapes (C, B, mode) that a process takes; of tuning files (file, row) instead."""
    if files:
        found = [(file, row) for file in files for row in rows_that_write(file)]
        return [[shape] for shape in found] if gpu else [found]  # where nothing is compiled, one process is faster
    return [[(C, B, mode) for mode in MODES.get(B, ("whole",))]
            for C, B in (MICRO if gpu else [(32, 1), (32, 4)])]


def micro_ways(model, B, T):
    """The ways in which a model can write T tokens of B sequences, auto last."""
    return ["kernel"] * (not generate.KernelWriter.why_not(model, B, T)) + ["compiled", "graph", "eager", "auto"]


def as_it_writes(exact):
    """A model of float32 in bfloat16, where it is on a GPU."""
    return copy.deepcopy(exact).bfloat16() if exact.lm_head.weight.is_cuda else exact


def beginning(model):
    """The one token after which a model writes: the think token, where it has one, since the decode kernel writes
    nothing before it and an untrained model may never come to it."""
    token = getattr(model.config, "think_token", None)
    return [0 if token is None else token]


def fastest(pace, way):
    """The way that writes fastest by the pace of generate.py; where way is auto, of those that auto may take."""
    return min((x for x in pace if way != "auto" or x[0] in (*generate.AUTO, "eager")), key=lambda x: pace[x][1])[0]


def written(prepare, exact, model, B, T, ways, asked=None, against=(), reread=False):
    """Paths of bench.py by which a model, exact or as it writes, writes T tokens of B sequences: one for each of the
    ways of generate.py, the last one auto or the only one, and reread. A token is a call. asked: {way: its bars}."""
    gpu, right = exact.lm_head.weight.is_cuda, (torch.ones((), device=exact.lm_head.weight.device),)
    generate.CACHE_BYTES = max(generate.CACHE_BYTES, 2 ** 32)  # so that all B are written together
    wrote, begin = {}, beginning(model)

    def write(way):
        wrote[way] = [[] for _ in range(B)], []
        for burst in generate.write(model, [begin] * B, T - 1, seed=7, way=way):
            for row, tokens in zip(burst.rows, burst.tokens, strict=True):
                wrote[way][0][row] += tokens
            wrote[way][1].extend(burst.loops[0] if burst.loops else ())

    def make(way):
        for _ in range(2 if way == "auto" else 1):  # the second time it knows which is fast
            write(way)
        took = {name for name, _ in generate.kept_for(model).pace}
        if not took >= {way} - {"auto", "eager"}:
            raise RuntimeError(f"written by {', '.join(took)}")
        return functools.partial(write, way), (1 + gap(exact, begin, wrote[way][0][0], 1.0, 7),)
    paths = [prepare(f"called: {way}", functools.partial(make, way), right, calls=T - 1, against=against,
                     times=2 if way == "eager" and gpu else 5, bars=(asked or {}).get(way, [])) for way in ways]
    last, loops, pace = paths[-1], wrote.get(ways[-1], ((), ()))[1], generate.kept_for(model).pace
    if reread:
        def again():
            for _ in generate.write(model, [begin], T - 1, seed=7, reread=True):
                pass
        paths.append(prepare("eager, re-reading", lambda: (again, right), right, calls=T - 1, times=1, against=against))
    for p in paths:
        p.note += f", {statistics.mean(loops):.2f} loops" if loops else ""
    last.note += f", by {fastest(pace, ways[-1])}" if pace else ""
    return paths


def micro_case(prepare, Case, device, C, B, mode):
    """The Case of bench.py for one way of taking loops: paths write until T tokens are there."""
    L, T = (12, TOKENS) if device.startswith("cuda") else (3, 24)
    exact = micro_model(C, L, T, mode).to(device)
    model = as_it_writes(exact)
    ways = micro_ways(model, B, T)
    own = "kernel" if B == 1 and ways[0] == "kernel" else "compiled"  # what the others are held against
    against, asked = (f"C{C} B{B} whole", f"called: {own}"), {"auto": [("best called", "<=", 1.05)]}
    if B == 1 and mode == "whole":
        asked |= {"kernel": [("per_call", "<=", 130.0 if C == 384 else 80.0)],
                  "compiled": [("ratio", ">=", 3.0 if C == 384 else 4.0)]}
    elif mode == "half":
        asked |= {"kernel": [("ratio", "<=", 0.6)]}
    elif B == 16:
        asked["auto"].append(("ratio", "<=", 0.5))
    if mode != "whole":
        ways.remove("compiled")  # it takes all loops in any case
    paths = written(prepare, exact, model, B, T, ways, asked, against, reread=B == 1 and mode == "whole")
    return Case("decode", f"C{C} B{B} {mode}", paths)


def row_case(prepare, Case, device, file, row):
    """The Case of bench.py for a row of a tuning file: its model, the weights as they are drawn, writes one sequence,
    each token by all loops."""
    torch.manual_seed(0)
    exact, meta = models_of(file)[row]()
    exact, c, gpu = exact.to(device).eval().requires_grad_(False), exact.config, device.startswith("cuda")
    if looped(exact):
        c.halt, c.prompt_loops, c.think_loops = "none", 0, 0
    T = min(TOKENS if gpu else 64, c.block_size) if meta.kind == "text" else 3 * DIGITS + 4  # A+B=C and its end
    model = as_it_writes(exact)
    # eager on a GPU takes 20 times as long as compiled, and so would be most of the table's time
    ways = [way for way in micro_ways(model, 1, T) if way != "eager"] if gpu else ["eager"]
    paths = written(prepare, exact, model, 1, T, ways)
    why_not = generate.KernelWriter.why_not(copy.deepcopy(exact).bfloat16(), 1, T)  # of a GPU, whatever this device is
    paths[-1].note += f", {T} tokens" + f", no kernel: {why_not}" * bool(why_not)
    return Case("decode", row, paths)


def mixture_lines(rows):
    """What a mixture of loops costs beside its mean number of loops, from the times of 12 and of 6: lines to print."""
    seen, lines = {(r["case"], r.get("path")): r for r in rows if r["table"] == "decode"}, []
    for C in dict(MICRO):
        for path in ("called: kernel", "called: auto"):
            three = [seen.get((f"C{C} B1 {mode}", path), {}) for mode in MODES[1]]
            if all(r.get("microseconds") for r in three):
                whole, half, own = (float(r["microseconds"]) for r in three)
                mean = float(re.search(r"([\d.]+) loops", three[2]["note"])[1])
                ratio = own / (half + (whole - half) * (mean - 6) / 6)
                lines.append(f"C{C} mixture, {path}: {ratio:.2f} of what {mean:.2f} loops would cost, at most 1.15: "
                             + ("met" if ratio <= 1.15 else "MISSED"))
    return lines


# a user's time -------------------------------------------------------------------------------------------------------
def fresh_process(arguments, caches):
    """Seconds that sample.py takes with these arguments and a folder for all caches, and what it writes."""
    folders = {k: os.path.join(caches, k) for k in (
        "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_TILE_CACHE_DIR", "XDG_CACHE_HOME", "CUDA_CACHE_PATH")}
    began = time.perf_counter()
    done = subprocess.run([sys.executable, os.path.join(outputs.ROOT, "sample.py"), *arguments], capture_output=True,
                          encoding="utf-8", env=os.environ | folders, timeout=600)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return time.perf_counter() - began, done.stdout


def start_rows(device, emit):
    """A text of 255 tokens from a fresh process, caches empty and warm; additions from text to text."""
    small = not device.startswith("cuda")
    with tempfile.TemporaryDirectory() as folder:
        path, problems = os.path.join(folder, "fresh.pt"), os.path.join(folder, "problems.txt")
        model, vocab = fresh_text("train_loop_1x12", small), [chr(48 + i) for i in range(V)]
        meta = dict(kind="text", vocab=vocab, vocab_size=V, dtype="uint16", tokens={}, sha256={})
        runtime.save_checkpoint(path, dict(model=model.state_dict(), model_args=dict(vars(model.config)), meta=meta))
        count, digits = (20, 2) if small else (1000, DIGITS)
        draw = random.Random(7)
        with open(problems, "w", encoding="utf-8") as f:
            for _ in range(count):
                f.write("+".join(str(draw.randrange(10 ** (digits - 1), 10 ** digits)) for _ in range(2)) + "=\n")
        text = [f"--checkpoint={path}", f"--device={device}", f"--max_new_tokens={20 if small else 255}", "--start=A"]
        sums = [f"--checkpoint={os.path.join(outputs.ROOT, 'pretrained/addition.pt')}", f"--device={device}",
                "--trace=False", f"--start=FILE:{problems}"]
        for case, arguments, bound in (("a text, caches empty", text, 20), ("a text, caches warm", text, 5),
                                       (f"{count} additions of {digits} digits, caches empty", sums, None),
                                       (f"{count} additions of {digits} digits, caches warm", sums, None)):
            try:
                seconds, said = fresh_process(arguments, os.path.join(folder, "caches" + case[:3]))
                note = f"{count - said.count('(wrong')} right" if bound is None else ""
                bar = f"seconds <= {bound} " + ("met" if seconds <= bound else "MISSED") if bound else ""
                emit(dict(table="start", case=case, seconds=round(seconds, 2), note=note, bar=bar))
            except (RuntimeError, subprocess.TimeoutExpired) as e:
                emit(dict(table="start", case=case, note=f"FAILED: {runtime.first_line(e)[:150]}"))
