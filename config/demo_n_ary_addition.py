# Sums of 1 to 4 numbers of three digits, the last digit first; the paper has up to 32, the first digit first.
# Data: python data/prepare.py --task=n_ary_addition --counts=[1,2,3,4] --plain=False --train_rows=20000
out_dir = "out/demo_n_ary_addition"
dataset = "n_ary_addition"
fresh_rows = True
eval_interval = 500
eval_iters = 5
log_interval = 100

n_embd = 64
n_head = 4
num_loops = 4
pos = "place"
place_ids = 8
place_subset = 0
place_next = True  # each digit of the answer finds those of its place by equality
tie_weights = False
loop_norm = True
supervise = "half"
halt = "confidence"
halt_threshold = 0.99
min_loops = 2  # the first readouts are not trained (supervise)
prompt_loops = 4  # what a token before '=' would say is never trained

batch_size = 64
max_iters = 1400
learning_rate = 3e-3
warmup_iters = 100
weight_decay = 0.01
device = "cpu"
