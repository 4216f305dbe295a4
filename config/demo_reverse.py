# A looped model learns to write a word from its end, in a minute or two on a laptop's CPU (docs/tasks.md).
# Data: python data/prepare.py --task=reverse
out_dir = "out/demo_reverse"
dataset = "reverse"
fresh_rows = True
eval_interval = 500
eval_iters = 5
log_interval = 100

n_embd = 64
n_head = 4
num_loops = 4
block_size = 36  # of words of 16 letters, twice as long as in training
supervise = "half"
halt = "confidence"
halt_threshold = 0.99
min_loops = 2  # the first readout is not trained (supervise), so its confidence says little
prompt_loops = 4  # what a token before '=' would say is never trained, so its confidence means nothing

batch_size = 64
max_iters = 1000
learning_rate = 3e-3
warmup_iters = 100
weight_decay = 0.01
device = "cpu"
