# The demo: a looped model of 54,592 parameters learns to add on a laptop's CPU in a few minutes (make demo).
out_dir = "out/demo_addition"
dataset = "addition/demo"
fresh_rows = True
swap_operands = True
eval_interval = 1500
eval_iters = 10
log_interval = 150

n_embd = 64
n_head = 4
num_loops = 4
pos = "place"
place_ids = 24  # of 40, not every seed has learned in so few steps; they end at numbers of 22 digits
place_subset = 8
place_next = True
place_end = True  # without place_margin: with four heads it makes some seeds late
tie_weights = False
loop_norm = True
supervise = "half"
halt = "confidence"
halt_threshold = 0.99
min_loops = 2  # the first readout is not trained (supervise), so its confidence says little
prompt_loops = 4  # what a token before '=' would say is never trained, so its confidence means nothing

batch_size = 64
max_iters = 4500
learning_rate = 3e-3
warmup_iters = 100
weight_decay = 0.01
ema_decay = 0.997
device = "cpu"
