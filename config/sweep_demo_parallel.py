# All digits at once on a CPU: with and without other problems in a training row. About 20 minutes of a core per run.
# Data: python data/addition/prepare.py --track=slots --zeros=shorter --few_rows=0.25 --out_dir=data/addition/slots
base = "config/demo_addition_parallel.py"
seeds = [0, 1, 2, 3, 4]
overrides = ["--device=cpu --compile=False"]
rows = [
    "4 problems per row:",
    "one problem per row @1: --pack=1 --batch_size=96 --log_scale=15",
]
evaluate = [  # 2,000 problems a count
    "--digits=[4,8,12,16,20,24,40] --kinds=uniform --problems=2000 --num_loops=10 --eval_iters=0 --device=cpu",
    "56: --digits=[4,12,24] --kinds=uniform --problems=2000 --num_loops=56 --eval_iters=0 --device=cpu",
    "10: --digits=[12,24] --kinds=hard,shorter_a,shorter_b,equal,nines --problems=500 --num_loops=10 --eval_iters=0 "
    "--device=cpu",
    # how loops grow with digits
    "kl: --digits=[4,12,24] --problems=200 --kinds=uniform --halt=kl --halt_threshold=1e-4 --num_loops=32 "
    "--prompt_loops=10 --eval_iters=0 --device=cpu",
    "delta: --digits=[4,12,24] --problems=200 --kinds=uniform --halt=delta --halt_threshold=0.1 --num_loops=32 "
    "--prompt_loops=10 --eval_iters=0 --device=cpu",
    "confidence: --digits=[4,12,24] --problems=200 --kinds=uniform --halt=confidence --halt_threshold=0.9999 "
    "--num_loops=32 --prompt_loops=10 --eval_iters=0 --device=cpu",
]
