"""Which way the whole loop takes: one launch, a CUDA graph of it, or one of the compiled torch loops."""
import contextlib
import functools
import json
import os
import sys
import weakref
from pathlib import Path

import torch
from torch import Tensor

from kernels import loop
from kernels.backend import broken, choose_backend, product_dtype
from kernels.loop import loop_cannot, loop_weights, prepared
from kernels.tile import ERRORS, INF

graphs = weakref.WeakKeyDictionary()  # model -> the CUDA graphs of torch_graph; a copy of a model starts anew
GRAPHS = 8  # of each kind that a model may have
OFTEN = 20  # calls of a shape from which on a graph is worth its capture


def replay(kept, key, given, make):
    """Clones of what function(*given) returns, by the CUDA graph of it in `kept` under key, one call at a time.

    The first call captures it, after make() gave the function. None if `kept` is full.
    """
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    key = dtype, *key
    if key not in kept:
        if len(kept) >= GRAPHS:
            return None
        function, stream = make(), torch.cuda.current_stream(given[0].device)
        # without autocast's cache of weights, which would be freed while the graph goes on reading them
        with torch.cuda.device(given[0].device), torch.autocast("cuda", dtype, dtype is not None, cache_enabled=False):
            inputs, side, graph = [x.clone() for x in given], torch.cuda.Stream(), torch.cuda.CUDAGraph()
            side.wait_stream(stream)
            with torch.cuda.stream(side):
                function(*inputs), function(*inputs)  # compiles
            stream.wait_stream(side)
            try:
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    outputs = function(*inputs)
            finally:
                torch.cuda.set_stream(stream)  # a capture that fails leaves its own behind
        kept[key] = graph, inputs, outputs
    graph, inputs, outputs = kept[key]
    torch._foreach_copy_(inputs, list(given))
    graph.replay()
    return [x if x is None else x.clone() for x in outputs]


@torch.no_grad()
def kernel_graph(model, x0, active, threshold, limit, L, rule):
    """kernel_path as a CUDA graph: a launch from Python costs the host more than all loops cost the GPU."""
    loop_weights(model, L, product_dtype(model.lm_head.weight))  # where weights changed, this drops the graphs as well
    adapts = isinstance(limit, Tensor)
    key = x0.shape, x0.dtype, L, rule, None if adapts else limit, model.config.min_loops
    given = (x0, active, threshold, limit) if adapts else (x0, active, threshold)

    def loops(x0, active, threshold, limit=limit):
        return loop.kernel_path(model, x0, active, threshold, limit, L, rule, None, False, True)
    return replay(prepared[model][3], key, given, lambda: loops)


@torch.no_grad()
def torch_graph(model, x0, active, threshold, limit, L, rule):
    """adaptive_loop by torch.compile and one CUDA graph over all L loops, captured at the first call for a shape.

    The graph reads the weights where they are, and is captured anew where they moved. It takes all loops: it cannot
    end with the last active token. None beyond a few shapes.
    """
    c, fixed = model.config, not isinstance(limit, Tensor)
    key = (x0.shape, x0.dtype, L, rule, limit if fixed else None, c.min_loops, c.alpha, c.update, c.anderson,
           c.log_scale, *(p.data_ptr() for p in model.parameters()))

    def make():
        loops = torch.compile(lambda *inputs: model.loops_in_torch(*inputs, L=L, rule=rule), dynamic=False)
        return torch._dynamo.config.patch(recompile_limit=64)(loops)
    done = replay(graphs.setdefault(model, {}), key, (x0,) if fixed else (x0, active, threshold, limit), make)
    if done is None:
        return None
    h, taken = done
    return h, torch.full_like(active, L, dtype=torch.long) if taken is None else taken, None


TABLE = Path(__file__).parents[1] / "looplm_kernels.json"  # {GPU's name: {case: path}}, by the measurements in root.md
seen = {}  # shape -> how often it was asked for


def loop_case(C, B, T, rule, dtype):
    """The row of the table that a call belongs to: sizes are rounded up, tokens to powers of four."""
    tokens = next(n for n in (256, 1024, 4096, 16384, INF) if B * T <= n)
    return f"C{C} T{64 if T <= 64 else 128 if T <= 128 else 256} tokens{tokens} {rule} {str(dtype)[6:]}"


