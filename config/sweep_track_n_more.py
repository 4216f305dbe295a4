# Beside the headline (sweep_track_n.py), in its whole recipe: prompts that stand still early in half of the training
# rows, and gated steps, which think on untaught in a short training (sweep_dynamics.py). Do 24 digits stay?
# Data: python data/addition/prepare.py
base = "config/train_addition.py"
seeds = [0, 1, 2, 3, 4]
overrides = ["--halt=none --cuda_graph=True --compile=True --eval_interval=6000"]
rows = [
    "frozen prompts: --prompt_loops=[0,0,3,4]",
    "concat, euler gate: --prompt_loops=0 --inject=concat --update=euler --alpha=gate",
]
evaluate = [  # those of sweep_track_n.py, and with a prompt that is read in 4 loops
    "--digits=[1,2,3,4,5,6,8,12,16,20,24,30,40] --num_loops=8 --prompt_loops=0 --eval_iters=0 --backend=torch",
    "16: --digits=[4,8,12,16,20,24] --num_loops=16 --prompt_loops=0 --problems=1000 --eval_iters=0 --backend=torch",
    "32: --digits=[4,8,12,16,20,24] --num_loops=32 --prompt_loops=0 --problems=1000 --eval_iters=0 --backend=torch",
    "read_4: --digits=[4,8,12,16,20,24] --num_loops=32 --prompt_loops=4 --problems=1000 --eval_iters=0 --backend=torch",
]
