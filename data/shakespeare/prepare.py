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

settings, _, _ = configure(__file__)
globals().update(settings)
text = read_text(settings["input"], TINYSHAKESPEARE)
cut = int(0.9 * len(text))
gpt2 = bpe("gpt2")
splits = {name: np.array(gpt2.encode_ordinary(part)) for name, part in dict(train=text[:cut], val=text[cut:]).items()}
write_dataset(out_dir, splits, kind="text", vocab=None, encoding="gpt2", vocab_size=gpt2.n_vocab)
