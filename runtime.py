"""Device and dtype choice, seeding, distributed set-up; outputs and where they come from; checkpoints, whole or not."""
import contextlib
import functools
import importlib.metadata
import json
import os
import pickle
import platform
import shlex
import signal
import subprocess
import sys
import warnings
from datetime import UTC, datetime

import numpy as np
import torch
import torch.distributed as dist

from looplm_kernels import capture, first_line

ROOT = os.path.dirname(os.path.abspath(__file__))
# dense bf16 FLOP/s by the vendors' datasheets, for model FLOPs utilisation; the first key in the device name wins
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "B200": 2250e12}


def choose_device(device="auto"):
    """'auto' -> 'cuda' if there is one, else 'cpu'; else what is asked for. SystemExit if it is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise SystemExit(f"--device={device}: auto, cpu, cuda, cuda:1, ...") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"--device={device}: torch {torch.__version__} sees no CUDA GPU; use --device=cpu")
    if kind == "cuda" and ":" in device:
        torch.cuda.set_device(device)  # streams, graphs and device names follow the current one
    return device


def choose_dtype(dtype, device):
    """'auto' -> 'bfloat16' on a GPU that has it, else 'float32'; the dtype of autocast."""
    if dtype == "auto":
        fast = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if fast else "float32"
    if dtype not in ("float32", "bfloat16"):
        raise SystemExit(f"--dtype={dtype}: float32, bfloat16 or auto")
    return dtype


def autocast(device, dtype):
    """The context of a forward pass: autocast to bfloat16, or nothing."""
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, getattr(torch, dtype))


def peak_flops(device):
    """Peak FLOP/s of the GPU, None where it is not known."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else ""
    return next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)


def seed_torch(*key):
    """Seed every torch generator by a few non-negative integers, so that dropout is a pure function of them."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def set_deterministic():
    """Bit-exact runs on CUDA too, at some cost in speed; must come before the first CUDA call."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def capture_step(forward_backward, update, optimizer, pool):
    """A training step as a CUDA graph: (graph, what forward_backward returns, what update returns).

    optimizer: AdamW, capturable; neither its state nor a weight moves before the first replay. pool: memory that
    several graphs share, since they replay one after the other.
    """
    def warm_up():
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            forward_backward()
        if not optimizer.state:  # AdamW makes its state in its first step; with no gradient and no rate nothing moves
            for group in optimizer.param_groups:
                group["lr"].zero_()
                for p in group["params"]:
                    p.grad = torch.zeros_like(p)
            optimizer.step()
            for state in optimizer.state.values():
                state["step"].zero_()
        optimizer.zero_grad(set_to_none=True)
    graph, (loss, norm) = capture(lambda: (forward_backward(), update()), warm_up, pool)
    return graph, loss, norm


def init_distributed(device):
    """(rank, world, device) of this process: those that torchrun set, or 0, 1 and the device as it is."""
    if "RANK" not in os.environ:
        return 0, 1, device
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return dist.get_rank(), dist.get_world_size(), device


def mean_over_ranks(x, world):
    """The mean of tensor x over all ranks, on every rank."""
    if world > 1:
        dist.all_reduce(x)
        x /= world
    return x


# ---- what comes from outside

@functools.cache
def warn(line):
    """Say on stderr, once, what went wrong beside the work, which goes on."""
    print(line, file=sys.stderr, flush=True)


class StopSignal:
    """Notes SIGINT and SIGTERM instead of dying, so that a step can be finished and saved. A second one kills."""

    def __init__(self):
        self.received = None
        for s in (signal.SIGINT, signal.SIGTERM):
            signal.signal(s, self._note)

    def _note(self, number, frame):
        self.received = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)
        print(f"{self.received}: finishing this step, then saving", file=sys.stderr, flush=True)

    def anywhere(self, device, world):
        """True on every rank once any rank has been told to stop."""
        if world == 1:
            return self.received is not None
        flag = torch.tensor(float(self.received is not None), device=device)
        return mean_over_ranks(flag, world).item() > 0


# ---- what a run writes

def open_output(path, mode="w"):
    """path opened for writing text, or appending with mode "a"; SystemExit with one line if that cannot be."""
    try:
        return open(path, mode, newline="", encoding="utf-8")
    except OSError as e:
        raise SystemExit(f"{path} cannot be written: {e.strerror}") from None


def require_writable(path):
    """SystemExit with one line if path cannot be written: a wrong path should fail now, not after the work.

    Its folder is made; what stands in the file stays until there is something to put in its place.
    """
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    except OSError as e:
        raise SystemExit(f"{path} cannot be written: {e.strerror}") from None
    open_output(path, "a").close()


