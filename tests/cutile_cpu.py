"""A stand-in for the part of `cuda.tile` that the kernels use, which runs their sources on a CPU; it is no backend.

    kernels = load_kernels()  # a fresh copy of the package, in which `import cuda.tile as ct` gives this module
    ct.launch(None, grid, kernels.halt.a_kernel, (tensor, 3, 0.5))

A tile is a torch tensor with cuTile's dtype. What the language leaves open is made to show: undetermined padding is
NaN or a wild integer, a store wholly outside raises, and so do arguments that share memory. Where the compiler needs
a constant, tiles are refused (arguments without ct.Constant, shapes of arrays); a range's index passes for a constant.
What only a compiler sees, such as a variable that changes its type in a loop, is left to the compiler. Python's min
and max take scalars only; for tiles use ct.minimum and ct.maximum.

Blocks run one at a time, each in its own thread, and give way where they poll: at an atomic that changes nothing, or
at a load with a memory order. So a device-wide barrier works, always in the same order, and a grid in which every
block waits for ever raises. `schedule("random", seed)` also switches blocks between any two memory accesses, which
finds missing barriers; `schedule("reverse")` starts with the last block.
"""
import builtins
import contextlib
import dataclasses
import functools
import importlib
import inspect
import itertools
import math
import operator
import random
import sys
import threading
import types
from collections import deque
from enum import Enum
from typing import Annotated, TypeVar, get_origin

import torch

__version__ = "stand-in"


# errors and enumerations ---------------------------------------------------------------------------------------------
class TileError(Exception):
    pass


PaddingMode = Enum("PaddingMode", "UNDETERMINED ZERO NEG_INF")
RoundingMode = Enum("RoundingMode", "RN APPROX")
MemoryOrder = Enum("MemoryOrder", "WEAK RELAXED ACQUIRE RELEASE ACQ_REL")
MemoryScope = Enum("MemoryScope", "NONE BLOCK DEVICE SYS")
T = TypeVar("T")


def _check(condition, message, error=TileError):
    if not condition:
        raise error(message)


# dtypes and promotion ------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, eq=False, repr=False)  # there is one of each
class DType:
    name: str
    torch: torch.dtype
    kind: str  # b(ool), i(nteger), f(loat), r(estricted float: no arithmetic, no promotion)

    bitwidth = property(lambda self: self.torch.itemsize * 8)

    def __repr__(self):
        return self.name


bool_ = DType("bool_", torch.bool, "b")
int32, int64 = DType("int32", torch.int32, "i"), DType("int64", torch.int64, "i")
float16, bfloat16 = DType("float16", torch.float16, "f"), DType("bfloat16", torch.bfloat16, "f")
float32, tfloat32 = DType("float32", torch.float32, "f"), DType("tfloat32", torch.float32, "r")
_FROM_TORCH = {d.torch: d for d in (bool_, int32, int64, float16, bfloat16, float32)}
_CATEGORY = {"b": 0, "i": 1, "f": 2, "r": 2}
_LOOSE = (bool, int, float)  # Python numbers are loosely typed: they take the dtype of the tile beside them


def _promote_strict(a, b):
    if a == b:
        return a
    if "r" not in a.kind + b.kind and {a, b} != {float16, bfloat16}:
        return builtins.max(a, b, key=lambda d: (_CATEGORY[d.kind], d.bitwidth))
    raise TileError(f"no implicit promotion of {a} and {b}, cast explicitly")


def _loose_dtype(x):
    return bool_ if isinstance(x, bool) else float32 if isinstance(x, float) else int32


def _promote(x, y, force_float=False):
    """The common dtype of two operands, Tile or Python number."""
    if isinstance(x, Tile) and isinstance(y, Tile):
        dtype = _promote_strict(x.dtype, y.dtype)
    elif isinstance(x, Tile) or isinstance(y, Tile):
        dtype, loose = (x.dtype, y) if isinstance(x, Tile) else (y.dtype, x)
        wanted = _loose_dtype(loose)
        dtype = wanted if _CATEGORY[wanted.kind] > _CATEGORY[dtype.kind] else dtype
    else:
        dtype = _promote_strict(_loose_dtype(x), _loose_dtype(y))
    return float32 if force_float and dtype.kind not in "fr" else dtype


