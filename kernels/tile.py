"""What every kernel is made of: the only `import cuda.tile`, constants, small device functions, and the launch.

In kernels a name in capitals is a compile-time constant; tiles have powers of two as sizes, and what a load reads
outside of its tensor is padding.
"""
import functools
import math
from types import SimpleNamespace

import torch


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


FLOOR = -1e20  # scores and logits below, -inf too, count as this one: it is finite, so that no difference is NaN
LOG2E, LN2, NAN, INF = math.log2(math.e), math.log(2), math.nan, math.inf
Int, Flag = ct.Constant[int], ct.Constant[bool]
ZERO, APPROX = ct.PaddingMode.ZERO, ct.RoundingMode.APPROX


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


def take(x, i, R):
    """Entries R * i and on of x (N,), (R,). No TMA, here and below: it would add warps that only fetch."""
    return ct.load(x, (i,), (R,), padding_mode=ZERO, allow_tma=False)


def put(x, i, tile):
    ct.store(x, (i,), tile, allow_tma=False)


def state_tile(x, i, c, R, CW):
    return ct.load(x, (i, c), (R, CW), padding_mode=ZERO, allow_tma=False)


def finite(z):
    """Logits without -inf; a NaN stays one, so that its row passes nothing."""
    return ct.maximum(z, FLOOR, propagate_nan=True)


def operand(tile, TF32):
    """A float32 tile as mma takes it: in tfloat32 if asked to, else exact and slow. Others as they are."""
    if TF32:
        return ct.astype(tile, ct.tfloat32)
    return tile


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


def cast(xs, dtype):
    out = ()
    for x in ct.static_iter(xs):
        out += (x.astype(dtype),)
    return out