def card_name(device="cpu"):
    """The name of the GPU, or of the CPU."""
    if str(device).startswith("cuda"):
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
        for line in f:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def git_state():
    """(commit, whether tracked files differ from it) of this project, (None, None) where git knows nothing of it."""
    def git(*words):
        command = ["git", "-C", ROOT, *words]
        return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=300,
                              check=True).stdout.strip()
    if not os.path.exists(os.path.join(ROOT, ".git")):  # a copy inside of another repository is not that repository
        return None, None
    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def version(package):
    """The version of an installed package, None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance(device="cpu", **facts):
    """Where numbers come from, as plain values that JSON and a checkpoint hold: command, commit, versions, card, date.

    facts: what else is known, the seconds for example; a fact replaces the value of the same name.
    """
    script = os.path.relpath(os.path.abspath(sys.argv[0]), ROOT)
    script = os.path.basename(script) if script.startswith("..") else script
    commit, changed = git_state()
    versions = dict(python=platform.python_version(), torch=str(torch.__version__), numpy=np.__version__)
    versions["cuda-tile"] = version("cuda-tile")
    known = dict(command=shlex.join(["python", script, *sys.argv[1:]]), commit=commit, changed=changed,
                 versions=versions, card=card_name(device), date=datetime.now(UTC).isoformat(timespec="seconds"))
    return known | facts


def provenance_line(known):
    """What `provenance` returns as one line to stand under a table; the command stands above it."""
    commit = f"commit {known['commit'][:10]}{' (changed)' * known['changed']}" if known["commit"] else "no git"
    versions = [f"{name} {number}" for name, number in known["versions"].items() if number]
    seconds = [f"{known['seconds']:.0f} s"] if "seconds" in known else []
    return ", ".join([commit, *versions, known["card"], known["date"], *seconds])


def write_json(path, content):
    """Write a JSON file. SystemExit with one line if that cannot be."""
    with open_output(path) as f:
        json.dump(content, f, indent=1, ensure_ascii=False)


def write_provenance(table, known):
    """Write where a CSV table comes from beside it, as <table>.json: readers of the CSV see no line but its own."""
    stem, end = os.path.splitext(table)
    write_json(f"{table}.json" if end == ".json" else f"{stem}.json", known)


# ---- checkpoints

CHECKPOINT = dict(model=dict, ema=dict, model_args=dict, optimizer=dict, iter_num=int, config=dict, meta=dict,
                  best_val_loss=(int, float, torch.Tensor))  # the last in those of nanoGPT


def save_checkpoint(path, checkpoint):
    """Write a dict of tensors and primitives to path, whole or not at all: what stood there stays until it is safe.

    SystemExit with a clear line if it cannot be written, a full disk for example.
    """
    part = f"{path}.part"
    try:
        with open(part, "wb") as f:
            torch.save(checkpoint, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as e:  # torch's zip writer turns a failed write into a RuntimeError
        with contextlib.suppress(OSError):
            os.unlink(part)
        kept = "the one saved before is untouched" if os.path.exists(path) else "there was none before"
        raise SystemExit(f"cannot save {path} ({e}); {kept}") from None


def load_checkpoint(path, device="cpu", needed=("model", "model_args")):
    """The dict that save_checkpoint (or nanoGPT) wrote; runs no code of the file. SystemExit if it is no checkpoint."""
    if not os.path.isfile(path):
        why = "is a folder" if os.path.isdir(path) else "does not exist"
        raise SystemExit(f"{path} {why}; train.py writes ckpt_last.pt and ckpt_best.pt into its out_dir")
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle's protocol
            checkpoint = torch.load(path, map_location=device, weights_only=True)
    except OSError as e:
        raise SystemExit(f"{path} cannot be read as a checkpoint: {e.strerror or first_line(e)}") from None
    except Exception as e:  # a damaged file can fail anywhere in zip, pickle and torch, whose advice is to run its code
        code = isinstance(e, pickle.UnpicklingError) and "GLOBAL" in str(e)
        why = "it holds objects whose code would run" if code else "damaged, or no checkpoint at all"
        raise SystemExit(f"{path} is not a checkpoint of tensors and plain values: {why}") from None
    if not isinstance(checkpoint, dict):
        raise SystemExit(f"{path} is not a checkpoint of this project: it holds a {type(checkpoint).__name__}")
    missing = [k for k in needed if k not in checkpoint]
    if missing:
        raise SystemExit(f"{path} is not a checkpoint of this project: it has no {', '.join(missing)}")
    unfit = [k for k, kind in CHECKPOINT.items() if k in checkpoint and not isinstance(checkpoint[k], kind)]
    if unfit:
        raise SystemExit(f"{path} is damaged: {', '.join(unfit)} of the wrong type")
    return checkpoint
