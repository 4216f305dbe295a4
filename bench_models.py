"""What models are worth when they write, for bench.py --decode=True: quality, loops, tokens a second, joules.

N sequences to judge by, B that write together, T tokens of each, V vocabulary, L loops.
"""
import contextlib
import ctypes
import math
import os
import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import dataset
import generate
import outputs
import runtime
import tasks
from cache import looped
from checkpoint import open_model
from looplm_kernels import RULES
from model import GPT, GPTConfig
from model_loop import LoopConfig, LoopGPT, rules_of

V, TOKENS, DIGITS = 65, 256, 12
BATCHES = (1, 16, 256)
TURNS = 5  # in which the variants of a model are timed on a CPU, which others use, too
MARGIN = dict(addition=0.005, text=0.01)  # what loses no more against the best fixed depth is as good
SHIPPED = ("pretrained/addition.pt", "pretrained/text.pt")
OUT = ("train_gpt_12l", "train_gpt_1l")  # text, of config/
OUT_SMALL = ("train_loop_1x12", *OUT)  # with the first one in the place of text.pt, which takes a CPU minutes
COLUMNS = ("table", "case", "quality", "random", "loops", "flops", "quality_gflop", "first_ms", "us_1",
           *(f"tokens_s_{B}" for B in BATCHES), "joules_1", "joules_256", "idle_w", "correct_s", "correct_joule",
           "note")


# energy --------------------------------------------------------------------------------------------------------------
class Meter:
    """The energy counter of a GPU, by NVML."""

    def __init__(self, device):
        """why_not: what keeps it from counting, "" if nothing does."""
        self.why_not, self.idle = "a CPU has no energy counter", math.nan
        if not device.startswith("cuda"):
            return
        try:
            self.nvml, self.handle = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
            name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
            self.why_not = "NVML has no energy counter of this GPU"
            if self.nvml.nvmlInit_v2() or self.nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(self.handle)):
                return
            self.why_not = ""
            if math.isnan(self.joules()):
                self.why_not = "this GPU counts no energy"
        except (OSError, AttributeError) as e:
            self.why_not = f"no NVML: {runtime.first_line(e)}"

    def joules(self):
        """Joules since the driver was loaded, NaN where nothing counts them."""
        if self.why_not:
            return math.nan
        millijoules = ctypes.c_ulonglong()
        failed = self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle, ctypes.byref(millijoules))
        return math.nan if failed else millijoules.value / 1000

    def rest(self, seconds):
        """Measure the idle power, W."""
        torch.cuda.synchronize() if torch.cuda.is_available() else None
        before, began = self.joules(), time.perf_counter()
        time.sleep(seconds)
        self.idle = (self.joules() - before) / (time.perf_counter() - began)


# the tables of models: quality ---------------------------------------------------------------------------------------
@dataclass
class Subject:
    """A model, what its quality is measured on, and what it writes."""
    task: str        # addition or text
    name: str
    model: object
    trained: bool    # else its weights are as they are drawn, and it has no quality
    X: object        # (N,T) tokens, None where there are none
    Y: object        # (N,T) what follows, -1 where it does not count
    prompts: list    # lists of tokens
    room: int        # tokens that may follow a prompt
    stop: int | None
    temperature: float


def fresh_text(name, small):
    """A model of the shape that config/<name>.py has, its weights as they are drawn."""
    C, heads, T, depth = (32, 2, 16, 3) if small else (384, 6, TOKENS, 12)
    own = dict(vocab_size=V, block_size=T, n_embd=C, n_head=heads)
    if name == "train_loop_1x12":
        return LoopGPT(LoopConfig(**own, num_loops=depth, step_encoding="learned")).eval()
    return GPT(GPTConfig(**own, n_layer=depth if name == "train_gpt_12l" else 1)).eval()


def text_subject(name, model, trained, data, small):
    """data: of dataset.open_dataset, or None."""
    X = Y = None
    T = model.config.block_size
    if trained and data is not None:
        X, Y = dataset.get_batch(data, "val", (0,), 4 if small else 64, T)
    return Subject("text", name, model, trained, X, Y, [[0]] * max(BATCHES), T - 1, None, 1.0)


