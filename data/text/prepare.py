"""Make a dataset of a text of your own: train.bin (the first 90% of it), val.bin and meta.json in data/<name>.

    python data/text/prepare.py --input=novel.txt                      data/novel, a token per character
    python data/text/prepare.py --input=novel.txt --encoding=gpt2      a token per piece of a word, as GPT-2 has them
    python data/text/prepare.py --input=more.txt --vocab_from=out/novel/ckpt_last.pt --out_dir=data/more

The text is any file in UTF-8, whatever its size and its language. Characters suit a laptop and a text of a few MB.
GPT-2's 50,257 pieces need a GPU and much more text; tiktoken downloads them once.
"""
import os
import re
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
from checkpoint import characters  # noqa: E402
from configurator import configure  # noqa: E402
from dataset import (  # noqa: E402
    TINYSHAKESPEARE,
    bpe,
    code_points,
    count_characters,
    open_source,
    text_splits,
    whole_words,
    write_dataset,
)
from runtime import run  # noqa: E402

input = ""                      # a text file in UTF-8
encoding = "char"               # what a token is: char, a character; gpt2, a piece of a word (byte-pair encoding)
vocab_from = ""                 # char: a checkpoint to train on, or a meta.json, whose characters are to be the tokens
out_dir = ""                    # the folder to write; empty: data/<name of the file>

NEXT = {"char": "config/demo_text.py", "gpt2": "config/train_loop_1x12.py"}  # what may be trained on it


def vocabulary(counts):
    """The characters that are the tokens: those of the text, or of vocab_from, which must have them all."""
    found = [chr(point) for point in np.flatnonzero(counts)]
    if not vocab_from:
        return found
    vocab = characters(vocab_from)
    unknown = sorted(set(found) - set(vocab), key=lambda c: -counts[ord(c)])
    if unknown:
        named = ", ".join(f"{c!r} ({counts[ord(c)]:,} times)" for c in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise SystemExit(f"--vocab_from={vocab_from} lacks characters of {input or 'the text'}: {named}{more}\n"
                         "  replace them in the text, or train from scratch on a vocabulary of its own")
    return vocab


def folder_of(path):
    """data/<name> for a text file. SystemExit where another script of the project writes that folder."""
    name = re.sub(r"[^\w.-]+", "_", os.path.splitext(os.path.basename(path))[0]).strip("._") or "text"
    folder = os.path.join("data", name)
    if os.path.exists(os.path.join(folder, "prepare.py")):
        raise SystemExit(f"{folder} is a dataset of the project: give --out_dir=data/NAME")
    return folder


def by_characters(f, counts):
    """The splits of a text file, a token per character, and what meta.json says of them."""
    vocab, ids = vocabulary(counts), np.zeros(len(counts), np.uint32)
    ids[[ord(c) for c in vocab]] = np.arange(len(vocab))
    splits = text_splits(f, int(counts.sum()), lambda texts: (ids[code_points(text)] for text in texts))
    return splits, dict(vocab=vocab, vocab_size=len(vocab))


def by_pieces(f, counts):
    """As by_characters, a token per piece of a word."""
    coder = bpe(encoding)
    splits = text_splits(f, int(counts.sum()), lambda texts: (
        np.array(coder.encode_ordinary(words)) for words in whole_words(texts)))
    return splits, dict(vocab=None, encoding=encoding, vocab_size=coder.n_vocab)


def main(*defaults):
    """defaults: --key=value, where a script calls this for a text of its own, which is tinyshakespeare."""
    globals().update(configure(__file__, argv=[*defaults, *sys.argv[1:]])[0])
    if encoding not in NEXT:
        raise SystemExit(f"--encoding={encoding}: {' or '.join(NEXT)}")
    if vocab_from and encoding != "char":
        raise SystemExit(f"--vocab_from is for --encoding=char; {encoding} has its vocabulary")
    if not (input or defaults):
        raise SystemExit("--input=FILE: a text file in UTF-8")
    folder = out_dir or folder_of(input)
    with open_source(input, TINYSHAKESPEARE) as f:
        counts = count_characters(f, input or TINYSHAKESPEARE)
        splits, meta = (by_characters if encoding == "char" else by_pieces)(f, counts)
        write_dataset(folder, splits, kind="text", **meta)
    name = os.path.relpath(folder, "data")
    print(f"{counts.sum():,} characters, {np.count_nonzero(counts):,} different ones\n"
          f"next: python train.py {NEXT[encoding]} --dataset={name} --out_dir=out/{os.path.basename(name)}")


if __name__ == "__main__":
    run(main, "--input=FILE of less text")
