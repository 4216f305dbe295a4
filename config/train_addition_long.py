# Track N, far beyond its training: 1 to 4 digits in training, measured to 100. Every token is told the next place too,
# the shorter number is written with leading zeros, '+' tells where it ends, and all ids of the table are kept apart.
# Data: python data/addition/prepare.py --zeros=shorter --few_rows=0.25 --out_dir=data/addition/zeros
out_dir = "out/train_addition_long"
dataset = "addition/zeros"
fresh_rows = True
swap_operands = True
eval_interval = 9000
eval_iters = 5
log_interval = 100

n_embd = 256
n_head = 8
num_loops = [4, 4, 4, 4, 4, 4, 8, 16]  # 4 to solve it, the others so that thinking on loses nothing
grad_loops = 0
pos = "place"
place_ids = 128  # a number and its next place: 126 digits of the longer operand at most
place_subset = 8  # few of many: of a sorted subset the first ids lie low in the table, and high ones are seldom trained
place_runs = 0.25  # runs reach all ids alike
place_next = True
place_end = True  # past the top an answer finds '+' instead of nothing
place_margin = 8.0  # 8 ids of 128 leave most pairs untrained, and a seed takes one for another far out
log_scale = 14  # tokens of the longest training row
tie_weights = False
loop_norm = True
supervise = "half"
prompt_loops = [0, 0, 3, 4]  # half of the prompts stand still early, so that an answer bears a fast reading

batch_size = 256
max_iters = 52000
learning_rate = 1e-3
warmup_iters = 200
weight_decay = 0.01
ema_decay = 0.997
