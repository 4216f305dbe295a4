"""gpus.py: who runs where, first come first served; MPS, started and ended; a script in a fork of a server that has
torch loaded is what it is in a new Python, whoever ends."""
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import gpus

CONTROL = """#!/bin/sh
echo "$* $(cat)" >> "$CUDA_MPS_LOG_DIRECTORY/../said"
sleep 100 &
exit %d
"""  # as the daemon, what it leaves running has its stdout and stderr, too


def test_places_by_chance(rng):
    """Never more on a GPU than there is room for, never beside a run on several, and each gets its turn."""
    places, lock, using, order = gpus.Places(["GPU-a", "GPU-b", "GPU-c"], 2), threading.Lock(), {}, []

    def run(i, count, pause):
        names = places.take(count)
        with lock:
            order.append(i)
            assert len(set(names)) == count
            for name in names:
                using.setdefault(name, []).append(count)
                assert len(using[name]) <= (2 if count == 1 else 1)
                assert count > 1 or max(using[name]) == 1
        pause.wait(0.002 * int(rng.integers(1, 4)))
        with lock:
            for name in names:
                using[name].remove(count)
        places.give_back(names)
    threads = [threading.Thread(target=run, daemon=True, args=(i, int(rng.choice([1, 1, 2, 3])), threading.Event()))
               for i in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(order) == list(range(40))
    assert not any(using.values())


def test_a_large_run_is_not_passed_by():
    """Two small ones hold a GPU each; the one on both waits, and a later small one waits behind it."""
    places, order = gpus.Places(["GPU-a", "GPU-b"], 2), []
    held = [places.take(), places.take()]
    assert held == [["GPU-a"], ["GPU-b"]]

    def run(name, count):
        names = places.take(count)
        order.append(name)
        places.give_back(names)
    threads = []
    for name, count in (("large", 2), ("small", 1)):
        threads.append(threading.Thread(target=run, daemon=True, args=(name, count)))
        threads[-1].start()
        while len(places.waiting) < len(threads):
            threading.Event().wait(0.001)
    for names in held:
        places.give_back(names)
    for thread in threads:
        thread.join(60)
    assert order == ["large", "small"]


def test_lost_gpus_take_nothing():
    places = gpus.Places(["GPU-a", "GPU-b"], 1)
    places.give_back(places.take(2), ["GPU-a"])
    assert places.take() == ["GPU-b"]
    with pytest.raises(RuntimeError, match=r"2 GPU\(s\), and 1 are left"):
        places.take(2)
    assert places.said(["GPU-b"]) == "GPU 1"


@pytest.mark.parametrize("status", [0, 3])
def test_mps_is_started_and_ended(monkeypatch, tmp_path, status):
    """By a stand-in for NVIDIA's program."""
    said = []
    environment = dict(PATH=f"{tmp_path}:/usr/bin:/bin", CUDA_MPS_PIPE_DIRECTORY=str(tmp_path / "none"))
    monkeypatch.setenv("PATH", environment["PATH"])
    monkeypatch.setattr(gpus.tempfile, "tempdir", str(tmp_path))
    with gpus.mps("auto", environment, said.append) as without:
        assert without == environment
    assert said == ["MPS: off, so runs take turns on a GPU (nvidia-cuda-mps-control is not installed)"]
    (tmp_path / "nvidia-cuda-mps-control").write_text(CONTROL % status)
    (tmp_path / "nvidia-cuda-mps-control").chmod(0o755)
    with gpus.mps("auto", environment, said.append) as inside:
        assert (inside != environment) == (status == 0)
    assert said[1:] == (["MPS: off, so runs take turns on a GPU (status 3)"] if status else
                        ["MPS: started for these runs"])
    assert [x.strip() for x in (tmp_path / "said").read_text().splitlines()] == (["-d"] if status else ["-d", "quit"])
    if status:
        with pytest.raises(RuntimeError, match="status 3"), gpus.mps(True, environment):
            pass


def test_an_mps_that_runs_is_used(tmp_path):
    (tmp_path / "control").touch()
    environment, said = dict(CUDA_MPS_PIPE_DIRECTORY=str(tmp_path)), []
    with gpus.mps("auto", environment, said.append) as inside:
        assert inside == environment
    assert said == ["MPS: runs already"]


# ---- scripts that start at once

SAYS = """import atexit, os, subprocess, signal, sys
import own
atexit.register(print, "the end")
print(own.__file__, __name__, __file__, sys.argv, sys.path[0], os.getcwd(), sorted(os.environ.items()))
print(os.getsid(0) == os.getpgid(0) == os.getpid(), repr(sys.stdin.read()), sys.stdout.line_buffering, "é")
os.write(1, b"in its turn\\n")
print(sorted(os.readlink(f"/proc/self/fd/{fd}").partition(":")[0] for fd in os.listdir("/proc/self/fd") if fd < "3"))
print([signal.getsignal(n) for n in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE)])
print(subprocess.run([sys.executable, "-c", "raise SystemExit(3)"]).returncode, sys.modules["__main__"].own is own)
print("to stderr", file=sys.stderr)
"""
WORKS = """import os, torch
print(torch.get_num_threads(), torch.cuda.is_initialized() or torch.cuda._is_in_bad_fork())
print(round((torch.ones(300, 300) @ torch.ones(300, 300)).sum().item()), torch.ones(100000).mul(2).sum().item())
"""
WAITS = """import os, sys, time
print(os.getpid(), os.getppid(), flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def own_server():
    """Another file's has the OMP_NUM_THREADS of its first call."""
    if sys.platform != "linux":
        pytest.skip("no script is a fork here")
    gpus.server.clear()


@pytest.fixture
def run(own_server, tmp_path, monkeypatch):
    """A function that starts a text as a script by a starter: (process, log); all is ended that a test leaves."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("")
    environment, started = os.environ | dict(PYTHONUNBUFFERED="1", OMP_NUM_THREADS="2", SAID="x y"), []

    def begin(text, *args, by=gpus.start):
        (tmp_path / "script.py").write_text(text)
        (tmp_path / "log").write_text("before\n")
        with open(tmp_path / "log", "a+") as log:
            started.append(by([str(tmp_path / "script.py"), *args], log, environment))
        return started[-1], tmp_path / "log"
    yield begin
    for process in started:
        process.kill()
        process.wait(600)


def popen(args, log, environment):
    return subprocess.Popen([sys.executable, *args], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                            env=environment, start_new_session=True)


def lines(log, count):
    """The lines of a log as soon as there are so many."""
    for _ in range(60000):
        if log.read_text().count("\n") >= count:
            return log.read_text().splitlines()
        time.sleep(0.01)
    raise AssertionError(log.read_text())


def is_gone(pid):
    """Whether a process ends within ten minutes."""
    for _ in range(60000):
        try:
            with open(f"/proc/{pid}/stat") as f:
                if f.read().rpartition(")")[2].split()[0] == "Z":  # dead, and nobody has asked
                    return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(("ends", "status"), [("", 0), ("sys.exit(5)", 5), ("sys.exit('why')", 1), ("1 / 0", 1),
                                              ("os.kill(os.getpid(), 9)", -9), ("os.abort()", -6)])
def test_a_fork_is_what_a_new_python_would_be(run, ends, status):
    said = []
    for by in (gpus.start, popen):
        process, log = run(SAYS + ends, "--a=1", "two words", by=by)
        assert process.args[-2:] == ["--a=1", "two words"]
        assert process.wait(600) == process.wait() == status
        process.terminate()  # of what has ended nothing is told
        said.append([x for x in log.read_text().splitlines() if "File" not in x])
    of_fork, of_python = said
    assert isinstance(process, subprocess.Popen)
    assert of_fork[-1] == of_python[-1]
    end = of_python.index("to stderr")
    assert of_fork[:end + 1] == of_python[:end + 1]


def test_torch_computes_and_no_gpu_was_touched(run):
    """By as many threads as the first call says: libraries count them as they are loaded."""
    process, log = run(WORKS)
    assert process.wait(600) == 0
    assert log.read_text().splitlines()[1:] == ["2 False", "27000000 200000.0"]


def test_a_fork_is_told_to_end(run):
    """Its time is up, it is told, or the one that waits for it is killed."""
    for tell, status in ((lambda fork, keeper: fork.terminate(), -signal.SIGTERM),
                         (lambda fork, keeper: fork.kill(), -signal.SIGKILL),
                         (lambda fork, keeper: os.kill(keeper, signal.SIGKILL), -signal.SIGKILL)):
        fork, log = run(WAITS)
        pid, keeper = map(int, lines(log, 2)[1].split())
        assert fork.pid == pid
        with pytest.raises(subprocess.TimeoutExpired):
            fork.wait(0.01)
        tell(fork, keeper)
        assert fork.wait(600) == status
        assert is_gone(pid)
        assert is_gone(keeper)


def test_forks_outlive_the_server_and_the_next_script_gets_a_python_of_its_own(run):
    before, log = run(WAITS)
    pid = int(lines(log, 2)[1].split()[0])
    gpus.server[1].kill()
    gpus.server[1].wait()
    after, log = run("raise SystemExit(4)")
    assert isinstance(after, subprocess.Popen)
    assert after.wait(600) == 4
    os.kill(pid, 0)
    before.terminate()
    assert before.wait(600) == -signal.SIGTERM
    gpus.server.clear()


def test_the_server_ends_with_who_started_it_and_forks_go_on(run, tmp_path):
    (tmp_path / "waits.py").write_text(WAITS)
    starter, log = run(f"""import os, sys, time
sys.path.insert(0, {os.path.dirname(gpus.__file__)!r})
import gpus
gpus.start([{str(tmp_path / "waits.py")!r}], sys.stdout, dict(os.environ))
print(gpus.server[1].pid, flush=True)
time.sleep(600)
""", by=popen)
    found = sorted(lines(log, 3)[1:], key=len)
    server, (pid, keeper) = int(found[0]), map(int, found[1].split())
    starter.kill()
    starter.wait()
    assert is_gone(server)
    os.kill(pid, signal.SIGTERM)
    assert is_gone(pid)
    assert is_gone(keeper)
