# Do single seeds of a search fall by the loop norm, as at 128 channels (sweep_anchor_steps.py)? A demo of 64 channels
# without an address, with the norm and without, and without it for twice as long; half an hour of two cores.
# Data: python data/addition/prepare.py --max_digits=3 --zeros=shorter --out_dir=data/addition/demo
base = "config/demo_addition.py"
seeds = [1, 2, 3, 4, 5, 6]
overrides = ["--place_next=False --place_end=False --halt=none --prompt_loops=0 --max_iters=6000"]
rows = [
    "norm:",
    "no norm: --loop_norm=False",
    "no norm, 12,000 steps @3: --loop_norm=False --max_iters=12000",
]
evaluate = ["--digits=[2,3,4,8] --problems=500 --eval_iters=0"]
