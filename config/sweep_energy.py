# Descent of an energy (docs/energy.md) beside Block at equal parameters: tracks N and P, words of a group, text.
# 31 runs took some 7 minutes of four H200, beside other sweeps; one would take about 25, not tried. Start NVIDIA's MPS
# first. Data:
# python data/addition/prepare.py --zeros=shorter --few_rows=0.25 --out_dir=data/addition/zeros
# python data/addition/prepare.py --track=slots --zeros=shorter --few_rows=0.25 --out_dir=data/addition/slots
# python data/prepare.py --task=group_word --max_size=4 --train_rows=20000
# python data/shakespeare_char/prepare.py
seeds = [0, 1, 2]
overrides = ["--n_embd=128 --max_iters=6000 --eval_interval=3000 --device=auto --cuda_graph=True --compile=True "
             "--halt=none --prompt_loops=0 --loop_norm=False"]
rows = [
    "N, replace: config/demo_addition.py --dataset=addition/zeros --learning_rate=2e-3",
    "N, energy: config/demo_addition.py --dataset=addition/zeros --learning_rate=2e-3 --update=energy --inject=none "
    "--alpha=0.5",
    "N, energy, backtracked: config/demo_addition.py --dataset=addition/zeros --learning_rate=2e-3 --update=energy "
    "--inject=none --alpha=backtrack",
    "N, energy, keys of x0: config/demo_addition.py --dataset=addition/zeros --learning_rate=2e-3 --update=energy "
    "--inject=none --alpha=0.5 --keys=x0",  # no past moves, but a fixed step may lift E
    "P, replace: config/demo_addition_parallel.py",
    "P, energy: config/demo_addition_parallel.py --update=energy --inject=none --alpha=0.5",
    "P, energy, backtracked: config/demo_addition_parallel.py --update=energy --inject=none --alpha=backtrack",
    "group words, replace: config/demo_group_word.py --learning_rate=2e-3",
    "group words, energy: config/demo_group_word.py --learning_rate=2e-3 --update=energy --inject=none --alpha=0.5",
    "text, replace @2: config/demo_text.py --max_iters=3000",
    "text, energy @2: config/demo_text.py --max_iters=3000 --update=energy --inject=none --alpha=0.5",
]
evaluate = [
    "--sizes=[2,4,8,12] --kinds=uniform --problems=1000 --eval_iters=20 --backend=torch",
]
analyze = "--energy=True --probes=False --tokens=10000"
