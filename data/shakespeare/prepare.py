"""Write tinyshakespeare in GPT-2's byte-pair encoding: data/text/prepare.py --encoding=gpt2 of that text.

    python data/shakespeare/prepare.py                      downloads the text (1 MB) and the encoding's vocabulary
    python data/shakespeare/prepare.py --input=input.txt    takes any text file
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from text import prepare  # noqa: E402


def main():
    prepare.main("--out_dir=data/shakespeare", "--encoding=gpt2")


if __name__ == "__main__":
    prepare.run(main, "--input=FILE of less text")
