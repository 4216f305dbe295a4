# Does the halt gate save more loops if it is told which loop it reads? Without step encoding half of what it reads is
# zeros; gate_encoding gives it a sinusoid of its own. C = 128, 6,000 steps; accuracy and loops of the answer at four
# thresholds, beside eight loops for every token.
# Data: python data/addition/prepare.py
# and:  python data/addition/prepare.py --track=slots --max_places=12 --out_dir=data/addition/padded
base = "config/train_addition.py"
seeds = [0, 1, 2, 3, 4]
overrides = ["--n_embd=128 --n_head=4 --max_iters=6000 --halt_head=joint --halt=gate --halt_threshold=0.9 "
             "--cuda_graph=True --compile=True --eval_interval=6000"]
rows = [
    "N: --prompt_loops=8",
    "N, told the loop: --prompt_loops=8 --gate_encoding=True",
    "P: config/train_addition_parallel.py --prompt_loops=14",
    "P, told the loop: config/train_addition_parallel.py --prompt_loops=14 --gate_encoding=True",
]
evaluate = [
    "--digits=[4,6,8,12] --halt=none --num_loops=8 --eval_iters=0 --backend=torch",
    "gate_90: --digits=[4,6,8,12] --halt_threshold=0.9 --control=True --eval_iters=0 --backend=torch",
    "gate_98: --digits=[4,6,8,12] --halt_threshold=0.98 --control=True --eval_iters=0 --backend=torch",
    "gate_995: --digits=[4,6,8,12] --halt_threshold=0.995 --control=True --eval_iters=0 --backend=torch",
    "gate_999: --digits=[4,6,8,12] --halt_threshold=0.999 --control=True --eval_iters=0 --backend=torch",
]
