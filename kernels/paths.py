"""Which way the whole loop takes: a launch of the loop kernel, a CUDA graph of it, or one of the compiled torch loops.

A kernel compiles for seconds, in float32 for up to a minute, and is traced anew in every process; then a call by it is
some milliseconds faster. So what is asked for seldom is left to PyTorch, by count and not by time: no clock decides. A
launch from Python costs the host more than all loops cost the GPU, so a shape that comes often is replayed as a graph.
Whether the kernel's or that of the compiled loops is faster depends on GPU and size. looplm_kernels.json knows it for
some; what it lacks is measured once, and kept in the user's cache.
"""
import contextlib
import functools
import json
import os
import sys
import weakref
from pathlib import Path

import torch

from kernels import loop
from kernels.backend import choose_backend, failed_ops, first_line, product_dtype, why_not_cutile
from kernels.graphs import capture, gpu_milliseconds
from kernels.halt import HaltingPlan
from kernels.tile import ERRORS, INF

TABLE = Path(__file__).parents[1] / "looplm_kernels.json"  # {GPU's name: {case: path}}, by measurements in root.md
MAX_GRAPHS = 8             # of each kind that a model may have
CALLS_BEFORE_KERNEL = 500  # of a variant, by when the kernel would have saved the seconds that its compiler takes
CALLS_BEFORE_GRAPH = 20    # of a shape by the kernel, from which on a graph is worth its capture
calls_by_variant, calls_by_shape = {}, {}  # how often each was asked for in this process
torch_graphs = weakref.WeakKeyDictionary()  # owner of a model -> its graphs of compiled loops; a copy starts anew


# graphs --------------------------------------------------------------------------------------------------------------
def replay(graphs, key, given, make):
    """Clones of what function(*given) returns, by its CUDA graph in `graphs` under key, one call at a time.

    The first call captures it, after make() gave the function. None if `graphs` is full.
    """
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    key = dtype, *key
    if key not in graphs:
        if len(graphs) >= MAX_GRAPHS:
            return None
        function = make()
        # without autocast's cache of weights, which would be freed while the graph goes on reading them
        with torch.cuda.device(given[0].device), torch.autocast("cuda", dtype, dtype is not None, cache_enabled=False):
            inputs = [x.clone() for x in given]
            graph, outputs = capture(lambda: function(*inputs), error_mode="thread_local")
        graphs[key] = graph, inputs, outputs
    graph, inputs, outputs = graphs[key]
    torch._foreach_copy_(inputs, list(given))  # one launch for all of them
    graph.replay()
    return [x if x is None else x.clone() for x in outputs]  # the next replay overwrites them


def graph_inputs(x0, plan):
    """The tensors that may differ from one replay to the next."""
    return (x0, plan.active, plan.threshold) if plan.fixed else (x0, plan.active, plan.threshold, plan.limit)


def with_inputs(plan, active, threshold, limit=None):
    """The plan with other tensors."""
    return HaltingPlan(active, threshold, plan.limit if limit is None else limit, plan.L, plan.rule)


@torch.no_grad()
def kernel_graph(spec, x0, plan):
    """kernel_path as a CUDA graph. None beyond MAX_GRAPHS shapes."""
    packed = loop.pack_weights(spec, plan.L, product_dtype(spec.head))  # where weights changed, its graphs are gone
    key = x0.shape, x0.dtype, plan.L, plan.rule, plan.limit if plan.fixed else None, spec.config.min_loops

    def loops(x0, *tensors):
        return loop.kernel_path(spec, x0, with_inputs(plan, *tensors), forced=True)
    return replay(packed.graphs, key, graph_inputs(x0, plan), lambda: loops)


@torch.no_grad()
def torch_graph(spec, x0, plan):
    """adaptive_loop by torch.compile and one CUDA graph over all L loops, captured at the first call for a shape.

    The graph reads the weights where they are, and is captured anew where they moved. It takes all loops: it cannot
    end with the last active token. None beyond MAX_GRAPHS shapes.
    """
    c = spec.config
    key = (x0.shape, x0.dtype, plan.L, plan.rule, plan.limit if plan.fixed else None, c.min_loops, c.alpha, c.update,
           c.anderson, c.log_scale, *(p.data_ptr() for p in spec.parameters()))

    def make():
        compiled = torch.compile(lambda x0, *tensors: spec.in_torch(x0, with_inputs(plan, *tensors)), dynamic=False)
        # a compiled model meets many shapes, each with a graph of its own
        return torch._dynamo.config.patch(recompile_limit=64)(compiled)
    done = replay(torch_graphs.setdefault(spec.owner, {}), key, graph_inputs(x0, plan), make)
    if done is None:
        return None
    h, loops = done
    return h, torch.full_like(plan.active, plan.L, dtype=torch.long) if loops is None else loops, None


# which path is fastest -----------------------------------------------------------------------------------------------
def loop_case(C, B, T, rule, dtype):
    """The row of the table that a call belongs to: sizes are rounded up, tokens to powers of four."""
    tokens = next(n for n in (256, 1024, 4096, 16384, INF) if B * T <= n)
    return f"C{C} T{64 if T <= 64 else 128 if T <= 128 else 256} tokens{tokens} {rule} {str(dtype)[6:]}"


