"""Rows and slices from data/<name>/*.bin by meta.json; batches as a pure function of (seed, iter, index).

Two kinds of data: text is one stream of tokens, sliced anywhere; rows (addition) are equations of equal length, never
sliced, with targets only where the answer stands. meta.json says which, and what it says is checked when a dataset is
opened: a wrong file ends the program with a line that says what to run.
"""
import functools
import hashlib
import json
import os
from types import SimpleNamespace

import numpy as np
import torch

import addition

TINYSHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
# what the folders of addition were made with
VARIANTS = {"demo": " --max_digits=3", "parallel": " --track=slots", "padded": " --track=slots --max_places=12",
            "zeros": " --zeros=shorter --few_rows=0.25", "few": " --few_rows=0.25", "shorter": " --zeros=shorter"}
NEEDED = dict(kind=str, vocab=(list, type(None)), vocab_size=int, dtype=str, tokens=dict, sha256=dict)
NEEDED_ROWS = dict(vocab=list, row_len=int, pad=str, think_token=str, digits=str, mask=str, track=str, plain=bool,
                   max_digits=int, max_places=int, zeros=str, carry_rows=(int, float), few_rows=(int, float))


def exit_with_hint(folder, what):
    """End the program with one line: what is wrong in a dataset's folder, and what writes it anew."""
    parent = folder
    while parent not in ("", os.sep) and not os.path.exists(os.path.join(parent, "prepare.py")):
        parent = os.path.dirname(parent)
    script = os.path.join(parent, "prepare.py") if parent not in ("", os.sep) else None
    extra = f" --out_dir={folder}{VARIANTS.get(os.path.basename(folder), '')}" if parent != folder else ""
    raise SystemExit(f"dataset: {what}\n  " + (f"write it with: python {script}{extra}" if script else
                     "a dataset is a folder data/<name> with meta.json, train.bin and val.bin; see data/*/prepare.py"))


def with_defaults(meta):
    """What meta.json or a checkpoint says, as a dict, completed by what older ones leave out."""
    zeros = "places" if meta.get("max_places") else "none"
    return dict(vocab=None, encoding=None, max_places=0, zeros=zeros, few_rows=0.0) | meta


def read_meta(folder):
    """The checked contents of folder/meta.json as a namespace."""
    path = os.path.join(folder, "meta.json")
    if not os.path.exists(path):
        exit_with_hint(folder, f"{path} is missing")
    try:
        with open(path, encoding="utf-8") as f:
            meta = json.load(f)
    except (OSError, ValueError) as e:
        exit_with_hint(folder, f"{path} cannot be read ({e})")
    meta = with_defaults(meta) if isinstance(meta, dict) else {}
    needed = NEEDED | (NEEDED_ROWS if meta.get("kind") == "rows" else {})
    unfit = [k for k, t in needed.items() if not isinstance(meta.get(k), t)]
    if unfit:
        exit_with_hint(folder, f"{path}: {', '.join(unfit)} missing or of the wrong type")
    meta = SimpleNamespace(**meta)
    fits = dict(kind=meta.kind in ("text", "rows"), dtype=meta.dtype == "uint16",
                vocab=len(meta.vocab) == meta.vocab_size if meta.vocab else isinstance(meta.encoding, str),
                tokens=all(type(n) is int for n in meta.tokens.values()))
    if meta.kind == "rows":
        fits.update(vocab=meta.vocab == addition.VOCAB and fits["vocab"], track=meta.track in ("next", "slots"),
                    max_digits=meta.max_digits > 0, carry_rows=0 <= meta.carry_rows <= 1,
                    few_rows=0 <= meta.few_rows <= 1,
                    zeros=meta.zeros in addition.ZEROS and (meta.zeros == "places") == (meta.max_places > 0),
                    max_places=meta.max_places in (0, *range(meta.max_digits, 101)),
                    row_len=meta.row_len == addition.row_length(meta.max_places or meta.max_digits, meta.track),
                    pad=meta.pad == addition.PAD, think_token=meta.think_token == addition.EQUALS,
                    digits=meta.digits == addition.DIGITS + addition.SLOT, mask=meta.mask == addition.MASK_RULE)
    unfit = [k for k, fit in fits.items() if not fit]
    if unfit:
        exit_with_hint(folder, f"{path}: {', '.join(unfit)} do not fit, or were written by another version")
    return meta


