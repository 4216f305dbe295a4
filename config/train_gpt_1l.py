# The lower bound: GPT with 1 layer, which has the parameters of train_loop_1x12.py and a twelfth of its FLOPs.
out_dir = "out/train_gpt_1l"
dataset = "shakespeare_char"
model_type = "gpt"
eval_interval = 250
eval_iters = 200
log_interval = 10

block_size = 256
n_layer = 1
n_head = 6
n_embd = 384
dropout = 0.1

batch_size = 64
max_iters = 2500
learning_rate = 2e-3
warmup_iters = 100