def read_table(path):
    """The object in a JSON file, an empty one if it cannot be read."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def own_table(name):
    """Where the measurements of a GPU are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "looplm" / f"{name.replace(' ', '_')}.json"


@functools.cache
def path_table(name):
    """{case: path} of a GPU: the table that comes with the kernels, and above it what was measured here."""
    return read_table(TABLE).get(name, {}) | read_table(own_table(name))


def milliseconds(call):
    """Median time of a call, infinite if it fails or returns None."""
    try:
        return INF if call() is None else gpu_milliseconds(call, 5, warm_up=1)
    except ERRORS as error:  # or out of memory
        print(f"kernels: {first_line(error)}", file=sys.stderr)
        return INF


def fastest(case, device, kernel, graph):
    """'kernel' or 'graph', by the table; a case that it lacks is measured once and kept in the user's cache."""
    name = torch.cuda.get_device_name(device)
    if case not in path_table(name):
        print(f"kernels: which path is the faster one for {case}? A minute, once ...", file=sys.stderr)
        spans = {path: milliseconds(call) for path, call in (("kernel", kernel), ("graph", graph))}
        path_table(name)[case] = min(spans, key=spans.get)
        print("kernels: " + ", ".join(f"{path} {t:.3f} ms" for path, t in spans.items()), file=sys.stderr)
        if max(spans.values()) < INF:
            own = own_table(name)
            with contextlib.suppress(OSError):  # then the next process measures again
                own.parent.mkdir(parents=True, exist_ok=True)
                part = own.with_suffix(f".{os.getpid()}")  # other processes may measure at the same time
                part.write_text(json.dumps(read_table(own) | {case: path_table(name)[case]}, indent=1))
                part.replace(own)
    return path_table(name)[case]


def comes_seldom(device, *variant):
    """Is this one of the first CALLS_BEFORE_KERNEL calls that this process makes for a variant of the kernels?

    variant: what a kernel is compiled for, any hashable values. False where no kernel can run (whoever asks for one is
    told why), where PyTorch cannot do it (a CUDA graph is being captured), and where calls may not differ in their
    rounding (deterministic algorithms, a compiled model).
    """
    if (device.type != "cuda" or torch.compiler.is_compiling() or torch.are_deterministic_algorithms_enabled()
            or torch.cuda.is_current_stream_capturing()):
        return False
    calls_by_variant[variant] = calls_by_variant.get(variant, 0) + 1
    return calls_by_variant[variant] <= CALLS_BEFORE_KERNEL and not why_not_cutile(device)


def choose_path(spec, x0, plan, trace, backend):
    """'torch' where no kernel does it, 'kernel' for a launch, 'graph' for a shape that has come often enough."""
    if torch.compiler.is_compiling():  # a compiled model runs the loop as it is compiled
        return "torch"
    why_not = loop.why_not_loop_kernel(spec, x0, plan.L, plan.rule, trace)
    if choose_backend(backend, x0.device, why_not) == "torch":
        return "torch"
    if backend == "cutile":  # asked for by name, so neither a graph nor a fallback passes for it
        return "kernel"
    if loop.loop_name(x0) in failed_ops:  # said once, when it failed
        return "torch"
    if (trace or "graph" in failed_ops or torch.cuda.is_current_stream_capturing()
            or torch.are_deterministic_algorithms_enabled()):  # kernel and graph round differently
        return "kernel"
    shape = *x0.shape, plan.L, plan.rule
    calls_by_shape[shape] = calls_by_shape.get(shape, 0) + 1
    return "kernel" if calls_by_shape[shape] < CALLS_BEFORE_GRAPH else "graph"


def adaptive_loop(spec, x0, plan, last=None, trace=False, backend="auto"):
    """All L loops of a looped model (LoopSpec) on the embedded input x0 (B,T,C); the reference is LoopGPT.think.

    plan: a HaltingPlan; last (B,T) int: what the readout of x0 says, which the trace of pads shows.
    backend auto takes the kernel or, for a shape that comes often, a CUDA graph of it or of the compiled loops, what is
    faster on this GPU; no graph where deterministic algorithms are asked for.

    Returns h (B,T,C), loops (B,T) int64, and with trace the dict of LoopGPT.think, else None. Returns None where no
    kernel does it: then the loop is to be run in torch. ValueError and RuntimeError as choose_backend.
    """
    path = choose_path(spec, x0, plan, trace, backend)
    if path == "torch":
        return None
    launch = functools.partial(loop.kernel_path, spec, x0, plan, last, trace, forced=backend == "cutile")
    if path == "kernel":
        return launch()
    # the key of the table, and the two ways it chooses between
    case = loop_case(x0.size(2), x0.size(0), x0.size(1), "fixed" if plan.fixed else plan.rule, x0.dtype)
    ways = dict(kernel=functools.partial(kernel_graph, spec, x0, plan),
                graph=functools.partial(torch_graph, spec, x0, plan))
    try:
        return ways[fastest(case, x0.device, **ways)]() or launch()
    except ERRORS as error:  # or out of memory: a plain launch does it too
        failed_ops["graph"] = first_line(error)
        print(f"kernels: the loop kernel is launched without CUDA graphs from now on: {failed_ops['graph']}",
              file=sys.stderr)
        return launch()
