# What should re-enter the loop, and should the loops be told apart? C = 128.
# Data: python data/addition/prepare.py
base = "config/train_addition.py"
seeds = [1, 2]
overrides = ["--n_embd=128 --n_head=4 --max_iters=6000 --num_loops=[6,8,10] --grad_loops=0 --halt=none "
             "--prompt_loops=0 --cuda_graph=True --compile=True --eval_interval=500"]
rows = [
    "inject add:",
    "inject none: --inject=none",
    "inject concat: --inject=concat",
    "inject decay: --inject=decay",
    "add, learned step encoding @1: --step_encoding=learned",
    "add, sinusoid step encoding @1: --step_encoding=sinusoid",
    "add, rope step encoding @1: --step_encoding=rope",
    "decay, sinusoid step encoding @1: --inject=decay --step_encoding=sinusoid",
]
evaluate = ["--digits=[4,8,12,16,20] --eval_iters=0 --backend=torch"]
analyze = "--probes=False --tokens=4000"
