# Track N, the headline: five seeds of config/train_addition.py, whose prompts are frozen after 3 or 4 loops in half of
# the training rows (sweep_waiting.py). Do 24 digits stay those of sweep_track_n.py? And with concat and gated Euler
# steps, which in a first sample of a short training kept answers for four times the trained loops, as nobody had taught
# them to (sweep_dynamics.py; in a second sample two seeds of five do), and whose prompts are never frozen here?
# Data: python data/addition/prepare.py
base = "config/train_addition.py"
seeds = [0, 1, 2, 3, 4]
overrides = ["--halt=none --cuda_graph=True --compile=True --eval_interval=6000"]
rows = [
    "frozen prompts: --prompt_loops=[0,0,3,4]",
    "concat, euler gate: --prompt_loops=0 --inject=concat --update=euler --alpha=gate",
]
evaluate = [  # those of sweep_track_n.py, then read in 4 loops and written in 8 and in 32
    "--digits=[1,2,3,4,5,6,8,12,16,20,24,30,40] --num_loops=8 --prompt_loops=0 --eval_iters=0 --backend=torch",
    "16: --digits=[4,8,12,16,20,24] --num_loops=16 --prompt_loops=0 --problems=1000 --eval_iters=0 --backend=torch",
    "32: --digits=[4,8,12,16,20,24] --num_loops=32 --prompt_loops=0 --problems=1000 --eval_iters=0 --backend=torch",
    "fast: --digits=[4,8,12,16,20,24] --num_loops=8 --prompt_loops=4 --problems=1000 --eval_iters=0 --backend=torch",
    "fast32: --digits=[4,8,12,16,20,24] --num_loops=32 --prompt_loops=4 --problems=1000 --eval_iters=0 --backend=torch",
]
