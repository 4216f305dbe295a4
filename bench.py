"""Time every kernel of LoopLM against what one would use instead, after checking that both compute the same.

    python bench.py                                     all tables, into results/bench_<gpu>.csv and .md
    python bench.py --quick=True --record=True          fewer shapes; and the faster path of each for backend auto, into
                                                        looplm_kernels.json: so a new card gets its rows and entries
    python bench.py --tables=loop --only=64x128x16      some of it
    python bench.py --decode=True                       writing instead, into results/decode_<gpu>.csv, .md and .png
    python bench.py --decode=True --tables=text --checkpoints=out/a,out/b/ckpt_last.pt
    python bench.py --decode=True --tables=decode --checkpoints=config/sweep_block.py --out=results/block_decode.csv
                                                        a token of each row's model, which nobody has trained
    python bench.py --ranks=8                           training on one, two, four, eight GPUs, into
                                                        results/ranks_<gpu>.csv, .md; goes on where it was stopped
    python bench.py --device=cpu                        tiny shapes in torch: that the script works, nothing else;
    python bench.py --decode=True --device=cpu --tables=addition --checkpoints=pretrained/addition.pt
                                                        checkpoints that are given are measured in full there, too

A time is the median over replays of a CUDA graph where the path can be one, in microseconds per call, on a CPU those of
the processor (OMP_NUM_THREADS=1 counts one core's); a ratio is that time over the time of the path named beside it, for
most rows the kernel's. Paths named "called" are calls from Python, as a model makes them: what backend auto takes is
held against both of its paths, called alike. Inputs that would fit in the L2 cache are rotated, but for the loop table,
whose states and weights live there in use as well. Each group of cases has a process of its own: all get ready side by
side (compilers take longest), then one after the other times, so that a group that fails or hangs costs its own rows
only. Rows go to the CSV as they come.

Tables of writing: decode, a token by every way; addition and text, the models of checkpoints, each written by the
fastest way, with quality (exact match, loss), and its joules above and with idle power; start, a user's time.
"""
import copy
import functools
import json
import math
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import bench_decode
import bench_models
import bench_ranks
import figures
import looplm_kernels as kernels
import outputs
import runtime
from configurator import configure, say_without_effect
from model_loop import LoopConfig, LoopGPT

tables = ""                     # with commas: halt,head,attention,loop; decode,addition,text,start; parity,speed
only = ""                       # only cases whose name contains this, 64x128x16 for example; models with ranks
quick = False                   # fewer shapes
record = False                  # which path of the loop is faster goes into looplm_kernels.json, too, under this card
decode = False                  # writing instead of kernels
ranks = 0                       # 0 or >= 2: training on so many GPUs instead of kernels; quick: without compiler
checkpoints = ""                # writing: checkpoints, folders of runs, tuning files, with commas; empty: what there is
span = 10.0                     # >= 0: writing: seconds of each point of energy
out = ""                        # the CSV; empty: results/bench_<gpu>.csv, results/decode_<gpu>.csv
device = "auto"                 # auto, cuda; cpu: a dry run, but for checkpoints that are given
replays = 30                    # >= 1: timed replays of each path
workers = 10                    # >= 1: groups that get ready side by side
seconds = 90                    # >= 1: for a group to get a path ready, and for each of its rows after that

COLUMNS = ("table", "case", "path", "microseconds", "per_loop", "ratio", "ratio_to", "bar", "note")
TOLERANCE = 2e-2                # relative error of a bf16 result
LOOPS = 12
HALT = [(8192, 50304, 50304, 384), (8192, 50257, 50304, 384), (2048, 65, 65, 128)]  # N, V, row stride, C
HEAD = [(8192, 384, 50304)]     # N, C, V
ATTENTION = [(8, 6, 256, 64), (64, 4, 64, 32), (8, 6, 1024, 64), (16, 6, 2048, 64), (4, 16, 4096, 64),
             (4, 8, 4096, 128)]  # B, nh, T, hs
LOOP = [(64, 128, 16), (64, 128, 128), (64, 256, 64), (64, 128, 64), (64, 256, 128), (256, 128, 8),
        (64, 384, 16)]          # T, C, B


