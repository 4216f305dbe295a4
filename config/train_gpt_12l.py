# The gold standard in depth: GPT with 12 layers, whose FLOPs train_loop_1x12.py has with a twelfth of its blocks.
out_dir = "out/train_gpt_12l"
dataset = "shakespeare_char"
model_type = "gpt"
eval_interval = 250
eval_iters = 200
log_interval = 10

block_size = 256
n_layer = 12
n_head = 6
n_embd = 384
dropout = 0.4

batch_size = 64
max_iters = 2500
learning_rate = 2e-3
warmup_iters = 100
