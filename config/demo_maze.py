# The way through mazes of at most 4 x 4 cells, all of it at once. Data: python data/prepare.py --task=maze
# --train_rows=20000
out_dir = "out/demo_maze"
dataset = "maze"
fresh_rows = True
eval_interval = 1000
eval_iters = 5
log_interval = 100

n_embd = 64
n_head = 4
num_loops = 8
pos = "learned"
block_size = 263  # of 6 x 6 cells, of which evaluate.py asks, too
supervise = "half"
halt = "confidence"
halt_threshold = 0.99
min_loops = 4  # the first readouts are not trained (supervise)
prompt_loops = 8  # what a token before '=' would say is never trained

batch_size = 64
max_iters = 4000
learning_rate = 1e-3
warmup_iters = 100
weight_decay = 0.01
device = "cpu"
