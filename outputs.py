"""What a run writes, whole or row by row; the folder that is one run's alone; where numbers come from."""
import contextlib
import csv
import functools
import importlib.metadata
import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime

import numpy as np
import torch

ROOT = os.path.dirname(os.path.abspath(__file__))
REDRAW, SAY = 0.1, 60  # seconds between two lines of Progress on a terminal, and elsewhere


@functools.cache
def warn(line):
    """Say on stderr, once, what went wrong beside the work, which goes on."""
    print(line, file=sys.stderr, flush=True)


def human_time(seconds):
    """Seconds as people read them: 47s, 3m05s, 2h10m."""
    s = int(seconds)
    return f"{s}s" if s < 60 else f"{s // 60}m{s % 60:02}s" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02}m"


class Progress:
    """How far some work has come, on stderr, with the time that is left: on a terminal one line that is written over,
    elsewhere (a pipe, a log) a line every SAY seconds, so that quick work says nothing.

    name, unit: what is done, of what; total: how many, None where nobody knows.
    """

    def __init__(self, name, unit, total=None):
        self.name, self.unit, self.total, self.done = name, unit, total, 0
        self.began = self.said = time.monotonic()
        self.live = sys.stderr.isatty()

    def __enter__(self):
        if self.live:
            self.show()
        return self

    def __exit__(self, *error):
        self.clear()

    def add(self, count=1):
        """So many more are done."""
        self.done += count
        if time.monotonic() - self.said >= (REDRAW if self.live else SAY):
            self.show()

    def show(self):
        """Say how far it is."""
        self.said = time.monotonic()
        spent, of = self.said - self.began, f"/{self.total:,}" if self.total else ""
        line = f"{self.name}: {self.done:,}{of} {self.unit}, {human_time(spent)}"
        if self.total and self.done:
            line += f", ETA {human_time(spent / self.done * max(0, self.total - self.done))}"
        print(f"\r{line}\x1b[K" if self.live else line, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def clear(self):
        """Make room for a line of something else."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def progress(items, name, unit, total=None, size=lambda item: 1):
    """The items, while Progress says how far they are; size: how many units an item is."""
    with Progress(name, unit, len(items) if total is None and hasattr(items, "__len__") else total) as said:
        for item in items:
            yield item
            said.add(size(item))


@contextlib.contextmanager
def one_line(path):
    """SystemExit with one line for what keeps path from being written."""
    try:
        yield
    except FileExistsError:
        raise SystemExit(f"{path} cannot be written: where a folder must be, there is a file") from None
    except OSError as e:
        raise SystemExit(f"{path} cannot be written: {e.strerror or e}") from None


@contextlib.contextmanager
def going_on(path):
    """Have what keeps path from being written cost a line, once, and not the work."""
    try:
        yield
    except OSError as e:
        warn(f"{path} cannot be written ({e.strerror or e}): going on without it")


@contextlib.contextmanager
def whole_file(path, mode="w"):
    """A file to be written in the place of path, whole or not at all: what stood there stays until it is safe."""
    device = os.path.exists(path) and not os.path.isfile(path)  # /dev/stdout has nothing beside it
    path = path if device else os.path.realpath(path)  # a link stays one
    part = path if device else f"{path}.part"
    try:
        with open(part, mode, **({} if "b" in mode else dict(newline="", encoding="utf-8"))) as f:
            yield f
            f.flush()
            if not device:
                os.fsync(f.fileno())
        if not device:
            os.replace(part, path)
    except BaseException:
        if not device:
            with contextlib.suppress(OSError):
                os.unlink(part)
        raise


def require_writable(path):
    """SystemExit with one line if path cannot be written: a wrong path should fail now, not after the work.

    Its folder is made; what stands in the file stays until there is something to put in its place.
    """
    with one_line(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        new = not os.path.exists(path)
        open(path, "ab").close()
        if new:
            os.unlink(path)


def write_json(path, content):
    """Write a JSON file. SystemExit with one line if that cannot be."""
    with one_line(path), whole_file(path) as f:
        json.dump(content, f, indent=1, ensure_ascii=False)


def write_csv(path, fields, rows):
    """Write a table whole or not at all; columns that are not among fields are left out."""
    with whole_file(path) as f:
        writer = csv.DictWriter(f, fields, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path):
    """The rows of a table as dicts of texts, as write_csv writes them. OSError, UnicodeDecodeError."""
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


@contextlib.contextmanager
def appending(path):
    """A text file to be written on at its end: all that is written now, or nothing."""
    size = os.path.getsize(path)
    try:
        with open(path, "a", newline="", encoding="utf-8") as f:
            yield f
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise


class Table:
    """A CSV table that is on disk row by row, so that what was measured stays; its columns are those of its rows.

    A disk that is full costs a line, not the work: the rows are kept, and tried again with the next one. known: where
    the numbers come from, to stand beside the table.
    """

    def __init__(self, path, fields=(), rows=(), known=None):
        self.path, self.fields, self.rows, self.known = path, list(fields), list(rows), known
        self.written, self.left = None, None  # rows in the file, and the file as it was left

    def state(self):
        """What tells the file from that of another process, which may write to the same path."""
        with contextlib.suppress(OSError):
            found = os.stat(self.path)
            return found.st_ino, found.st_size

    def add(self, *rows):
        """Append rows, dicts, to the table and to its file."""
        new = dict.fromkeys(k for r in rows for k in r if k not in self.fields)
        whole = new or self.written != len(self.rows) or self.left != self.state()
        self.fields += new
        self.rows += rows
        with going_on(self.path):
            if whole:
                write_csv(self.path, self.fields, self.rows)
                if self.known:
                    write_provenance(self.path, dict(self.known, finished=False))
            else:
                with appending(self.path) as f:
                    csv.DictWriter(f, self.fields, lineterminator="\n").writerows(rows)
            self.written, self.left = len(self.rows), self.state()


@contextlib.contextmanager
def measuring(path, device, fields=(), **facts):
    """A Table for what is measured now, with where it comes from. It says what is there where the work ends early, and
    SystemExit ends it where not all of it could be written."""
    require_writable(path)
    began, table = time.time(), Table(path, fields, known=provenance(device, **facts))
    try:
        yield table
    except BaseException:
        if table.written:
            print(f"{path} has the {table.written} rows measured until then", file=sys.stderr)
        raise
    if table.written == len(table.rows):
        with one_line(path):
            write_provenance(path, dict(table.known, finished=True, seconds=round(time.time() - began, 1)))
    elif table.rows:
        raise SystemExit(f"{path} has {table.written or 0} of {len(table.rows)} rows, since it could not be written")


def read_log(path):
    """The rows of a log.csv, all of numbers, that can be read, and whether all of it can. A crash cuts it, and other
    programs write to it."""
    rows, whole = [], True
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as f:
            for r in csv.DictReader(f):
                try:
                    int(r["iter"]), [float(x) for value in r.values() for x in value.split()]
                    rows.append(r)
                except (AttributeError, KeyError, ValueError):  # too few or too many values are None or a list
                    whole = False
    except FileNotFoundError:
        pass
    except (OSError, csv.Error):
        whole = False
    return rows, whole


def folder_of_measurements(checkpoint):
    """Where what is measured of a checkpoint goes: into its folder, of one that comes with the project into out/."""
    folder = os.path.dirname(checkpoint)
    if os.path.realpath(folder) != os.path.join(os.path.realpath(ROOT), "pretrained"):
        return folder
    return os.path.join("out", "pretrained", os.path.splitext(os.path.basename(checkpoint))[0])


# ---- the folder of a run

RUN_FILES = ("ckpt_last.pt", "ckpt_best.pt", "log.csv", "ckpt.pt")  # any of them makes a run; the last is nanoGPT's
locks = {}                      # path -> open file, since the kernel takes a lock back once its file is closed


def lock_folder(folder):
    """Make a folder, and make it this process's own until it ends; SystemExit if another process has it."""
    lock(os.path.join(folder, ".lock"), folder, "--out_dir")


def lock(path, name, key):
    """Hold a file of locks at path until this process ends: the folder or table of that name, which a key gives, is its
    own. SystemExit if another process holds it."""
    while True:
        with one_line(f"{key}={name}"):
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            f = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (open as long as the process)
        try:
            import fcntl  # not every system has it
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            f.seek(0)
            raise SystemExit(f"{name} is in use by another run ({f.read().strip()}): wait for its end, or give "
                             f"another {key}") from None
        except (ImportError, OSError):  # nor every file system
            break
        if os.path.exists(path) and os.path.samestat(os.fstat(f.fileno()), os.stat(path)):
            break  # else its last owner has just removed it
    locks[path] = f
    with contextlib.suppress(OSError):
        f.truncate(0)
        f.write(f"process {os.getpid()} on {platform.node()}")
        f.flush()


def move_aside(folder):
    """Move the files of the run that a folder holds, if any, to folder.1, .2, ..., and say so; folders in it stay."""
    if not any(os.path.exists(os.path.join(folder, name)) for name in RUN_FILES):
        return
    folder = os.path.normpath(folder)
    if os.path.commonpath([os.getcwd(), os.path.abspath(folder)]) == os.path.abspath(folder):
        raise SystemExit(f"--out_dir={folder} holds a run and is where you are: give another --out_dir, or "
                         "--init_from=resume")
    target = next(path for n in itertools.count(1) if not os.path.exists(path := f"{folder}.{n}"))
    with one_line(target):
        os.makedirs(target)
        for entry in [*os.scandir(folder)]:
            if entry.name != ".lock" and not entry.is_dir():
                shutil.move(entry.path, target)
    print(f"{folder} holds another run: moved to {target}", flush=True)


# ---- where numbers come from

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


def commit_line(known):
    """The commit of what `provenance` returns, in words."""
    return f"commit {known['commit'][:10]}{' (changed)' * known['changed']}" if known["commit"] else "no git"


def provenance_line(known):
    """What `provenance` returns as one line to stand under a table; the command stands above it."""
    versions = [f"{name} {number}" for name, number in known["versions"].items() if number]
    seconds = [f"{known['seconds']:.0f} s"] if "seconds" in known else []
    return ", ".join([commit_line(known), *versions, known["card"], known["date"], *seconds])


def write_provenance(table, known):
    """Write where a CSV table comes from beside it, as <table>.json: readers of the CSV see no line but its own.
    Raises OSError."""
    stem, end = os.path.splitext(table)
    with whole_file(f"{table}.json" if end == ".json" else f"{stem}.json") as f:
        json.dump(known, f, indent=1, ensure_ascii=False)