def addition_subject(name, model, meta, small):
    size, count = (2, 16) if small else (DIGITS, 1000)
    task = tasks.load(meta.task)
    tokens, answer = tasks.problem_set(task, meta, size, max(count, max(BATCHES)))[:2]
    X, Y = map(torch.from_numpy, tasks.inputs_and_targets(task, tokens, answer, meta.track))
    prompts = [row[:on.argmax()].tolist() for row, on in zip(tokens[:max(BATCHES)], answer, strict=False)]
    return Subject("addition", name, model, True, X[:count], Y[:count], prompts, int(answer.sum(1).max()) + 2,
                   task.VOCAB.index(task.END), 0.0)


def subjects(checkpoints, device, small):
    """The Subjects of checkpoints, a list of paths; by default those that come with LoopLM and those of OUT, or models
    of their shapes."""
    shipped, fresh = (SHIPPED[:1], OUT_SMALL) if small else (SHIPPED, OUT)
    given = checkpoints or [*(os.path.join(outputs.ROOT, path) for path in shipped), *(f"out/{name}" for name in fresh)]
    for path in given:
        name = os.path.basename(os.path.dirname(path) if path.endswith(("ckpt_best.pt", "ckpt_last.pt")) else path)
        if not checkpoints and name in fresh and not os.path.exists(f"{path}/ckpt_best.pt"):
            yield text_subject(name, fresh_text(name, small).to(device), False, None, small)
            continue
        folder = os.path.isdir(path)
        model, meta, saved, path = open_model("" if folder else path, path if folder else "", device, {})
        if meta.kind == "text":
            data = None
            with contextlib.suppress(SystemExit):
                data = dataset.open_dataset(dataset.trained_on(saved), like=saved)
            yield text_subject(name, model, True, data, small)
        elif meta.track == "slots":
            print(f"{path}: answers stand in slots, which are read out at once: nothing is written token by token")
        else:
            yield addition_subject(name, model, meta, small)


def judged(s, exact_loops=None):
    """Quality of a Subject: exact match or loss in nats, and the loops (N,T), None of a plain GPT."""
    right, losses, loops, device = [], [], [], s.model.lm_head.weight.device
    for i in range(0, len(s.X), 250):
        X, Y = (x[i:i + 250].to(device) for x in (s.X, s.Y))
        if looped(s.model):
            exact = None if exact_loops is None else exact_loops[i:i + 250].to(device)
            h, record = s.model.think(X, trace=False, exact_loops=exact)
            logits = s.model.readout(h).float()
            loops.append(record["loops"].cpu())
        else:
            logits = s.model.logits(X).float()
        right.append(((logits.argmax(-1) == Y) | (Y < 0)).all(1))
        losses.append(F.cross_entropy(logits.flatten(0, 1), Y.flatten(), ignore_index=-1).item() * len(X))
    quality = torch.cat(right).double().mean().item() if s.task != "text" else sum(losses) / len(s.X)
    return quality, torch.cat(loops) if loops else None


def as_good(task, quality, best):
    """Whether a quality is within MARGIN of the best: the more exact match, the less loss."""
    return quality >= best - MARGIN[task] - 1e-9 if task != "text" else quality <= best + MARGIN[task] + 1e-9


def mean_loops(s, loops):
    return loops[s.Y >= 0].double().mean().item()


@contextlib.contextmanager
def settings(model, **changed):
    """The model with other settings meanwhile."""
    before = dict(vars(model.config))
    vars(model.config).update(changed)
    try:
        yield
    finally:
        vars(model.config).update(before)


def depth_changes(s, l):
    """Settings by which what a Subject writes takes exactly l loops; the prompt as it was trained."""
    if s.task != "text":
        return dict(halt="none", think_loops=l, prompt_loops=s.model.config.reading or s.model.trained_loops)
    return dict(halt="none", think_loops=0, prompt_loops=0)


