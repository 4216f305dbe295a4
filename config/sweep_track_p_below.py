# Track P whose slots are told the place below, from which a carry comes; then what keeps the ids apart too (see
# config/train_addition_long.py); then the same on rows as short as the numbers.
# Data: python data/addition/prepare.py --track=slots --max_places=12 --out_dir=data/addition/padded, and
# python data/addition/prepare.py --track=slots --zeros=shorter --few_rows=0.25 --out_dir=data/addition/slots
base = "config/train_addition_parallel.py"
seeds = [0, 1, 2, 3, 4]
overrides = ["--halt=none --prompt_loops=0 --cuda_graph=True --compile=True --eval_interval=6000 --place_next=True "
             "--place_below=True --log_scale=40"]
rows = [
    "the place below @3:",
    "the same with end and margin: --place_end=True --place_margin=8",
    "no longer rows: --place_end=True --place_margin=8 --dataset=addition/slots --place_subset=8 --place_runs=0.25 "
    "--log_scale=15",
]
evaluate = [  # 2,000 problems a count
    "--digits=[4,8,12,16,20,24] --kinds=all --num_loops=14 --eval_iters=0 --backend=torch",
    "56: --digits=[4,8,12,24] --num_loops=56 --eval_iters=0 --backend=torch",
    "28: --digits=[4,8,12,24] --num_loops=28 --eval_iters=0 --backend=torch",
    # how loops grow with digits: the thresholds lose nothing on 1 to 4 digits
    "kl: --digits=[1,2,3,4,6,8,10,12,16,20,24] --problems=500 --halt=kl --halt_threshold=1e-4 --num_loops=32 "
    "--prompt_loops=14 --eval_iters=0 --backend=torch",
    "delta: --digits=[1,2,3,4,6,8,10,12,16,20,24] --problems=500 --halt=delta --halt_threshold=0.1 --num_loops=32 "
    "--prompt_loops=14 --eval_iters=0 --backend=torch",
    "confidence: --digits=[1,2,3,4,6,8,10,12,16,20,24] --problems=500 --halt=confidence --halt_threshold=0.9999 "
    "--num_loops=32 --prompt_loops=14 --eval_iters=0 --backend=torch",
]
