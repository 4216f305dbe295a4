"""Device and dtype choice, seeding, ranks, CUDA graphs; what comes from outside: signals, a full memory, a closed
terminal; checkpoints, written whole or not."""
import contextlib
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
import warnings

import numpy as np
import torch
import torch.distributed as dist

from looplm_kernels import CannotRun, capture, choose_backend, first_line
from outputs import locks, warn, whole_file

# dense bf16 FLOP/s by the vendors' datasheets, for model FLOPs utilisation; the first key in the device name wins
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "B200": 2250e12}


def usable_cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def idle_share(seconds=0.2):
    """The share of this machine's processor time that nobody uses, 0..1."""
    def ticks():  # idle ones, all
        with open("/proc/stat", encoding="ascii") as f:
            numbers = [int(x) for x in f.readline().split()[1:9]]
        return numbers[3] + numbers[4], sum(numbers)
    try:
        before = ticks()
        time.sleep(seconds)
        idle, total = (b - a for a, b in zip(before, ticks(), strict=True))
        return idle / max(1, total)
    except (OSError, ValueError, IndexError):
        pass
    with contextlib.suppress(AttributeError, OSError):  # not every system says either
        return max(0.0, 1 - os.getloadavg()[0] / (os.cpu_count() or 1))
    return 1.0


def choose_threads(threads=None):
    """Have torch compute on the cores that are free, unless OMP_NUM_THREADS says how many: threads that must share a
    core wait for each other, and a step of a small model then takes many times as long.

    threads: those of the run that is resumed, since their number decides how sums are rounded.
    """
    if os.environ.get("OMP_NUM_THREADS"):
        return
    cores, most = usable_cores(), torch.get_num_threads()
    count = max(1, min(threads, cores) if threads else min(most, round(cores * idle_share())))
    torch.set_num_threads(count)
    if not threads and count < most:
        warn(f"threads: {count} of {most}, for the other cores are busy; OMP_NUM_THREADS={most} takes all")


def choose_device(device="auto", threads=None):
    """'auto' -> 'cuda' if there is one, else 'mps', Apple's GPU, else 'cpu'; else what is asked for. SystemExit if that
    is not there. threads: of a CPU, as choose_threads takes them."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if device != "cpu":
            return device
    try:
        place = torch.device(device)
    except RuntimeError:
        raise SystemExit(f"--device={device}: auto, cpu, cuda, cuda:1, mps, ...") from None
    if place.type == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit(f"--device={device}: torch {torch.__version__} sees no CUDA GPU; use --device=cpu")
        if (place.index or 0) >= torch.cuda.device_count():
            raise SystemExit(f"--device={device}: there are {torch.cuda.device_count()} GPUs, from cuda:0 on")
        if place.index is not None:
            torch.cuda.set_device(device)  # streams, graphs and device names follow the current one
        return device  # untried: it would take memory of the first GPU in every rank
    try:
        torch.ones(1, device=place).item()
    except Exception as e:  # each kind of device fails in its own way where torch was built without it
        why = first_line(e).partition(". ")[0][:150]  # torch goes on for a page
        raise SystemExit(f"--device={device} cannot be used here ({why}); use --device=cpu") from None
    if place.type == "cpu":
        choose_threads(threads)
    return device


def require_backend(config, device):
    """CannotRun if a model's kernels are asked for by name and cannot run on the device: now, not after other work."""
    if getattr(config, "backend", "auto") == "cutile":
        choose_backend("cutile", device)


def why_not_compile(device):
    """What keeps torch.compile from working here, a missing C++ compiler for example; "" if nothing does."""
    import torch._functorch.config  # only here: it takes seconds
    import torch._inductor.config
    x = torch.ones(2, device=device, requires_grad=True)
    try:  # without the caches: what was compiled before would prove nothing
        with (torch._inductor.config.patch(fx_graph_cache=False),
              torch._functorch.config.patch(enable_autograd_cache=False)):
            torch.compile(lambda x: x.sin().sum())(x).backward()
    except Exception as e:  # of dynamo, of inductor, of triton
        return first_line(e)
    return ""


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
    # NCCL's threads may look at events while this one captures; the warm-up has connected the ranks
    mode = "thread_local" if in_group() else "global"
    graph, (loss, norm) = capture(lambda: (forward_backward(), update()), warm_up, pool, mode)
    return graph, loss, norm


