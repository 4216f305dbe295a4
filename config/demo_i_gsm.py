# Definitions modulo 7 in 4 layers, of at most 12 variables.
# Data: python data/prepare.py --task=i_gsm --train_rows=20000
out_dir = "out/demo_i_gsm"
dataset = "i_gsm"
fresh_rows = True
eval_interval = 1000
eval_iters = 5
log_interval = 100

n_embd = 64
n_head = 4
num_loops = 8
pos = "rope"
block_size = 128
supervise = "half"
halt = "confidence"
halt_threshold = 0.99
min_loops = 4  # the first readouts are not trained (supervise)
prompt_loops = 8  # what a token before '?' would say is never trained

batch_size = 64
max_iters = 4000
learning_rate = 1e-3
warmup_iters = 100
weight_decay = 0.01
device = "cpu"
