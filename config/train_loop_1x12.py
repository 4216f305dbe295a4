# Space against time: 1 block x 12 loops on text, beside train_gpt_12l.py (equal FLOPs) and train_gpt_1l.py (equal size)
out_dir = "out/train_loop_1x12"
dataset = "shakespeare_char"
eval_interval = 250
eval_iters = 200
log_interval = 10

block_size = 256
n_layer = 1
num_loops = 12
step_encoding = "learned"
n_head = 6
n_embd = 384
dropout = 0.2

batch_size = 64
max_iters = 2500
learning_rate = 2e-3
warmup_iters = 100
