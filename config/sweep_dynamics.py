# The loop as a dynamical system: does an autonomous one (inject none), or one that observes its input (concat), settle,
# and what does the solver cost? C = 128; accuracy at the trained loops, at 32, and there with Anderson acceleration.
# Data: python data/addition/prepare.py
base = "config/train_addition.py"
seeds = [1, 2, 3, 4, 5]
overrides = ["--n_embd=128 --n_head=4 --max_iters=6000 --num_loops=8 --grad_loops=0 --halt=none "
             "--prompt_loops=0 --cuda_graph=True --compile=True"]
rows = [
    "none, replace: --inject=none",
    "none, euler 0.5: --inject=none --update=euler --alpha=0.5",
    "none, euler learned: --inject=none --update=euler --alpha=learned",
    "none, euler gate: --inject=none --update=euler --alpha=gate",
    "concat, replace: --inject=concat",
    "concat, euler 0.5: --inject=concat --update=euler --alpha=0.5",
    "concat, euler learned: --inject=concat --update=euler --alpha=learned",
    "concat, euler gate: --inject=concat --update=euler --alpha=gate",
    "concat, heun, 4 loops: --inject=concat --update=heun --alpha=0.5 --num_loops=4",  # as many evaluations
    "concat, rk4, 2 loops: --inject=concat --update=rk4 --num_loops=2",
    # gradients through the last 4; in the first row all counts are multiples of 4, in the second they share no period
    "concat, replace, gradients of 4 of 4, 8 or 16 loops: --inject=concat --num_loops=[4,8,16] --grad_loops=4",
    "concat, replace, gradients of 4 of 4, 7, 10 or 16 loops: --inject=concat --num_loops=[4,7,10,16] --grad_loops=4",
]
evaluate = [
    "--digits=[4,8,12] --eval_iters=0 --backend=torch",
    "long: --digits=[4,8,12] --num_loops=32 --eval_iters=0 --backend=torch",
    "anderson: --digits=[4,8,12] --num_loops=32 --anderson=5 --eval_iters=0 --backend=torch",
]
analyze = "--probes=False --tokens=4000"
analyze_seeds = 3
