"""What can run on a device, which backend is chosen, and how an operation becomes an operator with a fallback.

backend 'cutile' runs the kernels or raises; 'torch' runs their references; 'auto' takes the kernels where they can
run, and says once on stderr what it took and why.
"""
import contextlib
import ctypes
import functools
import importlib.metadata
import re
import shutil
import subprocess
import sys

import torch
from torch import Tensor

from kernels.tile import ERRORS, MISSING, ct

BACKENDS = ("auto", "cutile", "torch")


class CannotRun(RuntimeError):
    """Kernels were asked for by name where they cannot run."""


# what can run --------------------------------------------------------------------------------------------------------
@functools.cache
def tileiras_version():
    """(13, 5) of cuTile's compiler, None where there is none."""
    try:
        text = "release " + importlib.metadata.version("nvidia-cuda-tileiras")
    except importlib.metadata.PackageNotFoundError:
        path = shutil.which("tileiras") or shutil.which("tileiras", path="/usr/local/cuda/bin")
        text = subprocess.run([path, "--version"], capture_output=True, text=True).stdout if path else ""
    found = re.search(r"release (\d+)\.(\d+)", text)  # both forms say it so
    return found and tuple(map(int, found.groups()))


def driver_version():
    """13000 for an NVIDIA driver of CUDA 13.0, 0 where there is none."""
    number = ctypes.c_int()
    with contextlib.suppress(OSError):  # no driver: the number stays 0
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    return number.value


def why_not_cutile(device):
    """What keeps cuTile from running on a device, "" if nothing does."""
    if device.type != "cuda":
        return f"cuTile is for NVIDIA GPUs, and the device is {device.type}"
    if torch.version.cuda is None:  # a build for AMD calls its devices cuda, too
        return "this torch drives no NVIDIA GPU"
    if MISSING:
        return MISSING
    capability, compiler = torch.cuda.get_device_capability(device), tileiras_version()
    if capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]} is below 8.0"
    if compiler is None:
        return "cuTile's compiler, tileiras, is not installed"
    if capability[0] == 9 and compiler < (13, 3):  # older ones lack sm_90, but know sm_80 and sm_100
        return f"tileiras {compiler[0]}.{compiler[1]} cannot compile for Hopper, 13.3 can"
    driver = driver_version()
    if driver < 13000:  # older drivers refuse the cubins of this compiler
        return f"the driver is for CUDA {driver // 1000}.{driver % 1000 // 10}, cuTile needs one for 13.0 (R580)"
    return ""


def why_not_tensors(*tensors):
    """What the kernels cannot do with these tensors (other values are passed over), "" if nothing."""
    for x in tensors:
        if isinstance(x, Tensor) and x.dtype == torch.float64:
            return "the kernels do not compute in float64"
        if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled():
            return "the kernels have no gradient"
    return ""


@functools.cache  # so that the choice is printed once
def backend_choice(backend, device, why_not):
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is none of {', '.join(BACKENDS)}")
    if backend == "torch":
        return "torch"
    none_here = why_not_cutile(device)
    reason = none_here or why_not
    if backend == "cutile" and reason:
        raise CannotRun(f"backend cutile cannot run here: {reason}; use torch or auto")
    if backend == "auto" and not (device.type == "cpu" and none_here):  # of a CPU nobody expects them
        said = (f"without the kernels of kernels/, in plain PyTorch, since {reason}" if reason else
                f"those of kernels/, cuda-tile {ct.__version__}, {torch.cuda.get_device_name(device)}")
        print(f"kernels: {said}", file=sys.stderr)
    return "torch" if reason else "cutile"


def choose_backend(backend="auto", device="cpu", why_not=""):
    """'auto', 'cutile' or 'torch' -> the backend that runs, 'cutile' or 'torch'; auto says why on stderr, once, except
    on a CPU.

    why_not: a reason against the kernels that the caller knows, such as an unsupported shape; "" if there is none.
    ValueError for another backend; CannotRun if cutile is asked for and cannot run.
    """
    return backend_choice(backend, torch.device(device), why_not)


# torch.compile shall take the choice as a constant, since a compiled function has no print in it. This is what
# torch.compiler.assume_constant_result does; the decorator itself would import torch._dynamo, which is as dear as
# torch and delays every script's start by 2 s.
choose_backend._dynamo_marked_constant = True


# operators with a fallback -------------------------------------------------------------------------------------------
failed_ops = {}  # operation -> why its launch failed


def first_line(error):
    """The first line of what an exception says, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def run_or_fall_back(name, forced, device, kernels, reference):
    """kernels(), or reference() where they cannot run or a launch of this name failed before.

    forced: no reference, an error instead. torch.OutOfMemoryError is the caller's: a reference would need more.
    """
    if not forced and (name in failed_ops or choose_backend("auto", device) == "torch"):
        return reference()
    try:
        return kernels()
    except torch.OutOfMemoryError:  # is a RuntimeError, and so one of ERRORS
        raise
    except ERRORS as error:
        if forced:
            raise
        failed_ops[name] = f"{type(error).__name__}: {first_line(error)}"
        print(f"kernels: torch backend for {name}, its launch failed: {failed_ops[name]}", file=sys.stderr)
        return reference()


def operator(name, fake, mutates=()):
    """Make a function the operator looplm::name, which torch.compile takes as it is.

    fake: the shapes and dtypes of its results, from those of its arguments. Copies of the kernels on the tests'
    stand-in keep plain functions: an operator has one home.
    """
    def register(function):
        if ct.__version__ == "stand-in":
            return function
        # by custom_op a compiled model keeps the call as one node instead of tracing into the launch
        op = torch.library.custom_op(f"looplm::{name}", function, mutates_args=mutates)
        op.register_fake(fake)
        return op
    return register


# what the host side of several operations needs ----------------------------------------------------------------------
def at_least_float32(x):
    """x in float32, or as it is in float64."""
    return x if x.dtype == torch.float64 else x.float()


def product_dtype(weight):
    """What a product with a weight computes in: its own dtype, or that of autocast."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def write_or_return(tensors, values, inplace=True):
    """values; or in place the tensors that they overwrite, and the values of those that are None."""
    return tuple(v if x is None else x.copy_(v) for x, v in zip(tensors, values, strict=True)) if inplace else values


@functools.cache
def unread_arguments(device):
    """Two tensors (1,16) and two (16,) for arguments that a rule does not read; arguments must not overlap."""
    rows = torch.zeros(4, 16, device=device)
    return rows[0:1], rows[1:2], rows[2], rows[3]


def step_size(alpha, h, active):
    """alpha as operators take it: a tensor (...) or None, and a number to multiply it by."""
    if not isinstance(alpha, Tensor):
        return None, float(alpha)
    if alpha.device != h.device:  # a number in a tensor of the host
        return None, alpha.item()
    return alpha.expand(active.shape).contiguous(), 1.0  # stays on the device
