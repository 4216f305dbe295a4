# All digits at once on a CPU, with one loop and with two: what needs depth where the address is known? Several problems
# per training row, as in sweep_demo_parallel.py, whose model has 6 to 10 loops. Some 35 minutes of a core.
# Data: python data/addition/prepare.py --track=slots --zeros=shorter --few_rows=0.25 --out_dir=data/addition/slots
base = "config/demo_addition_parallel.py"
seeds = [0, 1, 2]
overrides = ["--device=cpu --compile=False --grad_loops=0"]
rows = [
    "one loop: --num_loops=1",
    "two loops: --num_loops=2",
]
evaluate = ["--digits=[4,8,12,16,24] --kinds=uniform,hard --problems=1000 --eval_iters=0 --device=cpu"]
