# The demo: a looped model of 52,224 parameters learns to add on a laptop's CPU in a few minutes (make demo).
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
place_ids = 12  # few ids are learned fast; they end at numbers of 12 digits
place_subset = 6
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