def checkpoint_meta(checkpoint):
    """What a checkpoint says of its tokens; one of nanoGPT's says nothing, then data/<dataset>/meta.json does."""
    if "meta" in checkpoint:
        return SimpleNamespace(**with_defaults(checkpoint["meta"]))
    return read_meta(os.path.join("data", checkpoint.get("config", {}).get("dataset", "?")))


def open_split(folder, meta, split):
    """The tokens of folder/<split>.bin, memory-mapped: (N,) for text, (rows, row_len) for rows; hash checked."""
    path = os.path.join(folder, f"{split}.bin")
    if not os.path.exists(path):
        exit_with_hint(folder, f"{path} is missing")
    size, wanted = os.path.getsize(path), 2 * meta.tokens[split]
    if size != wanted or not size:
        exit_with_hint(folder, f"{path} has {size:,} bytes where meta.json says {wanted:,}: truncated, or of another "
                               "run")
    with open(path, "rb") as f:
        if hashlib.file_digest(f, "sha256").hexdigest() != meta.sha256.get(split):
            exit_with_hint(folder, f"{path} is not the file that meta.json describes (sha256 differs)")
    data = np.memmap(path, np.uint16, "r")
    if meta.kind == "rows":
        if len(data) % meta.row_len:
            exit_with_hint(folder, f"{path} does not hold whole rows of {meta.row_len} tokens")
        data = data.reshape(-1, meta.row_len)
    return data


def open_dataset(name, root="data", like=None):
    """data/<name> -> namespace(meta, splits={'train': ..., 'val': ...}), all of it checked.

    like: the meta of a checkpoint, whose tokens must be the same files.
    """
    folder = os.path.join(root, name)
    meta = read_meta(folder)
    differ = [k for k in ("vocab", "track", "plain", "sha256") if like and like.get(k) != getattr(meta, k, None)]
    if differ:
        exit_with_hint(folder, f"{folder} is not what the checkpoint was trained on: {', '.join(differ)} differ")
    if not {"train", "val"} <= set(meta.tokens):
        exit_with_hint(folder, f"{folder}/meta.json names no train or no val split")
    return SimpleNamespace(name=name, meta=meta, splits={s: open_split(folder, meta, s) for s in meta.tokens})


def model_facts(meta):
    """What a model must know of its tokens: the settings that a config file does not set."""
    facts = dict(vocab_size=meta.vocab_size)
    if meta.kind == "rows":
        ids = {s: i for i, s in enumerate(meta.vocab)}
        facts.update(pad_token=ids[meta.pad], think_token=ids[meta.think_token],
                     number_tokens=() if meta.plain else tuple(ids[s] for s in meta.digits),
                     longest_number=(meta.max_places or meta.max_digits) + 1)
    return facts


def sequence_length(data, block_size):
    """Tokens T of a batch: block_size for text; for rows what a row gives, which must fit."""
    if data.meta.kind == "text":
        shortest = min(map(len, data.splits.values()))
        if shortest <= block_size:
            raise SystemExit(f"dataset: a split of {data.name} has {shortest:,} tokens, too few for --block_size="
                             f"{block_size}; take a smaller one, or more text")
        return block_size
    return data.meta.row_len - (data.meta.track == "next")


