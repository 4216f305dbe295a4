# Track N: next-token addition, trained on 1 to 4 digits, measured far beyond; the recipe of the results table.
out_dir = "out/train_addition"
dataset = "addition"
fresh_rows = True
swap_operands = True
eval_interval = 1000
log_interval = 100

n_embd = 256
n_head = 8
num_loops = [8, 8, 8, 16, 32]
grad_loops = 8  # thinking on beyond 8 loops is trained without gradients through the loops before
pos = "place"
place_ids = 64
place_subset = 16
log_scale = 14  # tokens of the longest training row
tie_weights = False
loop_norm = True
supervise = "half"
halt = "confidence"
halt_threshold = 0.99
prompt_loops = [0, 0, 3, 4]  # half of the prompts stand still early, so that an answer bears a fast reading

batch_size = 256
max_iters = 16000
learning_rate = 1e-3
warmup_iters = 200
weight_decay = 0.01
ema_decay = 0.997
