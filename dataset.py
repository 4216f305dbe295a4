"""Rows and slices from data/<name>/*.bin by meta.json; batches as a pure function of (seed, iter, index).

Two kinds of data: text is one stream of tokens, sliced anywhere; rows, of a task, have equal length and are never
sliced, with targets only where the answer stands. meta.json says which, and what it says is checked when a dataset is
opened: a wrong file ends the program with a line that says what to run.
"""
import contextlib
import functools
import hashlib
import io
import json
import math
import os
import sys
from types import SimpleNamespace

import numpy as np
import torch

import outputs
import tasks
from configurator import checked, open_text

TINYSHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
# what the folders beside a prepare.py of data/<task> were made with
VARIANTS = {"demo": " --max_digits=3 --zeros=shorter", "parallel": " --track=slots",
            "padded": " --track=slots --max_places=12", "zeros": " --zeros=shorter --few_rows=0.25",
            "slots": " --track=slots --zeros=shorter --few_rows=0.25", "few_digits": " --few_rows=0.25",
            "shorter": " --zeros=shorter", "few": " --train_rows=50000", "rows_2000": " --train_rows=2000",
            **{f"rows_{n}": f" --max_digits=3 --zeros=shorter --train_rows={n}" for n in (200, 1000, 20000)}}
DTYPES = {"uint16": np.uint16, "uint32": np.uint32}  # of the token files; the second where ids need it
GPT2_TOKENS = 50257
PADDING = 1024  # a model may have fewer ids than this that no token has
PIECE = 1 << 20  # characters of a text that are read at once
SHORTEST = 1000  # characters of a text: a tenth of it, val.bin, is longer than a small block
NEEDED = dict(kind=str, vocab=(list, type(None)), vocab_size=int, dtype=str, tokens=dict, sha256=dict)
NEEDED_ROWS = dict(task=str, vocab=list, row_len=int, pad=str, think_token=str, digits=str, mask=str, track=str)
OF_BEFORE = "addition"  # the task of rows that name none, written when there was no other


def exit_with_hint(folder, what, advice="write it with"):
    """End the program with one line: what is wrong in a dataset's folder, and what writes it anew."""
    parent = folder
    while parent not in ("", os.sep) and not os.path.exists(os.path.join(parent, "prepare.py")):
        parent = os.path.dirname(parent)
    script = None if parent in ("", os.sep) else os.path.join(parent, "prepare.py")
    extra = f" --out_dir={folder}{VARIANTS.get(os.path.basename(folder), '')}" if parent != folder else ""
    if script and os.path.basename(os.path.abspath(parent)) == "data":  # the one that writes every task
        name = os.path.relpath(folder, parent).split(os.sep)[0]
        script = f"{script} --task={name}" if name in tasks.names() else None
        extra = extra if os.path.join(parent, name) != folder else ""
    raise SystemExit(f"dataset: {what}\n  " + (f"{advice}: python {script}{extra}" if script else
                     "a dataset is a folder data/<name>; a text becomes one with: python data/text/prepare.py "
                     "--input=FILE, rows of a task with: python data/prepare.py --task=NAME"))


def with_defaults(meta):
    """What meta.json or a checkpoint says, as a dict, completed by what older ones leave out."""
    return dict(vocab=None, encoding=None) | (dict(task=OF_BEFORE) if meta.get("kind") == "rows" else {}) | meta


def check_task(meta):
    """What of the meta of rows, a namespace, does not fit their task: names of keys. Settings that it does not have get
    their defaults. ValueError for settings that do not fit."""
    task, unfit = tasks.load(meta.task), []
    for key, setting in tasks.settings_of(task).items():
        try:
            setattr(meta, key, checked(getattr(meta, key, setting.default), setting))
        except ValueError:
            unfit.append(key)
    unfit += ["track"] * (meta.track not in tasks.tracks(task))
    if unfit:
        return unfit
    if hasattr(task, "complete"):
        task.complete(meta)
    wanted = tasks.facts(task) | dict(row_len=task.row_length(None, meta))
    wanted["mask"] = meta.mask if meta.mask in tasks.MASK_RULES else None
    if meta.vocab != wanted["vocab"]:
        raise ValueError(f"task {meta.task} has another VOCAB now, {''.join(wanted['vocab'])!r} and not "
                         f"{''.join(meta.vocab)!r}: prepare and train anew, or give it back what it had")
    return [k for k, x in wanted.items() if getattr(meta, k) != x]


