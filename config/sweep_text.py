# Space against time on text: 12 layers, 1 block x 12 loops (equal FLOPs), 1 layer (equal parameters) and the steps
# between; the three main ones with a sweep of their own; what moves the looped one. On a GPU start NVIDIA's MPS first.
# Data: python data/shakespeare_char/prepare.py
seeds = [0, 1, 2]
overrides = ["--eval_iters=50 --cuda_graph=True --compile=True"]
rows = [
    "12 layers: config/train_gpt_12l.py",
    "1 x 12: config/train_loop_1x12.py",
    "1 layer: config/train_gpt_1l.py",
    "12 layers, rate 5e-4 @1: config/train_gpt_12l.py --learning_rate=5e-4",
    "12 layers, rate 1e-3 @1: config/train_gpt_12l.py --learning_rate=1e-3",
    "12 layers, rate 4e-3 @1: config/train_gpt_12l.py --learning_rate=4e-3",
    "12 layers, rate 1e-3, dropout 0.3 @1: config/train_gpt_12l.py --learning_rate=1e-3 --dropout=0.3",
    "12 layers, dropout 0.3 @1: config/train_gpt_12l.py --dropout=0.3",
    "12 layers, rate 1e-3, weight decay 1 @1: config/train_gpt_12l.py --learning_rate=1e-3 --weight_decay=1.0",
    "1 x 12, rate 5e-4 @1: config/train_loop_1x12.py --learning_rate=5e-4",
    "1 x 12, rate 1e-3 @1: config/train_loop_1x12.py --learning_rate=1e-3",
    "1 x 12, rate 4e-3 @1: config/train_loop_1x12.py --learning_rate=4e-3",
    "1 x 12, rate 1e-3, dropout 0.1 @1: config/train_loop_1x12.py --learning_rate=1e-3 --dropout=0.1",
    "1 x 12, dropout 0.1 @1: config/train_loop_1x12.py --dropout=0.1",
    "1 layer, rate 1e-3 @1: config/train_gpt_1l.py --learning_rate=1e-3",
    "1 layer, rate 4e-3 @1: config/train_gpt_1l.py --learning_rate=4e-3",
    "1 layer, rate 1e-3, dropout 0 @1: config/train_gpt_1l.py --learning_rate=1e-3 --dropout=0",
    "2 x 6 @1: config/train_loop_1x12.py --n_layer=2 --num_loops=6",
    "3 x 4 @1: config/train_loop_1x12.py --n_layer=3 --num_loops=4 --dropout=0.3",
    "4 x 3 @1: config/train_loop_1x12.py --n_layer=4 --num_loops=3 --dropout=0.3",
    "6 x 2 @1: config/train_loop_1x12.py --n_layer=6 --num_loops=2 --dropout=0.3",
    "1 x 12, no step encoding @1: config/train_loop_1x12.py --step_encoding=none",
    "1 x 12, no step encoding, loop norm @1: config/train_loop_1x12.py --step_encoding=none --loop_norm=True",
    "1 x 12, rope @1: config/train_loop_1x12.py --pos=rope",
    "1 x 8, 12 or 16, no step encoding @1: config/train_loop_1x12.py --num_loops=[8,12,16] --step_encoding=none",
    "1 x 12, inject concat @1: config/train_loop_1x12.py --inject=concat",
    "1 x 12, inject none @1: config/train_loop_1x12.py --inject=none",
    "3 x 4, 224 wide @1: config/train_loop_1x12.py --n_layer=3 --num_loops=4 --n_embd=224 --n_head=7",
    "nanoGPT, 6 layers @1: config/train_shakespeare_char.py",
    "12 layers, rope @1: config/train_loop_1x12.py --n_layer=12 --num_loops=1 --step_encoding=none "
    "--pos=rope --dropout=0.4",
]
