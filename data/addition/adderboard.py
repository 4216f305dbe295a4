"""Print the 10,010 problems of AdderBoard (github.com/anadim/AdderBoard, verify.py), numbers of up to 10 digits.

    python data/addition/adderboard.py > adderboard.txt
    python evaluate.py --checkpoint=pretrained/addition.pt --problems_file=adderboard.txt
"""
import random

LARGEST = 9_999_999_999
EDGES = ((0, 0), (0, 1), (LARGEST, 0), (LARGEST, 1), (LARGEST, LARGEST), (5_000_000_000, 5_000_000_000),
         (1_111_111_111, 8_888_888_889), (1_234_567_890, 9_876_543_210), (LARGEST, LARGEST), (1, LARGEST))


def problems():
    """The ten edge cases, then 10,000 drawn pairs, as (a, b)."""
    draw = random.Random(2025).randint
    return [*EDGES, *((draw(0, LARGEST), draw(0, LARGEST)) for _ in range(10_000))]


if __name__ == "__main__":
    print("\n".join(f"{a}+{b}" for a, b in problems()))
