# Copying words of at most 8 letters, to be asked for longer ones.
# Data: python data/prepare.py --task=copy --train_rows=20000
out_dir = "out/demo_copy"
dataset = "copy"
fresh_rows = True
eval_interval = 200
eval_iters = 5
log_interval = 100

n_embd = 64
n_head = 4
num_loops = 4
pos = "place"
place_ids = 20
place_subset = 9
tie_weights = False
loop_norm = True
supervise = "half"
halt = "confidence"
halt_threshold = 0.99
min_loops = 2  # the first readouts are not trained (supervise)
prompt_loops = 4  # what a token before '=' would say is never trained
place_next = True  # a token knows the place that follows its own, so that the next letter is found by equality

batch_size = 64
max_iters = 600
learning_rate = 3e-3
warmup_iters = 100
weight_decay = 0.01
device = "cpu"
