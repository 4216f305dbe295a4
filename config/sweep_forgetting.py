# What does a state forget, and does the loop rest? The demo with each injection, as a solver and without loop norm.
# Data: python data/addition/prepare.py --max_digits=3 --zeros=shorter --out_dir=data/addition/demo
base = "config/demo_addition.py"
seeds = [1, 2, 1337]
rows = [
    "add:",  # base as it is
    "none: --inject=none",
    "concat: --inject=concat",
    "decay: --inject=decay",
    "add, no loop norm: --loop_norm=False",
    "add, euler 0.5: --update=euler --alpha=0.5",
    "add, euler 0.5, no loop norm: --update=euler --alpha=0.5 --loop_norm=False",
]
evaluate = [
    "--digits=[3,4,8] --problems=500 --eval_iters=0 --halt=none --prompt_loops=0",
    "long: --digits=[3,4,8] --problems=500 --eval_iters=0 --halt=none --prompt_loops=0 --num_loops=16",
]
analyze = "--tokens=4000 --sequences=16 --iterations=5"
analyze_seeds = 3