def check_meta(found):
    """What a meta.json or a checkpoint says of its tokens, as a namespace. ValueError that names what is wrong."""
    meta = with_defaults(found) if isinstance(found, dict) else {}
    needed = NEEDED | (NEEDED_ROWS if meta.get("kind") == "rows" else {})
    unfit = [k for k, t in needed.items() if not isinstance(meta.get(k), t)]
    if unfit:
        raise ValueError(f"{', '.join(unfit)} missing or of the wrong type")
    meta = SimpleNamespace(**meta)
    symbols = meta.vocab or []
    distinct = all(isinstance(s, str) and s for s in symbols) and len(set(symbols)) == len(symbols)
    fits = dict(kind=meta.kind in ("text", "rows"), dtype=meta.dtype in DTYPES, vocab_size=meta.vocab_size > 0,
                vocab=isinstance(meta.encoding, str) if meta.vocab is None else
                distinct and len(symbols) == meta.vocab_size,
                tokens=all(type(n) is int for n in meta.tokens.values()))
    unfit = [k for k, fit in fits.items() if not fit] or (check_task(meta) if meta.kind == "rows" else [])
    if unfit:
        raise ValueError(f"{', '.join(unfit)} do not fit, or were written by another version")
    return meta


def read_meta(folder, name="meta.json"):
    """The checked contents of folder/meta.json as a namespace."""
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        exit_with_hint(folder, f"{path} is missing")
    try:
        with open(path, encoding="utf-8-sig") as f:
            found = json.load(f)
    except (OSError, ValueError, RecursionError) as e:
        exit_with_hint(folder, f"{path} cannot be read ({e})")
    try:
        return check_meta(found)
    except ValueError as e:
        exit_with_hint(folder, f"{path}: {e}")


# ---- whose tokens a checkpoint knows

def trained_on(checkpoint):
    """The name of the dataset that a checkpoint was trained on, "" if it does not say."""
    name = checkpoint.get("config", {}).get("dataset")
    return name if isinstance(name, str) else ""


def few(symbols, most=5):
    """The first of some symbols, and how many more there are."""
    more = f" and {len(symbols) - most:,} more" if len(symbols) > most else ""
    return " ".join(map(repr, symbols[:most])) + more


def size_of(checkpoint):
    """Ids that a checkpoint's model has, None if it does not say."""
    return checkpoint.get("model_args", {}).get("vocab_size")


def own_meta(checkpoint, path):
    """What a checkpoint says of its tokens, None if nothing, as one of nanoGPT's. SystemExit if that is damaged."""
    if "meta" not in checkpoint:
        return None
    try:
        meta = check_meta(checkpoint["meta"])
    except ValueError as e:
        raise SystemExit(f"{path}: meta is damaged, or its task is another now: {e}") from None
    if isinstance(size := size_of(checkpoint), int) and size < meta.vocab_size:
        raise SystemExit(f"{path}: damaged, its model has fewer tokens than its vocabulary")
    return meta


def token_difference(known, size, meta):
    """How the tokens of a checkpoint differ from those of a dataset's meta, in words; "" if they are the same.

    known: what the checkpoint says of them, or None, then the number of its tokens counts, which may be padded: a model
    of 50,304 has GPT-2's 50,257.
    """
    if known is None:
        same = size == meta.vocab_size if meta.vocab else size in range(meta.vocab_size, meta.vocab_size + PADDING)
        return "" if same else f"{size} tokens against {meta.vocab_size}"
    if (known.vocab, known.encoding) == (meta.vocab, meta.encoding):
        return ""
    counts = f"{known.vocab_size} tokens against {meta.vocab_size}"
    if known.vocab is None or meta.vocab is None:
        return f"{counts}, {known.encoding or 'characters'} against {meta.encoding or 'characters'}"
    new, gone = ([s for s in x.vocab if s not in set(y.vocab)] for x, y in ((meta, known), (known, meta)))
    return "; ".join([counts, *([f"the checkpoint lacks {few(new)}"] if new else []), *(
        [f"the data lack {few(gone)}"] if gone else []), *([] if new or gone else ["in another order"])])


