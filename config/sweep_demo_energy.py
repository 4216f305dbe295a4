# Descent of an energy beside Block, at equal parameters, on one core: tracks N and P at width 64. Data:
# python data/addition/prepare.py --max_digits=3 --zeros=shorter --out_dir=data/addition/demo
# python data/addition/prepare.py --track=slots --zeros=shorter --few_rows=0.25 --out_dir=data/addition/slots
seeds = [0]
overrides = ["--device=cpu --compile=False --halt=none --prompt_loops=0 --max_iters=2000 --eval_interval=1000"]
rows = [
    "N, replace: config/demo_addition.py --loop_norm=False",
    "N, energy: config/demo_addition.py --loop_norm=False --update=energy --inject=none --alpha=0.5",
    "N, energy, backtracked: config/demo_addition.py --loop_norm=False --update=energy --inject=none --alpha=backtrack",
    "P, replace: config/demo_addition_parallel.py --num_loops=8 --grad_loops=0 --batch_size=16",
    "P, energy: config/demo_addition_parallel.py --num_loops=8 --grad_loops=0 --batch_size=16 --update=energy "
    "--inject=none --alpha=0.5",
]
evaluate = ["--digits=[2,4,8,12] --kinds=uniform --problems=500 --eval_iters=0 --device=cpu"]
analyze = "--energy=True --probes=False --tokens=4000 --sequences=2 --iterations=10"
