# Products in S3 of at most 4 elements, each prefix of them, all at once.
# Data: python data/prepare.py --task=group_word --max_size=4 --train_rows=20000
out_dir = "out/demo_group_word"
dataset = "group_word"
fresh_rows = True
eval_interval = 2500
eval_iters = 5
log_interval = 100

n_embd = 64
n_head = 4
num_loops = 6
pos = "place"
place_ids = 16
place_subset = 4
place_runs = 1.0  # ids of a row follow each other, from any one on: 16 elements can be asked for
place_next = True
place_below = True  # a slot knows the place of the one before it
tie_weights = False
loop_norm = True
supervise = "half"
halt = "confidence"
halt_threshold = 0.99
min_loops = 4  # the readouts before are not trained (supervise)
prompt_loops = 6  # what a token before '=' would say is never trained

batch_size = 64
max_iters = 5000
learning_rate = 3e-3
warmup_iters = 100
weight_decay = 0.01
device = "cpu"
