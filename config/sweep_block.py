# The block of today beside nanoGPT's on text, each part alone in 1 x 12, most in 12 layers; and 12 layers that may be
# left early. Some 50 minutes of one H100, under NVIDIA's MPS. Additions: sweep_block_digits.py.
# Data: python data/shakespeare_char/prepare.py
base = "config/train_loop_1x12.py"
seeds = [0, 1, 2]
overrides = ["--eval_iters=50 --cuda_graph=True --compile=True"]
rows = [
    "1 x 12:",
    "1 x 12, rms: --block=rms",
    "1 x 12, swiglu: --block=swiglu",
    "1 x 12, geglu: --block=geglu",
    "1 x 12, qk: --block=qk",
    "1 x 12, rope: --pos=rope",
    "1 x 12, shared keys: --n_kv_head=2",
    "1 x 12, modern: --block=modern",
    "1 x 12, modern, loop norm: --block=modern --loop_norm=True",  # does the state grow behind the readout's norm?
    "1 x 12, modern, rope, shared keys: --block=modern --pos=rope --n_kv_head=2",
    "1 x 12, keys of x0: --keys=x0",
    "12 layers: config/train_gpt_12l.py",
    "12 layers, modern: config/train_gpt_12l.py --block=modern",
    "12 layers, rms: config/train_gpt_12l.py --block=rms",
    "12 layers, swiglu: config/train_gpt_12l.py --block=swiglu",
    "12 layers, qk: config/train_gpt_12l.py --block=qk",
    "12 layers, shared keys: config/train_gpt_12l.py --n_kv_head=2",
    "12 layers left early: config/train_loop_1x12.py --tie_loops=False --inject=none --step_encoding=none "
    "--dropout=0.4 --supervise=all --halt=kl --halt_threshold=0.003",
]
