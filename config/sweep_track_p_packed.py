# Track P whose training rows hold several problems, each with places of its own, so that a slot learns to overlook
# all digits but those of its place and of the one below; and as many problems one by one. On a GPU start NVIDIA's MPS.
# Data: python data/addition/prepare.py --track=slots --zeros=shorter --few_rows=0.25 --out_dir=data/addition/slots
base = "config/train_addition_parallel.py"
seeds = [0, 1, 2, 3, 4]
overrides = ["--halt=none --prompt_loops=0 --cuda_graph=True --compile=True --eval_interval=6000 --place_next=True "
             "--place_below=True --dataset=addition/slots --place_subset=5 --place_runs=0.5"]
rows = [
    "4 problems per row: --pack=4 --batch_size=32 --log_scale=63",
    "8 problems per row: --pack=8 --batch_size=16 --log_scale=127",
    "one problem per row @3: --log_scale=15",
]
evaluate = [  # 2,000 problems a count
    "--digits=[4,8,12,16,20,24,40] --kinds=all --num_loops=14 --eval_iters=0 --backend=torch",
    "56: --digits=[4,8,12,24] --num_loops=56 --eval_iters=0 --backend=torch",
    # how loops grow with digits: the thresholds lose nothing on 1 to 4 digits
    "kl: --digits=[1,2,3,4,6,8,10,12,16,20,24] --problems=500 --halt=kl --halt_threshold=1e-4 --num_loops=32 "
    "--prompt_loops=14 --eval_iters=0 --backend=torch",
    "delta: --digits=[1,2,3,4,6,8,10,12,16,20,24] --problems=500 --halt=delta --halt_threshold=0.1 --num_loops=32 "
    "--prompt_loops=14 --eval_iters=0 --backend=torch",
    "confidence: --digits=[1,2,3,4,6,8,10,12,16,20,24] --problems=500 --halt=confidence --halt_threshold=0.9999 "
    "--num_loops=32 --prompt_loops=14 --eval_iters=0 --backend=torch",
]
