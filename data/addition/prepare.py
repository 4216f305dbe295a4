"""Write addition rows as train.bin, val.bin and meta.json; readme.md beside this says what is in them.

    python data/addition/prepare.py
    python data/addition/prepare.py --max_digits=3 --out_dir=data/addition/demo
    python data/addition/prepare.py --track=slots --max_places=12 --out_dir=data/addition/padded
    python data/addition/prepare.py --zeros=shorter --few_rows=0.25 --out_dir=data/addition/zeros
"""
import os
import sys
import time

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
import addition as task  # noqa: E402
from configurator import configure  # noqa: E402
from dataset import write_dataset  # noqa: E402

out_dir = "data/addition"       # the folder to write; train.py finds it as --dataset=addition
train_rows = 200_000            # rows of train.bin
val_rows = 10_000               # rows of val.bin
max_digits = 4                  # operands have 1 to this many digits, lengths drawn independently
zeros = ""                      # none; shorter: to the longer one's length; places: see below; empty: by max_places
max_places = 0                  # with zeros=places: three rows of four bring both numbers to so many places at most
carry_rows = 0.4                # share of rows in which a carry travels several places
few_rows = 0.0                  # share of rows whose digits are 1 to 3 symbols, A = B in some
track = "next"                  # next: next-token prediction; slots: parallel answer
plain = False                   # most significant digit first, instead of least
seed = 1                        # of all draws

settings, _, _ = configure(__file__)
globals().update(settings)
zeros = zeros or ("places" if max_places else "none")
fits = zeros in task.ZEROS, (zeros == "places") == (max_places > 0), 0 <= few_rows <= 1, (
    track in ("next", "slots")), 1 <= max_digits <= 100, min(train_rows, val_rows) >= 1, 0 <= carry_rows <= 1, (
    max_places == 0 or max_digits <= max_places <= 100)
if not all(fits):
    raise SystemExit("prepare.py: track is next or slots, max_digits 1..100, rows at least 1, carry_rows and few_rows "
                     f"0..1, zeros {', '.join(task.ZEROS)}, max_places max_digits..100 with zeros=places, else 0")
start = time.time()
row_len = task.row_length(max_places or max_digits, track)
splits = {}
for number, (split, rows) in enumerate({"train": train_rows, "val": val_rows}.items()):
    a, la, b, lb = task.random_problems(np.random.default_rng([seed, number]), rows, max_digits, carry_rows,
                                        max_places, zeros, few_rows)
    assert max(la.max(), lb.max()) <= (max_places or max_digits)
    assert not a[:, max_digits:].any()
    assert not b[:, max_digits:].any()
    splits[split] = task.write_rows(a, la, b, lb, row_len, track, plain)
write_dataset(out_dir, splits, kind="rows", vocab=task.VOCAB, vocab_size=len(task.VOCAB), row_len=row_len,
              pad=task.PAD, think_token=task.EQUALS, digits=task.DIGITS + task.SLOT, track=track, plain=plain,
              mask=task.MASK_RULE, max_digits=max_digits, max_places=max_places, zeros=zeros,
              carry_rows=carry_rows, few_rows=few_rows, seed=seed)
print(f"written in {time.time() - start:.1f} s; first rows: "
      + ", ".join(repr("".join(task.VOCAB[t] for t in row).rstrip()) for row in splits["train"][:3]))
