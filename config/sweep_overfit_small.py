# Fixed rows in small, on a CPU: does a model learn them by heart, and is it the rows, the positions or the drawing of
# place ids? 'place' draws ids anew for every row and step, 'as counted' gives digits 1, 2, 3, ... as evaluation does.
# Data: python data/addition/prepare.py --max_digits=3 --zeros=shorter --train_rows=200 --out_dir=data/addition/rows_200
# and the same with 1000 and 20000. Some 25 minutes of a core.
base = "config/demo_addition.py"
seeds = [1, 2, 3]
overrides = ["--max_iters=1250 --eval_interval=125 --eval_iters=20 --fresh_rows=False --swap_operands=False "
             "--halt=none --prompt_loops=0"]
rows = [
    "place, 200: --dataset=addition/rows_200",
    "as counted, 200: --dataset=addition/rows_200 --place_subset=0",
    "learned, 200: --dataset=addition/rows_200 --pos=learned --place_next=False --place_end=False",
    "place, 1,000: --dataset=addition/rows_1000",
    "as counted, 1,000: --dataset=addition/rows_1000 --place_subset=0",
    "learned, 1,000: --dataset=addition/rows_1000 --pos=learned --place_next=False --place_end=False",
    "learned, 20,000: --dataset=addition/rows_20000 --pos=learned --place_next=False --place_end=False",
]
evaluate = ["--digits=[1,2,3] --problems=1000 --eval_iters=0 --device=cpu"]
