# Does looping help? The same data, positions, width and steps without loops, and the looped model with other positions.
# Data: python data/addition/prepare.py. A LoopGPT of one loop is nanoGPT's GPT to the bit, but for what its row says.
base = "config/train_addition.py"
seeds = [0, 1, 2]
overrides = ["--n_embd=128 --n_head=4 --num_loops=8 --grad_loops=0 --max_iters=9000 --halt=none "
             "--prompt_loops=0 --cuda_graph=True --compile=True --eval_interval=9000"]
rows = [
    "1 block x 8 loops:",
    "1 layer: --num_loops=1 --supervise=last --loop_norm=False",
    "12 untied layers: --n_layer=12 --num_loops=1 --supervise=last --loop_norm=False",
    "4 untied layers @1: --n_layer=4 --num_loops=1 --supervise=last --loop_norm=False",
    "1 block x 4 loops @1: --num_loops=4",
    "1 block x 12 loops @1: --num_loops=12",
    "looped, learned positions @1: --pos=learned",
    "looped, rope @1: --pos=rope",
    "looped, no positions @1: --pos=none",
    "nanoGPT, 6 layers of 384 @1: --n_layer=6 --n_embd=384 --n_head=6 --num_loops=1 --pos=learned "
    "--tie_weights=True --supervise=last --loop_norm=False --log_scale=0",
]
evaluate = ["--digits=[1,2,3,4,5,6,8,12,16,20] --eval_iters=0 --backend=torch"]  # 2,000 problems a count
