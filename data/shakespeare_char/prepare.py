"""Write tinyshakespeare, one token per character, as train.bin (90%), val.bin and meta.json.

    python data/shakespeare_char/prepare.py                      downloads the text (1 MB)
    python data/shakespeare_char/prepare.py --input=input.txt    takes any text file
    python data/shakespeare_char/prepare.py --input=more.txt --vocab_from=out/run/ckpt_last.pt --out_dir=data/more
"""
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
from checkpoint import characters  # noqa: E402
from configurator import configure  # noqa: E402
from dataset import TINYSHAKESPEARE, code_points, count_characters, open_source, text_splits, write_dataset  # noqa: E402
from runtime import run  # noqa: E402

input = ""                      # a text file; empty: download tinyshakespeare
vocab_from = ""                 # a checkpoint to train on, or a meta.json, whose characters are to be the tokens
out_dir = "data/shakespeare_char"  # the folder to write


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


def main():
    globals().update(configure(__file__)[0])
    with open_source(input, TINYSHAKESPEARE) as f:
        counts = count_characters(f, input or TINYSHAKESPEARE)
        vocab, ids = vocabulary(counts), np.zeros(len(counts), np.uint32)
        ids[[ord(c) for c in vocab]] = np.arange(len(vocab))
        splits = text_splits(f, int(counts.sum()), lambda texts: (ids[code_points(text)] for text in texts))
        write_dataset(out_dir, splits, kind="text", vocab=vocab, vocab_size=len(vocab))


if __name__ == "__main__":
    run(main, "--input=FILE of less text")