def variants(s):
    """The rows of a Subject: (name, settings, loops asked for or None, quality, mean loops, quality at random)."""
    model = s.model
    if not looped(model):
        yield s.name, {}, None, judged(s)[0] if s.X is not None else math.nan, 1.0, math.nan
        return
    c, L = model.config, min(model.trained_loops, 12 if s.task == "text" else 16)
    if s.X is None:
        yield f"{s.name}, depth {L}", dict(halt="none"), L, math.nan, float(L), math.nan
        return  # when its tokens halt would say nothing
    found = {}
    for l in range(1, L + 1):
        with settings(model, **depth_changes(s, l)), asked(model, l):
            found[l] = judged(s)[0]
    best = max(found.values()) if s.task != "text" else min(found.values())
    enough = min(l for l, q in found.items() if as_good(s.task, q, best))
    yield f"{s.name}, depth {enough}", depth_changes(s, enough), enough, found[enough], float(enough), math.nan
    for rule in rules_of(c):
        points = []
        for at in RULES[rule].grid:
            changes = dict(halt=rule, halt_threshold=at, think_threshold=None, think_loops=0)
            with settings(model, **changes), asked(model, L):
                quality, loops = judged(s)
                points.append((not as_good(s.task, quality, best), mean_loops(s, loops), quality, changes, loops))
        # the cheapest that is as good; where none is, the best one
        worse, mean, quality, changes, loops = min(points, key=lambda p: (
            p[0], p[1] if not p[0] else p[2] * (-1 if s.task != "text" else 1)))
        drawn, counted = loops.clone(), s.Y >= 0
        drawn[counted] = loops[counted][torch.randperm(int(counted.sum()), generator=torch.Generator().manual_seed(0))]
        with asked(model, L):
            at_random = judged(s, drawn)[0]
        yield (f"{s.name}, {rule} {changes['halt_threshold']:g}" + ", worse than the best depth" * worse, changes, L,
               quality, mean, at_random)


@contextlib.contextmanager
def asked(model, L):
    """The model with L loops asked for meanwhile."""
    before = model.trained_loops
    model.trained_loops = L
    try:
        yield
    finally:
        model.trained_loops = before


# the tables of models: speed and energy ------------------------------------------------------------------------------
def work(s, B, span, way="auto"):
    """Write after B prompts again and again for so many seconds: (tokens, sequences complete, seconds)."""
    tokens, times, began = 0, 0, time.perf_counter()
    while times == 0 or time.perf_counter() - began < span:
        for burst in generate.write(s.model, s.prompts[:B], s.room, s.temperature, stop=s.stop, seed=times, way=way):
            tokens += sum(map(len, burst.tokens))
        times += 1
    return tokens, B * times, time.perf_counter() - began


def first_token(s):
    """Milliseconds from a prompt to its first token, the median of 9."""
    spans = []
    for _ in range(9):
        began = time.perf_counter()
        next(generate.write(s.model, s.prompts[:1], 1, s.temperature, stop=s.stop))
        spans.append(1000 * (time.perf_counter() - began))
    return statistics.median(spans)


