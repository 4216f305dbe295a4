"""Compiles kernels with cuTile's compiler, which needs no GPU for that: python tests/compile_all.py, all variants for
all targets, in as many processes as there are cores. test_kernels.py compiles the first variant of each kernel.
"""
import functools
import inspect
import io
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

os.environ.setdefault("CUDA_TILE_CACHE_DIR", "off")  # a kernel from the cache would hide the compiler
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import kernels as K  # noqa: E402
import looplm_kernels  # noqa: E402, F401 (loads all of them)
from model_loop import LoopConfig, LoopGPT  # noqa: E402

TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120")
LIMIT = 600  # seconds per kernel, which take 1 to 20 on an idle core: against hangs alone


def tokens(N, C, dtype):
    empty = torch.empty
    flags, counts = empty(N, dtype=torch.bool), empty(N, dtype=torch.long)
    return empty(N, C, dtype=dtype), empty(N, C, dtype=dtype), flags, counts, 3, empty(N), empty(N, dtype=torch.long)


def halt(rule, C, V, dtype=torch.bfloat16, N=256):
    rows = -(-V // 64) * 64  # the row stride is aligned
    logits, previous = (torch.empty(N, rows, dtype=dtype)[:, :V] for _ in range(2))
    K.halt.halt_update(rule, *tokens(N, C, dtype), backend="cutile", logits=logits, previous=previous,
                  gate=torch.empty(N), alpha=torch.empty(N))


def head(rule, C, V, dtype=torch.bfloat16, N=256):
    weights = torch.empty(V, C, dtype=dtype), torch.empty(C)
    K.head.head_halt(rule, *tokens(N, C, dtype), *weights, backend="cutile", gate=torch.empty(N))


def attend(T, hs, rotation=0, dtype=torch.bfloat16, nh=4):
    q_angle = torch.empty(T if rotation > 1 else 1, hs // 2) if rotation else None
    k_angle = torch.empty(T, hs // 2) if rotation > 1 else None
    K.attention.attention(torch.empty(8, T, 3 * nh * hs, dtype=dtype), nh, q_angle, k_angle, "cutile")


@torch.no_grad()
def loop(rule, C, T, mode="bfloat16", trace=False, V=65, L=12, B=16, **settings):
    """Mode: the dtype of all, or 'autocast', states in float32 and products in bfloat16."""
    n_head = {64: 4, 128: 4, 256: 8, 384: 6}[C]
    model = LoopGPT(LoopConfig(vocab_size=V, n_head=n_head, n_embd=C, num_loops=L, block_size=T, halt=rule,
                               halt_head="joint" if rule == "gate" else "none", **settings)).eval()
    if mode == "bfloat16":
        model.bfloat16()
    every = torch.ones(B, T, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        plan = K.halt.HaltingPlan(every, every.float(), L if rule == "none" else every.long(), L, rule)
        K.paths.adaptive_loop(model.loop_spec(), model.embed(every.long()), plan, trace=trace, backend="cutile")


@torch.no_grad()
def decode(rule, C, T=256, R=1, top_k=0, V=65, L=12, N=16, many=False, **settings):
    n_head = {64: 4, 128: 4, 256: 8, 384: 6}[C]
    model = LoopGPT(LoopConfig(vocab_size=V, n_head=n_head, n_embd=C, num_loops=L, block_size=T, halt=rule,
                               halt_head="joint" if rule == "gate" else "none", **settings)).bfloat16().eval()
    write = K.decode_rows.decode_n_tokens_of_many if many else K.decode.decode_n_tokens
    kv = torch.empty(L, 2, R, n_head, T, C // n_head, dtype=torch.bfloat16)
    write(N, model.loop_spec(), model.lm_head.weight, kv, L, torch.zeros(R), torch.zeros(R), torch.empty(R, N, C),
          torch.empty(R, N), torch.empty(R, N), torch.zeros(R, N), None, torch.zeros(V), top_k=top_k)


def decode_many(rule, C, R=16, **settings):
    decode(rule, C, R=R, many=True, **settings)


# What is called, the first of each kernel the one that the tests compile.
CALLS = [(halt, "confidence", 128, 65), (head, "entropy", 128, 50304), (attend, 64, 32),
         (loop, "confidence", 128, 64), (decode, "confidence", 64),
         (decode_many, "confidence", 128),
         *((halt, rule, 384, 50304) for rule in K.halt.RULES), (halt, "kl", 128, 65), (halt, "entropy", 128, 50257),
         (halt, "confidence", 128, 65, torch.float16), (halt, "confidence", 384, 50304, torch.float32),
         (head, "confidence", 384, 50304), (head, "delta", 128, 65), (head, "confidence", 384, 1003, torch.float32),
         *((attend, T, hs) for T in (256, 512, 1024) for hs in (32, 64, 128)), (attend, 256, 48), (attend, 1024, 96),
         (attend, 256, 64, 1), (attend, 256, 64, 2), (attend, 64, 32, 0, torch.float32),
         (attend, 256, 64, 2, torch.float32),
         *((loop, "none", C, T) for C in (64, 128, 256, 384) for T in (16, 64, 256)),
         *((loop, rule, 128, 64) for rule in K.halt.RULES if rule != "energy"),
         (loop, "confidence", 128, 256), (loop, "confidence", 256, 64),
         (loop, "none", 128, 64, "autocast"), (loop, "confidence", 128, 64, "autocast"),
         (loop, "none", 64, 16, "float32"), (loop, "confidence", 128, 64, "float32"),
         (loop, "confidence", 128, 64, "bfloat16", True), (loop, "entropy", 64, 16, "float32", True, 13)]


def launches(call, target):
    """What a call starts on a GPU of the target: [(kernel, its arguments)]."""
    started = []
    number = int(target.removeprefix("sm_"))
    fake = SimpleNamespace(major=number // 10, minor=number % 10, multi_processor_count=128)

    def record(kernel, grid, args, device, **hints):
        started.append((kernel.replace_hints(**hints), args))

    K.backend.backend_choice.cache_clear()
    with (mock.patch.multiple(K.tile, launch=record, gpu=lambda device: fake),
          mock.patch.object(K.backend, "why_not_cutile", return_value="")):
        call[0](*call[1:])
    K.backend.backend_choice.cache_clear()
    return started


def constraint(x):
    """What the compiler is told of an argument that is no constant."""
    from cuda.tile.compilation import ArrayConstraint, ScalarConstraint
    ct = K.tile.ct
    if isinstance(x, tuple):
        return tuple(map(constraint, x))
    if not isinstance(x, torch.Tensor):
        return ScalarConstraint(ct.float32 if isinstance(x, float) else ct.int32)
    types = {torch.bool: ct.bool_} | {getattr(torch, n): getattr(ct, n) for n in (
        "float32", "float16", "bfloat16", "int32", "int64")}
    divisors = tuple(16 if s % 16 == 0 else 8 if s % 8 == 0 else 1 for s in x.stride()[:-1])
    return ArrayConstraint(
        types[x.dtype], x.dim(), index_dtype=ct.int32, stride_lower_bound_incl=0, alias_groups=(),
        may_alias_internally=False, stride_constant=(None,) * (x.dim() - 1) + (1,),
        stride_divisible_by=(*divisors, 1), base_addr_divisible_by=16)


def signature(kernel, args):
    """What the compiler is told of the arguments of a launch."""
    from cuda.tile.compilation import CallingConvention, KernelSignature
    parameters = inspect.signature(kernel._annotated_function.pyfunc).parameters.values()
    return KernelSignature([x if parameter.annotation is K.tile.Const else constraint(x)
                            for x, parameter in zip(args, parameters, strict=True)],
                           CallingConvention.cutile_python_v2())


def build(kernel, args, target):
    """Compile one kernel for one target; its size in bytes and the seconds that it took."""
    start, file = time.time(), io.BytesIO()
    with K.tile.ct.compiler_timeout(LIMIT):
        K.tile.ct.compilation.export_kernel(kernel, [signature(kernel, args)], file, gpu_code=target,
                                            output_format="cubin")
    return len(file.getvalue()), time.time() - start


def describe(kernel, args):
    """The name of a kernel, and its arguments as text, tensors by dtype and shape."""
    def text(x):
        if isinstance(x, tuple):
            return " ".join(map(text, x))
        return f"{x.dtype}{list(x.shape)}"[6:] if isinstance(x, torch.Tensor) else str(x)
    return kernel._annotated_function.pyfunc.__name__, text(args)


@functools.cache
def everything(target):
    """The different variants of all calls on a target: {name and arguments: (kernel, arguments)}."""
    return {describe(*started): started for call in CALLS for started in launches(call, target)}


def job(target, key):
    try:
        size, seconds = build(*everything(target)[key], target)
        return f"{target} {key[0]} {seconds:.1f} s {size} bytes"
    except K.tile.ct.TileError as error:
        return f"{target} {key[0]} {key[1]} FAILED {type(error).__name__}: {error}"


def main():
    jobs = [(target, key) for target in TARGETS for key in everything(target)]
    with ProcessPoolExecutor() as pool:
        lines = [print(line, flush=True) or line for line in pool.map(job, *zip(*jobs, strict=True))]
    failed = sum("FAILED" in line for line in lines)
    print(f"{len(lines)} compiled, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
