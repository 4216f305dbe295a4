# Sums of 2 to 32 numbers of three digits. Data: python data/prepare.py --task=n_ary_addition
out_dir = "out/demo_n_ary_addition"
dataset = "n_ary_addition"
fresh_rows = True
eval_interval = 1000
eval_iters = 5
log_interval = 100

n_embd = 64
n_head = 4
num_loops = 6
block_size = 136
supervise = "half"
halt = "confidence"
halt_threshold = 0.99
min_loops = 3  # the first readouts are not trained (supervise)
prompt_loops = 6  # what a token before '=' would say is never trained

batch_size = 32
max_iters = 4000
learning_rate = 1e-3
warmup_iters = 100
weight_decay = 0.01
device = "cpu"
