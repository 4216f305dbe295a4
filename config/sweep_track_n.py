# Track N without frozen prompts: five seeds of what config/train_addition.py was; with them: sweep_track_n_more.py.
# Data: python data/addition/prepare.py
base = "config/train_addition.py"
seeds = [0, 1, 2, 3, 4]
overrides = ["--halt=none --prompt_loops=0 --cuda_graph=True --compile=True --eval_interval=6000"]
rows = ["16 of 64 ids:", "the same with a halt head @1: --halt_head=joint"]
evaluate = [  # 2,000 problems a count
    "--digits=[1,2,3,4,5,6,8,12,16,20,24,30,40] --num_loops=8 --eval_iters=0 --backend=torch",
    "16: --digits=[4,8,12,16,20,24] --num_loops=16 --problems=1000 --eval_iters=0 --backend=torch",
    "32: --digits=[4,8,12,16,20,24] --num_loops=32 --problems=1000 --eval_iters=0 --backend=torch",
]
