# Products of numbers of at most 3 digits. Data: python data/prepare.py --task=multiplication
out_dir = "out/demo_multiplication"
dataset = "multiplication"
fresh_rows = True
eval_interval = 1000
eval_iters = 5
log_interval = 100

n_embd = 64
n_head = 4
num_loops = 6
pos = "place"
place_ids = 16
place_subset = 8
tie_weights = False
loop_norm = True
supervise = "half"
halt = "confidence"
halt_threshold = 0.99
min_loops = 3  # the first readouts are not trained (supervise)
prompt_loops = 6  # what a token before '=' would say is never trained

batch_size = 64
max_iters = 4000
learning_rate = 3e-3
warmup_iters = 100
weight_decay = 0.01
ema_decay = 0.997
device = "cpu"
