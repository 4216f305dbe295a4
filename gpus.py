"""Processes that run side by side: which GPU one gets, NVIDIA's MPS, by which they share it; how they start at once.

A new Python takes seconds to load torch. So scripts are forks of a server that has loaded it: this file, run as a
script. It touches no GPU and has loaded nothing else of this project, so a fork of it is what a new Python would be. It
ends with the process that started it, its forks do not. `ps` knows all of them by the name of this file.
"""
import collections
import contextlib
import gc
import importlib
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from multiprocessing.connection import Connection, Pipe

import torch

LOADED = "torch._dynamo", "torch.nn.parallel", "matplotlib.figure", "scipy.stats"  # what scripts load later on
ANSWER = 300  # seconds, after which a script is started as ever
lock, server = threading.Lock(), []  # its socket and its process, from the first call of start_server on


class Places:
    """Places for runs: some at once on every GPU, or on this machine's cores. Any number of threads may ask.

    names: of the GPUs, as CUDA_VISIBLE_DEVICES takes them, or one for each process on cores; each: runs at once on
    one. Who asks first is served first, so that a run on several GPUs does not wait for ever.
    """

    def __init__(self, names, each):
        self.room, self.each, self.lost = dict.fromkeys(names, each), each, set()
        self.waiting, self.changed = collections.deque(), threading.Condition()

    def alive(self):
        """The names that were not lost, in their order."""
        return [name for name in self.room if name not in self.lost]

    def said(self, names):
        """Names as people count GPUs: GPU 0, or GPU 0+3."""
        return f"GPU {'+'.join(str(list(self.room).index(name)) for name in names)}"

    def take(self, count=1):
        """Wait for room: a list of `count` names. One: the emptiest; more: each of them alone. RuntimeError where
        fewer than that are left."""
        ticket = object()
        with self.changed:
            self.waiting.append(ticket)
            try:
                while True:
                    if len(self.alive()) < count:
                        raise RuntimeError(f"it needs {count} GPU(s), and {len(self.alive())} are left")
                    wanted = self.each if count > 1 else 1
                    free = sorted((x for x in self.alive() if self.room[x] >= wanted), key=lambda x: -self.room[x])
                    if self.waiting[0] is ticket and len(free) >= count:
                        for name in free[:count]:
                            self.room[name] -= wanted
                        return free[:count]
                    self.changed.wait()
            finally:
                self.waiting.remove(ticket)
                self.changed.notify_all()

    def give_back(self, names, lost=()):
        """End a run there; on those that are lost no other one starts."""
        with self.changed:
            self.lost.update(lost)
            for name in names:
                self.room[name] += self.each if len(names) > 1 else 1
            self.changed.notify_all()


def visible():
    """The GPUs that this process sees, by their unique names, which stay the same in every process."""
    return [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())]


def works(name, environment, seconds=120):
    """Does a new process find this GPU, and can it compute there?"""
    test = "import torch; torch.ones(8, device='cuda').sum().item()"
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run([sys.executable, "-c", test], env=environment | dict(CUDA_VISIBLE_DEVICES=name),
                              capture_output=True, timeout=seconds).returncode == 0
    return False


@contextlib.contextmanager
def mps(wanted, environment, say=print):
    """NVIDIA's MPS, by which the kernels of several processes run on a GPU at the same time: gives the environment of
    a process that uses it. One that runs already is used; one that is started here ends here.

    wanted: True (RuntimeError where it does not start), "auto" (without it then, with a line), False.
    """
    folder = environment.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
    if not wanted:
        yield environment
        return
    if os.path.exists(os.path.join(folder, "control")):
        say("MPS: runs already")
        yield environment
        return
    why_not = "" if shutil.which("nvidia-cuda-mps-control") else "nvidia-cuda-mps-control is not installed"
    with tempfile.TemporaryDirectory(prefix="mps-") as own:
        shared = environment | dict(CUDA_MPS_PIPE_DIRECTORY=own, CUDA_MPS_LOG_DIRECTORY=own)

        def control(*arguments, text=None):
            # into a file, since the daemon would keep a pipe open, and its reader waiting
            with open(os.path.join(own, "answer"), "w+", encoding="utf-8", errors="replace") as f:
                status = subprocess.run(["nvidia-cuda-mps-control", *arguments], input=text, env=shared, text=True,
                                        stdout=f, stderr=subprocess.STDOUT, timeout=60).returncode
                f.seek(0)
                return (f.readline().strip() or f"status {status}") if status else ""
        if not why_not:
            try:
                why_not = control("-d")
            except subprocess.TimeoutExpired:
                why_not = "nvidia-cuda-mps-control does not answer"
        if why_not and wanted is True:
            raise RuntimeError(f"--mps=True: {why_not}")
        say(f"MPS: off, so runs take turns on a GPU ({why_not})" if why_not else "MPS: started for these runs")
        try:
            yield environment if why_not else shared
        finally:
            if not why_not:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    control(text="quit\n")


