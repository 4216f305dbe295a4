# Track N: next-token addition, trained on 1 to 4 digits, measured far beyond; the recipe of the results table.
out_dir = "out/train_addition"
dataset = "addition"
fresh_rows = True
swap_operands = True
eval_interval = 1000
log_interval = 100

n_embd = 256
n_head = 8
num_loops = [6, 8, 10]
pos = "place"
place_ids = 64
place_subset = 16
tie_weights = False
loop_norm = True
supervise = "half"
halt = "confidence"
halt_threshold = 0.9
min_loops = 4  # the first loop that is ever supervised: half of 6, and 1
prompt_loops = 10

batch_size = 512
max_iters = 8000
learning_rate = 1e-3
warmup_iters = 200
weight_decay = 0.01
ema_decay = 0.997
cuda_graph = False  # on a GPU: --cuda_graph=True
