"""What every kernel is made of: the only `import cuda.tile`, constants, small device functions, and the launch.

A block is one logical thread that computes on tiles, which are values. In kernels a name in capitals is a compile-time
constant. Tiles have powers of two as sizes, and what a load reads outside of its tensor is padding.

Kernels take their arguments in groups, as plain tuples of tensors, and a plan: a frozen dataclass of constants that
travels as a tuple. A kernel's first lines give the groups their names back, `t = Tokens(*tokens)`; device functions
take those dataclasses. (A dataclass itself is no kernel argument in cuda-tile 1.7.0.)
"""
import functools
import math
from types import SimpleNamespace

import torch


class Absent:
    """In the place of cuda.tile where it is not installed: kernels can still be defined, and none can run."""
    def __getattr__(self, *args, **hints):
        return self

    __getitem__ = __call__ = __getattr__


try:
    import cuda.tile as ct
    MISSING, ERRORS = "", (ct.TileError, OSError, RuntimeError)  # of the compiler, of a library, of the driver
except ImportError as error:
    ct, MISSING, ERRORS = Absent(), f"cuda-tile is not installed: {error}", (OSError, RuntimeError)

# Scores and logits below FLOOR, -inf too, count as FLOOR. It is finite, so that no difference of two is NaN.
FLOOR = -1e20
LOG2E, LN2, NAN, INF = math.log2(math.e), math.log(2), math.nan, math.inf  # exp2 and log2 are what the GPU has
Const = ct.Constant
ZERO, APPROX = ct.PaddingMode.ZERO, ct.RoundingMode.APPROX


# on the host ---------------------------------------------------------------------------------------------------------
def next_power_of_2(n):
    """The smallest power of two from n on, 1 for n = 0."""
    return 1 << max(n - 1, 0).bit_length()


@functools.cache
def gpu(device):
    """The properties of a GPU on which plans depend; an H200's where there is none, for the tests' stand-in."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device)
    return SimpleNamespace(major=9, minor=0, multi_processor_count=132)


@functools.cache  # a kernel with other hints has compiled variants of its own
def with_hints(kernel, **hints):
    return kernel.replace_hints(**hints)


def constants(plan):
    """A plan, a dataclass of numbers, as a kernel's constant argument."""
    return tuple(vars(plan).values())


def launch(kernel, grid, args, device, **hints):
    """Start a kernel on the current stream; hints that are None are the compiler's choice."""
    kernel = with_hints(kernel, **hints) if hints else kernel
    if device.type != "cuda":  # the tests' stand-in
        ct.launch(None, grid, kernel, args)
        return
    with torch.cuda.device(device):
        ct.launch(torch.cuda.current_stream(), grid, kernel, args)  # compiles at the first launch of a variant


def side_by_side(device, blocks, n):
    """Iterate n times, each time on a stream on which a launch of so many blocks can run beside the other ones: all of
    their blocks find multiprocessors. The current stream goes on after all of them."""
    if device.type != "cuda":  # the tests' stand-in
        yield from range(n)
        return
    current = torch.cuda.current_stream(device)
    streams = [torch.cuda.Stream(device) for _ in range(min(n, gpu(device).multi_processor_count // blocks))]
    for stream in streams:
        stream.wait_stream(current)
    for i in range(n):
        with torch.cuda.stream(streams[i % len(streams)]):
            yield i
    for stream in streams:
        current.wait_stream(stream)


# device functions ----------------------------------------------------------------------------------------------------
def load_1d(x, i, R):
    """x[R*i : R*i+R] of x (N,), a tile (R,).

    allow_tma=False here and below: TMA would add warps that only fetch, which these small loads do not need.
    """
    return ct.load(x, (i,), (R,), padding_mode=ZERO, allow_tma=False)


def store_1d(x, i, tile):
    """x[R*i : R*i+R] = tile (R,), clipped at the end of x (N,)."""
    ct.store(x, (i,), tile, allow_tma=False)


def finite(z):
    """Logits without -inf; a NaN stays one, so that its row passes no threshold."""
    return ct.maximum(z, FLOOR, propagate_nan=True)


def pair_sum(a, b, c, d):
    """The combination of ct.reduce over two tiles at once: one exchange between warps instead of two."""
    return a + c, b + d


def as_mma_operand(tile, TF32):
    """A float32 tile as mma takes it: in tfloat32 if asked to, else exact and slow. Other dtypes as they are."""
    if TF32:
        return ct.astype(tile, ct.tfloat32)
    return tile


def dot(a, b, acc):
    """acc + a @ b with float32 accumulation.

    float32 operands are split, x = hi + lo with hi in tf32; hi hi + hi lo + lo hi is exact to about 1e-6. mma of
    float32 itself runs on the CUDA cores and spills (299 us against 16 us for T = 256).
    """
    if ct.static_eval(a.dtype == ct.float32):
        a1, b1 = a.astype(ct.tfloat32), b.astype(ct.tfloat32)  # the 11 leading bits
        a2, b2 = (a - a1.astype(ct.float32)).astype(ct.tfloat32), (b - b1.astype(ct.float32)).astype(ct.tfloat32)
        return ct.mma(a1, b1, ct.mma(a1, b2, ct.mma(a2, b1, acc)))  # the small products first
    return ct.mma(a, b, acc)


def gelu(x, EXACT):
    """x Phi(x). EXACT: erf to 1.5e-7 (Abramowitz & Stegun 7.1.26; cuTile has none), else the tanh approximation,
    whose error a bfloat16 result does not show."""
    if EXACT:
        z = ct.abs(x) * 0.7071067811865476
        t = 1.0 / (1.0 + 0.3275911 * z)
        # a polynomial in t times exp(-z^2) is 1 - erf(z)
        p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
        half = 0.5 * p * ct.exp2(z * z * -LOG2E)
        return x * ct.where(x >= 0.0, 1.0 - half, half)
    # sqrt(2 / pi) (x + 0.044715 x^3)
    inner = x * (0.7978845608 + 0.0356774081 * (x * x))
    return 0.5 * x * (1.0 + ct.tanh(inner, rounding_mode=APPROX))


def cast(xs, dtype):
    """A tuple of tiles in another dtype."""
    out = ()
    for x in ct.static_iter(xs):
        out += (x.astype(dtype),)
    return out
