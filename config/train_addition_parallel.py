# Track P: parallel answer, all digits at once after the loop, so that no carry is ever written down.
# Three rows of four have leading zeros, up to 12 places, so that a place has as many neighbours as at test.
# Data: python data/addition/prepare.py --track=slots --max_places=12 --out_dir=data/addition/padded
out_dir = "out/train_addition_parallel"
dataset = "addition/padded"
fresh_rows = True
swap_operands = True
eval_interval = 1000
log_interval = 100

n_embd = 256
n_head = 8
num_loops = [8, 10, 12, 14, 8, 10, 12, 14, 28, 56]
grad_loops = 14  # what lies before has no gradients: the last two counts train the state to stay
pos = "place"
place_ids = 64
place_subset = 16
tie_weights = False
supervise = "half"
halt = "kl"
halt_threshold = 1e-4
prompt_loops = [0, 2, 3, 4]  # three of four prompts stand still early, so that an answer bears a fast reading

batch_size = 128
max_iters = 12000
learning_rate = 1e-3
warmup_iters = 200
weight_decay = 0.01
ema_decay = 0.997