def require_same_tokens(checkpoint, path, meta, folder):
    """End the program if the tokens of a checkpoint's file are not those of the dataset in a folder."""
    known = own_meta(checkpoint, path)
    difference = token_difference(known, size_of(checkpoint), meta)
    if difference:
        characters = (known or meta).vocab and (known or meta).kind == "text"
        vocab = f" --vocab_from={path}" if known else ""
        raise SystemExit(f"{path} was trained on other tokens than {folder} has: {difference}" + (
            f"\n  prepare it with: python data/text/prepare.py{vocab} --input=FILE --out_dir={folder}"
            if characters else ""))


def checkpoint_meta(checkpoint, path="the checkpoint"):
    """What a checkpoint says of its tokens; one of nanoGPT's says nothing, then data/<dataset>/meta.json does."""
    if known := own_meta(checkpoint, path):
        return known
    folder = os.path.join("data", trained_on(checkpoint))
    padded = size_of(checkpoint) in range(GPT2_TOKENS, GPT2_TOKENS + PADDING)
    if padded and not os.path.exists(os.path.join(folder, "meta.json")):  # as nanoGPT does without a meta.pkl
        return SimpleNamespace(kind="text", vocab=None, encoding="gpt2", vocab_size=GPT2_TOKENS)
    if not trained_on(checkpoint):
        raise SystemExit(f"{path} says neither its tokens nor its dataset")
    meta = read_meta(folder)
    require_same_tokens(checkpoint, path, meta, folder)
    return meta


# ---- files of tokens

def open_split(folder, meta, split):
    """The tokens of folder/<split>.bin, memory-mapped: (N,) for text, (rows, row_len) for rows; hash checked."""
    path = os.path.join(folder, f"{split}.bin")
    if not os.path.exists(path):
        exit_with_hint(folder, f"{path} is missing")
    dtype = DTYPES[meta.dtype]
    size, wanted = os.path.getsize(path), np.dtype(dtype).itemsize * meta.tokens[split]
    if size != wanted or not size:
        exit_with_hint(folder, f"{path} has {size:,} bytes where meta.json says {wanted:,}: truncated, or of another "
                               "run")
    with open(path, "rb") as f:
        if hashlib.file_digest(f, "sha256").hexdigest() != meta.sha256.get(split):
            exit_with_hint(folder, f"{path} is not the file that meta.json describes (sha256 differs)")
    data = np.memmap(path, dtype, "r")
    if data.max() >= meta.vocab_size:
        exit_with_hint(folder, f"{path} has token {data.max()}, meta.json a vocabulary of {meta.vocab_size}")
    if meta.kind == "rows":
        if len(data) % meta.row_len:
            exit_with_hint(folder, f"{path} does not hold whole rows of {meta.row_len} tokens")
        data = data.reshape(-1, meta.row_len)
        if not all(tasks.is_right(tasks.load(meta.task), row, meta) for row in data[:100]):
            exit_with_hint(folder, f"{path}: its rows are no right ones of task {meta.task}, as meta.json says they "
                                   "are written (plain, track, ...)")
    return data


def open_dataset(name, root="data", like=None):
    """data/<name> -> namespace(meta, splits={'train': ..., 'val': ...}), all of it checked.

    like: a checkpoint, which must have been trained on the same files; one of nanoGPT's does not say.
    """
    folder = os.path.join(root, name)
    meta, known = read_meta(folder), (like or {}).get("meta")
    known = with_defaults(known) if known else {}
    compared = ("task", "vocab", "track", "plain", "sha256") if known else ()
    differ = [k for k in compared if known.get(k) != getattr(meta, k, None)]
    if differ and trained_on(like) not in ("", name):
        raise SystemExit(f"--dataset={name} is not what the checkpoint was trained on: {', '.join(differ)} differ; "
                         f"without --dataset its own is taken, {trained_on(like)}")
    if differ:
        exit_with_hint(folder, f"{folder} is not what the checkpoint was trained on: {', '.join(differ)} differ",
                       "give it another name, so that it is kept, then write what the checkpoint needs")
    if not {"train", "val"} <= set(meta.tokens):
        exit_with_hint(folder, f"{folder}/meta.json names no train or no val split")
    return SimpleNamespace(name=name, meta=meta, splits={s: open_split(folder, meta, s) for s in meta.tokens})


def model_facts(meta):
    """What a model must know of its tokens: the settings that a config file does not set."""
    facts = dict(vocab_size=meta.vocab_size)
    if meta.kind == "rows":
        task, ids = tasks.load(meta.task), {s: i for i, s in enumerate(meta.vocab)}
        counted = () if getattr(meta, "plain", False) else meta.digits  # most significant first: no place is known
        facts.update(pad_token=ids[meta.pad], think_token=ids[meta.think_token],
                     number_tokens=tuple(ids[s] for s in counted),
                     longest_number=task.longest_number(None, meta) if meta.digits else 0)
    return facts


