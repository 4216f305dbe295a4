# Does what the newer block gives in the short recipe of sweep_block_digits.py hold in the whole one of track N?
# nanogpt's block has five seeds in sweep_track_n.py. Some 5 minutes a run, 12 at once on an H200.
# Data: python data/addition/prepare.py
base = "config/train_addition.py"
seeds = [0, 1, 2]
overrides = ["--halt=none --prompt_loops=0 --cuda_graph=True --compile=True --eval_interval=16000"]
rows = [
    "qk: --block=qk",
    "modern: --block=modern",
    "rms: --block=rms",
    "swiglu: --block=swiglu",
]
evaluate = [
    "--digits=[4,8,12,16,20,24,30,40] --num_loops=8 --eval_iters=0 --backend=torch",
    "32: --digits=[12,24] --num_loops=32 --problems=1000 --eval_iters=0 --backend=torch",
]