# ---- ranks

STUCK = 20                      # seconds; torchrun kills a rank 30 s after it has told it to end


class RankLost(RuntimeError):
    """Another rank has ended, or cannot be reached any more."""


def in_group():
    """Whether this process is one of several, between init_distributed and the end of the group."""
    return dist.is_available() and dist.is_initialized()


def init_distributed(device):
    """(rank, world, device) of this process: those that torchrun set, or 0, 1 and the device as it is."""
    if "RANK" not in os.environ:
        return 0, 1, device
    if device.startswith("cuda"):
        number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= there:
            raise SystemExit(f"a process per GPU, and this host has {there}: torchrun --nproc_per_node={there}")
        device = f"cuda:{number}"
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=torch.device(device))  # connects now, which no capture could
    else:
        dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size(), device


def sum_over_ranks(x, world):
    """Tensor x summed over all ranks, in place, on every rank. RankLost if one has ended, on a CPU; a GPU waits for
    ever, see end_if_stuck."""
    if world > 1:
        with noticing_loss():
            dist.all_reduce(x)
    return x


@contextlib.contextmanager
def noticing_loss():
    """Have an exchange raise RankLost where it fails on a CPU."""
    try:
        yield
    except RuntimeError as e:
        if dist.get_backend() != "gloo":  # NCCL fails for other reasons
            raise
        raise RankLost(first_line(e)[:100]) from None


def shared_out(function, items):
    """function(item) for each of the items, in their order: every rank does its share and has the results of all."""
    world = dist.get_world_size() if in_group() else 1
    if world == 1:
        yield from map(function, items)
        return
    for i in range(0, len(items), world):
        own, found = items[i + dist.get_rank():][:1], [None] * world
        result = function(own[0]) if own else None
        with noticing_loss():
            dist.all_gather_object(found, result)
        yield from found[:len(items) - i]


@contextlib.contextmanager
def silence():
    """Have what is printed go nowhere."""
    with open(os.devnull, "w", encoding="utf-8") as f, contextlib.redirect_stdout(f), contextlib.redirect_stderr(f):
        yield


def leave_group():
    """Part from the other ranks, if any, once all of them are done."""
    if in_group():
        dist.barrier()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        dist.destroy_process_group()


def first_to_say():
    """Whether this rank is the first of its host to say why all end: one line is enough."""
    try:
        store = dist.distributed_c10d._get_default_store()
        return store.add(f"why all end, host {os.environ.get('GROUP_RANK', 0)}", 1) == 1
    except (RuntimeError, ValueError):  # it ended with the process that held it, or there is none
        return True


def end_if_stuck(what_is_left=lambda: "", seconds=STUCK):
    """End this rank with status 1 and a line, to which what_is_left() adds, if it is told to end and does not within so
    many seconds.

    A rank that waits on its GPU for another one, which has ended, waits for ever, and Python sees no signal meanwhile.
    But the system writes each one to a file, which a thread can read.
    """
    read, write = socket.socketpair()
    write.setblocking(False)
    signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)

    def watch(write=write):  # kept open
        read.recv(1)
        time.sleep(seconds)
        if first_to_say():
            print(f"told to end, and not done in {seconds:g} s: another process has ended, for which this one waits, "
                  f"or what it does takes longer; {what_is_left()}", file=sys.__stderr__, flush=True)  # see `silence`
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def leave(error):
    """End this rank at once, by what its main raised. An orderly exit would wait for ranks that have ended, and NCCL
    for graphs that still hold it."""
    status = error.code if isinstance(error, SystemExit) else 1
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    elif isinstance(status, str) and first_to_say():  # others say the same, or see but a rank that has ended
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)


# ---- what comes from outside

def on_stop(act, again=None):
    """Have SIGINT, SIGTERM and SIGHUP call act(name of the signal). One more of them calls again, or kills.

    A terminal tells all of its processes, and a shell or a launcher tells them once more: what comes within 2 seconds
    is one stop. SIGHUP stays ignored where it is, as under nohup. Returns the handlers before, {number: handler}.
    """
    first, before = [], {}

    def note(number, frame):
        if not first:
            first.append(time.monotonic())
            act(signal.Signals(number).name)
        elif time.monotonic() - first[0] > 2:
            if again:
                again()
            else:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # not every system has all of them
        if number and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
            before[number] = signal.signal(number, note)
    return before