def _implicit(x, dtype):
    """x as a tile of a dtype, as a store casts it: upwards only."""
    if not isinstance(x, Tile):
        _check(isinstance(x, _LOOSE), f"expected a tile or a number, got {type(x).__name__}")
        _check(_CATEGORY[_loose_dtype(x).kind] <= _CATEGORY[dtype.kind], f"cannot implicitly cast {x} to {dtype}")
        return _number(x, dtype)
    _check(_promote_strict(x.dtype, dtype) == dtype, f"cannot implicitly cast {x.dtype} to {dtype}")
    return astype(x, dtype)


def _number(x, dtype):
    """A Python number as a scalar tile."""
    return _kept_number(x, dtype) if x else Tile(torch.tensor(x, dtype=dtype.torch), dtype)  # -0.0 equals 0.0


@functools.lru_cache(10_000, typed=True)
def _kept_number(x, dtype):
    return Tile(torch.tensor(x, dtype=dtype.torch), dtype)


def _round_tf32(t):
    """float32 rounded to the 10 mantissa bits of tfloat32, ties to even; NaN and infinities stay."""
    bits = t.contiguous().view(torch.int32)
    rounded = (bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF
    return torch.where(torch.isfinite(t), rounded.view(torch.float32), t)


@functools.cache
def _powers_of_two(shape):
    return all(size > 0 and size & size - 1 == 0 for size in shape)


# tiles ---------------------------------------------------------------------------------------------------------------
class Tile:
    """An immutable value: t, a torch tensor that nothing writes to, and a dtype (torch has no tfloat32)."""
    __hash__ = None

    def __init__(self, t, dtype=None):
        if not _powers_of_two(t.shape):
            raise TileError(f"tile shape {tuple(t.shape)} is not of powers of two")
        self.t, self.dtype = t, dtype or _FROM_TORCH[t.dtype]

    shape = property(lambda self: tuple(self.t.shape))
    ndim = property(lambda self: self.t.dim())

    def _scalar(self):
        if self.t.dim():
            raise TileError(f"a tile of shape {self.shape} is no scalar")
        return self.t.item()

    def __index__(self):
        _check(self.dtype.kind in "ib", f"a {self.dtype.name} is no index")
        return int(self._scalar())

    def __bool__(self):
        return bool(self._scalar())

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        _check(all(i is None or i == slice(None) for i in index), "a tile takes only None and : as subscripts")
        return Tile(self.t[index], self.dtype)

    def __iter__(self):
        raise TileError("a tile cannot be iterated over")

    def item(self):
        _check(self.t.numel() == 1, f"a tile of shape {self.shape} has more than one item")
        return Tile(self.t.reshape(()), self.dtype)


def _tile(x, kinds="bifr"):
    if not isinstance(x, Tile):
        _check(isinstance(x, _LOOSE), f"expected a tile, got {type(x).__name__}")
        x = _number(x, _loose_dtype(x))
    if x.dtype.kind not in kinds:
        raise TileError(f"{x.dtype} does not work here")
    return x


def _constant(x, what="value", kinds=int):
    if not isinstance(x, kinds):
        raise TileError(f"{what} must be a compile-time constant, got {x!r}")
    return x


def _shape(shape, rank=None):
    shape = shape if isinstance(shape, tuple | list) else (shape,)
    for size in shape:
        _constant(size, "shape")
        if not (size > 0 and size & size - 1 == 0):
            raise TileError(f"shape {tuple(shape)} is not of powers of two")
    if not (rank is None or len(shape) in (rank, 0)):
        raise TileError(f"shape {tuple(shape)} does not have rank {rank}")
    return tuple(shape)


def _axis(axis, rank):
    _constant(axis, "axis")
    if not -rank <= axis < rank:
        raise TileError(f"axis {axis} is out of range for rank {rank}")
    return axis % rank


def _fit(t, shape):
    if t.shape == shape:
        return t
    _check(t.dim() <= len(shape) and all(a in (1, b) for a, b in zip(reversed(t.shape), reversed(shape), strict=False)),
           f"shape {tuple(t.shape)} cannot be broadcast to {tuple(shape)}")
    return t.expand(shape)


def _hints(latency=None, allow_tma=None):
    _check(latency is None or 1 <= _constant(latency, "latency") <= 10, f"latency {latency}")
    _check(allow_tma is None or isinstance(allow_tma, bool), f"allow_tma {allow_tma}")


# arithmetic ----------------------------------------------------------------------------------------------------------
def _same_shape(*tensors):
    try:
        return torch.broadcast_tensors(*tensors)
    except RuntimeError:
        raise TileError(f"shapes {[tuple(t.shape) for t in tensors]} do not broadcast") from None


def _flags(dtype, rounding_mode, flush_to_zero):
    if dtype != float32:
        _check(rounding_mode in (None, RoundingMode.RN), f"{rounding_mode} needs float32")
        _check(not flush_to_zero, "flush_to_zero needs float32")


def _binary(x, y, function, kinds="if", force_float=False, result=None, rounding_mode=None, flush_to_zero=False):
    """function of two operands in their common dtype; Python numbers stay Python numbers, as constants do in cuTile."""
    if isinstance(x, _LOOSE) and isinstance(y, _LOOSE):
        return function(x, y)
    dtype = _promote(x, y, force_float)
    if dtype.kind not in kinds:
        raise TileError(f"this operator does not take {dtype}")
    _flags(dtype, rounding_mode, flush_to_zero)
    a, b = _as_tensor(x, dtype), _as_tensor(y, dtype)
    if a.shape != b.shape and a.dim() and b.dim():
        a, b = _same_shape(a, b)
    return Tile(function(a, b).to((result or dtype).torch), result or dtype)


def _as_tensor(x, dtype):
    """The values of a tile or a Python number as one dtype."""
    return (x if isinstance(x, Tile) and x.dtype is dtype else astype(x, dtype) if isinstance(x, Tile) else
            _number(x, dtype)).t


def truediv(x, y, /, *, rounding_mode=None, flush_to_zero=False):
    return _binary(x, y, operator.truediv, "f", True, None, rounding_mode, flush_to_zero)


def cdiv(x, y, /):
    return _binary(x, y, lambda a, b: -(-a // b), "i")


def _make_choice(number, spreading, ignoring):
    """maximum or minimum; of a number and a NaN it is the number, unless propagate_nan."""
    def operate(x, y, /, *, flush_to_zero=False, propagate_nan=False):
        def function(a, b):
            if isinstance(a, _LOOSE):
                return number(a, b)
            return (spreading if propagate_nan or not a.is_floating_point() else ignoring)(a, b)
        return _binary(x, y, function, flush_to_zero=flush_to_zero)
    return operate


def _make_bitwise(function):
    def operate(x, y):
        both = isinstance(x, Tile) and isinstance(y, Tile)
        _check(not both or x.dtype == y.dtype, "bitwise operation on two dtypes")
        return _binary(x, y, function, "bi")
    return operate


maximum = _make_choice(builtins.max, torch.maximum, torch.fmax)
minimum = _make_choice(builtins.min, torch.minimum, torch.fmin)


def _make_binary(function, kinds="if", result=None):
    return lambda x, y: _binary(x, y, function, kinds, result=result)


def _operators():
    functions = {name: _make_binary(getattr(operator, name)) for name in ("add", "sub", "mul", "floordiv", "mod")}
    functions |= {name.rstrip("_"): _make_bitwise(getattr(operator, name)) for name in (
        "and_", "or_", "xor", "lshift", "rshift")}
    for name, f in (functions | {"truediv": truediv}).items():
        setattr(Tile, f"__{name}__", f)
        setattr(Tile, f"__r{name}__", _swapped(f))
    for name in ("gt", "ge", "lt", "le", "eq", "ne"):
        setattr(Tile, f"__{name}__", _make_binary(getattr(operator, name), "bif", bool_))


def _swapped(function):
    return lambda x, y: function(y, x)


_operators()


def _unary(x, function, number, kinds="bif", widen=True, rounding_mode=None, flush_to_zero=False):
    """A function of one operand; integers become float32 (widen) or stay, a Python number stays one."""
    if isinstance(x, _LOOSE):
        return number(x)
    x = _tile(x, kinds)
    x = astype(x, float32) if widen and x.dtype.kind != "f" else x
    _flags(x.dtype, rounding_mode, flush_to_zero)
    return Tile(function(x.t), x.dtype)


def _make_flushed(function, number):
    return lambda x, /, *, flush_to_zero=False: _unary(x, function, number, flush_to_zero=flush_to_zero)


def _make_rounded(function, number):
    return lambda x, /, *, rounding_mode=None: _unary(x, function, number, rounding_mode=rounding_mode)


tanh, sqrt = (_make_rounded(getattr(torch, f), getattr(math, f)) for f in ("tanh", "sqrt"))
exp2, rsqrt = _make_flushed(torch.exp2, lambda a: 2 ** a), _make_flushed(torch.rsqrt, lambda a: a ** -0.5)


def log2(x, /):
    return _unary(x, torch.log2, math.log2)


def abs(x, /):
    return _unary(x, torch.abs, builtins.abs, "if", widen=False)


def where(cond, x, y, /):
    cond, dtype = astype(_tile(cond), bool_), _promote(x, y)
    a, b = _as_tensor(x, dtype), _as_tensor(y, dtype)
    return Tile(torch.where(*_same_shape(cond.t, a, b)), dtype)


# shapes and values ---------------------------------------------------------------------------------------------------
def astype(x, dtype, /):
    x = _tile(x)
    if x.dtype == _constant(dtype, "dtype", DType):
        return x
    t = x.t.to(dtype.torch)
    return Tile(_round_tf32(t) if dtype == tfloat32 else t, dtype)


def bitcast(x, /, dtype):
    x = _tile(x, "ifr")
    _check(x.dtype.bitwidth == dtype.bitwidth, f"bitcast of {x.dtype} to {dtype}")
    return Tile(x.t.contiguous().view(dtype.torch), dtype)


def full(shape, fill_value, dtype):
    value = fill_value if isinstance(fill_value, Tile) else _number(fill_value, _constant(dtype, "dtype", DType))
    _check(value.ndim == 0, "the fill value must be a scalar")
    return Tile(astype(value, dtype).t.expand(_shape(shape)), dtype)


def zeros(shape, dtype):
    return full(shape, 0, dtype)


def arange(size, /, *, dtype):
    _shape(_constant(size, "size"))
    return Tile(torch.arange(size, dtype=dtype.torch), dtype)


def reshape(x, /, shape):
    x, shape = _tile(x), tuple(_constant(s, "shape") for s in shape)
    known = math.prod(s for s in shape if s != -1)
    _check(shape.count(-1) < 2 and x.t.numel() % known == 0 and (-1 in shape or x.t.numel() == known),
           f"cannot reshape {x.shape} to {shape}")
    return Tile(x.t.reshape(shape), x.dtype)


def broadcast_to(x, /, shape):
    x = _tile(x)
    return Tile(_fit(x.t, _shape(shape)).clone(), x.dtype)


def permute(x, /, axes):
    x = _tile(x)
    axes = tuple(_axis(a, x.ndim) for a in axes)
    _check(sorted(axes) == list(range(x.ndim)), f"axes {axes} are no permutation of rank {x.ndim}")
    return Tile(x.t.permute(axes), x.dtype)


def transpose(x, /):
    _check(_tile(x).ndim == 2, "transpose without axes takes two of them")
    return permute(x, (1, 0))


def extract(x, /, index, shape):
    """Tile number `index` of a shape inside x."""
    x, shape = _tile(x), _shape(shape, _tile(x).ndim)
    _check(len(index) == x.ndim == len(shape), f"index {index} or shape {shape} does not have rank {x.ndim}")
    for i, part, whole in zip(index, shape, x.shape, strict=True):
        _check(whole % part == 0 and 0 <= _index(i) < whole // part, f"no tile {index} of {shape} in {x.shape}")
    return Tile(x.t[tuple(slice(_index(i) * n, (_index(i) + 1) * n) for i, n in zip(index, shape, strict=True))])


Tile.astype, Tile.reshape, Tile.permute, Tile.transpose, Tile.extract = astype, reshape, permute, transpose, extract
Tile.__neg__ = lambda x: _unary(x, torch.neg, operator.neg, "if", widen=False)
Tile.__invert__ = lambda x: _unary(x, torch.bitwise_not, operator.invert, "bi", widen=False)


# matrix products and reductions --------------------------------------------------------------------------------------
def mma(x, y, /, acc):
    x, y, acc = _tile(x), _tile(y), _tile(acc)
    _check(x.ndim == y.ndim and x.ndim in (2, 3), "mma takes tiles of two or three axes")
    _check(x.dtype == y.dtype and x.dtype.kind in "fr", f"mma of {x.dtype} and {y.dtype}")
    _check(acc.dtype == float32, f"mma into {acc.dtype}")
    _check(x.shape[-1] == y.shape[-2], f"mma of shapes {x.shape} and {y.shape}")
    product = torch.matmul(x.t.float(), y.t.float())
    _check(acc.shape == tuple(product.shape), f"acc has shape {acc.shape}, the product {tuple(product.shape)}")
    return Tile(acc.t + product, float32)


def _fold(x, axis, keepdims, function):
    """Apply function(t, one axis) over axes, from the last to the first."""
    x = _tile(x, "bif")
    x = astype(x, int32) if x.dtype == bool_ else x
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    t = x.t
    for a in sorted((_axis(a, x.ndim) for a in axes), reverse=True):
        t = function(t, a)
        t = t.unsqueeze(a) if keepdims else t
    return Tile(t, x.dtype)


def sum(x, /, axis=None, *, keepdims=False):
    return _fold(x, axis, keepdims, lambda t, a: t.sum(a, dtype=t.dtype))


def _make_extreme(name, worst):
    """max or min; NaN counts only where all are NaN."""
    def function(t, a):
        if not t.is_floating_point():
            return getattr(t, name)(a)
        nan = torch.isnan(t)
        return getattr(t.masked_fill(nan, worst), name)(a).masked_fill(nan.all(a), math.nan)
    return lambda x, /, axis=None, *, keepdims=False: _fold(x, axis, keepdims, function)


max, min = _make_extreme("amax", -math.inf), _make_extreme("amin", math.inf)


def reduce(x, /, axis, func, identity, *, keepdims=False):
    """Halves are combined until one is left: func must be associative and commutative, and free of branches."""
    tiles = x if isinstance(x, tuple) else (x,)
    shape = torch.broadcast_shapes(*(_tile(t).shape for t in tiles))
    tiles, axis = [Tile(t.t.expand(shape), t.dtype) for t in tiles], _axis(axis, len(shape))
    identities = identity if isinstance(identity, tuple) else (identity,)
    _check(len(identities) == len(tiles), "one identity for each tile")
    while tiles[0].shape[axis] > 1:
        halves = [[Tile(h, t.dtype) for h in t.t.chunk(2, axis)] for t in tiles]
        out = func(*(h[0] for h in halves), *(h[1] for h in halves))
        tiles = [_implicit(o, t.dtype) for o, t in zip(out if isinstance(x, tuple) else (out,), tiles, strict=True)]
    done = tuple(t if keepdims else Tile(t.t.squeeze(axis), t.dtype) for t in tiles)
    return done if isinstance(x, tuple) else done[0]


# arrays --------------------------------------------------------------------------------------------------------------
def _index(x):
    if isinstance(x, bool) or not isinstance(x, (int, Tile)):
        raise TileError(f"expected an integer index, got {x!r}")
    return x.__index__()


def _filler(mode, dtype):
    """What stands outside an array; undetermined is a value that no kernel can live on."""
    if mode == PaddingMode.UNDETERMINED:
        return {"f": math.nan, "i": 0x5C5C5C5C, "b": True}[dtype.kind]
    _check(dtype.kind == "f" or mode == PaddingMode.ZERO, f"{mode} is for floats, not for {dtype}")
    return 0 if mode == PaddingMode.ZERO else -math.inf


def _memory(order, scope, allowed):
    if not (isinstance(order, MemoryOrder) and isinstance(scope, MemoryScope) and order.name in allowed.split()):
        raise TileError(f"{order} is not one of {allowed}")
    if (order == MemoryOrder.WEAK) != (scope == MemoryScope.NONE):
        raise TileError(f"{order} with {scope}")


class Array:
    """A torch tensor in a kernel. Its shape is of int32 tiles, as it is not constant there."""

    def __init__(self, tensor):
        self.tensor = tensor

    dtype = property(lambda self: _FROM_TORCH[self.tensor.dtype])
    ndim = property(lambda self: self.tensor.dim())
    shape = property(lambda self: tuple(_number(s, int32) for s in self.tensor.shape))


def _window(array, index, shape, order):
    """The tensor's part under a tile, the slices of the tile that it fills, the tile's full shape."""
    index = index if isinstance(index, tuple | list) else (index,)
    rank = array.ndim
    if len(index) != rank:
        raise TileError(f"index of {len(index)} axes for an array of rank {rank}")
    part, filled, shape = array.tensor, [], shape or (1,) * rank
    if order != "C":
        order = [_axis(a, rank) for a in order]
        _check(sorted(order) == list(range(rank)), f"order {order} is no permutation")
        part = part.permute(tuple(order))
    for d, (i, size) in enumerate(zip(map(_index, index), shape, strict=True)):
        start, length = i * size, part.shape[d]
        low, high = builtins.max(start, 0), builtins.min(start + size, length)
        part = part.narrow(d, builtins.min(low, length), builtins.max(high - low, 0))
        filled.append(slice(low - start, builtins.max(high - start, low - start)))
    return part, tuple(filled), shape


def load(array, /, index, shape, *, order="C", padding_mode=PaddingMode.UNDETERMINED, check_bounds=True, latency=None,
         allow_tma=None, memory_order=MemoryOrder.WEAK, memory_scope=MemoryScope.NONE):
    _hints(latency, allow_tma)
    _memory(memory_order, memory_scope, "WEAK RELAXED ACQUIRE")
    _access(polls=memory_order != MemoryOrder.WEAK)
    shape = _shape(shape, array.ndim)
    part, filled, full_shape = _window(array, index, shape, order)
    _check(check_bounds or part.numel() == math.prod(shape), f"check_bounds=False, but tile {index} reaches outside")
    _filler(padding_mode, array.dtype)
    mode = padding_mode if part.numel() else PaddingMode.UNDETERMINED  # of a tile wholly outside, whatever is asked
    t = torch.full(full_shape, _filler(mode, array.dtype), dtype=array.tensor.dtype)
    t[filled] = part
    return Tile(t.reshape(shape), array.dtype)


def store(array, /, index, tile, *, order="C", check_bounds=True, latency=None, allow_tma=None,
          memory_order=MemoryOrder.WEAK, memory_scope=MemoryScope.NONE):
    _hints(latency, allow_tma)
    _memory(memory_order, memory_scope, "WEAK RELAXED RELEASE")
    _access(changes=True)
    tile = _implicit(tile, array.dtype).t
    _check(tile.dim() in (0, array.ndim), f"a tile of shape {tuple(tile.shape)} for an array of rank {array.ndim}")
    part, filled, full_shape = _window(array, index, tuple(tile.shape), order)
    _check(part.numel(), f"tile {index} to store lies wholly outside the array")
    _check(check_bounds or part.numel() == math.prod(full_shape),
           f"check_bounds=False, but tile {index} reaches outside")
    part.copy_(_fit(tile, full_shape)[filled])


def num_tiles(array, /, axis, shape):
    shape = _shape(shape, array.ndim) or (1,) * array.ndim
    return _number(-(-array.tensor.shape[axis] // shape[_axis(axis, array.ndim)]), int32)


def _elements(array, indices, check_bounds, mask=None):
    """Index tensors (S) of the elements that a gather or an atomic touches, and the mask (S) that holds."""
    indices = indices if isinstance(indices, tuple) else (indices,)
    _check(len(indices) == array.ndim, f"{len(indices)} indices for an array of rank {array.ndim}")
    parts = _same_shape(*(_tile(i, "i").t.long() for i in indices))
    live = torch.ones(parts[0].shape, dtype=torch.bool)
    inside = live.clone()
    if mask is not None:
        live = live & _fit(_tile(mask, "b").t, live.shape)
    for p, n in zip(parts, array.tensor.shape, strict=True):
        inside = inside & (p >= 0) & (p < n)
    _check(check_bounds or (inside | ~live).all(), "check_bounds=False, but an index is out of bounds")
    return parts, live & inside


def gather(array, indices, /, *, mask=None, padding_value=0, check_bounds=True, latency=None):
    _hints(latency)
    _access()
    parts, live = _elements(array, indices, check_bounds, mask)
    t = _fit(_implicit(padding_value, array.dtype).t, live.shape).clone()
    t[live] = array.tensor[tuple(p[live] for p in parts)]
    return Tile(t, array.dtype)


def scatter(array, indices, value, /, *, mask=None, check_bounds=True, latency=None):
    _hints(latency)
    _access(changes=True)
    parts, live = _elements(array, indices, check_bounds, mask)
    array.tensor[tuple(p[live] for p in parts)] = _fit(_implicit(value, array.dtype).t, live.shape)[live]


def atomic_add(array, indices, update, /, *, check_bounds=True, memory_order=MemoryOrder.ACQ_REL,
               memory_scope=MemoryScope.DEVICE):
    """Adds element by element; the old values. An update of nothing polls."""
    _memory(memory_order, memory_scope, "RELAXED ACQUIRE RELEASE ACQ_REL")
    parts, live = _elements(array, indices, check_bounds)
    update = _fit(_implicit(update, array.dtype).t, live.shape)
    old = torch.full(live.shape, _filler(PaddingMode.UNDETERMINED, array.dtype), dtype=array.tensor.dtype)
    for at in itertools.product(*map(range, live.shape)):
        if live[at]:
            cell = array.tensor[tuple(int(p[at]) for p in parts)]
            old[at] = cell
            cell += update[at]
    changes = bool((update != 0).any())
    _access(changes=changes, polls=not changes)
    return Tile(old, array.dtype)


# the grid ------------------------------------------------------------------------------------------------------------
_here = threading.local()  # the running block's .block and .grid (three axes each) and .scheduler
_schedule = {"order": "forward", "seed": 0}


@contextlib.contextmanager
def schedule(order="forward", seed=0):
    """In which order blocks run: forward, reverse, or random with switches at every memory access."""
    _check(order in ("forward", "reverse", "random"), f"no order {order!r}", ValueError)
    before = dict(_schedule)
    _schedule.update(order=order, seed=seed)
    try:
        yield
    finally:
        _schedule.update(before)


class _Abort(BaseException):
    """Ends the threads of a grid in which a block failed."""


class _Scheduler:
    """Hands the right to run from block to block; queue[0] has it."""
    POLLS = 200  # so many polls a block with nothing changed in between: they wait for ever

    def __init__(self, blocks, body):
        order = _schedule["order"]
        self.random = random.Random(_schedule["seed"]) if order == "random" else None
        blocks = blocks[::-1] if order == "reverse" else blocks
        self.threads = [threading.Thread(target=self._run, args=(b, body), daemon=True) for b in blocks]
        self.wake = {t: threading.Semaphore(0) for t in self.threads}
        self.queue, self.error, self.idle, self.done = deque(self.threads), None, 0, threading.Event()

    def start(self):
        self._hand_over()
        self.done.wait()
        for thread in self.threads:
            if thread.ident:
                self.wake[thread].release()
                thread.join()
        if self.error:
            raise self.error

    def _hand_over(self):
        if self.random:
            self.queue.rotate(self.random.randrange(len(self.queue)))
        thread = self.queue[0]
        self.wake[thread].release() if thread.ident else thread.start()

    def _run(self, block, body):
        try:
            body(block, self)
        except _Abort:
            return
        except BaseException as error:
            error.add_note(f"in block {block}")
            self.error = error
        self.queue.popleft()
        if self.error or not self.queue:
            self.done.set()
        else:
            self._hand_over()

    def switch(self):
        me = threading.current_thread()
        self.queue.rotate(-1)
        self._hand_over()
        self.wake[me].acquire()
        if self.error:
            raise _Abort


def _access(changes=False, polls=False):
    """Called at each access to memory: lets other blocks run where this one polls, and finds waits without end."""
    scheduler = _here.scheduler
    scheduler.idle = 0 if changes else scheduler.idle + polls
    if scheduler.idle > scheduler.POLLS * len(scheduler.queue):
        raise RuntimeError("every block polls and nothing changes: the kernel waits for ever")
    if len(scheduler.queue) > 1 and (polls or scheduler.random and scheduler.random.random() < 0.25):
        scheduler.switch()


def launch(stream, grid, kernel, args, /):
    _check(isinstance(kernel, Kernel), "launch needs a kernel", TypeError)
    _check(isinstance(grid, tuple) and 1 <= len(grid) <= 3 and all(g > 0 for g in grid), f"grid {grid}", ValueError)
    grid = tuple(grid) + (1,) * (3 - len(grid))
    bound = kernel.bind(args)

    def body(block, scheduler):
        _here.block, _here.grid, _here.scheduler = block, grid, scheduler
        kernel._pyfunc(*bound)

    blocks = [b[::-1] for b in itertools.product(*(range(g) for g in reversed(grid)))]
    _Scheduler(blocks, body).start()


def bid(axis):
    return _number(_here.block[_axis(axis, 3)], int32)


def num_blocks(axis):
    return _number(_here.grid[_axis(axis, 3)], int32)


# kernels and their arguments -----------------------------------------------------------------------------------------
Constant = Annotated[T, "constant"]
_HINTS = {"num_ctas": (1, 2, 4, 8, 16), "occupancy": range(1, 33), "opt_level": range(4),
          "num_worker_warps": (1, 2, 4, 8, 16, 32)}


def _argument(value, annotation):
    """A launch argument as a kernel sees it: an array, a constant, or a scalar tile."""
    if isinstance(value, torch.Tensor):
        return Array(value.detach())
    if isinstance(value, tuple):
        return tuple(_argument(item, annotation) for item in value)
    _check(isinstance(value, _LOOSE), f"a kernel takes no {type(value).__name__}", TypeError)
    return value if get_origin(annotation) is Annotated else _number(value, _loose_dtype(value))


def _tensors(args):
    """The tensors among launch arguments, those in tuples too."""
    for a in args:
        if isinstance(a, tuple):
            yield from _tensors(a)
        elif isinstance(a, torch.Tensor):
            yield a


def _check_apart(tensors):
    """Raise where arguments share elements, which the compiler takes for impossible; views side by side may share."""
    storages = {}
    for tensor in tensors:
        storages.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    for group in storages.values():
        if len(group) > 1 and all(t.numel() for t in group):
            size = group[0].untyped_storage().nbytes() // group[0].element_size()
            places = [torch.arange(size).as_strided(t.shape, t.stride(), t.storage_offset()).unique() for t in group]
            _check(torch.cat(places).unique().numel() == builtins.sum(p.numel() for p in places),
                   "two arguments overlap in memory")


class Kernel:
    def __init__(self, function, hints):
        for name, value in hints.items():
            _check(name in _HINTS, f"kernel() got an unexpected keyword argument {name!r}", TypeError)
            _check(value is None or value in _HINTS[name], f"{name} {value}", ValueError)
        self._pyfunc, self.hints, self.__name__ = function, hints, function.__name__

    def replace_hints(self, **hints):
        return Kernel(self._pyfunc, {**self.hints, **hints})

    def bind(self, args):
        parameters = list(inspect.signature(self._pyfunc, eval_str=True).parameters.values())
        _check(len(parameters) == len(args), f"{self.__name__} takes {len(parameters)} arguments, not {len(args)}",
               TypeError)
        _check_apart(_tensors(args))
        return [_argument(a, p.annotation) for a, p in zip(args, parameters, strict=True)]


def kernel(function=None, /, **hints):
    return Kernel(function, hints) if function is not None else lambda f: Kernel(f, hints)


def static_eval(expr, /):
    return expr


def static_iter(iterable):
    return iterable


# loading kernels under the stand-in ----------------------------------------------------------------------------------
@contextlib.contextmanager
def install():
    """While this holds, `import cuda.tile` gives this module."""
    names = [n for n in sys.modules if n == "cuda" or n.startswith("cuda.")]
    before = {n: sys.modules.pop(n) for n in names}
    package = types.ModuleType("cuda")
    package.tile, package.__path__ = sys.modules[__name__], []
    sys.modules.update({"cuda": package, "cuda.tile": package.tile})
    try:
        yield
    finally:
        for name in [n for n in sys.modules if n == "cuda" or n.startswith("cuda.")]:
            del sys.modules[name]
        sys.modules.update(before)


def load_kernels():
    """A fresh copy of the package `kernels`, in which `cuda.tile` is this stand-in; sys.modules stays as it was."""
    def own():
        return [n for n in sys.modules if n == "kernels" or n.startswith("kernels.")]
    before = {n: sys.modules.pop(n) for n in own()}
    try:
        with install():
            for name in ("attention", "head", "paths", "decode_rows"):  # these import the others
                importlib.import_module(f"kernels.{name}")
        return sys.modules["kernels"]
    finally:
        for name in own():
            del sys.modules[name]
        sys.modules.update(before)
