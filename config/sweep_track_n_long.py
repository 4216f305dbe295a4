# Track N as far as it goes, 40 digits: 10 of 64 ids instead of 16, 4 loops instead of 8, twice the steps. Two seeds of
# five get there, two fall behind the headline. Data: python data/addition/prepare.py
base = "config/train_addition.py"
seeds = [0, 1, 2, 3, 4]
overrides = ["--num_loops=[4,4,4,4,4,4,8,16] --grad_loops=0 --max_iters=32000 --halt=none --prompt_loops=0 "
             "--cuda_graph=True --compile=True --eval_interval=6000"]
rows = ["10 of 64 ids, 4 loops: --place_subset=10"]
evaluate = [  # 2,000 problems a count
    "--digits=[1,2,3,4,5,6,8,12,16,20,24,30,40] --num_loops=4 --eval_iters=0 --backend=torch",
    "8: --digits=[4,8,12,16,20,24,30,40] --num_loops=8 --eval_iters=0 --backend=torch",
    "16: --digits=[4,8,12,16,20,24,30,40] --num_loops=16 --eval_iters=0 --backend=torch",
]
