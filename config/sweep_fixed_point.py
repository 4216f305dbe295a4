# A fixed point in training: gradients through all loops, or through the last ones at rest alone (one: 2103.12803).
# Data: python data/addition/prepare.py --max_digits=3 --zeros=shorter --out_dir=data/addition/demo
base = "config/demo_addition.py"
seeds = [1, 2, 3]
overrides = ["--max_iters=2000 --eval_interval=2000"]
rows = [
    "all 4 loops:",
    "all 4 loops, last read out: --supervise=last",  # the three below read out the last one alone, too
    "last 2 of 4: --grad_loops=2",
    "last of 4: --grad_loops=1",
    "last of 8: --num_loops=8 --grad_loops=1",  # takes about the time of all 4
]
evaluate = [
    "--digits=[4,8,12] --problems=300 --eval_iters=0 --halt=none --prompt_loops=0",
    "16: --digits=[4,8,12] --problems=300 --eval_iters=0 --halt=none --prompt_loops=0 --num_loops=16",
    "32: --digits=[4,8,12] --problems=300 --eval_iters=0 --halt=none --prompt_loops=0 --num_loops=32",
]
