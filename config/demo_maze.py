# The way through mazes of 2 x 2 and 3 x 3 cells, all of it at once.
# Data: python data/prepare.py --task=maze --max_size=3 --train_rows=20000
out_dir = "out/demo_maze"
dataset = "maze"
fresh_rows = True
eval_interval = 1000
eval_iters = 5
log_interval = 100

n_embd = 64
n_head = 4
num_loops = 4
pos = "learned"
block_size = 179  # of 5 x 5 cells, of which evaluate.py asks, too
tie_weights = False
loop_norm = True
supervise = "half"
halt = "confidence"
halt_threshold = 0.99
min_loops = 3  # the readouts before are not trained (supervise)
prompt_loops = 4  # what a token before '=' would say is never trained

batch_size = 32
max_iters = 3000
learning_rate = 2e-3
warmup_iters = 100
weight_decay = 0.01
device = "cpu"
