# Track N, towards the headline: steady beyond the trained loops, and exact on numbers of up to 40 digits?
# Data: python data/addition/prepare.py
base = "config/train_addition.py"
seeds = [0, 1, 2]
overrides = ["--max_iters=8000 --halt=none --prompt_loops=0 --cuda_graph=True"]
rows = [
    "gradients of all of 6, 8 or 10 loops:",
    "gradients of 8 of 8 to 32 loops: --num_loops=[8,8,8,16,32] --grad_loops=8",
    "the same, inject decay: --num_loops=[8,8,8,16,32] --grad_loops=8 --inject=decay",
    "the same, 24 of 64 ids: --num_loops=[8,8,8,16,32] --grad_loops=8 --place_subset=24",
    "the same, 12 of 64 ids: --num_loops=[8,8,8,16,32] --grad_loops=8 --place_subset=12",
    "the same, 24 of 96 ids: --num_loops=[8,8,8,16,32] --grad_loops=8 --place_subset=24 --place_ids=96",
]
evaluate = [
    "--digits=[4,6,8,12,16,20,24,30,40] --num_loops=8 --eval_iters=0 --backend=torch",
    "16: --digits=[4,8,12,20] --num_loops=16 --eval_iters=0 --backend=torch",
    "32: --digits=[4,8,12,20] --num_loops=32 --eval_iters=0 --backend=torch",
]
