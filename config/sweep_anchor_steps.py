# sweep_anchor.py with step encodings: norm and delta of the state in every loop without loop norm, with x0 and without,
# up to 4 times the trained loops. C = 128. Learned steps end at the loops of training, so nothing is asked at 32.
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