def sequence_length(data, block_size, pack=1):
    """Tokens T of a batch: block_size for text; for rows what `pack` problems of a row give, which must fit."""
    if data.meta.kind == "text":
        shortest = min(map(len, data.splits.values()))
        if shortest <= block_size:
            raise SystemExit(f"dataset: a split of {data.name} has {shortest:,} tokens, too few for --block_size="
                             f"{block_size}; take a smaller one, or more text")
        return block_size
    return pack * (data.meta.row_len - (data.meta.track == "next") + 1) - 1


def get_batch(data, split, key, batch_size, block_size=0, device="cpu", fresh=False, swap=False, flip=0.0, pack=1):
    """X, Y (batch_size, T) int64: inputs and targets, -1 where no loss is taken. Pure: equal arguments, equal batch.

    key: non-negative integers that name the batch, (seed, iter, micro_step * world + rank) in training.
    Rows only: fresh draws new problems instead of reading them; swap, flip: of a task that has augment; pack problems
    stand in a row, at least one pad between them.
    """
    rng = np.random.default_rng([*key, *split.encode()])
    meta, tokens = data.meta, data.splits[split]
    if meta.kind == "text":
        at = rng.integers(0, len(tokens) - block_size, batch_size)
        rows = tokens[at[:, None] + np.arange(block_size + 1)].astype(np.int64)  # (B,T+1)
        x, y = rows[:, :-1], rows[:, 1:]
    else:
        task = tasks.load(meta.task)
        if fresh:
            rows, answer, _ = task.draw(rng, batch_size * pack, meta)
        else:
            rows = tokens[rng.integers(0, len(tokens), batch_size * pack)]
            answer = tasks.answers(task, rows)
        if swap or flip:
            rows, answer = task.augment(rng, rows, answer, swap, flip)
        x, y = tasks.inputs_and_targets(task, rows, answer, meta.track)
        if pack > 1:
            x, y = (np.pad(k, ((0, 0), (0, 1)), constant_values=filler).reshape(batch_size, -1)[:, :-1]
                    for k, filler in ((x, task.VOCAB.index(task.PAD)), (y, -1)))
    x, y = torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(np.ascontiguousarray(y))
    if torch.device(device).type == "cuda":  # pinned, so that the copy runs beside the GPU's work
        return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)
    return x.to(device), y.to(device)


@functools.cache
def bpe(encoding):
    """tiktoken's encoding; it downloads its vocabulary once, so say clearly what to do when it cannot."""
    import tiktoken
    try:
        return tiktoken.get_encoding(encoding)
    except ValueError:
        raise SystemExit(f"dataset: tiktoken has no encoding {encoding!r}") from None
    except Exception as e:
        raise SystemExit(
            f"dataset: the vocabulary of tiktoken's {encoding!r} cannot be downloaded ({type(e).__name__})\n"
            "  on a machine with a network run: TIKTOKEN_CACHE_DIR=tiktoken_cache python -c "
            f"\"import tiktoken; tiktoken.get_encoding('{encoding}')\"\n"
            "  then copy the folder tiktoken_cache here and set TIKTOKEN_CACHE_DIR=tiktoken_cache") from None


def encode(meta, text):
    """A prompt -> list of token ids, special tokens as nanoGPT has them. SystemExit that names unknown characters."""
    if meta.vocab is None:
        return bpe(meta.encoding).encode(text, allowed_special="all")
    ids = {s: i for i, s in enumerate(meta.vocab)}
    unknown = sorted({c for c in text if c not in ids})
    if unknown:
        near = sorted(meta.vocab, key=lambda s: abs(ord(s[0]) - ord(unknown[0])))[:10]
        has = f"it has: {''.join(meta.vocab)!r}" if len(ids) <= 100 else (
            f"it has {len(ids):,} characters; those next to {unknown[0]!r} are {''.join(sorted(near))!r}")
        raise SystemExit(f"not in the vocabulary: {few(unknown, 20)}\n  {has}")
    return [ids[c] for c in text]


def decode(meta, tokens):
    """Token ids -> text."""
    tokens = [int(t) for t in tokens]
    return bpe(meta.encoding).decode(tokens) if meta.vocab is None else "".join(meta.vocab[t] for t in tokens)


