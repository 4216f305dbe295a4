# Does an answer that thinks on bear a prompt that was read in 3 or 4 loops? With prompts that stand still early in half
# of the training rows or more, and without; reading {3, 4, 8, 0.9} times writing {the rule, 8, 16, 24, 32}, at full
# training.
# The shipped models are those of before they were trained with frozen prompts: seed 0 of sweep_track_n.py, and of the
# first row of sweep_track_p.py, which are to be run first (these tables began with the same weights in bfloat16).
# Data: python data/addition/prepare.py
# and:  python data/addition/prepare.py --track=slots --max_places=12 --out_dir=data/addition/padded
base = "config/train_addition.py"
seeds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
overrides = ["--cuda_graph=True --compile=True --eval_interval=16000"]
rows = [
    "N @5: --prompt_loops=8",
    "N, frozen prompts @5: --prompt_loops=[0,0,3,4]",
    "N, the shipped model trained on @5: --prompt_loops=[0,0,3,4] "
    "--init_from=out/sweep_track_n/16_of_64_ids/seed0/ckpt_last.pt "
    "--max_iters=3000 --learning_rate=3e-4",
    "P @5: config/train_addition_parallel.py --prompt_loops=14",
    "P, frozen prompts: config/train_addition_parallel.py --prompt_loops=[0,0,3,4]",
    "P, the shipped model trained on @5: config/train_addition_parallel.py --prompt_loops=[0,0,3,4] "
    "--init_from=out/sweep_track_p/leading_zeros/seed0/ckpt_last.pt --max_iters=3000 --learning_rate=3e-4",
    "P, every prompt frozen @5: config/train_addition_parallel.py --prompt_loops=[3,4]",
    "P, frozen after 2 as well: config/train_addition_parallel.py --prompt_loops=[0,2,3,4]",
    "P, prompts of four lengths: config/train_addition_parallel.py --prompt_loops=[3,4,8,14]",
    "P, the shipped model, every prompt frozen @5: config/train_addition_parallel.py --prompt_loops=[3,4] "
    "--init_from=out/sweep_track_p/leading_zeros/seed0/ckpt_last.pt --max_iters=3000 --learning_rate=3e-4",
    "P, the shipped model, frozen after 2 as well @5: config/train_addition_parallel.py --prompt_loops=[0,2,3,4] "
    "--init_from=out/sweep_track_p/leading_zeros/seed0/ckpt_last.pt --max_iters=3000 --learning_rate=3e-4",
    "P, the shipped model, prompts of four lengths @5: config/train_addition_parallel.py --prompt_loops=[3,4,8,14] "
    "--init_from=out/sweep_track_p/leading_zeros/seed0/ckpt_last.pt --max_iters=3000 --learning_rate=3e-4",
]
evaluate = ["--digits=[4,8,12] --problems=1000 --kinds=uniform --eval_iters=0 --backend=torch --waiting=True"]