# ---- scripts that start at once

def start_server(environment):
    """Start the server, if none runs: forks have the OMP_NUM_THREADS of this environment. It loads for seconds, so who
    knows that scripts will follow calls this before other work; the first script does so otherwise."""
    with lock:
        if not server and sys.platform == "linux":  # elsewhere a fork may not use what was loaded before it
            own, other = socket.socketpair()
            with other:
                server[:] = own, subprocess.Popen(
                    [sys.executable, os.path.abspath(__file__)], stdin=other, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, env=environment, start_new_session=True)


class Fork:
    """A fork of the server, as far as it goes what subprocess.Popen is of a new Python. OSError or EOFError where the
    server has ended."""

    def __init__(self, args, log, environment):
        self.args, self.returncode = args, None
        start_server(environment)
        self.keeper, other = Pipe()
        with other:
            socket.send_fds(server[0], [b"+"], [other.fileno(), log.fileno()])
        if not self.keeper.poll(ANSWER):
            self.keeper.close()  # so that a fork which comes later has nothing to run
            raise OSError("the server does not answer")
        self.keeper.recv()
        self.keeper.send((args, dict(environment), os.getcwd()))
        try:
            self.pid = self.keeper.recv()
        except EOFError:  # the script may run already: no second one
            self.pid, self.returncode = None, -signal.SIGKILL

    def wait(self, timeout=None):
        """Its exit status, -n if signal n ended it. subprocess.TimeoutExpired after so many seconds."""
        if self.returncode is None:
            if not self.keeper.poll(timeout):
                raise subprocess.TimeoutExpired(self.args, timeout)
            try:
                self.returncode = self.keeper.recv()
            except (OSError, EOFError):  # something killed the keeper, so nobody would learn how the script ends
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                self.returncode = -signal.SIGKILL
        return self.returncode

    def terminate(self, number=signal.SIGTERM):
        if self.returncode is None and not self.keeper.poll():  # then its number may be another process's by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        self.terminate(signal.SIGKILL)


def start(args, log, environment):
    """Start `python *args` in a session of its own, its output at the end of an open file: a subprocess.Popen, or what
    has args, wait, terminate and kill like one. All have the OMP_NUM_THREADS that the server was started with."""
    if sys.platform == "linux" and args[0] != "-m":
        with contextlib.suppress(OSError, EOFError):
            return Fork(args, log, environment)
    return subprocess.Popen([sys.executable, *args], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                            env=environment, start_new_session=True)


def serve(requests):
    """Fork for every request that a socket brings. Returns in these forks alone, each being what a new Python would be,
    and ends this process once nobody can ask any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers need nobody to wait for them
    while fds := socket.recv_fds(requests, 1, 2)[1]:
        if not os.fork():
            break
        for fd in fds:
            os.close(fd)
    else:
        raise SystemExit
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), requests.detach())  # whose end is the server's alone
    caller, log = Connection(fds[0]), fds[1]
    caller.send("ready")
    args, environment, folder = caller.recv()
    pid = os.fork()
    if pid:  # this one is the keeper, whom the system tells how its child ends
        caller.send(pid)
        caller.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    caller.close()
    os.setsid()
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv[:], sys.path[0] = args, os.path.dirname(args[0])


if __name__ == "__main__":
    for name in LOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy all of what was loaded
    serve(socket.socket(fileno=0))
    runpy.run_path(sys.argv[0], run_name="__main__")
