# sweep_injection.py on track P: each step encoding with x0 and without. C = 128, 6,000 steps.
# Data: python data/addition/prepare.py --track=slots --max_places=12 --out_dir=data/addition/padded
base = "config/train_addition_parallel.py"
seeds = [1, 2, 3, 4, 5]
overrides = ["--n_embd=128 --n_head=4 --max_iters=6000 --num_loops=[8,10,12,14] --grad_loops=0 --halt=none "
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
]
evaluate = ["--digits=[4,6,8,10,12] --eval_iters=0 --backend=torch"]
