"""Write addition rows: data/prepare.py --task=addition; readme.md beside this says what is in them.

    python data/addition/prepare.py
    python data/addition/prepare.py --max_digits=3 --zeros=shorter --out_dir=data/addition/demo
    python data/addition/prepare.py --track=slots --max_places=12 --out_dir=data/addition/padded
    python data/addition/prepare.py --zeros=shorter --few_rows=0.25 --out_dir=data/addition/zeros
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import prepare  # noqa: E402


def main():
    prepare.main("addition")


if __name__ == "__main__":
    prepare.run(main, "--train_rows")
