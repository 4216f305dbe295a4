# What each task of docs/tasks.md reaches in minutes on one core: the looped block of config/demo_<task>.py, one layer,
# and as many layers of their own as there are loops. Data: as the first lines of these configs say.
seeds = [1337]
overrides = ["--device=cpu"]
rows = [
    "copy: config/demo_copy.py",
    "copy, 1 layer: config/demo_copy.py --num_loops=1 --halt=none --prompt_loops=0",
    "copy, 4 layers: config/demo_copy.py --n_layer=4 --num_loops=1 --halt=none --prompt_loops=0",
    "group_word: config/demo_group_word.py",
    "group_word, 1 layer: config/demo_group_word.py --num_loops=1 --halt=none --prompt_loops=0",
    "group_word, 6 layers: config/demo_group_word.py --n_layer=6 --num_loops=1 --halt=none --prompt_loops=0",
    "i_gsm: config/demo_i_gsm.py",
    "i_gsm, 1 layer: config/demo_i_gsm.py --num_loops=1 --halt=none --prompt_loops=0",
    "i_gsm, 4 layers: config/demo_i_gsm.py --n_layer=4 --num_loops=1 --halt=none --prompt_loops=0",
    "maze: config/demo_maze.py",
    "maze, 1 layer: config/demo_maze.py --num_loops=1 --halt=none --prompt_loops=0",
    "maze, 4 layers: config/demo_maze.py --n_layer=4 --num_loops=1 --halt=none --prompt_loops=0",
    "multiplication: config/demo_multiplication.py",
    "multiplication, 1 layer: config/demo_multiplication.py --num_loops=1 --halt=none --prompt_loops=0",
    "multiplication, 4 layers: config/demo_multiplication.py --n_layer=4 --num_loops=1 --halt=none --prompt_loops=0",
    "n_ary_addition: config/demo_n_ary_addition.py",
    "n_ary_addition, 1 layer: config/demo_n_ary_addition.py --num_loops=1 --halt=none --prompt_loops=0",
    "n_ary_addition, 4 layers: config/demo_n_ary_addition.py --n_layer=4 --num_loops=1 --halt=none --prompt_loops=0",
    "p_hop: config/demo_p_hop.py",
    "p_hop, 1 layer: config/demo_p_hop.py --num_loops=1 --halt=none --prompt_loops=0",
    "p_hop, 4 layers: config/demo_p_hop.py --n_layer=4 --num_loops=1 --halt=none --prompt_loops=0",
    "parity: config/demo_parity.py",
    "parity, 1 layer: config/demo_parity.py --num_loops=1 --halt=none --prompt_loops=0",
    "parity, 8 layers: config/demo_parity.py --n_layer=8 --num_loops=1 --halt=none --prompt_loops=0",
    "reverse: config/demo_reverse.py",
    "reverse, 1 layer: config/demo_reverse.py --num_loops=1 --halt=none --prompt_loops=0",
    "reverse, 4 layers: config/demo_reverse.py --n_layer=4 --num_loops=1 --halt=none --prompt_loops=0",
]
evaluate = ["--problems=500 --eval_iters=0 --backend=torch"]