# ---- writing a dataset

@contextlib.contextmanager
def open_source(path, url):
    """The text of a local file or, where path is empty, of url, opened for reading it twice."""
    if path:
        with open_text(path) as f:
            yield f if f.seekable() else io.StringIO(f.read())
        return
    import urllib.request  # only here: it brings http and ssl along
    try:
        with urllib.request.urlopen(url, timeout=60) as f:
            text = f.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise SystemExit(f"cannot read {url} ({e}); without a network give a text file: --input=FILE") from None
    yield io.StringIO(text)


def pieces(f, count):
    """The next `count` characters of a text file, piece by piece: a text need not fit into memory."""
    while count and (piece := f.read(min(count, PIECE))):
        count -= len(piece)
        yield piece


def whole_words(texts):
    """The same text in pieces that end where a word does, as those of byte-pair encodings do there, too."""
    rest = ""
    for text in texts:
        rest += text
        ends = range(len(rest) - 1, len(rest) - len(text), -1)
        end = next((i for i in ends if rest[i].isspace() and rest[i - 1].isalnum()), 0)
        if end:
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def code_points(text):
    """The code points (N,) of a text's characters."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def count_characters(f, name):
    """How often each code point stands in a text file, whose beginning comes next again. SystemExit if it is short."""
    counts, size = np.zeros(sys.maxunicode + 1, np.int64), os.path.getsize(name) if os.path.isfile(name) else None
    for piece in outputs.progress(pieces(f, math.inf), f"reading {name}", "bytes", size, lambda x: len(x.encode())):
        counts += np.bincount(code_points(piece), minlength=len(counts))
    if counts.sum() < SHORTEST:
        has = f"has only {counts.sum():,} characters" if counts.any() else "is empty"
        raise SystemExit(f"{name} {has}: at least {SHORTEST:,} are needed, and to learn from it some 100,000")
    f.seek(0)
    return counts


def text_splits(f, count, encode):
    """{split: pieces of tokens} of a text file of `count` characters, the first 90% to train on. Read in this order."""
    cut = int(0.9 * count)
    return {split: encode(outputs.progress(pieces(f, n), f"writing {split}.bin", "characters", n, len))
            for split, n in (("train", cut), ("val", count - cut))}


def write_split(f, tokens, meta):
    """Write tokens, an array or pieces of one, to a file: how many they are, of rows how many, and their sha256."""
    count, rows, sha256 = 0, 0, hashlib.sha256()
    for piece in [tokens] if isinstance(tokens, np.ndarray) else tokens:
        outside = piece[(piece < 0) | (piece >= meta["vocab_size"])]
        if outside.size:
            raise ValueError(f"token {outside[0]} is outside a vocabulary of {meta['vocab_size']}")
        raw = piece.astype(DTYPES[meta["dtype"]]).tobytes()
        f.write(raw)
        sha256.update(raw)
        count, rows = count + piece.size, rows + len(piece) * (piece.ndim > 1)
    return count, rows, sha256.hexdigest()


def write_dataset(folder, splits, **meta):
    """Write splits {'train': tokens, ...} as folder/<split>.bin and what is known of them as folder/meta.json.

    tokens: an array, or the pieces of one. What stands there stays until all of it is written. SystemExit with one line
    if it cannot be, on a full disk for example.
    """
    meta.update(dtype="uint16" if meta["vocab_size"] <= 1 << 16 else "uint32", tokens={}, sha256={})
    paths = {name: os.path.join(folder, name) for name in ("meta.json", *(f"{split}.bin" for split in splits))}
    said = []
    with outputs.one_line(folder), contextlib.ExitStack() as stack:  # which ends with meta.json, begun first
        os.makedirs(folder, exist_ok=True)
        files = {name: stack.enter_context(outputs.whole_file(path, "w" if name == "meta.json" else "wb"))
                 for name, path in paths.items()}
        for split, tokens in splits.items():
            name = f"{split}.bin"
            meta["tokens"][split], rows, meta["sha256"][split] = write_split(files[name], tokens, meta)
            said.append(f"{paths[name]}: {meta['tokens'][split]:,} tokens" + (f", {rows:,} rows" if rows else ""))
        json.dump(meta, files["meta.json"], indent=1, ensure_ascii=False)
        for f in files.values():
            f.flush()  # so that a full disk shows before the first of them takes its place
    print(*said, sep="\n")
