"""gpus.py: who runs where, first come first served; MPS, started and ended."""
import threading

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