def get_batch(data, split, key, batch_size, block_size=0, device="cpu", fresh=False, swap=False, flip=0.0):
    """X, Y (batch_size, T) int64: inputs and targets, -1 where no loss is taken. Pure: equal arguments, equal batch.

    key: non-negative integers that name the batch, (seed, iter, micro_step * world + rank) in training.
    Rows only: fresh draws new problems instead of reading them; swap, flip: see addition.augment.
    """
    rng = np.random.default_rng([*key, *split.encode()])
    meta, tokens = data.meta, data.splits[split]
    if meta.kind == "text":
        at = rng.integers(0, len(tokens) - block_size, batch_size)
        rows = tokens[at[:, None] + np.arange(block_size + 1)].astype(np.int64)  # (B,T+1)
        x, y = rows[:, :-1], rows[:, 1:]
    else:
        if fresh:
            problems = addition.random_problems(rng, batch_size, meta.max_digits, meta.carry_rows, meta.max_places,
                                                meta.zeros, meta.few_rows)
            rows = addition.write_rows(*problems, meta.row_len, meta.track, meta.plain)
        else:
            rows = tokens[rng.integers(0, len(tokens), batch_size)]
        if swap or flip:
            rows = addition.augment(rng, rows, swap, flip)
        x, y = addition.inputs_and_targets(rows, meta.track)
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
    except Exception as e:
        raise SystemExit(
            f"dataset: the vocabulary of tiktoken's {encoding!r} cannot be downloaded ({type(e).__name__})\n"
            "  on a machine with a network run: TIKTOKEN_CACHE_DIR=tiktoken_cache python -c "
            f"\"import tiktoken; tiktoken.get_encoding('{encoding}')\"\n"
            "  then copy the folder tiktoken_cache here and set TIKTOKEN_CACHE_DIR=tiktoken_cache") from None


def encode(meta, text):
    """Text -> list of token ids. SystemExit that names the characters outside the vocabulary."""
    if meta.vocab is None:
        return bpe(meta.encoding).encode_ordinary(text)
    ids = {s: i for i, s in enumerate(meta.vocab)}
    unknown = sorted({c for c in text if c not in ids})
    if unknown:
        raise SystemExit(f"not in the vocabulary: {' '.join(map(repr, unknown))}\n"
                         f"  it has: {''.join(meta.vocab)!r}")
    return [ids[c] for c in text]


def decode(meta, tokens):
    """Token ids -> text."""
    tokens = [int(t) for t in tokens]
    return bpe(meta.encoding).decode(tokens) if meta.vocab is None else "".join(meta.vocab[t] for t in tokens)


def read_text(path, url):
    """The text of a local file or, where path is empty, of url. SystemExit that says what to do if there is none."""
    try:
        if path:
            with open(path, encoding="utf-8") as f:
                text = f.read()
        else:
            import urllib.request  # only here: it brings http and ssl along
            with urllib.request.urlopen(url, timeout=60) as f:
                text = f.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        advice = "" if path else "; without a network give a text file: --input=FILE"
        raise SystemExit(f"cannot read {path or url} ({e}){advice}") from None
    if len(text) < 1000:
        raise SystemExit(f"{path or url} has only {len(text)} characters")
    return text


def write_dataset(folder, splits, **meta):
    """Write splits {'train': tokens, ...} as folder/<split>.bin and what is known of them as folder/meta.json."""
    os.makedirs(folder, exist_ok=True)
    meta.update(dtype="uint16", tokens={}, sha256={})
    for split, tokens in splits.items():
        tokens = np.ascontiguousarray(tokens)
        if tokens.size and int(tokens.max()) >= meta["vocab_size"]:
            raise ValueError(f"token {int(tokens.max())} is outside a vocabulary of {meta['vocab_size']}")
        raw = tokens.astype(np.uint16).tobytes()
        with open(os.path.join(folder, f"{split}.bin"), "wb") as f:
            f.write(raw)
        meta["tokens"][split], meta["sha256"][split] = tokens.size, hashlib.sha256(raw).hexdigest()
        print(f"{folder}/{split}.bin: {tokens.size:,} tokens" + (f", {len(tokens):,} rows" if tokens.ndim > 1 else ""))
    with open(os.path.join(folder, "meta.json"), "w", encoding="utf-8") as f:
        json.dump(meta, f, indent=1, ensure_ascii=False)
