# "add, no norm" and "none, no norm" of sweep_anchor.py, which has the rows without encoding, with each step encoding:
# norm and delta of the state in every loop, up to 4 times the trained loops. Learned steps end at the trained loops, so
# nothing is asked at 32. C = 128. A demo of all eight rows: sweep_anchor_demo.py.
# Data: python data/addition/prepare.py
base = "config/train_addition.py"
seeds = [1, 2, 3]
overrides = ["--n_embd=128 --n_head=4 --max_iters=6000 --num_loops=[6,8,10] --grad_loops=0 --halt=none "
             "--prompt_loops=0 --cuda_graph=True --compile=True --eval_interval=500 --loop_norm=False"]
rows = [
    "add, learned: --step_encoding=learned",
    "add, sinusoid: --step_encoding=sinusoid",
    "add, rope: --step_encoding=rope",
    "none, learned: --inject=none --step_encoding=learned",
    "none, sinusoid: --inject=none --step_encoding=sinusoid",
    "none, rope: --inject=none --step_encoding=rope",
]
evaluate = ["--digits=[4,8,12] --eval_iters=0 --backend=torch"]
analyze = "--probes=False --tokens=4000 --iterations=20"
analyze_seeds = 3
