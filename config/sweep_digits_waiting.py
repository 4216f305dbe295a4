# Do 100 digits stay those of sweep_digits.py with prompts that are frozen after 3 or 4 loops in half of the training
# rows: in the whole recipe, and where the shipped model is trained on? And do its answers then bear a fast reading?
# The shipped model of then is seed 0 of sweep_digits.py, its averaged weights in bfloat16; the one of now is seed 0 of
# the first row.
# Data: see config/train_addition_long.py
base = "config/train_addition_long.py"
seeds = [0, 1, 2, 3, 4]
overrides = ["--prompt_loops=[0,0,3,4] --halt=kl --halt_threshold=1e-3 --cuda_graph=True --compile=True"]
rows = [
    "frozen prompts:",
    "the shipped model trained on: --init_from=out/sweep_digits/the_recipe/seed0/ckpt_last.pt --max_iters=5000 "
    "--learning_rate=3e-4",
]
evaluate = [
    "--digits=[24,40,60,80,100] --num_loops=4 --halt=none --prompt_loops=0 --eval_iters=0 --backend=torch --kinds=all",
    "small: --digits=[4,8,12,16,20] --num_loops=4 --halt=none --prompt_loops=0 --eval_iters=0 --backend=torch "
    "--kinds=uniform,hard",
    "waiting: --digits=[4,8,12] --problems=1000 --kinds=uniform --eval_iters=0 --backend=torch --waiting=True",
]
