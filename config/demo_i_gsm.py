# Definitions modulo 7 in 2 layers, of 2 and 3 variables; the paper has 4 layers.
# Data: python data/prepare.py --task=i_gsm --layers=2 --max_variables=3 --train_rows=20000
out_dir = "out/demo_i_gsm"
dataset = "i_gsm"
fresh_rows = True
eval_interval = 1000
eval_iters = 5
log_interval = 100

n_embd = 64
n_head = 4
num_loops = 4
pos = "rope"
block_size = 64
tie_weights = False
loop_norm = True
supervise = "half"
halt = "confidence"
halt_threshold = 0.99
min_loops = 2  # the first readouts are not trained (supervise)
prompt_loops = 4  # what a token before '?' would say is never trained

batch_size = 64
max_iters = 3000
learning_rate = 2e-3
warmup_iters = 100
weight_decay = 0.01
device = "cpu"
