# What config/train_addition_long.py owes to its parts and to depth, on fewer steps: without the end or the margin, with
# one loop or two, and with layers of their own instead of loops. Data: see there.
base = "config/train_addition_long.py"
seeds = [0, 1, 2]
overrides = ["--prompt_loops=0 --cuda_graph=True --compile=True --max_iters=20000"]
rows = [
    "the recipe:",
    "margin alone: --place_end=False",
    "end alone: --place_margin=0",
    "one loop: --num_loops=1",
    "two loops: --num_loops=2",
    "4 untied layers: --n_layer=4 --num_loops=1",
    "no next place: --place_next=False --place_end=False --place_margin=0",
]
evaluate = [  # 2,000 problems per count and kind
    "--digits=[4,8,12,24,40,60,100] --eval_iters=0 --backend=torch --kinds=uniform,equal",
]
