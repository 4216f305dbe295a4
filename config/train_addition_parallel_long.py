# Track P, all digits at once, far beyond its training: 1 to 4 digits in training, 24 and more at test. A training row
# holds eight problems, each with places of its own, so that a slot learns to overlook all digits but those of its place
# and of the one below, from which the carry comes.
# Data: python data/addition/prepare.py --track=slots --zeros=shorter --few_rows=0.25 --out_dir=data/addition/slots
out_dir = "out/train_addition_parallel_long"
dataset = "addition/slots"
fresh_rows = True
swap_operands = True
eval_interval = 6000
log_interval = 100

n_embd = 256
n_head = 8
num_loops = [8, 10, 12, 14, 8, 10, 12, 14, 28, 56]
grad_loops = 14  # what lies before has no gradients: the last two counts train the state to stay
pos = "place"
pack = 8
place_ids = 64
place_subset = 5
place_runs = 0.5
place_next = True
place_below = True
log_scale = 127  # tokens of a row
tie_weights = False
supervise = "half"
halt = "kl"
halt_threshold = 1e-6
prompt_loops = 14

batch_size = 16  # 128 problems
max_iters = 12000
learning_rate = 1e-3
warmup_iters = 200
weight_decay = 0.01
ema_decay = 0.997