@dataclass
class Path:
    """One way to compute a case: run() makes `calls` calls; it is None if the path failed, and note says why."""
    name: str
    run: object
    note: str
    calls: int = 1
    times: int = 0              # timed runs; 0: replays
    loops: int = 0              # loops of a call, in the loop table
    against: tuple = ()         # (case, path) that its ratio is to; the case's first path by default
    bars: tuple = ()            # (quantity, "<=" or ">=", bound), quantities as in `row_of`


@dataclass
class Case:
    table: str
    name: str
    paths: list
    bytes: int = 0              # that a call has to move
    flops: int = 0              # that a call has to do


# paths ---------------------------------------------------------------------------------------------------------------
@functools.cache
def machine():
    """The device that the setting stands for."""
    return runtime.choose_device(device)


def on_gpu():
    return machine().startswith("cuda")


def backend():
    return "cutile" if on_gpu() else "torch"


def compiled(f):
    return torch.compile(f, fullgraph=True, dynamic=False) if on_gpu() else f


def captured(calls):
    """Calls as one CUDA graph: (replay, what the first of them returns). On a CPU they just run."""
    def run():
        first = calls[0]()
        for call in calls[1:]:
            call()
        return first
    if not on_gpu():
        return run, run()
    graph, result = kernels.capture(run)

    def replay(kept=run):  # what the calls refer to must live as long as the graph that reads it
        graph.replay()
    return replay, result


def plain(call, warm_up=0):
    """A call as it is, for paths that wait for the host: (call, what it returns), after warm_up calls of it."""
    for _ in range(warm_up):
        call()
    return call, call()


def difference(x, y):
    x, y = x.double(), y.double()
    return ((x - y).norm() / y.norm().clamp(min=1e-9)).item()


def too_slow(*signal_frame):
    raise TimeoutError(f"not ready within {seconds * 2 // 3} s")


announce = print  # worker processes replace this by pipe.send, so that the parent knows which path is being prepared


