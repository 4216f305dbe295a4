# Products of numbers of 1 and 2 digits.
# Data: python data/prepare.py --task=multiplication --max_digits=2 --train_rows=20000
out_dir = "out/demo_multiplication"
dataset = "multiplication"
fresh_rows = True
eval_interval = 500
eval_iters = 5
log_interval = 100

n_embd = 64
n_head = 4
num_loops = 4
pos = "place"
place_ids = 9
place_subset = 5
place_next = True
tie_weights = False
loop_norm = True
supervise = "half"
halt = "confidence"
halt_threshold = 0.99
min_loops = 2  # the first readouts are not trained (supervise)
prompt_loops = 4  # what a token before '=' would say is never trained

batch_size = 64
max_iters = 1500
learning_rate = 3e-3
warmup_iters = 100
weight_decay = 0.01
device = "cpu"
