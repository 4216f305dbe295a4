"""Every kernel of LoopLM, its torch reference beside it, and the one dispatch between them.

An operation stands here as: kernels, torch reference, public function. A CPU, or a GPU that cuTile does not know,
runs the reference.

    python looplm_kernels.py        says what this machine can run

N tokens, C width, V vocabulary, NS vocabulary splits; B, T, nh, hs as in model.py. In kernels a name in capitals is a
compile-time constant; tiles have powers of two as sizes, and what a load reads outside of its tensor is padding.
"""
import contextlib
import ctypes
import functools
import importlib.metadata
import json
import math
import os
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor


class Absent:
    """In the place of cuda.tile where it is not installed: the kernels below can be defined, and none can run."""
    def __getattr__(self, *args, **hints):
        return self

    __getitem__ = __call__ = __getattr__


try:
    import cuda.tile as ct
    MISSING, ERRORS = "", (ct.TileError, OSError, RuntimeError)  # of the compiler, of a library, of the driver
except ImportError as error:
    ct, MISSING, ERRORS = Absent(), f"cuda-tile is not installed: {error}", (OSError, RuntimeError)

RULES = ("none", "confidence", "entropy", "delta", "kl", "gate")
NEEDS_LOGITS = ("confidence", "entropy", "kl")
HALTS_ABOVE = ("confidence", "gate")  # these halt at score >= threshold, the others at score <= threshold

NONE, CONFIDENCE, ENTROPY, DELTA, KL, GATE = range(len(RULES))  # the rules as the kernels know them
FLOOR = -1e20  # scores and logits below, -inf too, count as this one: it is finite, so that no difference is NaN
LOG2E, LN2, NAN, INF = math.log2(math.e), math.log(2), math.nan, math.inf
Int, Flag = ct.Constant[int], ct.Constant[bool]
ZERO, APPROX = ct.PaddingMode.ZERO, ct.RoundingMode.APPROX


# dispatch ------------------------------------------------------------------------------------------------------------
@functools.cache
def tileiras_version():
    """(13, 5) of cuTile's compiler, None where there is none."""
    try:
        text = "release " + importlib.metadata.version("nvidia-cuda-tileiras")
    except importlib.metadata.PackageNotFoundError:
        path = shutil.which("tileiras") or shutil.which("tileiras", path="/usr/local/cuda/bin")
        text = subprocess.run([path, "--version"], capture_output=True, text=True).stdout if path else ""
    found = re.search(r"release (\d+)\.(\d+)", text)
    return found and tuple(map(int, found.groups()))


