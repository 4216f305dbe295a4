# Track N to 100 digits, whatever the shape of the problem: config/train_addition_long.py without frozen prompts (with
# them: sweep_digits_waiting.py), and the same without what finds the end of a number and keeps the ids apart. Data: see
# there.
base = "config/train_addition_long.py"
seeds = [0, 1, 2, 3, 4]
overrides = ["--prompt_loops=0 --cuda_graph=True --compile=True"]
rows = [
    "the recipe:",
    "without end and margin: --place_end=False --place_margin=0",
]
evaluate = [  # 2,000 problems per count and kind
    "--digits=[24,40,60,80,100] --num_loops=4 --eval_iters=0 --backend=torch --kinds=all",
    "16: --digits=[24,40,60] --num_loops=16 --eval_iters=0 --backend=torch --kinds=all",
    "small: --digits=[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23] --num_loops=4 --eval_iters=0 "
    "--backend=torch --kinds=all",
    "8: --digits=[24,40] --num_loops=8 --eval_iters=0 --backend=torch --kinds=all",
]
