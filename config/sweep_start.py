# A thinking state of its own: where h begins, with injection; and do states from other starts meet (start_distance in
# <name>_states.csv)? A loop that adds x0 is from zero the same as from x0, to the bit, so zero stands with decay alone.
# C = 128, 6,000 steps; tracks N and P, accuracy at the trained loops and at 32.
# Data: python data/addition/prepare.py
# and:  python data/addition/prepare.py --track=slots --max_places=12 --out_dir=data/addition/padded
base = "config/train_addition.py"
seeds = [1, 2, 3]
overrides = ["--n_embd=128 --n_head=4 --max_iters=6000 --grad_loops=0 --halt=none --prompt_loops=0 --cuda_graph=True "
             "--compile=True --eval_interval=500"]
rows = [
    "N x0: --num_loops=[6,8,10]",
    "N learned: --num_loops=[6,8,10] --start=learned",
    "N random: --num_loops=[6,8,10] --start=random",
    "N decay, x0: --num_loops=[6,8,10] --inject=decay",
    "N decay, zero: --num_loops=[6,8,10] --inject=decay --start=zero",
    "P x0: config/train_addition_parallel.py --num_loops=[8,10,12,14]",
    "P learned: config/train_addition_parallel.py --num_loops=[8,10,12,14] --start=learned",
    "P random: config/train_addition_parallel.py --num_loops=[8,10,12,14] --start=random",
]
evaluate = [
    "--digits=[4,8,12,16] --eval_iters=0 --backend=torch",
    "long: --digits=[4,8,12,16] --num_loops=32 --eval_iters=0 --backend=torch",
]
analyze = "--probes=False --tokens=4000 --sequences=32 --iterations=20"
analyze_seeds = 3