def driver_version():
    """13000 for an NVIDIA driver of CUDA 13.0, 0 where there is none."""
    number = ctypes.c_int()
    with contextlib.suppress(OSError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    return number.value


def why_not_cutile(device):
    """What keeps cuTile from running on a device, "" if nothing does."""
    if device.type != "cuda":
        return f"a {device.type} device has no cuTile"
    if torch.version.cuda is None:
        return "this torch drives no NVIDIA GPU"
    if MISSING:
        return MISSING
    capability, compiler = torch.cuda.get_device_capability(device), tileiras_version()
    if capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    if compiler is None:
        return "cuTile's compiler, tileiras, is not installed"
    if capability[0] == 9 and compiler < (13, 3):
        return f"tileiras {compiler[0]}.{compiler[1]} cannot compile for Hopper, 13.3 can"
    driver = driver_version()
    if driver < 13000:
        return f"the driver is for CUDA {driver // 1000}.{driver % 1000 // 10}, cuTile needs one for 13.0 (R580)"
    return ""


@functools.cache  # so that the choice is printed once
def backend_choice(backend, device, cannot):
    if backend not in ("auto", "cutile", "torch"):
        raise ValueError(f"backend {backend!r} is none of auto, cutile, torch")
    if backend == "torch":
        return "torch"
    reason = why_not_cutile(device) or cannot
    if backend == "cutile" and reason:
        raise RuntimeError(f"backend cutile cannot run here: {reason}; use torch or auto")
    if backend == "auto":
        why = reason or f"cuda-tile {ct.__version__}, {torch.cuda.get_device_name(device)}"
        print(f"kernels: {'torch' if reason else 'cutile'} backend ({why})", file=sys.stderr)
    return "torch" if reason else "cutile"


@torch.compiler.assume_constant_result  # a compiled function has no print in it
def choose_backend(backend="auto", device="cpu", cannot=""):
    """'auto', 'cutile' or 'torch' -> the backend that runs, 'cutile' or 'torch'; auto says why on stderr, once.

    cannot: what is asked for that no kernel does.
    """
    return backend_choice(backend, torch.device(device), cannot)


choose_backend.cache_clear = backend_choice.cache_clear


def unsupported(*tensors):
    """What the kernels cannot do with these tensors or None, "" if nothing."""
    for x in tensors:
        if isinstance(x, Tensor) and x.dtype == torch.float64:
            return "the kernels do not compute in float64"
        if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled():
            return "the kernels have no gradient"
    return ""


broken = {}  # operation -> why its launch failed


def run(name, forced, device, kernels, reference):
    """kernels(), or reference() where they cannot run; forced: no reference, an error instead."""
    if not forced and (name in broken or choose_backend("auto", device) == "torch"):
        return reference()
    try:
        return kernels()
    except torch.OutOfMemoryError:
        raise
    except ERRORS as error:
        if forced:
            raise
        broken[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"kernels: torch backend for {name}, its launch failed: {broken[name]}", file=sys.stderr)
        return reference()


def operator(name, fake, mutates=()):
    """Make a function the operator looplm::name, which torch.compile takes as it is.

    A second copy of this module, as tests load one, keeps plain functions: an operator has one home.
    """
    def register(function):
        if __name__ != "looplm_kernels":
            return function
        op = torch.library.custom_op(f"looplm::{name}", function, mutates_args=mutates)
        op.register_fake(fake)
        return op
    return register


def power(n):
    """The smallest power of two from n on."""
    return 1 << max(n - 1, 0).bit_length()


@functools.cache
def gpu(device):
    """The properties of a GPU on which plans depend; an H200's where there is none."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device)
    return SimpleNamespace(major=9, minor=0, multi_processor_count=132)


@functools.cache
def hinted(kernel, **hints):
    return kernel.replace_hints(**hints)


def launch(kernel, grid, args, device, **hints):
    """Start a kernel on the current stream; hints that are None are the compiler's choice."""
    kernel = hinted(kernel, **hints) if hints else kernel
    if device.type != "cuda":  # the tests' stand-in
        ct.launch(None, grid, kernel, args)
        return
    with torch.cuda.device(device):
        ct.launch(torch.cuda.current_stream(), grid, kernel, args)


def wide(x):
    """x in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


# halt update: kernel -------------------------------------------------------------------------------------------------
def take(x, i, R):
    """Entries R * i and on of x (N,), (R,). No TMA, here and below: it would add warps that only fetch."""
    return ct.load(x, (i,), (R,), padding_mode=ZERO, allow_tma=False)


def put(x, i, tile):
    ct.store(x, (i,), tile, allow_tma=False)


def state_tile(x, i, c, R, CW):
    return ct.load(x, (i, c), (R, CW), padding_mode=ZERO, allow_tma=False)


def tokens_need(i, h, new, loops, threshold, limit, R, CW):
    """What tokens_halt reads of the R tokens from R * i on, all asked for at once."""
    return (take(threshold, i, R), take(limit, i, R), take(loops, i, R), state_tile(new, i, 0, R, CW),
            state_tile(h, i, 0, R, CW))


def tokens_halt(i, score, act, need, h, new, active, loops, scores, loop, min_loops, ABOVE, R, CW):
    """What follows the scoring of the R tokens from R * i on: score, act (R,) tiles; need: what tokens_need returned;
    the rest as halt_update has it."""
    bound, last, before, moved, still = need
    if ABOVE:
        passes = score >= bound  # a NaN passes nothing
    else:
        passes = score <= bound
    halted = (passes & (loop >= min_loops)) | (last <= loop)
    put(scores, i, ct.where(act, score, NAN))
    put(active, i, act & ~halted)
    put(loops, i, ct.where(act, ct.full((R,), loop, loops.dtype), before))
    if R > 1:  # a block of one token is here only if that one is active
        moved = ct.where(act.reshape((R, 1)), moved, still)
    ct.store(h, (i, 0), moved, allow_tma=False)
    for c in range(1, ct.num_tiles(h, 1, (R, CW))):
        moved = state_tile(new, i, c, R, CW)
        if R > 1:
            moved = ct.where(act.reshape((R, 1)), moved, state_tile(h, i, c, R, CW))
        ct.store(h, (i, c), moved, allow_tma=False)


def state_change(i, h, new, R, CW):
    """norm(new - h) / norm(h) of the R tokens from R * i on, (R,)."""
    change, size = ct.zeros((R,), ct.float32), ct.zeros((R,), ct.float32)
    for c in range(ct.num_tiles(h, 1, (R, CW))):
        old = ct.astype(state_tile(h, i, c, R, CW), ct.float32)
        step = ct.astype(state_tile(new, i, c, R, CW), ct.float32) - old
        change, size = change + ct.sum(step * step, 1), size + ct.sum(old * old, 1)
    return ct.sqrt(change) / ct.maximum(ct.sqrt(size), 1e-20)


def finite(z):
    """Logits without -inf; a NaN stays one, so that its row passes nothing."""
    return ct.maximum(z, FLOOR, propagate_nan=True)


def softmax_step(tiles, best, peak, total, mixed, WITH_ENTROPY):
    """Takes some tiles of logits into running statistics that every lane keeps for itself.

    best: the largest logit, in the dtype of the logits; peak: the same, float32 and finite; total: sum exp2(t),
    t = (z - peak) * log2(e); mixed: sum exp2(t) * t. Nothing here crosses lanes, and one correction serves all tiles.
    """
    for z in ct.static_iter(tiles):
        best = ct.maximum(best, z)  # of two bf16 at once, before they widen
    higher = ct.maximum(ct.astype(best, ct.float32), FLOOR)
    down = (peak - higher) * LOG2E
    shrink = ct.exp2(down, flush_to_zero=True)
    if WITH_ENTROPY:
        mixed = shrink * (mixed + total * down)
    total = total * shrink
    for z in ct.static_iter(tiles):
        z = ct.astype(z, ct.float32)
        if WITH_ENTROPY:
            z = finite(z)  # 0 * -inf would be NaN
        t = (z - higher) * LOG2E
        e = ct.exp2(t, flush_to_zero=True)
        total = total + e
        if WITH_ENTROPY:
            mixed = mixed + e * t
    return best, higher, total, mixed


def columns(x, i, j, R, W, MASKED):
    """Columns W * j and on of the R rows from R * i on of x (N,V), (R,W); -inf beyond V if MASKED.

    A gather and not a load: its lanes read 16 bytes at once where the row stride allows it, those of a load 2.
    """
    row = R * i + ct.arange(R, dtype=ct.int32).reshape((R, 1))
    column = W * j + ct.arange(W, dtype=ct.int32).reshape((1, W))
    if R > 1:
        return ct.gather(x, (row, column), padding_value=-INF, latency=1)
    if MASKED:
        return ct.gather(x, (row, column), mask=column < x.shape[1], padding_value=-INF, check_bounds=False,
                         latency=1)
    return ct.gather(x, (row, column), check_bounds=False, latency=1)


def softmax_rows(logits, i, only, WITH_ENTROPY, R, W, K):
    """Running statistics of the R rows from R * i on, K tiles of W columns at a time: total, mixed, each (R,).

    only: where R > 1, the one tile that holds all columns.
    """
    V = logits.shape[1]
    best, peak = ct.full((R, W), -INF, logits.dtype), ct.full((R, W), FLOOR, ct.float32)
    total, mixed = ct.zeros((R, W), ct.float32), ct.zeros((R, W), ct.float32)
    if R > 1:
        best, peak, total, mixed = softmax_step((only,), best, peak, total, mixed, WITH_ENTROPY)
    else:
        strides = V // (W * K)
        for j in range(strides):
            tiles = ()
            for k in ct.static_iter(range(K)):
                tiles += (columns(logits, i, j * K + k, R, W, False),)
            best, peak, total, mixed = softmax_step(tiles, best, peak, total, mixed, WITH_ENTROPY)
        for j in range(strides * K, ct.cdiv(V, W)):
            tile = columns(logits, i, j, R, W, True)
            best, peak, total, mixed = softmax_step((tile,), best, peak, total, mixed, WITH_ENTROPY)
    top = ct.max(peak, 1, keepdims=True)
    down = (peak - top) * LOG2E
    shrink = ct.exp2(down, flush_to_zero=True)
    mixed = ct.sum(shrink * (mixed + total * down), 1)
    total = ct.sum(total * shrink, 1)
    floored = top.reshape((R,)) <= FLOOR  # a row of -inf alone is uniform
    return ct.where(floored, ct.astype(V, ct.float32), total), ct.where(floored, 0.0, mixed)


def divergence_step(p, q, inside, p_top, q_top, p_sum, q_sum, mixed):
    """Takes a tile of both logits into running statistics of each lane: largest logits, sums of exp2, and mixed, the
    sum of p's exp2 times the difference of the exponents. inside: the columns that count."""
    p, q = finite(ct.astype(p, ct.float32)), finite(ct.astype(q, ct.float32))
    p_new, q_new = ct.maximum(p_top, p), ct.maximum(q_top, q)
    p_down, q_down = (p_top - p_new) * LOG2E, (q_top - q_new) * LOG2E
    p_shrink = ct.exp2(p_down, flush_to_zero=True)
    s, t = (p - p_new) * LOG2E, (q - q_new) * LOG2E
    e = ct.where(inside, ct.exp2(s, flush_to_zero=True), 0.0)  # columns beyond V are no part of a row of -inf
    mixed = p_shrink * (mixed + p_sum * (p_down - q_down)) + e * (s - t)
    p_sum = p_sum * p_shrink + e
    q_sum = q_sum * ct.exp2(q_down, flush_to_zero=True) + ct.where(inside, ct.exp2(t, flush_to_zero=True), 0.0)
    return p_new, q_new, p_sum, q_sum, mixed


def divergence_rows(logits, previous, i, only, R, W):
    """KL of the softmax of logits from that of previous, nats, of the R rows from R * i on, (R,).

    only: where R > 1, the tiles of both that hold all columns.
    """
    V = logits.shape[1]
    p_top, q_top = ct.full((R, W), FLOOR, ct.float32), ct.full((R, W), FLOOR, ct.float32)
    p_sum, q_sum, mixed = ct.zeros((R, W), ct.float32), ct.zeros((R, W), ct.float32), ct.zeros((R, W), ct.float32)
    column = ct.arange(W, dtype=ct.int32).reshape((1, W))
    if R > 1:
        p, q = only
        p_top, q_top, p_sum, q_sum, mixed = divergence_step(p, q, column < V, p_top, q_top, p_sum, q_sum, mixed)
    else:
        for j in range(V // W):
            p, q = columns(logits, i, j, R, W, False), columns(previous, i, j, R, W, False)
            p_top, q_top, p_sum, q_sum, mixed = divergence_step(p, q, True, p_top, q_top, p_sum, q_sum, mixed)
        for j in range(V // W, ct.cdiv(V, W)):
            p, q = columns(logits, i, j, R, W, True), columns(previous, i, j, R, W, True)
            p_top, q_top, p_sum, q_sum, mixed = divergence_step(p, q, column < V - j * W, p_top, q_top, p_sum, q_sum,
                                                                mixed)
    p_down = (p_top - ct.max(p_top, 1, keepdims=True)) * LOG2E
    q_down = (q_top - ct.max(q_top, 1, keepdims=True)) * LOG2E
    p_shrink = ct.exp2(p_down, flush_to_zero=True)
    mixed = ct.sum(p_shrink * (mixed + p_sum * (p_down - q_down)), 1)
    p_sum, q_sum = ct.sum(p_sum * p_shrink, 1), ct.sum(q_sum * ct.exp2(q_down, flush_to_zero=True), 1)
    return LN2 * (mixed / p_sum - ct.log2(p_sum) + ct.log2(q_sum))


def plain_score(RULE, i, h, new, gate, alpha, step, R, CW):
    """The score (R,) of a rule that reads no logits, NaN for rule none."""
    score = ct.full((R,), NAN, ct.float32)
    if RULE == DELTA:
        size = ct.astype(take(alpha, i, R), ct.float32)
        score = state_change(i, h, new, R, CW) / (size * step)
    if RULE == GATE:
        score = ct.astype(take(gate, i, R), ct.float32)
    return score


@ct.kernel
def looplm_halt_update_kernel(h, new, active, loops, scores, threshold, limit, logits, previous, gate, alpha,
                              step, loop, min_loops, RULE: Int, ABOVE: Flag, R: Int, W: Int,
                              K: Int, CW: Int):
    """Scores R tokens a block, moves the active ones in place, lets those that pass halt.

    h, new (N,C); active (N,) bool, loops (N,) int, scores (N,) float32, threshold (N,) float32, limit (N,) int;
    logits, previous (N,V); gate, alpha (N,); step, by which delta is divided beside alpha; loop, min_loops.
    What a rule does not read may be any tensor of the rank. Where R > 1, W columns are all that is read.
    """
    i = ct.bid(0)
    act = take(active, i, R)
    p = q = ct.zeros((R, W), logits.dtype)
    if R > 1:  # a small block waits for memory, not for bandwidth: it asks for all before it waits for anything
        need = tokens_need(i, h, new, loops, threshold, limit, R, CW)
        p, q = columns(logits, i, 0, R, W, True), columns(previous, i, 0, R, W, True)
    if ct.max(ct.astype(act, ct.int32)) == 0:  # all have halted: nothing moves
        put(scores, i, ct.full((R,), NAN, ct.float32))
        return
    if RULE == CONFIDENCE:
        score = 1.0 / softmax_rows(logits, i, p, False, R, W, K)[0]
    elif RULE == ENTROPY:
        total, mixed = softmax_rows(logits, i, p, True, R, W, K)
        score = LN2 * (ct.log2(total) - mixed / total)
    elif RULE == KL:
        score = divergence_rows(logits, previous, i, (p, q), R, W)
    else:
        score = plain_score(RULE, i, h, new, gate, alpha, step, R, CW)
    if R == 1:
        need = tokens_need(i, h, new, loops, threshold, limit, R, CW)
    tokens_halt(i, score, act, need, h, new, active, loops, scores, loop, min_loops, ABOVE, R, CW)


# halt update: torch reference ----------------------------------------------------------------------------------------
def softmax_statistics(logits):
    """log p (N,V), the largest probability (N,) and the entropy in nats (N,), float32 or wider, of logits (N,V).

    The largest probability is 1 / sum exp(z - z_max): its own numerator is exp(0). Logits of -inf count as FLOOR, so
    that 0 * log 0 is 0 and not NaN.
    """
    z = wide(logits).clamp(min=FLOOR)
    z = z - z.max(-1, keepdim=True).values
    total = z.exp().sum(-1, keepdim=True)
    logp = z - total.log()
    return logp, 1 / total.squeeze(-1), -(logp.exp() * logp).sum(-1)


def relative_change(new, h):
    """delta = norm(new - h) / norm(h) of each token; states (...,C) -> (...), float32 or wider."""
    new, h = wide(new), wide(h)
    return (new - h).norm(dim=-1) / h.norm(dim=-1).clamp(min=1e-20)


def halt_score(rule, h, new, logits=None, previous=None, gate=None, alpha=1.0):
    """The score (...) of a rule after a loop that took the states h (...,C) to new, NaN where it has none yet.

    logits, previous (...,V): the readout of new and of h (None before loop 1); gate (...): the halt head's
    probability; alpha: the step size of euler, heun and rk4, by which delta is divided.
    """
    if rule == "confidence":
        return softmax_statistics(logits)[1]
    if rule == "entropy":
        return softmax_statistics(logits)[2]
    if rule == "delta":
        return relative_change(new, h) / alpha
    if rule == "gate":
        return gate.float()
    if rule == "kl" and previous is not None:
        logp, logq = softmax_statistics(logits)[0], softmax_statistics(previous)[0]
        return (logp.exp() * (logp - logq)).sum(-1)
    return torch.full(h.shape[:-1], torch.nan, device=h.device)  # rule none, and kl before loop 2


def halt_update_reference(rule, h, new, active, loops, loop, threshold, limit, min_loops=1, **inputs):
    score = halt_score(rule, h, new, **inputs)
    passes = score >= threshold if rule in HALTS_ABOVE else score <= threshold  # a NaN passes nothing
    halted = (passes & (loop >= min_loops)) | (loop >= limit)
    return (torch.where(active[..., None], new, h), active & ~halted, torch.where(active, loop, loops),
            score.masked_fill(~active, torch.nan))


# halt update: public function ----------------------------------------------------------------------------------------
@functools.cache
def blanks(device):
    """Two tensors (1,16) and two (16,) for arguments that a rule does not read; arguments must not overlap."""
    rows = torch.zeros(4, 16, device=device)
    return rows[0:1], rows[1:2], rows[2], rows[3]


def token_arguments(rule, h, new, active, loops, scores, threshold, limit, gate, alpha, step, loop, min_loops):
    """The arguments that both halting kernels begin with, in their order; h, active, loops, scores stay views."""
    C, N = h.shape[-1], active.numel()
    gate = gate.reshape(N) if rule == "gate" else blanks(h.device)[2]
    alpha = alpha.reshape(N) if rule == "delta" and alpha is not None else None
    if alpha is None:
        alpha = torch.ones(N, device=h.device) if rule == "delta" else blanks(h.device)[3]
    return (h.view(N, C), new.reshape(N, C), active.view(N), loops.view(N), scores.view(N), threshold.reshape(N),
            limit.reshape(N), gate, alpha, step, loop, min_loops)


def step_size(alpha, h, active):
    """alpha as the operators take it: (...) or None, and a number to multiply it by."""
    if not isinstance(alpha, Tensor):
        return None, float(alpha)
    if alpha.device != h.device:  # a number in a tensor of the host
        return None, alpha.item()
    return alpha.expand(active.shape).contiguous(), 1.0  # stays on the device


def halt_plan(rule, V):
    """Tile sizes of the halt update, R, W, K and CW, and blocks an SM."""
    if rule not in NEEDS_LOGITS:
        return 4, 16, 1, 128, 8
    W = max(16, power(V))
    if W > 512:  # a token a block; tiles of 1024 give each of 128 threads 16 bytes in bf16
        return (1, 1024, 1, 512, 4) if rule == "kl" else (1, 1024, 8, 512, 6)
    return max(1, 512 // W), W, 1, 128, 4


def launch_halt_update(rule, h, new, active, loops, scores, threshold, limit, logits, previous, gate, alpha, step,
                       loop, min_loops):
    N, device = active.numel(), h.device
    rule = "none" if rule == "kl" and previous is None else rule  # before loop 2
    R, W, K, CW, occupancy = halt_plan(rule, logits.shape[-1] if rule in NEEDS_LOGITS else 1)
    rows = logits.reshape(N, -1) if rule in NEEDS_LOGITS else blanks(device)[0]
    before = previous.reshape(N, -1) if rule == "kl" else blanks(device)[1]
    *tokens, gate, alpha, step, loop, min_loops = token_arguments(
        rule, h, new, active, loops, scores, threshold, limit, gate, alpha, step, loop, min_loops)
    launch(looplm_halt_update_kernel, (-(-N // R),), (
        *tokens, rows, before, gate, alpha, step, loop, min_loops, RULES.index(rule), rule in HALTS_ABOVE, R, W, K,
        CW), device, occupancy=occupancy, num_worker_warps=4)


@operator("halt_update", lambda *args: None, ("h", "active", "loops", "scores"))
def halt_update_op(rule: str, h: Tensor, new: Tensor, active: Tensor, loops: Tensor, scores: Tensor,
                   threshold: Tensor, limit: Tensor, logits: Tensor | None, previous: Tensor | None,
                   gate: Tensor | None, alpha: Tensor | None, step: float, loop: int, min_loops: int,
                   forced: bool) -> None:
    """halt_update in place, scores (...) float32 too; delta is divided by alpha (...) and by step."""
    def kernels():
        launch_halt_update(rule, h, new, active, loops, scores, threshold, limit, logits, previous, gate, alpha, step,
                           loop, min_loops)

    def reference():
        out = halt_update_reference(rule, h, new, active, loops, loop, threshold, limit, min_loops, logits=logits,
                                    previous=previous, gate=gate, alpha=step if alpha is None else alpha * step)
        settle((h, active, loops, scores), out)

    if active.numel():
        run("halt_update", forced, h.device, kernels, reference)


def settle(tensors, values, inplace=True):
    """values, or in place the tensors that they overwrite, those that are None apart."""
    return tuple(v if x is None else x.copy_(v) for x, v in zip(tensors, values, strict=True)) if inplace else values


def halt_update(rule, h, new, active, loops, loop, threshold, limit, min_loops=1, backend="auto", inplace=False,
                **inputs):
    """What follows loop number `loop` (from 1): score every token, move the active ones, let those that pass halt.

    rule       one of RULES
    h, new     (...,C) states before and after the loop
    active     (...) bool, False for tokens that have halted and for pads
    loops      (...) int64, loops whose result is in h
    threshold  (...) float32, the score at which a token halts; an infinite one that nothing passes switches it off
    limit      (...) int64, the loop in which a token halts whatever its score
    inplace    h, active and loops, contiguous, are overwritten and returned; otherwise they stay as they are
    inputs     what halt_score needs for the rule: logits, previous, gate, alpha; the rows of logits and previous may
               be parts of longer ones: a row stride that is a multiple of 16 bytes is fast

    Returns h, active, loops (the loop in which a token halts counts) and score (NaN for tokens that had halted).
    A halted token keeps its state to the bit.
    """
    if rule not in RULES:
        raise ValueError(f"halting rule {rule!r} is none of {', '.join(RULES)}")
    if choose_backend(backend, h.device, unsupported(h, new, *inputs.values())) == "torch":
        out = halt_update_reference(rule, h, new, active, loops, loop, threshold, limit, min_loops, **inputs)
        return settle((h, active, loops, None), out, inplace)
    if not inplace:
        h, active, loops = (x.clone(memory_format=torch.contiguous_format) for x in (h, active, loops))
    scores = torch.empty(active.shape, device=h.device)
    alpha, step = step_size(inputs.get("alpha", 1.0) if rule == "delta" else 1.0, h, active)
    halt_update_op(rule, h, new, active, loops, scores, threshold, limit, inputs.get("logits"), inputs.get("previous"),
                   inputs.get("gate"), alpha, step, loop, min_loops, backend == "cutile")
    return h, active, loops, scores


# head and halt: kernels ----------------------------------------------------------------------------------------------
def operand(tile, TF32):
    """A float32 tile as mma takes it: in tfloat32 if asked to, else exact and slow. Others as they are."""
    if TF32:
        return ct.astype(tile, ct.tfloat32)
    return tile


@ct.kernel
def looplm_norm_kernel(x, weight, bias, out, eps, R: Int, CW: Int):
    """Layer norm of R tokens a block: x, out (N,C), weight, bias (C); CW the power of two from C on."""
    i, C = ct.bid(0), x.shape[1]
    row = ct.astype(ct.load(x, (i, 0), (R, CW), padding_mode=ZERO, allow_tma=False), ct.float32)
    inside = ct.arange(CW, dtype=ct.int32).reshape((1, CW)) < C
    row = ct.where(inside, row - ct.sum(row, 1, keepdims=True) / C, 0.0)
    row = row * ct.rsqrt(ct.sum(row * row, 1, keepdims=True) / C + eps)
    gain, shift = take(weight, 0, CW).reshape((1, CW)), take(bias, 0, CW).reshape((1, CW))
    row = row * ct.astype(gain, ct.float32) + ct.astype(shift, ct.float32)
    ct.store(out, (i, 0), ct.astype(row, out.dtype), allow_tma=False)


def logits_tile(tiles, head, j, TF32, M, WV, KT, NK, LATENCY):
    """Logits (M,WV) of vocabulary tile j: normed states times head (V,C) transposed."""
    z = ct.zeros((M, WV), ct.float32)
    for k in ct.static_iter(range(NK)):
        w = ct.load(head, (k, j), (KT, WV), order=(1, 0), padding_mode=ZERO, latency=LATENCY)
        z = ct.mma(tiles[k], operand(w, TF32), z)
    return z


def head_step(z, j, inside, peak, total, mixed, best, PACKED, MASKED, WV):
    """Takes logits z (M,WV) of vocabulary tile j into the rows' statistics (M,1).

    peak: the largest logit; total: sum exp2(t), t = (z - peak) * log2(e); mixed: sum exp2(t) * t; best: its column.
    PACKED: the column stands in the last bits of the number that the maximum is taken of, which spares the search for
    it; peak is then off by up to 2**-16 of itself, as are total and mixed, consistently.
    """
    column = ct.arange(WV, dtype=ct.int32).reshape((1, WV))
    if MASKED:
        z = ct.where(column < inside, z, FLOOR)
    if PACKED:
        top = ct.max(ct.bitcast((ct.bitcast(z, ct.int32) & -WV) | column, ct.float32), 1, keepdims=True)
        where = ct.bitcast(top, ct.int32) & (WV - 1)
    else:
        top = ct.max(z, 1, keepdims=True)
        where = ct.min(ct.where(z == top, column, WV), 1, keepdims=True)
    best = ct.where(top > peak, where + j * WV, best)
    higher = ct.maximum(peak, top)
    down = (peak - higher) * LOG2E
    shrink = ct.exp2(down, flush_to_zero=True)
    t = z * LOG2E - higher * LOG2E
    e = ct.exp2(t, flush_to_zero=True)
    mixed = shrink * (mixed + total * down) + ct.sum(e * t, 1, keepdims=True)
    total = total * shrink + ct.sum(e, 1, keepdims=True)
    return higher, total, mixed, best


@ct.kernel
def looplm_head_kernel(states, active, head, peaks, totals, mixes, bests, share, TF32: Flag, PACKED: Flag,
                       M: Int, WV: Int, KT: Int, NK: Int, LATENCY: Int):
    """Softmax statistics of the logits of M tokens over one split of the vocabulary; no logit leaves the block.

    states (N,C), normed; active (N,) bool; head (V,C); peaks, totals, mixes (NS,N) float32 and bests (NS,N) int32 out;
    share: vocabulary tiles a split. Grid (row tiles, NS). The states come normed, by a kernel of their own, because
    tiles that were computed here would live in registers, where those that TMA brought stay in shared memory.
    """
    i, s = ct.bid(0), ct.bid(1)
    act = take(active, i, M)
    if ct.max(ct.astype(act, ct.int32)) == 0:
        return
    tiles = ()
    for k in ct.static_iter(range(NK)):
        tiles += (operand(ct.load(states, (i, k), (M, KT), padding_mode=ZERO), TF32),)
    V = head.shape[0]
    first, full = s * share, V // WV
    peak, total = ct.full((M, 1), 2 * FLOOR, ct.float32), ct.zeros((M, 1), ct.float32)
    mixed, best = ct.zeros((M, 1), ct.float32), ct.zeros((M, 1), ct.int32)
    for j in range(first, min(first + share, full)):
        z = logits_tile(tiles, head, j, TF32, M, WV, KT, NK, LATENCY)
        peak, total, mixed, best = head_step(z, j, WV, peak, total, mixed, best, PACKED, False, WV)
    for j in range(max(first, full), min(first + share, ct.cdiv(V, WV))):  # the partial tile, if it is in this split
        z = logits_tile(tiles, head, j, TF32, M, WV, KT, NK, LATENCY)
        peak, total, mixed, best = head_step(z, j, V - j * WV, peak, total, mixed, best, PACKED, True, WV)
    ct.store(peaks, (s, i), peak.reshape((1, M)), allow_tma=False)
    ct.store(totals, (s, i), total.reshape((1, M)), allow_tma=False)
    ct.store(mixes, (s, i), mixed.reshape((1, M)), allow_tma=False)
    ct.store(bests, (s, i), best.reshape((1, M)), allow_tma=False)


@ct.kernel
def looplm_head_halt_kernel(h, new, active, loops, scores, threshold, limit, gate, alpha, step, loop, min_loops,
                            peaks, totals, mixes, bests, confidence, entropy, prediction, RULE: Int,
                            ABOVE: Flag, R: Int, SPLITS: Int, CW: Int):
    """Joins the splits' statistics of R tokens a block and halts as looplm_halt_update_kernel does.

    confidence, entropy (N,) float32 out, NaN for halted tokens; prediction (N,) int, which halted tokens keep.
    SPLITS: the power of two from NS on.
    """
    i = ct.bid(0)
    act = take(active, i, R)
    if ct.max(ct.astype(act, ct.int32)) == 0:
        nothing = ct.full((R,), NAN, ct.float32)
        put(scores, i, nothing)
        put(confidence, i, nothing)
        put(entropy, i, nothing)
        return
    at = (ct.arange(SPLITS, dtype=ct.int32).reshape((SPLITS, 1)), R * i + ct.arange(R, dtype=ct.int32).reshape((1, R)))
    peak, total = ct.gather(peaks, at, padding_value=3 * FLOOR), ct.gather(totals, at)
    mixed, best = ct.gather(mixes, at), ct.gather(bests, at)
    top = ct.max(peak, 0, keepdims=True)
    chosen = ct.min(ct.where(peak == top, best, 2 ** 30), 0)
    down = (peak - top) * LOG2E
    shrink = ct.exp2(down, flush_to_zero=True)
    mixed, total = ct.sum(shrink * (mixed + total * down), 0), ct.sum(total * shrink, 0)
    certain, unsure = 1.0 / total, LN2 * (ct.log2(total) - mixed / total)
    put(confidence, i, ct.where(act, certain, NAN))
    put(entropy, i, ct.where(act, unsure, NAN))
    put(prediction, i, ct.where(act, ct.astype(chosen, prediction.dtype), take(prediction, i, R)))
    if RULE == CONFIDENCE:
        score = certain
    elif RULE == ENTROPY:
        score = unsure
    else:
        score = plain_score(RULE, i, h, new, gate, alpha, step, R, CW)
    tokens_halt(i, score, act, tokens_need(i, h, new, loops, threshold, limit, R, CW), h, new, active, loops, scores,
                loop, min_loops, ABOVE, R, CW)


# head and halt: torch reference --------------------------------------------------------------------------------------
def head_halt_reference(rule, h, new, active, loops, loop, threshold, limit, head, weight, bias=None, min_loops=1,
                        eps=1e-5, gate=None, alpha=1.0, prediction=None):
    x = wide(new)
    x = F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), None if bias is None else bias.to(x.dtype), eps)
    logits = F.linear(x.to(head.dtype), head)  # (...,V)
    out = halt_update_reference(rule, h, new, active, loops, loop, threshold, limit, min_loops, logits=logits,
                                gate=gate, alpha=alpha)
    _, confidence, entropy = softmax_statistics(logits)
    said = torch.where(active, logits.argmax(-1), 0 if prediction is None else prediction)
    return *out, confidence.masked_fill(~active, torch.nan), entropy.masked_fill(~active, torch.nan), said


# head and halt: public function --------------------------------------------------------------------------------------
def head_plan(dtype, tf32, device):
    """Tile sizes of the head, M, WV and KT, whether arg-maxes are packed, the latency of loads, and worker warps."""
    if dtype == torch.float32:  # tf32, or exact products on the CUDA cores, for tests
        return (64, 64, 32, False, 2, 4) if tf32 else (16, 32, 32, False, 4, 4)
    if gpu(device).major not in (9, 10):  # less shared memory a block, no wgmma
        return 64, 64, 64, True, 6, 4
    return 128, 128, 64, True, 6, 8


def launch_head(new, active, head, weight, bias, eps):
    """Splits' statistics of the logits head @ layer_norm(new): peaks, totals, mixes (NS,N) and bests (NS,N)."""
    (V, C), N, device = head.shape, active.numel(), new.device
    tf32 = head.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    M, WV, KT, packed, latency, warps = head_plan(head.dtype, tf32, device)
    tiles, row_tiles = -(-V // WV), -(-N // M)
    share = -(-tiles // max(1, min(tiles, gpu(device).multi_processor_count // row_tiles)))  # a block an SM
    NS = -(-tiles // share)
    peaks, totals, mixes = torch.empty(3, NS, N, device=device)
    bests = torch.empty(NS, N, dtype=torch.int32, device=device)
    normed = torch.empty(N, -(-C // 16) * 16, dtype=head.dtype, device=device)[:, :C]  # rows that TMA can fetch
    bias = torch.zeros_like(weight) if bias is None else bias
    R = max(1, 2048 // power(C))
    launch(looplm_norm_kernel, (-(-N // R),), (new.reshape(N, C), weight, bias, normed, eps, R, power(C)), device)
    launch(looplm_head_kernel, (row_tiles, NS), (
        normed, active.view(N), head, peaks, totals, mixes, bests, share, tf32, packed, M, WV, KT, -(-C // KT),
        latency), device, occupancy=1, num_worker_warps=warps)
    return peaks, totals, mixes, bests


@operator("head_halt", lambda *args: None,
          ("h", "active", "loops", "scores", "confidence", "entropy", "prediction"))
def head_halt_op(rule: str, h: Tensor, new: Tensor, active: Tensor, loops: Tensor, scores: Tensor, threshold: Tensor,
                 limit: Tensor, head: Tensor, weight: Tensor, bias: Tensor | None, confidence: Tensor,
                 entropy: Tensor, prediction: Tensor, gate: Tensor | None, alpha: Tensor | None, step: float,
                 loop: int, min_loops: int, eps: float, forced: bool) -> None:
    """head_halt in place, its outputs too."""
    def kernels():
        N, statistics = active.numel(), launch_head(new, active, head, weight, bias, eps)
        R, splits = 16 if len(statistics[0]) <= 64 else 4, power(len(statistics[0]))
        launch(looplm_head_halt_kernel, (-(-N // R),), (
            *token_arguments(rule, h, new, active, loops, scores, threshold, limit, gate, alpha, step, loop, min_loops),
            *statistics, confidence.view(N), entropy.view(N), prediction.view(N), RULES.index(rule),
            rule in HALTS_ABOVE, R, splits, 128), h.device, occupancy=2)

    def reference():
        out = head_halt_reference(rule, h, new, active, loops, loop, threshold, limit, head, weight, bias, min_loops,
                                  eps, gate, step if alpha is None else alpha * step, prediction)
        settle((h, active, loops, scores, confidence, entropy, prediction), out)

    if active.numel():
        run("head_halt", forced, h.device, kernels, reference)


def head_halt(rule, h, new, active, loops, loop, threshold, limit, head, weight, bias=None, min_loops=1,
              backend="auto", inplace=False, eps=1e-5, gate=None, alpha=1.0, prediction=None):
    """The readout head @ layer_norm(new) and the halt update that follows it, without a buffer of logits.

    As halt_update, but for rule kl, which needs the readout before as well; and besides
    head          (V,C) whose dtype the products have; float32 ones are exact unless torch's float32 matrix products
                  are set to less ("high")
    weight, bias  (C) of the layer norm, bias or None; eps its epsilon
    prediction    (...) int64, what tokens that had halted said, 0 if None; in place if h is

    Returns h, active, loops, score, and for the trace confidence, entropy (...) float32, NaN for tokens that had
    halted, and prediction (...) int64, the arg-max.
    """
    if rule not in RULES or rule == "kl":
        raise ValueError(f"halting rule {rule!r} is none of {', '.join(r for r in RULES if r != 'kl')}")
    if choose_backend(backend, h.device, unsupported(h, new, head, weight, bias, gate, alpha)) == "torch":
        out = head_halt_reference(rule, h, new, active, loops, loop, threshold, limit, head, weight, bias, min_loops,
                                  eps, gate, alpha, prediction)
        return settle((h, active, loops, None, None, None, prediction), out, inplace)
    prediction = torch.zeros_like(loops) if prediction is None else prediction
    if not inplace:
        h, active, loops, prediction = (x.clone(memory_format=torch.contiguous_format)
                                        for x in (h, active, loops, prediction))
    scores, confidence, entropy = (torch.empty(active.shape, device=h.device) for _ in range(3))
    alpha, step = step_size(alpha if rule == "delta" else 1.0, h, active)
    head_halt_op(rule, h, new, active, loops, scores, threshold, limit, head, weight, bias, confidence, entropy,
                 prediction, gate, alpha, step, loop, min_loops, eps, backend == "cutile")
    return h, active, loops, scores, confidence, entropy, prediction


# attention: kernel ---------------------------------------------------------------------------------------------------
def load_pieces(qkv, b, t, first, ROWS, PIECES, W):
    """Token tile t of one head as PIECES tiles (ROWS,W); first: its first piece."""
    pieces = ()
    for i in ct.static_iter(range(PIECES)):
        x = ct.load(qkv, (b, t, first + i, 0), (1, ROWS, 1, W), padding_mode=ZERO)
        pieces += (x.reshape((ROWS, W)),)
    return pieces


def rotate_pieces(x, table, t, ROWS, PIECES, W):
    """rotate_halves in float32: piece i of the first half of a head with piece i of the second."""
    half = PIECES // 2
    first, second = (), ()
    for i in ct.static_iter(range(PIECES // 2)):
        cos = ct.load(table, (0, t, i, 0), (1, ROWS, 1, W), padding_mode=ZERO).reshape((ROWS, W))
        sin = ct.load(table, (1, t, i, 0), (1, ROWS, 1, W), padding_mode=ZERO).reshape((ROWS, W))
        a, b = x[i].astype(ct.float32), x[i + half].astype(ct.float32)
        first += ((a * cos - b * sin).astype(x[i].dtype),)
        second += ((a * sin + b * cos).astype(x[i].dtype),)
    return first + second


def attend(q, state, qkv, k_table, b, j, at_k, at_v, row, scale, MASKED, N, PIECES, W, ROTATE_K):
    """One step of the online softmax over key tile j; q: pieces (M,W) of the queries of tokens row (M,1).

    state: the maximum (M,1) and sum (M,1) so far, in units of log2, and p v (M,W) for each piece. scale holds
    1 / sqrt(hs) and log2(e), and comes after the maximum, where it is part of a multiply-add.
    """
    top, total, acc = state
    k = load_pieces(qkv, b, j, at_k, N, PIECES, W)
    if ROTATE_K:
        k = rotate_pieces(k, k_table, j, N, PIECES, W)
    s = ct.zeros((q[0].shape[0], N), dtype=ct.float32)
    for i in ct.static_iter(range(PIECES)):
        s = ct.mma(q[i], ct.transpose(k[i]), s)
    if MASKED:  # a key past the last token is past every query as well
        s = ct.where(row >= j * N + ct.arange(N, dtype=ct.int32)[None, :], s, FLOOR)
    new_top = ct.maximum(top, ct.max(s, axis=1, keepdims=True) * scale)
    p = ct.exp2(s * scale - new_top, flush_to_zero=True)
    old = ct.exp2(top - new_top, flush_to_zero=True)
    total = total * old + ct.sum(p, axis=1, keepdims=True)
    p = p.astype(qkv.dtype)
    v = load_pieces(qkv, b, j, at_v, N, PIECES, W)
    new = ()
    for i in ct.static_iter(range(PIECES)):
        new += (ct.mma(p, v[i], acc[i] * old),)
    return new_top, total, new


@ct.kernel
def looplm_attention_kernel(qkv, y, q_table, k_table, scale: float, nh: int, M: Int, N: Int, PIECES: Int, W: Int,
                            ROTATE_Q: Int, ROTATE_K: Flag, LONG: Flag):
    """Causal attention: one block M queries of one head of one sequence, the blocks with the most keys first.

    qkv (B,T,3*nh*PIECES,hs/PIECES), y (B,T,nh*PIECES,hs/PIECES): a head in pieces, so that tiles are padded at the
    end of each. Tables (2,T,PIECES/2,hs/PIECES): cosines and sines; ROTATE_Q 1: (2,1,...), 2: (2,T,...), 0: not read.
    N keys a tile; LONG: T > N. Grid (nh,B,row tiles).
    """
    head, b, tile = ct.bid(0), ct.bid(1), ct.num_blocks(2) - 1 - ct.bid(2)
    at_q, at_k, at_v = head * PIECES, (nh + head) * PIECES, (2 * nh + head) * PIECES
    q = load_pieces(qkv, b, tile, at_q, M, PIECES, W)
    if ROTATE_Q == 1:
        q = rotate_pieces(q, q_table, 0, 1, PIECES, W)
    if ROTATE_Q == 2:
        q = rotate_pieces(q, q_table, tile, M, PIECES, W)
    acc = ()
    for _ in ct.static_iter(range(PIECES)):
        acc += (ct.zeros((M, W), dtype=ct.float32),)
    state = ct.full((M, 1), FLOOR, dtype=ct.float32), ct.zeros((M, 1), dtype=ct.float32), acc
    row = tile * M + ct.arange(M, dtype=ct.int32)[:, None]
    seen = (tile * M) // N if LONG else 0  # key tiles that every query of the block sees whole
    if LONG:
        for j in range(0, seen):
            state = attend(q, state, qkv, k_table, b, j, at_k, at_v, row, scale, False, N, PIECES, W, ROTATE_K)
    if M <= N:  # the diagonal lies in one key tile
        state = attend(q, state, qkv, k_table, b, seen, at_k, at_v, row, scale, True, N, PIECES, W, ROTATE_K)
    else:
        for j in range(seen, ct.cdiv(ct.minimum((tile + 1) * M, qkv.shape[1]), N)):
            state = attend(q, state, qkv, k_table, b, j, at_k, at_v, row, scale, True, N, PIECES, W, ROTATE_K)
    top, total, acc = state
    for i in ct.static_iter(range(PIECES)):
        out = ct.truediv(acc[i], total, flush_to_zero=True, rounding_mode=APPROX)
        ct.store(y, (b, tile, at_q + i, 0), out.astype(y.dtype).reshape((1, M, 1, W)))


# attention: torch reference ------------------------------------------------------------------------------------------
def rotate_halves(x, angle):
    """Rotate the channel pairs (i, i + hs/2) of x (B,nh,T,hs) by angle, (T,hs/2) or (1,hs/2), in float32 or wider."""
    cos, sin = wide(angle).cos(), wide(angle).sin()
    a, b = wide(x).chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


def attention_reference(qkv, n_head, q_angle=None, k_angle=None):
    B, T, C3 = qkv.shape
    q, k, v = (x.unflatten(2, (n_head, C3 // 3 // n_head)).transpose(1, 2) for x in qkv.split(C3 // 3, 2))
    q = q if q_angle is None else rotate_halves(q, q_angle)
    k = k if k_angle is None else rotate_halves(k, k_angle)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).reshape(B, T, C3 // 3)


# attention: public function ------------------------------------------------------------------------------------------
def head_pieces(hs, rotates):
    """Into how many pieces a head of hs channels goes, and the width of their tiles, 16 at least (one wgmma step).

    Tiles are powers of two: 96 = 3 x 32 and 48 = 3 x 16 need no padding. A rotation pairs the two halves of a head.
    """
    pieces = 2 if rotates else 3 if hs == 3 * (hs & -hs) else 1
    return pieces, max(16, power(hs // pieces))


def angle_table(angle, device):
    """Angles (rows,hs/2) -> their cosines and sines (2,rows,1,hs/2), float32; a table never read for None."""
    if angle is None:
        return torch.empty(2, 2, 1, 16, device=device)
    return torch.stack((angle.cos(), angle.sin())).float().unsqueeze(2)


def attention_plan(T, hs, dtype, rotates, device):
    """Rows M and columns N of a tile, worker warps, blocks an SM (None: the compiler's choice)."""
    if dtype == torch.float32:  # on the CUDA cores, for tests: exact, not fast
        return 32, 32, 4, None
    if rotates:
        return 64, 64, 4, 2
    if T <= 128:
        return 64, 64 if T <= 64 else 128, 4, 4 if hs <= 32 else 2
    if gpu(device).major not in (9, 10):  # less shared memory a block, no wgmma
        return 64, 64, 4, 2
    if hs > 64:
        return 128, 128, 8, 1
    if T <= 256:
        return 64, 128, 4, 2
    return (64, 64, 4, 3) if T <= 1024 else (128, 64, 8, 2)


def launch_attention(qkv, n_head, q_angle, k_angle):
    B, T, C3 = qkv.shape
    hs, rotates = C3 // 3 // n_head, q_angle is not None or k_angle is not None
    y = qkv.new_empty(B, T, C3 // 3)
    P, W = head_pieces(hs, rotates)
    M, N, warps, occupancy = attention_plan(T, hs, qkv.dtype, rotates, qkv.device)
    q_table, k_table = angle_table(q_angle, qkv.device), angle_table(k_angle, qkv.device)
    launch(looplm_attention_kernel, (n_head, B, -(-T // M)), (
        qkv.view(B, T, 3 * n_head * P, hs // P), y.view(B, T, n_head * P, hs // P), q_table, k_table,
        LOG2E / math.sqrt(hs), n_head, M, N, P, W, 0 if q_angle is None else 1 if len(q_angle) == 1 else 2,
        k_angle is not None, T > N), qkv.device, num_worker_warps=warps, occupancy=occupancy)
    return y


@operator("attention", lambda qkv, *args: qkv.new_empty(*qkv.shape[:2], qkv.size(2) // 3))
def attention_op(qkv: Tensor, n_head: int, q_angle: Tensor | None, k_angle: Tensor | None, forced: bool) -> Tensor:
    """attention of qkv, contiguous."""
    def kernels():
        return launch_attention(qkv.contiguous(), n_head, q_angle, k_angle)

    def reference():
        return attention_reference(qkv, n_head, q_angle, k_angle).contiguous()

    return run("attention", forced, qkv.device, kernels, reference)


def attention(qkv, n_head, q_angle=None, k_angle=None, backend="auto"):
    """Causal attention of the packed projection: qkv (B,T,3C) -> (B,T,C); the kernel is for inference.

    q_angle, k_angle: rotations of the queries and of the keys, (T,hs/2), that of the queries also (1,hs/2), or None.
    """
    cannot = unsupported(qkv) or ("" if qkv.size(2) // 3 <= 128 * n_head else "heads are wider than 128")
    if not qkv.numel() or choose_backend(backend, qkv.device, cannot) == "torch":
        return attention_reference(qkv, n_head, q_angle, k_angle)
    return attention_op(qkv, n_head, q_angle, k_angle, backend == "cutile")


# the whole loop: kernel ----------------------------------------------------------------------------------------------
LOOP_NORM, DECAY = range(2)  # rows of `vectors`


def dot(a, b, acc):
    """acc + a @ b with float32 accumulation; float32 operands as three tf32 products, exact to about 1e-6."""
    if ct.static_eval(a.dtype == ct.float32):
        a1, b1 = a.astype(ct.tfloat32), b.astype(ct.tfloat32)
        a2, b2 = (a - a1.astype(ct.float32)).astype(ct.tfloat32), (b - b1.astype(ct.float32)).astype(ct.tfloat32)
        return ct.mma(a1, b1, ct.mma(a1, b2, ct.mma(a2, b1, acc)))
    return ct.mma(a, b, acc)


def gelu(x, EXACT: Flag):
    if EXACT:    # x Phi(x); erf to 1.5e-7 by Abramowitz & Stegun 7.1.26
        z = ct.abs(x) * 0.7071067811865476
        t = 1.0 / (1.0 + 0.3275911 * z)
        p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
        half = 0.5 * p * ct.exp2(z * z * -LOG2E)
        return x * ct.where(x >= 0.0, 1.0 - half, half)
    inner = x * (0.7978845608 + 0.0356774081 * (x * x))
    return 0.5 * x * (1.0 + ct.tanh(inner, rounding_mode=APPROX))


def pair_sum(a, b, c, d):
    return a + c, b + d


def layer_norm(xs, C: Int):
    """Layer norm over the C channels of xs, tiles (M,W); its weights are in the product that follows."""
    total = square = ct.zeros((xs[0].shape[0], 1), ct.float32)
    for x in ct.static_iter(xs):
        s, q = ct.reduce((x, x * x), 1, pair_sum, (0.0, 0.0), keepdims=True)  # one exchange between warps, not two
        total, square = total + s, square + q
    mean = total / C
    scale = ct.rsqrt(ct.maximum(square / C - mean * mean, 0.0) + 1e-5)
    out = ()
    for i in ct.static_iter(range(len(xs))):
        out += ((xs[i] - mean) * scale,)
    return out


def times(xs, vectors, row: Int):
    """The channels of xs times vectors[row]."""
    out = ()
    for i in ct.static_iter(range(len(xs))):
        out += (xs[i] * ct.load(vectors, (row, i), (1, xs[i].shape[1])),)
    return out


def cast(xs, dtype):
    out = ()
    for x in ct.static_iter(xs):
        out += (x.astype(dtype),)
    return out


def linear(xs, w, j, N: Int):
    """Columns j*N .. (j+1)*N of xs @ w.T, (M,N) float32."""
    acc = ct.zeros((xs[0].shape[0], N), ct.float32)
    for i in ct.static_iter(range(len(xs))):
        acc = dot(xs[i], ct.load(w, (i, j), (xs[i].shape[1], N), order=(1, 0), padding_mode=ZERO), acc)
    return acc


def accumulate(ys, x, w, j):
    """ys + x @ w.T, where x (M,K) are columns j*K .. (j+1)*K of w's input."""
    out = ()
    for i in ct.static_iter(range(len(ys))):
        out += (dot(x, ct.load(w, (j, i), (x.shape[1], ys[i].shape[1]), order=(1, 0)), ys[i]),)
    return out


def heads(x, HS: Int):
    """(M, G*HS) -> (G, M, HS)"""
    return ct.permute(ct.reshape(x, (x.shape[0], x.shape[1] // HS, HS)), (1, 0, 2))


def attend_block(q, k, v, allowed, HS: Int):
    """Softmax attention within the rows of a block: q, k, v (M, G*HS) -> (M, G*HS), same dtype. allowed (1,M,M)."""
    M = q.shape[0]
    q, k, v = heads(q, HS), heads(k, HS), heads(v, HS)
    G = q.shape[0]
    s = dot(q, ct.permute(k, (0, 2, 1)), ct.zeros((G, M, M), ct.float32)) * (LOG2E / HS ** 0.5)
    s = ct.where(allowed, s, FLOOR)
    p = ct.exp2(s - ct.max(s, axis=2, keepdims=True), flush_to_zero=True)
    z = ct.sum(p, axis=2, keepdims=True)
    o = ct.truediv(dot(p.astype(v.dtype), v, ct.zeros((G, M, HS), ct.float32)), z, rounding_mode=APPROX)
    return ct.reshape(ct.permute(o.astype(v.dtype), (1, 0, 2)), (M, G * HS))


def attend_rows(qkv, parity, b, r, n, allowed, HS: Int, TP: Int, GW: Int):
    """attend_block over the rows of blocks 0..r of a sequence, whose q, k, v lie in qkv (5,B,T,C): q, then k and v of
    even loops, then of odd ones."""
    G = GW // HS
    q = heads(ct.reshape(ct.load(qkv, (0, b, r, n), (1, 1, TP, GW), padding_mode=ZERO, allow_tma=False), (TP, GW)), HS)
    top, z = ct.full((G, TP, 1), FLOOR, ct.float32), ct.zeros((G, TP, 1), ct.float32)
    o = ct.zeros((G, TP, HS), ct.float32)
    for j in range(0, r + 1):
        k = ct.load(qkv, (2 * parity + 1, b, j, n), (1, 1, TP, GW), padding_mode=ZERO, allow_tma=False)
        v = ct.load(qkv, (2 * parity + 2, b, j, n), (1, 1, TP, GW), padding_mode=ZERO, allow_tma=False)
        k, v = heads(ct.reshape(k, (TP, GW)), HS), heads(ct.reshape(v, (TP, GW)), HS)
        s = dot(q, ct.permute(k, (0, 2, 1)), ct.zeros((G, TP, TP), ct.float32)) * (LOG2E / HS ** 0.5)
        s = ct.where(allowed | (j < r), s, FLOOR)
        higher = ct.maximum(top, ct.max(s, axis=2, keepdims=True))
        shrink = ct.exp2(top - higher, flush_to_zero=True)
        p = ct.exp2(s - higher, flush_to_zero=True)
        z = z * shrink + ct.sum(p, axis=2, keepdims=True)
        o = dot(p.astype(v.dtype), v, o * shrink)
        top = higher
    o = ct.truediv(o, z, rounding_mode=APPROX).astype(qkv.dtype)
    return ct.reshape(ct.permute(o, (1, 0, 2)), (TP, GW))


def arrive_and_wait(sync, at, add, target):
    """Barrier of target blocks: each adds 1 + 65536 * (has it active tokens) to sync[at], all go on once all have.

    Returns the count. It is read by atomics alone: a warp that only fetches tiles ahead may repeat a plain load, and
    would then see another value than the warps that compute.
    """
    ct.atomic_add(sync, at, add, memory_order=ct.MemoryOrder.ACQ_REL, memory_scope=ct.MemoryScope.DEVICE)
    count = 0
    while (count & 65535) < target:
        count = ct.atomic_add(sync, at, 0, memory_order=ct.MemoryOrder.ACQ_REL, memory_scope=ct.MemoryScope.DEVICE)
    return count


def rows(x, b, r, i, S: Int, TP: Int, W: Int):
    """Channels i*W .. of the rows of a block: S sequences of TP rows of x (B,T,C) -> (S*TP, W) float32."""
    return ct.reshape(ct.load(x, (b, r, i), (S, TP, W), padding_mode=ZERO), (S * TP, W)).astype(ct.float32)


def tokens(x, b, r, S: Int, TP: Int):
    """The same of x (B,T) -> (S*TP, 1)."""
    return ct.reshape(ct.load(x, (b, r), (S, TP), padding_mode=ZERO, allow_tma=False), (S * TP, 1))


def states_of(x, b, r, S: Int, TP: Int, W: Int, C: Int):
    """The rows of a block as a tuple of tiles of W channels."""
    out = ()
    for i in ct.static_iter(range(C // W)):
        out += (rows(x, b, r, i, S, TP, W),)
    return out


def inject(h, x0, injected, mix, vectors, l, b, r, INJECT: Int, S: Int, TP: Int, W: Int):
    """What the block of loop l + 1 reads, before the step encoding; injected holds what x0 contributes."""
    out = ()
    for i in ct.static_iter(range(len(h))):
        u = h[i]
        if INJECT != 0 and l > 0:
            if INJECT == 1:
                u = u + rows(x0, b, r, i, S, TP, W)
            else:
                x = rows(injected, b, r, i, S, TP, W)
            if INJECT == 2:
                u = u * ct.load(vectors, (DECAY, i), (1, W)) + x
            if INJECT == 3:
                u = linear(cast(h, mix.dtype), mix, i, W) + x
        out += (u,)
    return out


def readout(xs, head, V, VT: Int, C: Int, ENTROPY_TOO: Flag, BEST_TOO: Flag):
    """Softmax statistics (M,1) of the readout of states xs: confidence, and if asked for entropy and arg-max."""
    a = cast(layer_norm(xs, C), head.dtype)
    column = ct.arange(VT, dtype=ct.int32)[None, :]
    M = xs[0].shape[0]
    top, total = ct.full((M, 1), FLOOR, ct.float32), ct.zeros((M, 1), ct.float32)
    mixed, best = ct.zeros((M, 1), ct.float32), ct.zeros((M, 1), ct.int32)
    for j in range(0, ct.cdiv(V, VT)):  # once, which the compiler must not know
        z = ct.where(column < V, finite(linear(a, head, j, VT)), 2 * FLOOR)
        top = ct.max(z, axis=1, keepdims=True)
        t = (z - top) * LOG2E
        e = ct.exp2(t, flush_to_zero=True)
        if ENTROPY_TOO:
            total, mixed = ct.reduce((e, e * t), 1, pair_sum, (0.0, 0.0), keepdims=True)
        else:
            total = ct.sum(e, axis=1, keepdims=True)
        if BEST_TOO:
            best = ct.min(ct.where(z == top, column, VT), axis=1, keepdims=True)
    return 1.0 / total, (ct.log2(total) - mixed / total) * LN2, best


def log_softmax(xs, head, V, VT: Int, C: Int):
    """(M,VT) of states xs; columns from V on are far below every other."""
    z = linear(cast(layer_norm(xs, C), head.dtype), head, 0, VT)
    column = ct.arange(VT, dtype=ct.int32)[None, :]
    z = ct.where(column < V, finite(z), 2 * FLOOR)
    z = z - ct.max(z, axis=1, keepdims=True)
    return z - LN2 * ct.log2(ct.sum(ct.exp2(z * LOG2E), axis=1, keepdims=True))


def moved_by(new, h):
    """norm(new - h) / norm(h) of each token, (M,1)."""
    step = size = ct.zeros((h[0].shape[0], 1), ct.float32)
    for i in ct.static_iter(range(len(h))):
        d = new[i] - h[i]
        step, size = step + ct.sum(d * d, axis=1, keepdims=True), size + ct.sum(h[i] * h[i], axis=1, keepdims=True)
    return ct.sqrt(step) / ct.maximum(ct.sqrt(size), 1e-20)


def gate_of(xs, gate_w, gate_s, gate_v, gate_b, l, EXACT: Flag):
    """Probability (M,1) of the halt head on states xs; gate_s (L,C) holds what the step encoding contributes."""
    odds = ct.zeros((xs[0].shape[0], 1), ct.float32)
    xs = cast(xs, gate_w.dtype)
    for i in ct.static_iter(range(len(xs))):
        W = xs[i].shape[1]
        g = gelu(linear(xs, gate_w, i, W) + ct.load(gate_s, (l, i), (1, W)), EXACT)
        odds = odds + ct.sum(g * ct.load(gate_v, (0, i), (1, W)), axis=1, keepdims=True)
    return 1.0 / (1.0 + ct.exp2((odds + gate_b) * -LOG2E))


def divergence(logp, previous, l, b, r, V, S: Int, TP: Int, VT: Int):
    """KL (M,1) of this loop's distribution from the one of the loop before, which previous (B,T,VT) keeps."""
    logq = ct.reshape(ct.load(previous, (b, r, 0), (S, TP, VT), padding_mode=ZERO, allow_tma=False), (S * TP, VT))
    ct.store(previous, (b, r, 0), ct.reshape(logp, (S, TP, VT)), allow_tma=False)
    inside = ct.arange(VT, dtype=ct.int32)[None, :] < V
    kl = ct.sum(ct.where(inside, ct.exp2(logp * LOG2E) * (logp - logq), 0.0), axis=1, keepdims=True)
    return ct.where(l > 0, kl, NAN)


def project(a, wqkv, n, groups, GW: Int):
    """q, k, v (M,GW) of the n-th group of heads."""
    q = linear(a, wqkv, n, GW).astype(wqkv.dtype)
    k = linear(a, wqkv, n + groups, GW).astype(wqkv.dtype)
    v = linear(a, wqkv, n + 2 * groups, GW).astype(wqkv.dtype)
    return q, k, v


def self_attention(y, a, wqkv, wproj, allowed, groups, HS: Int, GW: Int):
    """y + attention of the normed a, all rows within this block."""
    for n in range(0, groups):
        q, k, v = project(a, wqkv, n, groups, GW)
        y = accumulate(y, attend_block(q, k, v, allowed, HS), wproj, n)
    return y


def share_rows(a, wqkv, qkv, l, b, r, groups, TP: Int, GW: Int):
    """Write this block's q, k, v of loop l + 1 where the other blocks of the sequence can read them."""
    for n in range(0, groups):
        q, k, v = project(a, wqkv, n, groups, GW)
        ct.store(qkv, (0, b, r, n), ct.reshape(q, (1, 1, TP, GW)), allow_tma=False)
        ct.store(qkv, (2 * (l % 2) + 1, b, r, n), ct.reshape(k, (1, 1, TP, GW)), allow_tma=False)
        ct.store(qkv, (2 * (l % 2) + 2, b, r, n), ct.reshape(v, (1, 1, TP, GW)), allow_tma=False)


def shifted(u, steps, l):
    """u plus the step encoding of loop l + 1."""
    out = ()
    for i in ct.static_iter(range(len(u))):
        out += (u[i] + ct.load(steps, (l, i), (1, u[i].shape[1])),)
    return out


def stepped(h, candidate, u, alpha):
    """Euler: h + alpha * (candidate - u)"""
    out = ()
    for i in ct.static_iter(range(len(h))):
        out += (h[i] + alpha * (candidate[i] - u[i]),)
    return out


def frozen(active, new, h):
    """The states of active tokens move, the others stay."""
    out = ()
    for i in ct.static_iter(range(len(h))):
        out += (ct.where(active, new[i], h[i]),)
    return out


def write_trace(stats, predictions, seen, last, active, l, b, r, S: Int, TP: Int):
    """One loop of the trace: stats (L,4,B,T), NaN where a token had halted; predictions (L,B,T)."""
    for i in ct.static_iter(range(4)):
        tile = ct.reshape(ct.where(active, seen[i], NAN), (1, 1, S, TP))
        ct.store(stats, (l, i, b, r), tile, allow_tma=False)
    ct.store(predictions, (l, b, r), ct.reshape(last, (1, S, TP)), allow_tma=False)


def judge(h, y, active, last, l, b, r, head, gate_w, gate_s, gate_v, gate_b, previous, stats, predictions, V,
          alpha, S: Int, TP: Int, C: Int, VT: Int, RULE: Int, EULER: Flag, TRACE: Flag, EXACT: Flag):
    """The score (M,1) of loop l + 1, which took the states h to y, and what the tokens say now; writes the trace."""
    score = ct.full(last.shape, NAN, ct.float32)
    if TRACE or ct.static_eval(RULE in (CONFIDENCE, ENTROPY)):
        confidence, entropy, best = readout(y, head, V, VT, C, TRACE or RULE == ENTROPY, TRACE)
        if RULE == CONFIDENCE:
            score = confidence
        if RULE == ENTROPY:
            score = entropy
    if RULE == KL:
        score = divergence(log_softmax(y, head, V, VT, C), previous, l, b, r, V, S, TP, VT)
    if TRACE or RULE == DELTA:
        delta = moved_by(y, h)
        if RULE == DELTA and EULER:
            score = delta / ct.abs(alpha)
        elif RULE == DELTA:
            score = delta
    if RULE == GATE:
        score = gate_of(y, gate_w, gate_s, gate_v, gate_b, l, EXACT)
    if TRACE:
        last = ct.where(active, best, last)
        write_trace(stats, predictions, (entropy, confidence, delta, score), last, active, l, b, r, S, TP)
    return score, last


@ct.kernel
def looplm_loop_kernel(x0, injected, h_out, wqkv, wproj, wfc, wout, vectors, steps, mix, head, gate_w, gate_s, gate_v,
                       active_in, loops_out, threshold, limit, last_in, stats, predictions, previous, qkv, sync,
                       L, groups, slices, V, min_loops, alpha, gate_b,
                       R: Int, S: Int, TP: Int, W: Int, C: Int, HS: Int, GW: Int, FT: Int, VT: Int, RULE: Int,
                       INJECT: Int, STEPS: Flag, EULER: Flag, NORM: Flag, ADAPT: Flag, TRACE: Flag, EXACT: Flag):
    """All L loops of S sequences of up to TP rows (R = 1), or of TP rows of one sequence with R blocks a sequence.

    x0, injected, h_out (B,T,C); active_in, loops_out, threshold, limit, last_in (B,T); the rest as loop_weights and
    launch_loop make it. W channels are a tile, GW of them the heads of one step of the attention, FT hidden units
    one step of the MLP, sized so that shared memory holds several tiles of weights ahead.
    """
    bid = ct.bid(0)
    if R > 1:  # blocks take tickets, so that those who wait for each other have started, whatever the order
        bid = ct.atomic_add(sync, x0.shape[0] * L, 1)
    b, r = bid // R, bid % R
    h = states_of(x0, b, r, S, TP, W, C)
    row = ct.arange(S * TP, dtype=ct.int32)
    allowed = (row[:, None] >= row[None, :]) & ((row // TP)[:, None] == (row // TP)[None, :])
    allowed = ct.reshape(allowed, (1, S * TP, S * TP))
    active = tokens(active_in, b, r, S, TP) != 0
    last, bound, most = (tokens(last_in, b, r, S, TP), tokens(threshold, b, r, S, TP), tokens(limit, b, r, S, TP))
    loops = ct.zeros((S * TP, 1), ct.int32)
    done, going = 0, ct.max(active.astype(ct.int32))
    # Blocks that share a sequence stop together, one loop after its last token halted: what they all know is who was
    # active when a loop began. The loops after that are skipped. With a break instead all blocks came as far, and some
    # launches never ended; one block a sequence may break, and its branch here folds
    alive = 1
    for l in range(0, L):
        if R == 1 or not ADAPT or alive > 0:
            u = inject(h, x0, injected, mix, vectors, l, b, r, INJECT, S, TP, W)
            if STEPS:
                u = shifted(u, steps, l)
            a = cast(layer_norm(u, C), wqkv.dtype)
            y = u
            if R == 1:
                y = self_attention(y, a, wqkv, wproj, allowed, groups, HS, GW)
            else:
                share_rows(a, wqkv, qkv, l, b, r, groups, TP, GW)
                count = arrive_and_wait(sync, b * L + l, 1 + 65536 * going, R)
                for n in range(0, groups):
                    y = accumulate(y, attend_rows(qkv, l % 2, b, r, n, allowed, HS, TP, GW), wproj, n)
            a = cast(layer_norm(y, C), wqkv.dtype)
            for j in range(0, slices):
                y = accumulate(y, gelu(linear(a, wfc, j, FT), EXACT).astype(wqkv.dtype), wout, j)
            if EULER:
                y = stepped(h, y, u, alpha)
            if NORM:
                y = times(layer_norm(y, C), vectors, LOOP_NORM)
            if ADAPT:
                score, last = judge(h, y, active, last, l, b, r, head, gate_w, gate_s, gate_v, gate_b, previous, stats,
                                    predictions, V, alpha, S, TP, C, VT, RULE, EULER, TRACE, EXACT)
                passes = score <= bound
                if ct.static_eval(RULE in (CONFIDENCE, GATE)):
                    passes = score >= bound
                h, loops, done = frozen(active, y, h), ct.where(active, l + 1, loops), l + 1
                active = active & ~((passes & (l + 1 >= min_loops)) | (l + 1 >= most))
                going = ct.max(active.astype(ct.int32))
                if R > 1:
                    alive = count // 65536
                elif going == 0:
                    break
            else:
                h = y
    for i in ct.static_iter(range(len(h))):
        ct.store(h_out, (b, r, i), ct.reshape(h[i].astype(h_out.dtype), (S, TP, W)))
    if ADAPT:
        ct.store(loops_out, (b, r), ct.reshape(loops, (S, TP)), allow_tma=False)
    if TRACE:
        for l in range(done, L):  # loops that no token took
            ct.store(predictions, (l, b, r), ct.reshape(last, (1, S, TP)), allow_tma=False)


# the whole loop: public function -------------------------------------------------------------------------------------
LOOP_SIZES = ("R", "S", "TP", "W", "C", "HS", "GW", "FT", "VT", "RULE", "INJECT")  # as the kernel takes them, then
LOOP_FLAGS = ("STEPS", "EULER", "NORM", "ADAPT", "TRACE", "EXACT")
INJECTS = ("none", "add", "decay", "concat")  # as `inject` in the kernel counts them
started = set()  # variants of the loop kernel that were launched
prepared = weakref.WeakKeyDictionary()  # model -> what loop_weights made of it, and the CUDA graphs that read it
graphs = weakref.WeakKeyDictionary()  # model -> the CUDA graphs of torch_graph; a copy of a model starts anew
GRAPHS = 8  # of each kind that a model may have
OFTEN = 20  # calls of a shape from which on a graph is worth its capture
LOOP_VOCABULARY = 128  # above it the readout of every loop is the head kernel's work


def loop_cannot(model, x0, L, rule, trace):
    """What the loop kernel does not do of a model, its input x0 (B,T,C) and L loops, "" if it does all."""
    c, (_, T, C), hs = model.config, x0.shape, model.config.n_embd // model.config.n_head
    asks = {"n_layer above 1": c.n_layer > 1, "biases": c.bias,
            "more tokens than log_scale": 0 < c.log_scale < T, "rope": "rope" in (c.pos, c.step_encoding),
            f"heads of {hs} channels": hs & (hs - 1) or not 16 <= hs <= 128,
            f"n_embd {C}": C not in (64, 128, 256, 384), "more than 256 tokens": T > 256,
            "float16": torch.float16 in (x0.dtype, model.lm_head.weight.dtype),
            f"update {c.update!r}": c.update not in ("replace", "euler"), "Anderson acceleration": c.anderson > 0,
            "alpha 'gate'": c.alpha == "gate",
            "loops beyond the learned step encoding": c.step_encoding == "learned" and len(model.step_bias) < L,
            "training": model.training,
            "gradients": torch.is_grad_enabled() and any(p.requires_grad for p in model.parameters()),
            f"halting by the logits of {c.vocab_size} tokens": (
                (trace or rule in NEEDS_LOGITS) and c.vocab_size > LOOP_VOCABULARY)}
    return next((f"the loop kernel does not do {what}" for what, asked in asks.items() if asked), "") or unsupported(x0)


def loop_plan(c, T, rule, adapt, trace, w_dtype):
    """The constants of the kernel for a model's config, T tokens, the dtype of weights."""
    TP, C, V, hs = min(64, max(16, power(T))), c.n_embd, c.vocab_size, c.n_embd // c.n_head
    exact = w_dtype == torch.float32
    FT = 64 if C > 128 or exact else 128
    steps = c.step_encoding in ("learned", "sinusoid")
    VT = max(16, power(V)) if trace or rule in NEEDS_LOGITS else 16  # all of it, in one tile
    return dict(R=-(-T // TP), S=64 // TP, TP=TP, W=min(C, 128), C=C, HS=hs, GW=max(64, hs), FT=FT, VT=VT,
                RULE=RULES.index(rule), INJECT=INJECTS.index(c.inject), STEPS=steps,
                EULER=c.update == "euler", NORM=c.loop_norm, ADAPT=adapt, TRACE=trace, EXACT=exact)


@torch.no_grad()
def loop_weights(model, L, dtype):
    """What the kernel reads of a model: tensors, and two numbers; kept until the model's train or eval is
    called, or a weight or the rule is seen to change (a CUDA graph changes weights unseen)."""
    key = (L, dtype, model.config.halt, model.config.alpha, model.config.update,
           *((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()))
    if model in prepared and prepared[model][0] == key:
        return prepared[model][1:3]
    c, block, C = model.config, model.transformer.h[0], model.config.n_embd
    one = torch.ones(C, device=model.lm_head.weight.device)
    steps = [model.step_encoding(l) for l in range(1, L + 1)]
    steps = torch.stack(steps).float() if steps[0] is not None else 0 * one[None]
    concat, gate = c.inject == "concat", c.halt == "gate"
    head = model.lm_head.weight if c.vocab_size <= LOOP_VOCABULARY else one[None]
    mix = model.inject.mix.weight if concat else torch.cat((one, one))[None]
    read, out = (model.halt_head[0], model.halt_head[2]) if gate else (None, None)
    # a layer norm's weights go into the product that follows it: the kernel would load them in every loop
    wqkv, wfc, head = ((w.float() * norm.weight.float()).to(dtype) for w, norm in (
        (block.attn.c_attn.weight, block.ln_1), (block.mlp.c_fc.weight, block.ln_2), (head, model.transformer.ln_f)))
    made = dict(
        wqkv=wqkv, wproj=block.attn.c_proj.weight.to(dtype), wfc=wfc, wout=block.mlp.c_proj.weight.to(dtype),
        vectors=torch.stack([x.float() for x in (
            model.loop_norm.weight if c.loop_norm else one, model.inject.a.sigmoid() if c.inject == "decay" else one)]),
        steps=steps, mix=mix[:, :C].to(dtype), head=head,
        gate_w=read.weight[:, :C].to(dtype) if gate else one[None].to(dtype),
        gate_s=(steps.expand(L, C) @ read.weight[:, C:].float().T + read.bias.float()) if gate else one[None].clone(),
        gate_v=out.weight.float() if gate else one[None].clone())
    tensors = [x.detach().contiguous() for x in made.values()]
    numbers = (model.step_size.item() if c.alpha == "learned" else float(c.alpha), out.bias.item() if gate else 0.0)
    prepared[model] = key, tensors, numbers, {}
    return tensors, numbers


def product_dtype(weight):
    """What a product with a weight computes in: its own dtype, or that of autocast."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def injected_by(model, x0, dtype):
    """What x0 (B,T,C) contributes to the input of every loop from the second on, where that is not x0 itself."""
    if model.config.inject == "decay":
        return (model.inject.b * x0).to(x0.dtype).contiguous()
    if model.config.inject == "concat":
        weight = model.inject.mix.weight[:, x0.size(2):].to(dtype)
        return F.linear(x0.to(dtype), weight).to(x0.dtype).contiguous()
    return x0.new_empty(1, 1, 16)


def loop_outputs(x0, L, trace):
    """h (B,T,C), loops (B,T) int32, stats (L,4,B,T) float32 and predictions (L,B,T) int32, to be filled."""
    B, T, _ = x0.shape
    whole = (L, B, T) if trace else (1, 1, 1)
    return (torch.empty_like(x0), x0.new_zeros(B, T, dtype=torch.int32),
            x0.new_full((whole[0], 4, *whole[1:]), NAN, dtype=torch.float32), x0.new_zeros(whole, dtype=torch.int32))


def launch_loop(x0, injected, weights, active, threshold, limit, last, constants, numbers, L, min_loops, V):
    k, (B, T, C), dtype = dict(zip(LOOP_SIZES + LOOP_FLAGS, constants, strict=True)), x0.shape, weights[0].dtype
    h, loops, stats, predictions = loop_outputs(x0, L, k["TRACE"])
    previous = x0.new_empty((B, T, k["VT"]) if k["RULE"] == KL else (1, 1, 16), dtype=torch.float32)
    qkv = x0.new_empty((5, B, T, C) if k["R"] > 1 else (1, 1, 1, 16), dtype=dtype)
    sync = x0.new_zeros(B * L + 1 if k["R"] > 1 else 1, dtype=torch.int32)
    flags = (bool(k[name]) for name in LOOP_FLAGS)
    # one warp group: norms and softmaxes need no exchange. Wider states spill then, as do products without wgmma
    few = C <= 128 and k["R"] == 1 and not k["EXACT"] and gpu(x0.device).major == 9
    launch(looplm_loop_kernel, (-(-B // k["S"]) * k["R"],), (
        x0, injected, h, *weights, active.int(), loops, threshold, limit.int(), last, stats, predictions, previous, qkv,
        sync, L, C // k["GW"], 4 * C // k["FT"], V, min_loops, *numbers, *(k[name] for name in LOOP_SIZES), *flags),
        x0.device, num_worker_warps=4 if few else 8)
    return h, loops, stats, predictions


@operator("adaptive_loop", lambda x0, a, b, c, d, e, f, constants, n, L, m, v: loop_outputs(x0, L, constants[-2]))
def loop_op(x0: Tensor, injected: Tensor, weights: list[Tensor], active: Tensor, threshold: Tensor, limit: Tensor,
            last: Tensor, constants: list[int], numbers: list[float], L: int, min_loops: int,
            V: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All loops in one launch; constants: those of loop_plan; numbers: alpha and the bias of the halt head."""
    return launch_loop(x0, injected, weights, active, threshold, limit, last, constants, numbers, L, min_loops, V)


def kernel_path(model, x0, active, threshold, limit, L, rule, last, trace, forced):
    """adaptive_loop by looplm_loop_kernel, None if its launch fails and it is not forced."""
    dtype = product_dtype(model.lm_head.weight)
    adapt = trace or rule != "none" or isinstance(limit, Tensor)
    (B, T, _), V, x0 = x0.shape, model.config.vocab_size, x0.contiguous()
    k = loop_plan(model.config, T, rule, adapt, trace, dtype)
    weights, numbers = loop_weights(model, L, dtype)
    if (variant := (*k.values(), dtype, x0.dtype)) not in started and x0.is_cuda:
        print(f"kernels: the loop kernel for n_embd {k['C']}, {T} tokens, rule {rule}, {dtype} compiles, or comes from "
              "the disk; some seconds, in float32 up to a minute ...", file=sys.stderr)
        started.add(variant)
    last = active.new_zeros(B, T, dtype=torch.int32) if last is None else last.int()
    limit = limit if isinstance(limit, Tensor) else active.new_full((B, T), limit, dtype=torch.int32)
    out = run(f"loop of n_embd {k['C']}", forced, x0.device, lambda: loop_op(
        x0, injected_by(model, x0, dtype), weights, active, threshold, limit, last,
        [int(k[name]) for name in LOOP_SIZES + LOOP_FLAGS], list(numbers), L, model.config.min_loops, V), lambda: None)
    if out is None:
        return None
    h, loops, stats, predictions = out
    loops = loops.long() if adapt else torch.full_like(limit, L).long()
    if not trace:
        return h, loops, None
    named = dict(zip(("entropy", "confidence", "delta", "score"), stats.permute(1, 2, 3, 0), strict=True))
    return h, loops, dict(named, prediction=predictions.permute(1, 2, 0).long())


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
        return kernel_path(model, x0, active, threshold, limit, L, rule, None, False, True)
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


# which path is fastest -----------------------------------------------------------------------------------------------
TABLE = Path(__file__).with_suffix(".json")  # {GPU's name: {case: path}}, by the measurements in root.md
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
        return kernel_path(model, x0, active, threshold, limit, L, rule, last, trace, forced)

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


# what this machine can run -------------------------------------------------------------------------------------------
def smallest_loop(device):
    """Arguments of launch_loop: one sequence of three tokens, one loop of a block whose weights are zero."""
    if reason := why_not_cutile(device):
        raise RuntimeError(reason)
    zeros, C = functools.partial(torch.zeros, device=device), 64
    config = SimpleNamespace(n_embd=C, n_head=2, vocab_size=13, step_encoding="none", inject="add", update="replace",
                             loop_norm=False)
    k = loop_plan(config, 3, "none", False, False, torch.bfloat16)
    shapes = ((3 * C, C), (C, C), (4 * C, C), (C, 4 * C), (2, C), (1, C), (1, C), (13, C), (1, C), (1, C), (1, C))
    float32 = {4, 5, 9, 10}  # those of layer norms, steps and the halt head
    weights = [zeros(shape, dtype=torch.float32 if i in float32 else torch.bfloat16) for i, shape in enumerate(shapes)]
    x0, one = zeros(1, 3, C, dtype=torch.bfloat16), zeros(1, 3, dtype=torch.int32)
    return (x0, x0.new_empty(1, 1, 16), weights, one > 0, one.float(), one, one.clone(),
            [int(k[name]) for name in LOOP_SIZES + LOOP_FLAGS], (1.0, 0.0), 1, 1, 13)


def report():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compiler = tileiras_version()
    print(f"torch {torch.__version__}, cuda-tile {'none' if MISSING else ct.__version__}, "
          f"tileiras {'.'.join(map(str, compiler)) if compiler else 'none'}")
    if device.type == "cuda":
        print(f"{torch.cuda.get_device_name()}, compute capability {gpu(device).major}.{gpu(device).minor}, "
              f"{gpu(device).multi_processor_count} multiprocessors")
    h, one = torch.ones(2, 3, 32, device=device), torch.ones(3, device=device)
    tokens = (h[0], h[1], one > 0, one.long(), 1, one, one.long())
    calls = {"halt_update": lambda: halt_update("delta", *tokens, backend="cutile"),
             "head_halt": lambda: head_halt("entropy", *tokens, torch.ones(5, 32, device=device), h[0, 0],
                                            backend="cutile"),
             "attention": lambda: attention(torch.ones(1, 3, 96, device=device), 1, backend="cutile"),
             "loop": lambda: launch_loop(*smallest_loop(device))}
    for name, call in calls.items():
        try:
            call()
            print(f"{name}: cutile")
        except Exception as error:
            print(f"{name}: torch ({str(error).splitlines()[0]})")


if __name__ == "__main__":
    report()
