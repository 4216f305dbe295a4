# A tuning space in small: how large should the demo's table of place ids be? Four short runs on a CPU.
base = "config/demo_addition.py"
seeds = [1, 2]
overrides = ["--max_iters=1000 --eval_interval=500"]
rows = [
    "8 of 24 ids:",  # base as it is
    "16 of 64 ids: --place_ids=64 --place_subset=16",
]
evaluate = [
    # every token takes all 4 loops
    "--digits=[1,2,3,4] --problems=1000 --eval_iters=0 --halt=none --prompt_loops=0 --backend=torch",
    "halting: --digits=[3,4] --problems=1000 --eval_iters=0 --backend=torch",
]
