# The rates, dropout and weight decay tried for the three main models of sweep_text.py, and what moves the looped one.
# Data: python data/shakespeare_char/prepare.py
seeds = [0]
overrides = ["--eval_iters=50 --cuda_graph=True --compile=True"]
rows = [
    "12 layers, rate 5e-4: config/train_gpt_12l.py --learning_rate=5e-4",
    "12 layers, rate 1e-3: config/train_gpt_12l.py --learning_rate=1e-3",
    "12 layers, rate 4e-3: config/train_gpt_12l.py --learning_rate=4e-3",
    "12 layers, rate 1e-3, dropout 0.3: config/train_gpt_12l.py --learning_rate=1e-3 --dropout=0.3",
    "12 layers, dropout 0.3: config/train_gpt_12l.py --dropout=0.3",
    "12 layers, rate 1e-3, weight decay 1: config/train_gpt_12l.py --learning_rate=1e-3 --weight_decay=1.0",
    "1 x 12, rate 5e-4: config/train_loop_1x12.py --learning_rate=5e-4",
    "1 x 12, rate 1e-3: config/train_loop_1x12.py --learning_rate=1e-3",
    "1 x 12, rate 4e-3: config/train_loop_1x12.py --learning_rate=4e-3",
    "1 x 12, rate 1e-3, dropout 0.1: config/train_loop_1x12.py --learning_rate=1e-3 --dropout=0.1",
    "1 x 12, dropout 0.1: config/train_loop_1x12.py --dropout=0.1",
    "1 layer, rate 1e-3: config/train_gpt_1l.py --learning_rate=1e-3",
    "1 layer, rate 4e-3: config/train_gpt_1l.py --learning_rate=4e-3",
    "1 layer, rate 1e-3, dropout 0: config/train_gpt_1l.py --learning_rate=1e-3 --dropout=0",
    "1 x 12, no step encoding, loop norm: config/train_loop_1x12.py --step_encoding=none --loop_norm=True",
    "1 x 12, rope: config/train_loop_1x12.py --pos=rope",
    "1 x 8, 12 or 16, no step encoding: config/train_loop_1x12.py --num_loops=[8,12,16] --step_encoding=none",
    "1 x 12, inject concat: config/train_loop_1x12.py --inject=concat",
    "1 x 12, inject none: config/train_loop_1x12.py --inject=none",
]
