"""What the tests share: which of them run, fresh random numbers, small datasets, and scripts run in processes of their
own.

make test runs a random third of the cases of tests marked `third` and none marked `full`; --all runs them all. What a
command names with ::, and what needs a GPU, always runs.
"""
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("CUDA_TILE_CACHE_DIR", "off")  # a kernel from the cache would hide the compiler
os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny, and the processes below inherit it

pytest.register_assert_rewrite("helpers")  # whose assertions should show their values, too

# A new process that has torch loaded already: a script starts in a fraction of a second instead of in 3 to 5.
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["pytest", "torch._dynamo", "torch.nn.parallel", "torch.distributed.run", "cuda.tile",
                               "matplotlib.pyplot", "scipy.stats"])


# The files that take longest. They are begun first: then all processes end at about the same time.
LONGEST = ("decode_rows", "kernels", "tasks", "pretrained", "sweep", "analyze", "train", "readme", "decode", "sample",
           "bench", "outputs", "evaluate")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="also what is marked full, and all cases marked third")
    parser.addoption("--third-seed", type=int, help="draws the same thirds as the run that printed this number")


def pytest_configure(config):
    if config.option.third_seed is None:  # a worker has that of the process that started it
        fresh = int.from_bytes(os.urandom(4), "little")
        config.option.third_seed = getattr(config, "workerinput", {}).get("third_seed", fresh)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Of pytest-xdist: what a worker is told. All must draw the same tests."""
    node.workerinput["third_seed"] = node.config.option.third_seed


def third(items, seed):
    """One of three cases, at least one, of each test function among the items; at random, a function at a time."""
    cases, drawn = {}, set()
    for item in items:
        cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    for name, group in cases.items():
        drawn.update(random.Random(f"{seed} {name}").sample(group, -(-len(group) // 3)))
    return drawn


def pytest_collection_modifyitems(config, items):
    first = {f"test_{name}.py": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.nodeid.split("::")[0].rpartition("/")[2], len(first)))
    if config.option.all or any("::" in arg for arg in config.args):
        return
    optional = [item for item in items if not item.get_closest_marker("gpu")]
    out = {item for item in optional if item.get_closest_marker("full")}
    products = [item for item in optional if item.get_closest_marker("third") and item not in out]
    out.update(set(products) - third(products, config.option.third_seed))
    config.hook.pytest_deselected(items=[item for item in items if item in out])
    items[:] = [item for item in items if item not in out]


def pytest_terminal_summary(terminalreporter, config):
    if not config.option.all:
        terminalreporter.write_line(f"large products by a random third; --third-seed={config.option.third_seed} draws "
                                    "the same, --all runs everything")


@pytest.fixture
def rng():
    """Fresh random numbers in every run; pytest shows the seed when a test fails."""
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"rng seed {seed}")
    return np.random.default_rng(seed)


def watch(text, number):
    """Send this process a signal as soon as it prints `text`: an interruption at a known iteration."""
    write = sys.stdout.write

    def watched(line):
        n = write(line)
        if text in line:
            sys.stdout.flush()
            os.kill(os.getpid(), number)
        return n
    sys.stdout.write = watched


class Forked(subprocess.Popen):
    """A process that, where it is told to be this Python with a script or a module, is a fork of this process, which
    has torch loaded already; nothing of the project, though, but kernels/, whose operators are known to torch once."""

    def __init__(self, args, *, env=None, **options):
        if args[0] == sys.executable:
            sys.stdout.flush()
            sys.stderr.flush()
            options["preexec_fn"] = lambda: self.become([x for x in args[1:] if x != "-u"], env)
        super().__init__(args, env=env, **options)

    def become(self, words, env):
        """In the new process, whose files and folder are set: be Python instead of calling it."""
        status = 1
        try:
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # also that which tells Popen of exec
            for name, handler in (("SIGINT", signal.default_int_handler), ("SIGTERM", signal.SIG_DFL),
                                  ("SIGPIPE", signal.SIG_IGN)):
                signal.signal(getattr(signal, name), handler)
            if env is not None:
                os.environ.clear()
                os.environ.update(env)
            for name, module in [*sys.modules.items()]:
                if Path(getattr(module, "__file__", None) or "/").parent in (ROOT, ROOT / "tasks"):
                    del sys.modules[name]
            sys.stdout.reconfigure(write_through=True)
            if words[0] == "-m":  # torchrun, whose ranks are Forked, too
                from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
                subprocess_handler.Popen = Forked
                sys.argv = words[1:]
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv, sys.path[0] = words, os.path.dirname(words[0])
                runpy.run_path(words[0], run_name="__main__")
            status = 0
        except SystemExit as e:
            if isinstance(e.code, str):
                print(e.code, file=sys.stderr)
            status = 0 if e.code is None else e.code if isinstance(e.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)


def child(script, args, cwd, env, output, signal_at, file_limit, given, forks):
    """In the new process: be `python script args`, as far as the script can tell."""
    for fd in (1, 2):
        os.dup2(os.open(output[fd - 1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    for key in env:
        os.environ.pop(key, None)
    os.environ.update({key: x for key, x in env.items() if x is not None})
    os.chdir(cwd)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored where the tests run under nohup
    sys.path[:] = [os.path.dirname(script)] + [p for p in sys.path if Path(p) not in (ROOT, ROOT / "tests")]
    sys.argv = [script, *args]
    if signal_at:
        watch(*signal_at)
    if file_limit:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if forks:
        subprocess.Popen = Forked
    if given is not None:
        end, start = os.pipe()  # which has room for a prompt
        os.write(start, given.encode())
        os.close(start)
        os.dup2(end, 0)
        sys.stdin = os.fdopen(0, closefd=False)
    runpy.run_path(script, run_name="__main__")


class Scripts:
    """Runs the project's scripts in a folder outside of the repository, which has a data/ of its own."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0

    def __call__(self, script, *args, status=0, **options):
        """Run a script and demand its exit status; returns its stdout and stderr. status None: any but 0, and one
        clear message instead of a traceback."""
        return self.finish(*self.start(script, *args, **options), status)

    def start(self, script, *args, env=None, signal_at=None, file_limit=None, given=None, forks=False):
        """Start a script: what `finish` takes. env: changes of the environment, None takes a variable away;
        signal_at: (text, signal) as `watch` takes them; file_limit: the largest size of a file, in bytes; given: what
        comes from a pipe; forks: the scripts that it starts itself are Forked."""
        self.count += 1
        output = [str(self.folder / f"run{self.count}.{name}") for name in ("stdout", "stderr")]
        process = server.Process(target=child, args=(  # no daemon: those have no children
            str(ROOT / script), args, str(self.folder), env or {}, output, signal_at, file_limit, given,
            forks))
        process.start()
        return process, output, f"{script} {' '.join(args)}"

    def finish(self, process, output, command, status=0):
        """Wait for a started script; the rest is that of a call."""
        process.join(600)
        if process.exitcode is None:
            process.kill()
        out, err = (Path(path).read_text() for path in output)
        print(f"$ {command}\n{out}{err}")  # for pytest to show when a test fails
        if status is None:
            assert process.exitcode not in (0, None)
            assert "Traceback" not in err
            assert 1 <= len(err.strip().splitlines()) <= 3
        else:
            assert process.exitcode == status, err
        return SimpleNamespace(out=out, err=err)

    def copy(self, out_dir, name):
        """A copy of out_dir under another name, to be changed by a test."""
        shutil.copytree(self.folder / out_dir, self.folder / name)
        return name


