# What started the plan: do A1 to A5 overfit 50,000 or 200,000 fixed rows, by capacity, data or time? Training and
# validation loss stand in <name>_curves.csv, beside fresh rows, of which there is always another one. 12 loops.
# Place ids are drawn anew for a row in every step; "as counted" and "learned" show the same row each time.
# Data: python data/addition/prepare.py
# and:  python data/addition/prepare.py --train_rows=50000 --out_dir=data/addition/few
# and:  python data/addition/prepare.py --train_rows=2000 --out_dir=data/addition/rows_2000
base = "config/train_addition.py"
seeds = [1, 2, 3]
overrides = ["--n_embd=384 --n_head=6 --num_loops=12 --grad_loops=0 --max_iters=4000 --fresh_rows=False "
             "--swap_operands=False --halt=none --prompt_loops=0 --cuda_graph=True --compile=True --eval_interval=250"]
rows = [
    "384 wide, 50,000: --dataset=addition/few",
    "A1 256 wide, 50,000: --dataset=addition/few --n_embd=256 --n_head=8",
    "A2 128 wide, 50,000: --dataset=addition/few --n_embd=128 --n_head=4",
    "A3 dropout 0.3, 50,000: --dataset=addition/few --dropout=0.3",
    "A4 label smoothing 0.1, 50,000: --dataset=addition/few --label_smoothing=0.1",
    "A5 weight decay 0.1, 50,000: --dataset=addition/few --weight_decay=0.1",
    "384 wide, 200,000:",
    "A1 256 wide, 200,000: --n_embd=256 --n_head=8",
    "A2 128 wide, 200,000: --n_embd=128 --n_head=4",
    "A3 dropout 0.3, 200,000: --dropout=0.3",
    "A4 label smoothing 0.1, 200,000: --label_smoothing=0.1",
    "A5 weight decay 0.1, 200,000: --weight_decay=0.1",
    "384 wide, fresh rows: --fresh_rows=True",
    "A2 128 wide, fresh rows: --fresh_rows=True --n_embd=128 --n_head=4",
    "384 wide, as counted, 50,000: --dataset=addition/few --place_subset=0",
    "384 wide, learned, 50,000: --dataset=addition/few --pos=learned",
    "384 wide, learned, 2,000: --dataset=addition/rows_2000 --pos=learned",
    "A2 128 wide, fresh rows, 12,000 steps: --fresh_rows=True --n_embd=128 --n_head=4 --max_iters=12000",
]
evaluate = ["--digits=[1,2,3,4,5,6,8,12] --eval_iters=0 --backend=torch"]
