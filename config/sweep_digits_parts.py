# What each part of the recipe of config/sweep_digits_loud.py gives: the recipe without it. Data: see there, and
# python data/addition/prepare.py --few_rows=0.25 --out_dir=data/addition/few_digits (numbers as they are)
# python data/addition/prepare.py --zeros=shorter --out_dir=data/addition/shorter (no rows of few digits)
base = "config/train_addition_long.py"
seeds = [5, 6, 7]
overrides = ["--prompt_loops=0 --cuda_graph=True --compile=True --place_scale=0.2 --place_end=False --place_margin=0 "
             "--max_iters=36000"]
rows = [
    "louder without runs: --place_runs=0",
    "runs without louder: --place_scale=0.02",
    "no next place: --place_next=False",
    "numbers as they are: --dataset=addition/few_digits",
    "no rows of few digits: --dataset=addition/shorter",
]
evaluate = [  # 2,000 problems per count and kind
    "--digits=[24,40,60,80,100] --num_loops=4 --eval_iters=0 --backend=torch --kinds=all",
    "16: --digits=[24,40,60] --num_loops=16 --eval_iters=0 --backend=torch",
]
