# What should re-enter the loop, and should the loops be told apart? Each step encoding with x0 and without. C = 128.
# Other places: sweep_injection_parallel.py, sweep_injection_width.py, sweep_injection_text.py.
# Data: python data/addition/prepare.py
base = "config/train_addition.py"
seeds = [1, 2, 3, 4, 5]
overrides = ["--n_embd=128 --n_head=4 --max_iters=6000 --num_loops=[6,8,10] --grad_loops=0 --halt=none "
             "--prompt_loops=0 --cuda_graph=True --compile=True --eval_interval=500"]
rows = [
    "inject add:",
    "add, learned step encoding: --step_encoding=learned",
    "add, sinusoid step encoding: --step_encoding=sinusoid",
    "add, rope step encoding: --step_encoding=rope",
    "inject none: --inject=none",
    "none, learned step encoding: --inject=none --step_encoding=learned",
    "none, sinusoid step encoding: --inject=none --step_encoding=sinusoid",
    "none, rope step encoding: --inject=none --step_encoding=rope",
    "inject concat @2: --inject=concat",
    "inject decay @2: --inject=decay",
    "decay, sinusoid step encoding @1: --inject=decay --step_encoding=sinusoid",
]
evaluate = ["--digits=[4,8,12,16,20] --eval_iters=0 --backend=torch"]
analyze = "--probes=False --tokens=4000"
