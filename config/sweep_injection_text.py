# sweep_injection.py on text, 1 block x 12 loops: each step encoding with x0 and without.
# Data: python data/shakespeare_char/prepare.py
base = "config/train_loop_1x12.py"
seeds = [0, 1]
overrides = ["--eval_iters=50 --cuda_graph=True --compile=True"]
rows = [
    "add: --step_encoding=none",
    "add, learned step encoding: --step_encoding=learned",
    "add, sinusoid step encoding: --step_encoding=sinusoid",
    "add, rope step encoding: --step_encoding=rope",
    "none: --inject=none --step_encoding=none",
    "none, learned step encoding: --inject=none --step_encoding=learned",
    "none, sinusoid step encoding: --inject=none --step_encoding=sinusoid",
    "none, rope step encoding: --inject=none --step_encoding=rope",
]
