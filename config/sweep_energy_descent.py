# What a minimum of an energy says, on one core: an energy that falls by construction, and a Block that hardly moves in
# the end, whose energy a head is taught afterwards (docs/energy.md). Width 64. Data:
# python data/addition/prepare.py --max_digits=3 --zeros=shorter --out_dir=data/addition/demo
base = "config/demo_addition.py"
seeds = [0, 1, 2]
overrides = ["--loop_norm=False --device=cpu --compile=False --halt=none --prompt_loops=0 --max_iters=2000 "
             "--eval_interval=1000"]
rows = [
    "backtracked, keys of x0: --update=energy --inject=none --alpha=backtrack --keys=x0",
    "replace, trained to rest: --loop_norm=True --num_loops=[4,4,4,8,16]",
]
evaluate = ["--digits=[2,4,8,12] --kinds=uniform --problems=500 --eval_iters=0 --device=cpu"]
analyze = "--energy=True --probes=False --tokens=4000 --sequences=2 --iterations=10 --num_loops=4 --loop_multiple=8"
