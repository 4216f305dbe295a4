# sweep_injection.py at other widths: each step encoding with x0 and without, tracks N and P, 64 and 256 channels.
# 6,000 steps of track N, 4,000 of P.
# Data: python data/addition/prepare.py
# and:  python data/addition/prepare.py --track=slots --max_places=12 --out_dir=data/addition/padded
base = "config/train_addition.py"
seeds = [1, 2, 3, 4, 5]
overrides = ["--max_iters=6000 --grad_loops=0 --halt=none --prompt_loops=0 --cuda_graph=True --compile=True "
             "--eval_interval=500 --num_loops=[6,8,10]"]
rows = [
    "N 64, add: --n_embd=64 --n_head=4",
    "N 64, add, learned: --n_embd=64 --n_head=4 --step_encoding=learned",
    "N 64, add, sinusoid: --n_embd=64 --n_head=4 --step_encoding=sinusoid",
    "N 64, add, rope: --n_embd=64 --n_head=4 --step_encoding=rope",
    "N 64, none: --n_embd=64 --n_head=4 --inject=none",
    "N 64, none, learned: --n_embd=64 --n_head=4 --inject=none --step_encoding=learned",
    "N 64, none, sinusoid: --n_embd=64 --n_head=4 --inject=none --step_encoding=sinusoid",
    "N 64, none, rope: --n_embd=64 --n_head=4 --inject=none --step_encoding=rope",
    "N 256, add: --n_embd=256 --n_head=8",
    "N 256, add, learned: --n_embd=256 --n_head=8 --step_encoding=learned",
    "N 256, add, sinusoid: --n_embd=256 --n_head=8 --step_encoding=sinusoid",
    "N 256, add, rope: --n_embd=256 --n_head=8 --step_encoding=rope",
    "N 256, none: --n_embd=256 --n_head=8 --inject=none",
    "N 256, none, learned: --n_embd=256 --n_head=8 --inject=none --step_encoding=learned",
    "N 256, none, sinusoid: --n_embd=256 --n_head=8 --inject=none --step_encoding=sinusoid",
    "N 256, none, rope: --n_embd=256 --n_head=8 --inject=none --step_encoding=rope",
    "P 64, add: config/train_addition_parallel.py --n_embd=64 --n_head=4 --max_iters=4000",
    "P 64, add, learned: config/train_addition_parallel.py --n_embd=64 --n_head=4 --max_iters=4000 "
    "--step_encoding=learned",
    "P 64, add, sinusoid: config/train_addition_parallel.py --n_embd=64 --n_head=4 --max_iters=4000 "
    "--step_encoding=sinusoid",
    "P 64, add, rope: config/train_addition_parallel.py --n_embd=64 --n_head=4 --max_iters=4000 --step_encoding=rope",
    "P 64, none: config/train_addition_parallel.py --n_embd=64 --n_head=4 --max_iters=4000 --inject=none",
    "P 64, none, learned: config/train_addition_parallel.py --n_embd=64 --n_head=4 --max_iters=4000 "
    "--inject=none --step_encoding=learned",
    "P 64, none, sinusoid: config/train_addition_parallel.py --n_embd=64 --n_head=4 --max_iters=4000 "
    "--inject=none --step_encoding=sinusoid",
    "P 64, none, rope: config/train_addition_parallel.py --n_embd=64 --n_head=4 --max_iters=4000 "
    "--inject=none --step_encoding=rope",
    "P 256, add: config/train_addition_parallel.py --max_iters=4000",
    "P 256, add, learned: config/train_addition_parallel.py --max_iters=4000 --step_encoding=learned",
    "P 256, add, sinusoid: config/train_addition_parallel.py --max_iters=4000 --step_encoding=sinusoid",
    "P 256, add, rope: config/train_addition_parallel.py --max_iters=4000 --step_encoding=rope",
    "P 256, none: config/train_addition_parallel.py --max_iters=4000 --inject=none",
    "P 256, none, learned: config/train_addition_parallel.py --max_iters=4000 --inject=none --step_encoding=learned",
    "P 256, none, sinusoid: config/train_addition_parallel.py --max_iters=4000 --inject=none --step_encoding=sinusoid",
    "P 256, none, rope: config/train_addition_parallel.py --max_iters=4000 --inject=none --step_encoding=rope",
]
evaluate = ["--digits=[4,8,12,16,20] --eval_iters=0 --backend=torch"]
