"""Write addition rows as train.bin, val.bin and meta.json; readme.md beside this says what is in them.

    python data/addition/prepare.py
    python data/addition/prepare.py --max_digits=3 --zeros=shorter --out_dir=data/addition/demo
    python data/addition/prepare.py --track=slots --max_places=12 --out_dir=data/addition/padded
    python data/addition/prepare.py --zeros=shorter --few_rows=0.25 --out_dir=data/addition/zeros
"""
import os
import sys
import time

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
from addition import (  # noqa: E402
    DIGITS,
    EQUALS,
    MASK_RULE,
    PAD,
    SLOT,
    VOCAB,
    ZEROS,
    random_problems,
    row_length,
    write_rows,
)
from configurator import configure  # noqa: E402
from dataset import write_dataset  # noqa: E402
from runtime import require_memory, run  # noqa: E402

out_dir = "data/addition"       # the folder to write; train.py finds it as --dataset=addition
train_rows = 200_000            # >= 1: rows of train.bin
val_rows = 10_000               # >= 1: rows of val.bin
max_digits = 4                  # >= 1, <= 100: operands have 1 to this many digits, lengths drawn independently
zeros = ""                      # none; shorter: to the longer one's length; places: see below; empty: by max_places
max_places = 0                  # >= 0, <= 100: with zeros=places: three rows of four have so many places at most
carry_rows = 0.4                # >= 0, <= 1: share of rows in which a carry travels several places
few_rows = 0.0                  # >= 0, <= 1: share of rows whose digits are 1 to 3 symbols, A = B in some
track = "next"                  # next: next-token prediction; slots: parallel answer
plain = False                   # most significant digit first, instead of least
seed = 1                        # >= 0: of all draws


def draw_rows(number, count, row_len):
    """Rows (count, row_len) of split `number`, with their answers."""
    a, la, b, lb = random_problems(np.random.default_rng([seed, number]), count, max_digits, carry_rows, max_places,
                                   zeros, few_rows)
    assert max(la.max(), lb.max()) <= (max_places or max_digits)
    assert not a[:, max_digits:].any()
    assert not b[:, max_digits:].any()
    return write_rows(a, la, b, lb, row_len, track, plain)


def main():
    globals().update(configure(__file__)[0])
    globals().update(zeros=zeros or ("places" if max_places else "none"))
    if track not in ("next", "slots"):
        raise SystemExit(f"--track={track}: next or slots")
    if zeros not in ZEROS:
        raise SystemExit(f"--zeros={zeros}: {', '.join(ZEROS)}")
    if (zeros == "places") != (max_places > 0) or 0 < max_places < max_digits:
        raise SystemExit(f"--max_places={max_places}: with zeros=places at least max_digits, {max_digits}, else 0")
    start, row_len = time.time(), row_length(max_places or max_digits, track)
    require_memory(22 * row_len * max(train_rows, val_rows), "lower --train_rows or --val_rows")  # as was measured
    splits = {"train": draw_rows(0, train_rows, row_len), "val": draw_rows(1, val_rows, row_len)}
    write_dataset(out_dir, splits, kind="rows", vocab=VOCAB, vocab_size=len(VOCAB), row_len=row_len, pad=PAD,
                  think_token=EQUALS, digits=DIGITS + SLOT, track=track, plain=plain, mask=MASK_RULE,
                  max_digits=max_digits, max_places=max_places, zeros=zeros, carry_rows=carry_rows, few_rows=few_rows,
                  seed=seed)
    print(f"written in {time.time() - start:.1f} s; first rows: "
          + ", ".join(repr("".join(VOCAB[t] for t in row).rstrip()) for row in splits["train"][:3]))


if __name__ == "__main__":
    run(main, "--train_rows")