def read_table(path):
    """The object in a JSON file, an empty one if it cannot be read."""
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def own_table(name):
    """Where the measurements of a GPU are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "looplm" / f"{name.replace(' ', '_')}.json"


@functools.cache
def known(name):
    """{case: path} of a GPU: the table that comes with the kernels, and above it what was measured here."""
    return read_table(TABLE).get(name, {}) | read_table(own_table(name))


def milliseconds(call, times=5):
    """Median time of a call on the GPU, after two that warm up; infinite if it fails."""
    spans = []
    try:
        for n in range(times + 2):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            done = call()
            end.record()
            torch.cuda.synchronize()
            spans += [start.elapsed_time(end)] if n > 1 else []
    except ERRORS as error:  # or out of memory
        print(f"kernels: {str(error).splitlines()[0]}", file=sys.stderr)
        return INF
    return INF if done is None else sorted(spans)[times // 2]


def fastest(case, device, kernel, graph):
    """'kernel' or 'graph', by the table; a case that it lacks is measured once and kept in the user's cache."""
    name = torch.cuda.get_device_name(device)
    if case not in known(name):
        print(f"kernels: which path is the faster one for {case}? A minute, once ...", file=sys.stderr)
        spans = {path: milliseconds(call) for path, call in (("kernel", kernel), ("graph", graph))}
        known(name)[case] = min(spans, key=spans.get)
        print("kernels: " + ", ".join(f"{path} {t:.3f} ms" for path, t in spans.items()), file=sys.stderr)
        if max(spans.values()) < INF:
            own = own_table(name)
            with contextlib.suppress(OSError):  # then the next process measures again
                own.parent.mkdir(parents=True, exist_ok=True)
                part = own.with_suffix(f".{os.getpid()}")
                part.write_text(json.dumps(read_table(own) | {case: known(name)[case]}, indent=1))
                part.replace(own)
    return known(name)[case]


def adaptive_loop(model, x0, active, threshold, limit, L, rule, last=None, trace=False, backend="auto"):
    """All L loops of a LoopGPT on the embedded input x0 (B,T,C), in one launch; the reference is LoopGPT.think.

    active (B,T) bool, threshold (B,T) float32, limit (B,T) int: as halt_update takes them; last (B,T) int: what the
    readout of x0 says, which pads go on saying in the trace. Rule 'none' and limit a number: the fixed depth.
    backend auto takes the kernel or, for a shape that comes often, a CUDA graph of it or of the compiled loops, what is
    faster on this GPU; no graph where deterministic algorithms are asked for, since the two round differently.

    Returns h (B,T,C), loops (B,T) int64, and with trace the dict of LoopGPT.think, else None. Returns None where no
    kernel does it: then the loop is to be run in torch. ValueError and RuntimeError as choose_backend.
    """
    if torch.compiler.is_compiling():  # a compiled model runs the loop as it is compiled
        return None
    forced = backend == "cutile"
    if choose_backend(backend, x0.device, loop_cannot(model, x0, L, rule, trace)) == "torch" or (
            not forced and f"loop of n_embd {x0.size(2)}" in broken):
        return None

    def kernel():
        return loop.kernel_path(model, x0, active, threshold, limit, L, rule, last, trace, forced)

    if (forced or trace or "graph" in broken or torch.cuda.is_current_stream_capturing()
            or torch.are_deterministic_algorithms_enabled()):
        return kernel()
    shape = (*x0.shape, L, rule)
    seen[shape] = seen.get(shape, 0) + 1
    if seen[shape] < OFTEN:
        return kernel()
    case = loop_case(x0.size(2), x0.size(0), x0.size(1), rule if isinstance(limit, Tensor) else "fixed", x0.dtype)
    ways = {way: functools.partial(call, model, x0, active, threshold, limit, L, rule)
            for way, call in (("kernel", kernel_graph), ("graph", torch_graph))}
    try:
        return ways[fastest(case, x0.device, **ways)]() or kernel()
    except ERRORS as error:  # or out of memory: a plain launch does it too
        broken["graph"] = str(error).splitlines()[0]
        print(f"kernels: the loop kernel is launched without CUDA graphs from now on: {broken['graph']}",
              file=sys.stderr)
        return kernel()
