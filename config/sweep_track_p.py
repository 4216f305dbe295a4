# Track P, all digits of the answer at once: config/train_addition_parallel.py as it was, never frozen, and as it is.
# Data: python data/addition/prepare.py --track=slots --max_places=12 --out_dir=data/addition/padded
base = "config/train_addition_parallel.py"
seeds = [0, 1, 2, 3, 4]
overrides = ["--halt=none --prompt_loops=0 --cuda_graph=True --compile=True --eval_interval=6000"]
rows = ["leading zeros:", "frozen prompts: --prompt_loops=[0,2,3,4]"]
evaluate = [  # 2,000 problems a count
    "--digits=[1,2,3,4,5,6,8,10,12,16,20] --num_loops=14 --eval_iters=0 --backend=torch",
    "28: --digits=[4,8,12,16,20] --num_loops=28 --eval_iters=0 --backend=torch",
    "56: --digits=[4,8,12,16,20] --num_loops=56 --eval_iters=0 --backend=torch",
    # how loops grow with digits: the thresholds lose nothing on 1 to 4 digits
    "kl: --digits=[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20] --problems=500 --plot=True "
    "--halt=kl --halt_threshold=1e-4 --num_loops=32 --prompt_loops=14 --eval_iters=0 --backend=torch",
    "delta: --digits=[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20] --problems=500 --plot=True "
    "--halt=delta --halt_threshold=0.1 --num_loops=32 --prompt_loops=14 --eval_iters=0 --backend=torch",
    "confidence: --digits=[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20] --problems=500 --plot=True "
    "--halt=confidence --halt_threshold=0.9999 --num_loops=32 --prompt_loops=14 --eval_iters=0 --backend=torch",
]
