"""Write tinyshakespeare, one token per character: data/text/prepare.py of that text.

    python data/shakespeare_char/prepare.py                      downloads the text (1 MB)
    python data/shakespeare_char/prepare.py --input=input.txt    takes any text file
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from text import prepare  # noqa: E402


def main():
    prepare.main("--out_dir=data/shakespeare_char")


if __name__ == "__main__":
    prepare.run(main, "--input=FILE of less text")
