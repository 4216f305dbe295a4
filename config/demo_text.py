# A text of your own: a looped model of 0.2 M parameters learns to write like it on a laptop's CPU (data/text/readme.md)
# Data: python data/text/prepare.py --input=FILE, then --dataset=NAME; without a file: data/shakespeare_char/prepare.py
out_dir = "out/demo_text"
dataset = "shakespeare_char"
eval_interval = 500
eval_iters = 20
log_interval = 100

block_size = 64
n_embd = 128
n_head = 4
num_loops = 4
pos = "rope"
supervise = "all"  # so that early loops guess, too, and a rule may halt there
halt = "entropy"  # a sure guess needs no more loops
halt_threshold = 1.5  # nats

batch_size = 32
max_iters = 2000
learning_rate = 4e-3
warmup_iters = 100
ema_decay = 0.99
device = "cpu"
