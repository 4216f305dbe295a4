# Parities of at most 6 bits, all at once: each follows from the one before, so bits are steps.
# Data: python data/prepare.py --task=parity --max_size=6 --train_rows=20000
out_dir = "out/demo_parity"
dataset = "parity"
fresh_rows = True
eval_interval = 1100
eval_iters = 5
log_interval = 100

n_embd = 64
n_head = 4
num_loops = 8
pos = "place"
place_ids = 16
place_subset = 6
place_runs = 1.0  # ids of a row follow each other, from any one on: 16 bits can be asked for
place_next = True
place_below = True  # a slot knows the place of the one before it
tie_weights = False
loop_norm = True
supervise = "half"
halt = "confidence"
halt_threshold = 0.99
min_loops = 5  # the readouts before are not trained (supervise)
prompt_loops = 8  # what a token before '=' would say is never trained

batch_size = 64
max_iters = 2200
learning_rate = 3e-3
warmup_iters = 100
weight_decay = 0.01
device = "cpu"
