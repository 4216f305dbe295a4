# Width, heads, regularisation and data, one change at a time; a short training of 12 loops.
# Data, each by python data/addition/prepare.py: as it is; --plain=True --out_dir=data/addition/plain;
# --carry_rows=0 --out_dir=data/addition/nocarry
base = "config/train_addition.py"
seeds = [1, 2]
overrides = ["--n_embd=384 --n_head=6 --num_loops=12 --grad_loops=0 --max_iters=2000 --halt=none "
             "--prompt_loops=0 --cuda_graph=True --compile=True"]
rows = [
    "384 wide, 6 heads:",
    "A1 256 wide, 8 heads: --n_embd=256 --n_head=8",
    "A1 256 wide, 4 heads: --n_embd=256 --n_head=4",
    "A2 128 wide, 4 heads: --n_embd=128 --n_head=4",
    "A3 dropout 0.3: --dropout=0.3",
    "A3 dropout 0.4: --dropout=0.4",
    "A4 label smoothing 0.1: --label_smoothing=0.1",
    "A5 weight decay 0.1: --weight_decay=0.1",
    "A5 weight decay 0.001: --weight_decay=0.001",  # the base has 0.01
    "no operand swap: --swap_operands=False",
    "half of the rows C=A+B @1: --flip_rows=0.5",
    "200,000 fixed rows @1: --fresh_rows=False",
    "no carry rows @1: --dataset=addition/nocarry",
    "rope, least significant digit first @1: --pos=rope",
    "rope, most significant digit first @1: --pos=rope --dataset=addition/plain",
]
evaluate = ["--digits=[1,2,3,4,5,6,8,12,16] --eval_iters=0 --backend=torch"]