def flops(s, loops):
    """FLOPs of a token that is written: 2 a weight, and attention over half of the longest window."""
    length = min(s.model.config.block_size, len(s.prompts[0]) + s.room)
    return s.model.flops_per_token(length // 2, loops) / 3  # a third of the training's


def row_of(s, name, changes, L, quality, loops, at_random, meter, span, short):
    """A row of the tables of models: of a Subject with these settings. span: seconds of a point of energy, short: of
    one of speed alone."""
    row = dict(table=s.task, case=name)
    with settings(s.model, **changes), asked(s.model, L) if L else contextlib.nullcontext():
        for B in BATCHES:
            if s.model.lm_head.weight.is_cuda and not generate.KernelWriter.why_not(s.model, 1, 1):
                work(s, B, 0, "kernel")  # compiled now, and not some seconds later while it is measured
            work(s, B, 0)  # which way is fastest is known then
            work(s, B, 0)
            before = meter.joules()
            tokens, complete, seconds = work(s, B, short if B == 16 else span)
            joules = meter.joules() - before
            row[f"tokens_s_{B}"] = round(tokens / seconds, 1)
            if B != 16:
                row[f"joules_{B}"] = f"{joules / tokens:.3g}" if joules > 0 else ""
            if B == 1:
                row["us_1"] = round(1e6 * seconds / tokens, 1)
        row["first_ms"] = round(first_token(s), 2)
    if s.task != "text" and not math.isnan(quality):
        row["correct_s"] = round(quality * complete / seconds, 1)  # of the last batch
        row["correct_joule"] = f"{quality * complete / joules:.3g}" if joules > 0 else ""
    row["flops"] = f"{flops(s, loops):.4g}"
    if not math.isnan(quality):
        row["quality"] = round(quality, 4)
        row["quality_gflop"] = f"{(quality if s.task != 'text' else 1 / quality) / flops(s, loops) * 1e9:.4g}"
    row |= {k: round(x, 4) for k, x in (("loops", loops), ("random", at_random)) if not math.isnan(x)}
    row["idle_w"] = "" if math.isnan(meter.idle) else round(meter.idle, 1)
    row["note"] = "; ".join(filter(None, ("" if s.trained else "weights as they are drawn, so no quality", (
        "" if not s.trained or s.X is not None else "its data are not here, so no quality"), meter.why_not or (
            f"energy of {span:g} s a point alone" if span < 10 else ""))))
    return row


def rows_of(s, only, meter, span, turns):
    """The rows of a Subject's variants whose names contain `only`. In several turns, each a part of the span, what else
    the machine does slows all of them alike, and the median of their speeds counts; on a GPU one, for a change of
    settings drops its compiled steps."""
    found = (variant for variant in variants(s) if only in variant[0])
    if turns == 1:
        yield from (row_of(s, *variant, meter, span, min(span, 2)) for variant in found)
        return
    found = [*found]
    measured = [[row_of(s, *variant, meter, span / turns, min(span, 2) / turns) for variant in found]
                for _ in range(turns)]
    for rows in zip(*measured, strict=True):
        yield rows[0] | {k: round(statistics.median(r[k] for r in rows), 2) for k in rows[0]
                         if k.startswith("tokens_s_") or k in ("us_1", "first_ms", "correct_s")}


def model_rows(checkpoints, device, dtype, tables, only, span, emit):
    """Measure all models of the chosen tables; emit(row) for each. In small on a CPU where no checkpoints are given."""
    gpu, meter = device.startswith("cuda"), Meter(device)
    small = not gpu and not checkpoints
    generate.CACHE_BYTES = max(generate.CACHE_BYTES, 2 ** 32)  # so that the largest batch is written together
    meter.rest(3 if gpu else 0)
    began, done = time.perf_counter(), 0
    with torch.no_grad(), runtime.autocast(device, dtype):
        found = [s for s in subjects(checkpoints, device, small) if s.task in tables]
        for i, s in enumerate(found):
            for row in rows_of(s, only, meter, span, 1 if gpu or small else TURNS):
                emit(row)
                done += 1
                spent = time.perf_counter() - began
                print(f"  model {i + 1} of {len(found)}, {done} rows in {spent:.0f} s; about "
                      f"{spent / (i + 1) * (len(found) - i - 1):.0f} s more", flush=True)


def markdown(rows):
    """The tables of models and of a user's time."""
    lines = []
    for table in dict.fromkeys(r["table"] for r in rows if r["table"] in ("addition", "text", "start")):
        of = [r for r in rows if r["table"] == table]
        columns = [k for k in (*COLUMNS[1:], "seconds", "bar") if any(r.get(k) not in (None, "") for r in of)]
        lines += ["", f"| {' | '.join([table, *columns[1:]])} |", "| --- " * len(columns) + "|"]
        lines += [f"| {' | '.join(str(r.get(k, '')) for k in columns)} |" for r in of]
    return "\n".join(lines) + "\n" if lines else ""