def start_ranks(scripts, script, *args, of_rank=None):
    """Start two ranks of a script, with the variables that torchrun would set, its store included, but in no time: the
    store, and what `Scripts.finish` takes of each. of_rank: {rank: further options of `Scripts.start`}."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port), WORLD_SIZE="2",
               TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    return store, [scripts.start(script, *args, env=env | dict(RANK=str(rank), LOCAL_RANK=str(rank)),
                                 **(of_rank or {}).get(rank, {})) for rank in (0, 1)]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with small versions of the datasets that config/*.py name."""
    run = Scripts(tmp_path_factory.mktemp("prepared"))
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdeé∑ "), 6)) for _ in range(30)]
    (run.folder / "input.txt").write_text("\n".join(rng.choice(words, 1000)), encoding="utf-8")
    for name, *args in (("addition",), ("addition/demo", "--max_digits=3", "--zeros=shorter"),
                        ("addition/parallel", "--track=slots"),
                        ("addition/padded", "--track=slots", "--max_places=12"),
                        ("addition/zeros", "--zeros=shorter", "--few_rows=0.25"),
                        ("addition/slots", "--track=slots", "--zeros=shorter", "--few_rows=0.25")):
        run("data/addition/prepare.py", f"--out_dir=data/{name}", "--train_rows=2000", "--val_rows=500", *args)
    run("data/shakespeare_char/prepare.py", "--input=input.txt")
    return run.folder


@pytest.fixture(scope="module")
def scripts(prepared, tmp_path_factory):
    """A runner of scripts, in a copy of that folder which the tests of a file have to themselves."""
    return Scripts(shutil.copytree(prepared, tmp_path_factory.mktemp("scripts"), dirs_exist_ok=True,
                                   ignore=shutil.ignore_patterns("run*.std*")))  # they are counted from 1 again