class StopSignal:
    """Notes a signal to stop instead of dying, so that a step can be finished and saved; one of several ranks says
    so."""

    def __init__(self, says=True):
        self.received, self.says = None, says
        on_stop(self._note)

    def _note(self, name):
        self.received = name
        if self.says:
            print(f"{name}: finishing this step, then saving", file=sys.stderr, flush=True)

    def anywhere(self, device, world):
        """True on every rank once any rank has been told to stop."""
        if world == 1:
            return self.received is not None
        flag = torch.tensor(float(self.received is not None), device=device)
        return sum_over_ranks(flag, world).item() > 0


@contextlib.contextmanager
def outliving_reader(stream):
    """Have stdout or stderr write to nowhere once nobody can read it: | head is done, the terminal closed, the disk of
    a log full. The work goes on, since its results are in files."""
    own = stream.write, stream.flush

    def guarded(method):
        def call(*args):
            try:
                return method(*args)
            except OSError as e:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                warn(f"{stream.name.strip('<>')} cannot be written ({e.strerror}): going on without it")
        return call
    stream.write, stream.flush = map(guarded, own)
    try:
        yield
    finally:
        stream.flush()  # or what is left would fail after the last line of the script
        stream.write, stream.flush = own


def out_of_memory(error):
    """Is that an error of memory, of the GPU or of this machine? numpy and torch each have their own."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def require_memory(size, advice):
    """SystemExit with one line if so many bytes are more than this machine has, before the system kills for them."""
    with contextlib.suppress(AttributeError, ValueError):  # not every system says
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > there:
            raise SystemExit(f"that takes about {size / 1e9:,.0f} GB of memory, this machine has {there / 1e9:,.0f}: "
                             f"{advice}")


def run(main, lower="--batch_size"):
    """Run the main of a script: a stop, memory that is full, a kernel that cannot run end it with one line.

    lower: the setting by which it takes less memory.
    """
    try:
        run_alone(main, lower)
    except BaseException as e:
        if not in_group():
            raise
        leave(e)


def run_alone(main, lower):
    """`run`, but for what an early end among several ranks takes."""
    def interrupt(name):
        raise KeyboardInterrupt(name)
    before = on_stop(interrupt)
    try:
        with contextlib.ExitStack() as stack:
            for name in ("stdout", "stderr"):
                if getattr(sys, name) is None:  # closed from the start: print(file=None) would write to the other one
                    setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for good)
                stack.enter_context(outliving_reader(getattr(sys, name)))
            main()
    except KeyboardInterrupt as e:
        with contextlib.suppress(OSError):  # of a terminal that is closed
            print(f"{e or 'SIGINT'}: stopped", file=sys.stderr)
        raise SystemExit(130) from None
    except CannotRun as e:
        raise SystemExit(f"--backend: {e}") from None
    except RankLost as e:
        raise SystemExit(f"another process of this run has ended, and so does this one ({e})") from None
    except (MemoryError, RuntimeError) as e:
        if not out_of_memory(e):
            raise
        raise SystemExit(f"out of memory ({first_line(e)[:150]}): lower {lower}") from None
    finally:
        for path, file in locks.items():
            with contextlib.suppress(OSError):
                os.unlink(path)  # before the lock is given back: the next run might lock a file that is then gone
            file.close()
        locks.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- checkpoints

CHECKPOINT = dict(model=dict, ema=dict, model_args=dict, optimizer=dict, iter_num=int, config=dict, meta=dict,
                  best_val_loss=(int, float, torch.Tensor))  # the last in those of nanoGPT


def save_checkpoint(path, checkpoint):
    """Write a dict of tensors and primitives to path, whole or not at all: what stood there stays until it is safe.

    SystemExit with a clear line if it cannot be written, a full disk for example.
    """
    try:
        with whole_file(path, "wb") as f:
            torch.save(checkpoint, f)
    except (OSError, RuntimeError) as e:  # torch's zip writer turns a failed write into a RuntimeError
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
