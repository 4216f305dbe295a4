# Does x0 hold the state? Norm and delta of the state in every loop, without loop norm, which would hide it, and with;
# they stand in <name>_states.csv, up to 4 times the trained loops, beside those of untrained weights. C = 128.
# Data: python data/addition/prepare.py
base = "config/train_addition.py"
seeds = [1, 2, 3]
overrides = ["--n_embd=128 --n_head=4 --max_iters=6000 --num_loops=[6,8,10] --grad_loops=0 --halt=none "
             "--prompt_loops=0 --cuda_graph=True --compile=True --eval_interval=500"]
rows = [
    "add, no norm: --loop_norm=False",
    "none, no norm: --inject=none --loop_norm=False",
    "concat, no norm: --inject=concat --loop_norm=False",
    "decay, no norm: --inject=decay --loop_norm=False",
    "add:",
    "none: --inject=none",
    "concat: --inject=concat",
    "decay: --inject=decay",
]
evaluate = [
    "--digits=[4,8,12] --eval_iters=0 --backend=torch",
    "long: --digits=[4,8,12] --num_loops=32 --eval_iters=0 --backend=torch",
]
analyze = "--probes=False --tokens=4000 --iterations=20"
analyze_seeds = 3
