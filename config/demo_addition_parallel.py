# All digits of a sum at once, on a CPU: 1 to 4 digits in training, several problems per row, each with places of its
# own, so that a slot learns to overlook all digits but those of its place and of the one below.
# Data: python data/addition/prepare.py --track=slots --zeros=shorter --few_rows=0.25 --out_dir=data/addition/slots
out_dir = "out/demo_addition_parallel"
dataset = "addition/slots"
fresh_rows = True
swap_operands = True
eval_interval = 2000
eval_iters = 5
log_interval = 100

n_embd = 64
n_head = 4
num_loops = [6, 8, 10, 6, 8, 10, 6, 8, 10, 40]
grad_loops = 10  # what lies before has no gradients: the last count trains the state to stay
pos = "place"
pack = 4
place_ids = 64
place_subset = 5
place_runs = 0.5
place_next = True
place_below = True
log_scale = 63  # tokens of a row
tie_weights = False
supervise = "half"

batch_size = 24
max_iters = 8000
learning_rate = 2e-3
min_lr = 2e-4
warmup_iters = 200
weight_decay = 0.01
ema_decay = 0.995
