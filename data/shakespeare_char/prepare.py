"""Write tinyshakespeare, one token per character, as train.bin (90%), val.bin and meta.json.

    python data/shakespeare_char/prepare.py                      downloads the text (1 MB)
    python data/shakespeare_char/prepare.py --input=input.txt    takes any text file
"""
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
from configurator import configure  # noqa: E402
from dataset import TINYSHAKESPEARE, read_text, write_dataset  # noqa: E402

input = ""                      # a text file; empty: download tinyshakespeare
out_dir = "data/shakespeare_char"  # the folder to write


def main():
    globals().update(configure(__file__)[0])
    text = read_text(input, TINYSHAKESPEARE)
    vocab = sorted(set(text))
    ids = {c: i for i, c in enumerate(vocab)}
    tokens = np.array([ids[c] for c in text], np.uint16)
    cut = int(0.9 * len(tokens))
    write_dataset(out_dir, dict(train=tokens[:cut], val=tokens[cut:]), kind="text", vocab=vocab, vocab_size=len(vocab))


if __name__ == "__main__":
    main()
