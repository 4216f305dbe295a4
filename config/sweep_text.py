# Space against time on text: 12 layers, 1 block x 12 loops (equal FLOPs), 1 layer (equal parameters), and the steps
# between; how their settings were found: sweep_text_tuning.py.
# Data: python data/shakespeare_char/prepare.py
seeds = [0, 1, 2]
overrides = ["--eval_iters=50 --cuda_graph=True --compile=True"]
rows = [
    "12 layers: config/train_gpt_12l.py",
    "1 x 12: config/train_loop_1x12.py",
    "1 layer: config/train_gpt_1l.py",
    "2 x 6 @1: config/train_loop_1x12.py --n_layer=2 --num_loops=6",
    "3 x 4 @1: config/train_loop_1x12.py --n_layer=3 --num_loops=4 --dropout=0.3",
    "4 x 3 @1: config/train_loop_1x12.py --n_layer=4 --num_loops=3 --dropout=0.3",
    "6 x 2 @1: config/train_loop_1x12.py --n_layer=6 --num_loops=2 --dropout=0.3",
    "3 x 4, 224 wide @1: config/train_loop_1x12.py --n_layer=3 --num_loops=4 --n_embd=224 --n_head=7",
    "1 x 12, no step encoding: config/train_loop_1x12.py --step_encoding=none",
    "1 x 12, all loops supervised @1: config/train_loop_1x12.py --step_encoding=none --supervise=all --halt=kl "
    "--halt_threshold=0.003",  # pretrained/text.pt, that of train.py's own seed
    "nanoGPT, 6 layers @1: config/train_shakespeare_char.py",
    "12 layers, rope @2: config/train_loop_1x12.py --n_layer=12 --num_loops=1 --step_encoding=none --pos=rope "
    "--dropout=0.4",
    "1 layer, rope: config/train_loop_1x12.py --num_loops=1 --step_encoding=none --pos=rope --dropout=0.1",
]
