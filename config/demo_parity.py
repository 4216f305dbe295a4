# Parities of at most 16 bits, all at once: the depth is the number of bits. Data: python data/prepare.py --task=parity
out_dir = "out/demo_parity"
dataset = "parity"
fresh_rows = True
eval_interval = 1000
eval_iters = 5
log_interval = 100

n_embd = 64
n_head = 4
num_loops = [8, 12, 16]
pos = "place"
place_ids = 40
place_subset = 20
tie_weights = False
loop_norm = True
supervise = "half"
halt = "confidence"
halt_threshold = 0.99
min_loops = 8  # the first readouts are not trained (supervise)
prompt_loops = 16  # what a token before '=' would say is never trained

batch_size = 64
max_iters = 4000
learning_rate = 3e-3
warmup_iters = 100
weight_decay = 0.01
ema_decay = 0.997
device = "cpu"
