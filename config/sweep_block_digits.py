# The block of today beside nanoGPT's on additions, each part alone, track N to 24 digits; blocks of their own; and two
# trials on tracks N and P: a norm of what attention has seen, keys of the input alone. C = 128; an H100, 8 minutes.
# Data: python data/addition/prepare.py, and the same with --track=slots --max_places=12 --out_dir=data/addition/padded
base = "config/train_addition.py"
seeds = [0, 1, 2]
overrides = ["--n_embd=128 --n_head=4 --num_loops=8 --grad_loops=0 --max_iters=9000 --halt=none "
             "--prompt_loops=0 --cuda_graph=True --compile=True --eval_interval=9000"]
rows = [
    "nanogpt:",
    "rms: --block=rms",
    "swiglu: --block=swiglu",
    "geglu: --block=geglu",
    "qk: --block=qk",
    "shared keys: --n_kv_head=1",
    "modern: --block=modern",
    "modern, no loop norm: --block=modern --loop_norm=False",
    "after: --block=after",
    "keys of x0: --keys=x0",
    "8 blocks of their own: --tie_loops=False",
    "P, nanogpt: config/train_addition_parallel.py --max_iters=6000",
    "P, after: config/train_addition_parallel.py --max_iters=6000 --block=after",
    "P, keys of x0: config/train_addition_parallel.py --max_iters=6000 --keys=x0",
]
evaluate = ["--digits=[4,8,12,16,20,24] --problems=1000 --eval_iters=0 --backend=torch"]
