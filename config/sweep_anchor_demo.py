# sweep_anchor_steps.py as a demo of 64 channels, an address and 4 loops, half an hour of two cores of a CPU: norm and
# delta of the state in every loop without loop norm, with x0 and without, each step encoding beside none.
# Data: python data/addition/prepare.py --max_digits=3 --zeros=shorter --out_dir=data/addition/demo
base = "config/demo_addition.py"
seeds = [1, 2, 3]
overrides = ["--loop_norm=False --halt=none --prompt_loops=0 --max_iters=3000"]
rows = [
    "add:",
    "add, learned: --step_encoding=learned",
    "add, sinusoid: --step_encoding=sinusoid",
    "add, rope: --step_encoding=rope",
    "none: --inject=none",
    "none, learned: --inject=none --step_encoding=learned",
    "none, sinusoid: --inject=none --step_encoding=sinusoid",
    "none, rope: --inject=none --step_encoding=rope",
]
evaluate = ["--digits=[3,4,8] --problems=500 --eval_iters=0"]
analyze = "--probes=False --tokens=4000 --iterations=5"
analyze_seeds = 3
