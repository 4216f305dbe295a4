"""Write tinyshakespeare in GPT-2's byte-pair encoding (tiktoken) as train.bin (90%), val.bin and meta.json.

    python data/shakespeare/prepare.py                      downloads the text (1 MB) and the encoding's vocabulary
    python data/shakespeare/prepare.py --input=input.txt    takes any text file
"""
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))
from configurator import configure  # noqa: E402
from dataset import (  # noqa: E402
    TINYSHAKESPEARE,
    bpe,
    count_characters,
    open_source,
    text_splits,
    whole_words,
    write_dataset,
)
from runtime import run  # noqa: E402

input = ""                      # a text file; empty: download tinyshakespeare
out_dir = "data/shakespeare"    # the folder to write


def main():
    globals().update(configure(__file__)[0])
    with open_source(input, TINYSHAKESPEARE) as f:
        count, gpt2 = int(count_characters(f, input or TINYSHAKESPEARE).sum()), bpe("gpt2")
        splits = text_splits(f, count, lambda texts: (
            np.array(gpt2.encode_ordinary(words)) for words in whole_words(texts)))
        write_dataset(out_dir, splits, kind="text", vocab=None, encoding="gpt2", vocab_size=gpt2.n_vocab)


if __name__ == "__main__":
    run(main, "--input=FILE of less text")
