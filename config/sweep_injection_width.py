# sweep_injection.py at other widths: tracks N and P with 64 and 256 channels, with x0 and without; on track N without
# it also with a step encoding that ends with the trained loops, and one that extends. 6,000 steps of N, 4,000 of P.
# Data: python data/addition/prepare.py
# and:  python data/addition/prepare.py --track=slots --max_places=12 --out_dir=data/addition/padded
base = "config/train_addition.py"
seeds = [1, 2]
overrides = ["--max_iters=6000 --grad_loops=0 --halt=none --prompt_loops=0 --cuda_graph=True --compile=True "
             "--eval_interval=500 --num_loops=[6,8,10]"]
rows = [
    "N 64, add: --n_embd=64 --n_head=4",
    "N 64, none: --n_embd=64 --n_head=4 --inject=none",
    "N 64, none, learned: --n_embd=64 --n_head=4 --inject=none --step_encoding=learned",
    "N 64, none, sinusoid: --n_embd=64 --n_head=4 --inject=none --step_encoding=sinusoid",
    "N 256, add: --n_embd=256 --n_head=8",
    "N 256, none: --n_embd=256 --n_head=8 --inject=none",
    "N 256, none, learned: --n_embd=256 --n_head=8 --inject=none --step_encoding=learned",
    "N 256, none, sinusoid: --n_embd=256 --n_head=8 --inject=none --step_encoding=sinusoid",
    "P 64, add: config/train_addition_parallel.py --n_embd=64 --n_head=4 --max_iters=4000",
    "P 64, none: config/train_addition_parallel.py --n_embd=64 --n_head=4 --max_iters=4000 --inject=none",
    "P 256, add: config/train_addition_parallel.py --max_iters=4000",
    "P 256, none: config/train_addition_parallel.py --max_iters=4000 --inject=none",
]
evaluate = ["--digits=[4,8,12,16,20] --eval_iters=0 --backend=torch"]
