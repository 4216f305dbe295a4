"""Write tinyshakespeare in GPT-2's byte-pair encoding (tiktoken) as train.bin (90%), val.bin and meta.json.

    python data/shakespeare/prepare.py                      downloads the text (1 MB) and the encoding's vocabulary
    python data/shakespeare/prepare.py --input=input.txt    takes any text file
"""
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
from configurator import configure  # noqa: E402
from dataset import TINYSHAKESPEARE, bpe, read_text, write_dataset  # noqa: E402

input = ""                      # a text file; empty: download tinyshakespeare
out_dir = "data/shakespeare"    # the folder to write


def main():
    globals().update(configure(__file__)[0])
    text = read_text(input, TINYSHAKESPEARE)
    cut, gpt2 = int(0.9 * len(text)), bpe("gpt2")
    splits = dict(train=np.array(gpt2.encode_ordinary(text[:cut])), val=np.array(gpt2.encode_ordinary(text[cut:])))
    write_dataset(out_dir, splits, kind="text", vocab=None, encoding="gpt2", vocab_size=gpt2.n_vocab)


if __name__ == "__main__":
    main()