def prepare(name, make, reference, **facts):
    """A Path, made and checked: make() gives (run, results), reference the first of those that are right."""
    announce(name)
    signal.signal(signal.SIGALRM, too_slow)  # a compiler that takes too long costs its path, not the group
    signal.alarm(seconds * 2 // 3)
    try:
        run, results = make()
        run()
        error = max(map(difference, results, reference), key=lambda e: math.inf if math.isnan(e) else e)
        if not error <= TOLERANCE:
            return Path(name, None, f"WRONG: relative error {error:.1e}")
        return Path(name, run, f"error {error:.0e}", **facts)
    except Exception as e:  # whatever a compiler or a driver throws: the row says it, the others go on
        return Path(name, None, f"FAILED: {type(e).__name__}: {runtime.first_line(e)[:120]}")
    finally:
        signal.alarm(0)


def rotation(nbytes):
    """How many sets of inputs of so many bytes to rotate, so that none is still in the L2 cache when it comes again."""
    cache = torch.cuda.get_device_properties(machine()).L2_cache_size if on_gpu() else 0
    return max(1, min(64, -(-2 * cache // nbytes)))


def repeated(f, sets):
    """One call of f per set of arguments, and four at least."""
    return [functools.partial(f, *sets[i % len(sets)]) for i in range(max(len(sets), 4))]


# the tables ----------------------------------------------------------------------------------------------------------
def normal(*shape, scale=1.0):
    return (scale * torch.randn(*shape, device=machine())).bfloat16()


def tokens(N, C):
    """h, new (N,C), active, loops, the loop, threshold and limit of N active tokens that do not halt."""
    return (normal(N, C), normal(N, C), torch.ones(N, dtype=torch.bool, device=machine()),
            torch.zeros(N, dtype=torch.int64, device=machine()), 1, torch.full((N,), 2.0, device=machine()),
            torch.full((N,), 99, device=machine()))


def ceiling_cases():
    n, m = (2**29, 8192) if on_gpu() else (2**16, 64)
    x, y, a = normal(n), normal(n), normal(m, m)
    product = Path("torch", captured([lambda: a @ a] * 4)[0], "", calls=4)
    return [Case("ceiling", "copy", [Path("torch", captured([lambda: y.copy_(x)])[0], "")], bytes=4 * n),
            Case("ceiling", "matrix product", [product], flops=2 * m**3)]


def halt_case(N, V, stride, C):
    def inputs():
        return *tokens(N, C), normal(N, stride, scale=4)[:, :V]

    def kernel(*args):
        return kernels.halt_update("confidence", *args[:-1], logits=args[-1], backend=backend(), inplace=True)

    def reference(*args):
        return kernels.halt_update_reference("confidence", *args[:-1], logits=args[-1])

    sets = [inputs() for _ in range(rotation(2 * N * stride + 4 * N * C))]
    right, calls, fused = reference(*sets[0]), max(len(sets), 4), compiled(reference)
    large = V > 1000
    bars, facts = ([("copy", ">=", 0.6)] if large else []), {}
    if V != stride:
        facts["against"] = f"{N}x{stride}", "kernel"
        bars.append(("ratio", "<=", 1.25))
    return Case("halt", f"{N}x{V}", [
        prepare("kernel", lambda: captured(repeated(kernel, sets)), right, calls=calls, bars=bars, **facts),
        prepare("torch.compile", lambda: captured(repeated(fused, sets)), right, calls=calls,
             bars=[("ratio", ">=", 2.0 if large else 1.0)]),
        prepare("eager", lambda: captured(repeated(reference, sets)), right, calls=calls),
    ], bytes=2 * N * V + 4 * N * C + 34 * N)


def head_case(N, C, V):
    state, head, weight = tokens(N, C), normal(V, C, scale=0.05), torch.ones(C, device=machine()).bfloat16()
    said = torch.zeros(N, dtype=torch.int64, device=machine())

    def kernel():
        return kernels.head_halt("confidence", *state, head, weight, backend=backend(), inplace=True, prediction=said)

    def pair():
        logits = F.linear(F.layer_norm(state[1], (C,), weight), head)
        return kernels.halt_update("confidence", *state, logits=logits, backend=backend(), inplace=True)

    right = kernels.head_halt_reference("confidence", *state, head, weight)[:6]  # arg-maxes of ties may differ
    ours = prepare("kernel", lambda: captured([kernel] * 4), right, calls=4)
    if ours.run and on_gpu():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kernel()
        extra = torch.cuda.max_memory_allocated() - before
        ours.note += f", takes {extra / 1e6:.0f} MB (N x V: {2e-6 * N * V:.0f}): " + (
            "met" if extra < N * V // 2 else "MISSED")
    theirs = prepare("cuBLAS + halt update", lambda: captured([pair] * 4), right[:4], calls=4,
                  bars=[("ratio", ">=", round(1 / 0.7, 2))])
    return Case("head", f"{N}x{C}x{V}", [ours, theirs], flops=2 * N * C * V)


def attention_case(B, nh, T, hs):
    def kernel(qkv):
        return (kernels.attention(qkv, nh, backend=backend()),)

    def model(qkv):  # as CausalSelfAttention has it
        q, k, v = (y.view(B, T, nh, hs).transpose(1, 2) for y in qkv.split(nh * hs, 2))
        return (F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, nh * hs),)

    sets = [(normal(B, T, 3 * nh * hs),) for _ in range(rotation(8 * B * T * nh * hs))]
    right, calls = model(sets[0][0]), max(len(sets), 4)
    return Case("attention", f"{B}x{nh}x{T}x{hs}", [
        prepare("kernel", lambda: captured(repeated(kernel, sets)), right, calls=calls),
        prepare("SDPA", lambda: captured(repeated(model, sets)), right, calls=calls,
             bars=[("ratio", ">=", 1.0 if T <= 256 else 0.9)]),
    ], flops=2 * B * nh * T * T * hs)


def all_loops(model, x0, state, halt, early_exit=False):
    """LOOPS loops in torch: h, and loops unless the depth is fixed; halt: the halt update, None for a fixed depth.

    early_exit: whether the host looks after each loop if a token is still active.
    """
    active, threshold, limit = state
    h, active, loops = x0.clone(), active.clone(), torch.zeros_like(limit)  # the halt update may be in place
    for l in range(1, LOOPS + 1):
        new = model.loop(h, x0, l)
        if halt is None:
            h = new
            continue
        h, active, loops, _ = halt("confidence", h, new, active, loops, l, threshold, limit, logits=model.readout(new))
        if early_exit and not active.any():
            break
    return (h,) if halt is None else (h, loops)


def graph_per_loop(model, x0, state, adaptive):
    """A compiled loop as a CUDA graph that is replayed for each loop, the flag read by the host after it."""
    start, threshold, limit = state
    h, active, loops = x0.clone(), start.clone(), torch.zeros_like(limit)
    number, flag = (torch.ones((), dtype=kind, device=machine()) for kind in (torch.int64, torch.bool))

    def loop(l):
        new = model.loop(h, x0, l)  # the second loop stands for all that follow: no step encoding tells them apart
        if not adaptive:
            h.copy_(new)
            return
        values = kernels.halt_update_reference("confidence", h, new, active, loops, number, threshold, limit,
                                               logits=model.readout(new))
        h.copy_(values[0])
        active.copy_(values[1])
        loops.copy_(values[2])
        flag.copy_(values[1].any())
        number.add_(1)

    fused = compiled(loop)

    def first():
        h.copy_(x0)
        active.copy_(start)
        loops.zero_()
        number.fill_(1)
        fused(1)

    graphs = captured([first])[0], captured([lambda: fused(2)])[0]

    def run():
        for l in range(LOOPS):
            graphs[l > 0]()
            if adaptive and not flag.item():
                break
        return (h, loops) if adaptive else (h,)
    return plain(run)


def loop_bars(T, C, B, adaptive):
    """What is asked of the paths of a loop: {path: its bars}."""
    small = T == 64 and C == 128
    bars = {"loop kernel, half": [("ratio", "<=", 0.6)], "called: auto": [("best called", "<=", 1.05)]}
    if B * T <= 8192:
        bars["a eager"] = [("ratio", ">=", 10.0)]
    if small:
        bars |= {"loop kernel": [("per_loop", "<=", 15.0)], "b torch.compile, graph": [("ratio", ">=", 2.0)]}
        if adaptive:
            bars["c graph a loop"] = [("ratio", ">=", 3.0)]
    elif T == 64 and C == 256:
        bars["b torch.compile, graph"] = [("ratio", ">=", 1.5)]
    return bars


def called_ways(model, x0, state, rule):
    """The ways in which a model calls its loop on a GPU: {path: call}, each with results as of all_loops."""
    active, threshold, limit = state
    limit, results = (LOOPS, 1) if rule == "none" else (limit, 2)  # a number tells that the depth is fixed
    plan = kernels.HaltingPlan(active, threshold, limit, LOOPS, rule)

    def way(function):
        @torch.no_grad()  # as LoopGPT.think is
        def call():
            return function(model.loop_spec(), x0, plan)[:results]
        return call

    return {"called: kernel": way(kernels.kernel_graph), "called: graph": way(kernels.torch_graph),
            "called: auto": way(kernels.adaptive_loop)}


def loop_inputs(T, C, B, rule):
    """A model of one block in bfloat16, x0 (B,T,C), and two states (active, threshold, limit) of (B,T): tokens halt
    in loop LOOPS, or in half of that."""
    model = LoopGPT(LoopConfig(vocab_size=65, n_head=C // 32, n_embd=C, num_loops=LOOPS, block_size=T, halt=rule))
    model = model.to(machine()).bfloat16().eval().requires_grad_(False)  # with gradients on, its attention is SDPA
    x0 = model.embed(torch.randint(65, (B, T), device=machine()))
    active, threshold = (torch.full((B, T), x, device=machine()) for x in (True, 2.0))
    whole, half = ((active, threshold, torch.full((B, T), n, device=machine())) for n in (LOOPS, LOOPS // 2))
    return model, x0, whole, half


def loop_case(T, C, B, mode):
    adaptive, rule = mode == "adaptive", "confidence" if mode == "adaptive" else "none"
    model, x0, whole, half = loop_inputs(T, C, B, rule)

    def kernel(state):
        if not on_gpu():
            return all_loops(model, x0, state, kernels.halt_update_reference)
        limit = state[2] if adaptive else LOOPS  # a number tells the kernel that the depth is fixed
        plan = kernels.HaltingPlan(*state[:2], limit, LOOPS, rule)
        return kernels.adaptive_loop(model.loop_spec(), x0, plan, backend=backend())[:2]

    update = functools.partial(kernels.halt_update, backend=backend(), inplace=True) if adaptive else None
    reference = kernels.halt_update_reference if adaptive else None
    fused = compiled(lambda: all_loops(model, x0, whole, reference))
    makers = {"loop kernel": lambda: captured([lambda: kernel(whole)])}
    if adaptive:
        makers["loop kernel, half"] = lambda: captured([lambda: kernel(half)])
    makers |= {"a eager": lambda: plain(lambda: all_loops(model, x0, whole, update, early_exit=adaptive)),
               "b torch.compile, graph": lambda: captured([fused]),
               "c graph a loop": lambda: graph_per_loop(model, x0, whole, adaptive)}
    for name, call in (called_ways(model, x0, whole, rule) if on_gpu() else {}).items():
        # auto asks its table from so many calls on
        makers[name] = functools.partial(plain, call, kernels.CALLS_BEFORE_GRAPH - 1)
    announce("the reference")
    exact = copy.deepcopy(model).float()  # of the same weights
    right = {LOOPS: all_loops(exact, x0.float(), whole, kernels.halt_update_reference),
             LOOPS // 2: all_loops(exact, x0.float(), half, kernels.halt_update_reference, early_exit=True)}
    bars, paths = loop_bars(T, C, B, adaptive), []
    for name, make in makers.items():
        loops = LOOPS // 2 if name.endswith("half") else LOOPS
        paths.append(prepare(name, make, right[loops], loops=loops, bars=bars.get(name, [])))
    return Case("loop", f"{T}x{C}x{B} {mode}", paths)


def decode_case(*shape):
    make = bench_decode.row_case if len(shape) == 2 else bench_decode.micro_case
    return make(prepare, Case, machine(), *shape)


CASES = dict(halt=halt_case, head=head_case, attention=attention_case, loop=loop_case,
             decode=decode_case)  # {table: maker of its cases}


# timing --------------------------------------------------------------------------------------------------------------
def clock(run, times):
    """Median microseconds of run(), called so many times."""
    until = time.perf_counter() + 0.05 * on_gpu()  # the clocks of an idle GPU take a while to rise
    run()
    while time.perf_counter() < until:
        run()
        torch.cuda.synchronize()
    if not on_gpu():
        spans = []
        for _ in range(times):
            start = time.process_time()  # others use a CPU, too
            run()
            spans.append(1e6 * (time.process_time() - start))
        return statistics.median(spans)
    return 1e3 * kernels.gpu_milliseconds(run, times, warm_up=0)


def verdicts(bars, seen):
    """Which of the bars of a path are met by what was seen of it; what was not seen is missed."""
    return ", ".join(f"{what.replace('_', ' ')} {sign} {bound} "
                     + ("met" if (x <= bound if sign == "<=" else x >= bound) else "MISSED")
                     for what, sign, bound in bars for x in [seen.get(what, math.nan)])


def row_of(case, p, times, ceilings):
    """Time a path: its row. times: microseconds of the paths so far by (case, path); ceilings: bytes and FLOP/s."""
    row = dict(table=case.table, case=case.name, path=p.name, note=p.note)
    if p.run is None:
        return row | dict(bar=verdicts(p.bars, {}))
    us = times[case.name, p.name] = clock(p.run, p.times or replays) / p.calls
    against = p.against or (case.name, case.paths[0].name)
    seen = dict(ratio=us / times[against] if against in times else math.nan, copy=math.nan,
                per_loop=us / p.loops if p.loops else math.nan, per_call=us)
    called = [t for (name, way), t in times.items() if name == case.name and way.startswith("called")]
    seen["best called"] = us / min(called, default=us)
    row.update(microseconds=round(us, 2), per_loop=round(us / p.loops, 2) if p.loops else "")
    if against in times and against != (case.name, p.name):
        row.update(ratio=round(seen["ratio"], 3), ratio_to=" ".join(p.against) or against[1])
    for amount, unit, scale, ceiling in ((case.bytes, "GB/s", 1e9, "copy"),
                                         (case.flops, "TFLOP/s", 1e12, "matrix product")):
        if amount:
            row["rate"] = amount / us * 1e6
            seen[ceiling] = row["rate"] / ceilings.get(ceiling, math.nan)
            share = f", {100 * seen[ceiling]:.0f}% of the {ceiling}" if case.table != "ceiling" else ""
            row["note"] = "; ".join(filter(None, (f"{row['rate'] / scale:.0f} {unit}{share}", p.note)))
    return row | dict(bar=verdicts(p.bars, seen))


def measure_group(job, pipe):
    """A group's process: gets its cases ready, waits for the ceilings, then times, a row per message, None at last."""
    global announce
    globals().update(configure(__file__)[0])  # it reads the same arguments
    announce, (table, shapes) = pipe.send, job
    torch.manual_seed(0)
    cases = ceiling_cases() if table == "ceiling" else [CASES[table](*shape) for shape in shapes]
    pipe.send("ready")
    ceilings, times = pipe.recv(), {}
    for case in cases:
        for p in case.paths:
            pipe.send(row_of(case, p, times, ceilings))
    pipe.send(None)


# the run -------------------------------------------------------------------------------------------------------------
def chosen_tables():
    """The tables that are asked for, a list. SystemExit for one that there is not."""
    there = ["decode", "addition", "text", "start"] if decode else ["halt", "head", "attention", "loop"]
    there = ["parity", "speed"] if ranks else there
    chosen = tables.split(",") if tables else there
    if unknown := set(chosen) - set(there):
        raise SystemExit(f"--tables={tables}: there is no table {', '.join(sorted(unknown))} here; {','.join(there)}")
    return chosen


def given():
    """The paths that the setting checkpoints has."""
    return list(filter(None, checkpoints.split(",")))


def jobs():
    """Groups (table, shapes), the ceilings first."""
    halt, head, attention, loop = HALT, HEAD, ATTENTION[:3] if quick else ATTENTION, LOOP[:3] if quick else LOOP
    if not on_gpu():
        halt, head = [(32, 128, 128, 32), (32, 120, 128, 32), (8, 65, 65, 32)], [(32, 32, 128)]
        attention, loop = [(2, 2, 16, 32)], [(16, 64, 2)]
    groups = [("halt", halt), ("head", head), ("attention", attention)]
    groups += [("loop", [(*shape, mode)]) for shape in loop for mode in ("fixed", "adaptive")]
    if decode:
        files = [path for path in given() if path.endswith(".py")]
        groups = [("decode", shapes) for shapes in bench_decode.micro_shapes(on_gpu(), files)]
    chosen = chosen_tables()
    groups = [(table, [s for s in shapes if only in "x".join(map(str, s))]) for table, shapes in groups
              if table in chosen]
    return [("ceiling", [()])] * (not decode) + [(table, shapes) for table, shapes in groups if shapes]


def receive(process, pipe, until):
    """The next message of a group's process. RuntimeError if none comes."""
    if not pipe.poll(max(0.0, until - time.monotonic())):
        raise RuntimeError(f"no answer within {seconds} s")
    try:
        return pipe.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"its process ended with {process.exitcode}, see above") from None


def run_batch(batch, ceilings, emit):
    """Run some groups, which get ready side by side; emit(row) for each row."""
    context, running = multiprocessing.get_context("spawn"), []
    try:
        for job in batch:
            pipe, theirs = context.Pipe()
            running.append((job, context.Process(target=measure_group, args=(job, theirs)), pipe))
            running[-1][1].start()
            theirs.close()
        failed = {}
        for i, (_, process, pipe) in enumerate(running):
            at = "its start"
            try:
                while (message := receive(process, pipe, time.monotonic() + seconds)) != "ready":
                    at = message
            except RuntimeError as e:
                failed[i] = RuntimeError(f"{e}, at {at}")
                process.kill()  # before the others time
        for i, ((table, shapes), process, pipe) in enumerate(running):
            try:
                if i in failed:
                    raise failed[i]
                pipe.send(ceilings)
                while row := receive(process, pipe, time.monotonic() + seconds):
                    emit(row)
            except (RuntimeError, OSError) as e:
                process.kill()
                emit(dict(table=table, case=" ".join("x".join(map(str, s)) for s in shapes), note=f"FAILED: {e}"))
    finally:
        for _, process, _ in running:
            process.kill()


def versions():
    """GPU name, and one line of it and the versions."""
    name = torch.cuda.get_device_name() if on_gpu() else "CPU"
    tile = "none" if kernels.MISSING else kernels.ct.__version__
    driver = "none"
    if on_gpu():
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0]
    return name, f"{name}, torch {torch.__version__}, cuda-tile {tile}, driver {driver}"


def markdown(rows):
    """The tables of the README: a line per case, its first path in microseconds, the others as multiples of that, of
    writing in microseconds too."""
    lines = []
    for table in dict.fromkeys(row["table"] for row in rows if row["table"] in CASES):
        cases, names = {}, {}
        for row in rows:
            if row["table"] == table:
                cases.setdefault(row["case"], []).append(row)
                names |= {row["path"]: None} if "path" in row else {}
        first, *others = names or {"": None}
        lines += ["", f"| {' | '.join((table, first + ', us', *others))} | bars |", "| --- " * (len(others) + 3) + "|"]
        for case, found in cases.items():
            seen = {row.get("path"): row for row in found}
            own = seen.get(first, dict(note="") if any(seen) else found[0])
            cells = [f"{own['microseconds']:.1f}" + (f", {own['per_loop']:.1f} a loop" if own.get("per_loop") else "")
                     if own.get("microseconds") else own["note"]]
            if table == "decode":  # whose ratios are to other cases
                cells += [str(seen.get(name, {}).get("microseconds", "")) for name in others]
            else:
                cells += [f"{seen[name]['ratio']:.2f}x" if "ratio" in seen.get(name, {}) else "" for name in others]
            bars = [bar for row in found for bar in row.get("bar", "").split(", ") if bar]
            bars += [f"{row['path']}: {row['note']} MISSED" for row in found if "path" in row
                     and row["note"].startswith(("WRONG", "FAILED"))]
            missed = [bar.replace("MISSED", "missed") for bar in bars if "MISSED" in bar]
            lines.append(f"| {case} | {' | '.join(cells)} | {', '.join(missed) or ('met' if bars else '')} |")
    return "\n".join(lines) + "\n"


def faster_paths(rows):
    """{case of looplm_kernels.json: "kernel" or "graph"} of the loop table's rows, where both were called and right."""
    spans = {}
    for row in rows:
        called, _, way = row.get("path", "").partition(": ")
        if row["table"] == "loop" and called == "called" and way in ("kernel", "graph") and row.get("microseconds"):
            size, mode = row["case"].split()
            T, C, B = map(int, size.split("x"))
            case = kernels.loop_case(C, B, T, "confidence" if mode == "adaptive" else mode, torch.bfloat16)
            spans.setdefault(case, {})[way] = float(row["microseconds"])
    return {case: min(by, key=by.get) for case, by in spans.items() if len(by) == 2}


def record_paths(name, rows):
    """Put what the rows say of a card into looplm_kernels.json, where all else stays. Returns of how many cases."""
    known, found = json.loads(kernels.TABLE.read_text(encoding="utf-8")), faster_paths(rows)
    if found:
        known[name] = known.get(name, {}) | found
        with outputs.whole_file(str(kernels.TABLE)) as f:
            f.write(json.dumps(known, indent=1, sort_keys=True) + "\n")
    return len(found)


def print_row(row):
    if row["table"] not in ("ceiling", *CASES):  # of a model
        print(" ".join(f"{k}={x}" if k not in ("table", "case") else str(x) for k, x in row.items() if x != ""),
              flush=True)
        return
    ratio = f"{row['ratio']:.2f}x {row['ratio_to']}" if "ratio" in row else ""
    print(f"{row['table']:<10}{row['case']:<20} {row.get('path', ''):<24}{row.get('microseconds', ''):>10}"
          f"{row.get('per_loop', ''):>9}  {ratio:<26}{row.get('bar', ''):<24} {row['note']}", flush=True)


def measure_ranks(target, line):
    """Training on several GPUs beside one: the table, and what it leads to expect of more. What an earlier call has
    measured on this machine stays, and is not run again."""
    began, place = time.monotonic(), "cuda" if on_gpu() else "cpu"
    stamp = dict(machine=bench_ranks.fingerprint(place, line, quick),
                 commit=outputs.commit_line(outputs.provenance()))
    outputs.lock(f"{target}.lock", target, "--out")  # two would lose each other's rows, and disturb each other's times
    before = bench_ranks.rows_there(target, stamp["machine"])
    runs = bench_ranks.todo(ranks, place, chosen_tables(), only, before)
    print(line)
    if not runs:
        print(f"nothing is left to run, {target} has {len(before)} rows of this machine; remove it to run all anew")
        return
    said = [f"{len(before)} of these rows were there before this command: "
            + ", ".join(dict.fromkeys(r.get("commit", "?") for r in before))] if before else []
    print(*said, sep="\n", end="\n" * len(said))

    def emit(rows, left):
        rows[-1].update(stamp)
        with outputs.going_on(target):
            outputs.write_csv(target, bench_ranks.COLUMNS, rows)
            going = [f"Not all of it: {left} runs are left, with which the same command goes on."] if left else []
            write_markdown(target, line, began, bench_ranks.markdown(rows),
                           [*bench_ranks.expected(rows), *said, *going])
        print(" ".join(f"{k}={x}" for k, x in rows[-1].items() if k not in stamp), flush=True)
    rows = bench_ranks.measure(runs, ranks, place, quick, emit, before)
    with outputs.one_line(target):  # where the last one did not reach a full disk, for example
        outputs.write_csv(target, bench_ranks.COLUMNS, rows)
    lines = bench_ranks.expected(rows)
    print("".join(f"{x}\n" for x in lines), end="")
    finish(target, line, began, rows, bench_ranks.markdown(rows), lines + said)


def write_markdown(target, line, began, tables, lines):
    """Write the Markdown of tables and lines beside the CSV; where it comes from."""
    known = outputs.provenance(machine(), seconds=round(time.monotonic() - began, 1))
    with outputs.whole_file(target.removesuffix(".csv") + ".md") as f:
        f.write("\n\n".join([f"`{known['command']}`: {line}", tables, *lines, outputs.provenance_line(known)]) + "\n")
    return known


def finish(target, line, began, rows, tables, lines):
    """Write the Markdown of tables and lines, say what they come to, and end with status 1 if a row failed."""
    with outputs.one_line(target):
        known = write_markdown(target, line, began, tables, lines)
    missed = sum(text.count("MISSED") for text in (*lines, *(row.get("bar", "") + row["note"] for row in rows)))
    failed = sum("WRONG" in row["note"] or "FAILED" in row["note"] for row in rows)
    print(f"{missed} bars missed, {failed} rows failed, {known['seconds']:.0f} s; table: {target}")
    sys.exit(failed > 0)


def main():
    globals().update(configure(__file__)[0])
    name, line = versions()
    gpu = re.sub(r"[^a-z0-9]+", "_", name.lower().removeprefix("nvidia "))
    target = out or f"results/{'ranks' if ranks else 'decode' if decode else 'bench'}_{gpu}.csv"
    outputs.require_writable(target)
    times_paths = on_gpu() and not ranks and "loop" in chosen_tables()
    say_without_effect((not times_paths, "only the loop table of a GPU times both paths", "record"))
    if ranks:
        return measure_ranks(target, line)
    groups, ceilings, rows = jobs(), {}, []
    threads = max(1, 2 * os.cpu_count() // max(1, min(len(groups), workers)))  # of each group's torch.compile
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))
    passing = tempfile.TemporaryDirectory()  # what auto measures beside other groups shall not be kept
    os.environ["XDG_CACHE_HOME"] = passing.name
    began = time.monotonic()
    file = outputs.Table(target, COLUMNS if not decode else dict.fromkeys((*COLUMNS, *bench_models.COLUMNS)))

    def emit(row):
        rows.append(row)
        if row["table"] == "ceiling" and "rate" in row:
            ceilings[row["case"]] = row["rate"]
        file.add({k: x for k, x in row.items() if k != "rate"})
        print_row(row)

    print(line)
    print(f"{'table':<10}{'case':<20} {'path':<24}{'us':>10}{'us/loop':>9}  {'ratio':<26}{'bar':<24}")
    file.add(dict(table="run", note=line))
    for i in range(0, len(groups), workers):
        run_batch(groups[i:i + workers], ceilings, emit)
        done, spent = min(i + workers, len(groups)), time.monotonic() - began
        print(f"  {done} of {len(groups)} groups, {spent:.0f} s", flush=True)
    lines = []
    if decode:
        lines = bench_decode.mixture_lines(rows)
        print(*lines, sep="\n")
        bench_models.model_rows([path for path in given() if not path.endswith(".py")], machine(),
                                runtime.choose_dtype("auto", machine()), chosen_tables(), only, span, emit)
        if "start" in chosen_tables():
            bench_decode.start_rows(machine(), emit)
        figures.draw_writing(rows, target.removesuffix(".csv") + ".png")
    if record and times_paths:
        print(f"recorded: {record_paths(name, rows)} cases of {name} in {kernels.TABLE.name}")
    finish(target, line, began, rows, (markdown(rows) + bench_models.markdown(rows)).strip("\n"), lines)


if __name__ == "__main__":
    runtime.run(main)
