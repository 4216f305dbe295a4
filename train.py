"""The only training loop, for GPT and LoopGPT, on one device or on several.

    python train.py config/demo_addition.py                          a laptop
    python train.py config/train_addition.py --cuda_graph=True       one GPU
    torchrun --standalone --nproc_per_node=2 train.py config/train_gpt_12l.py

Writes out_dir/ckpt_last.pt, ckpt_best.pt (lowest validation loss), config.json, log.csv, loss.png and summary.json, the
closing lines with where they come from; with save_every also ckpt_500.pt, ckpt_1000.pt, ... Another run that stands
there moves to out_dir.1, .2, ...
"""
import contextlib
import copy
import math
import os
import signal
import sys
import time
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist

import columns
import figures
import outputs
import runtime
import tasks
from checkpoint import model_settings
from configurator import checked, class_settings, configure, read_settings, say_without_effect
from dataset import get_batch, model_facts, open_dataset, require_same_tokens, sequence_length
from model_loop import (
    FROM_DATASET,
    INFERENCE_SETTINGS,
    LoopConfig,
    build,
    check_halting,
    idle_settings,
    load_weights,
    loop_counts,
)

# input, output
out_dir = "out"                 # where checkpoints and logs go
dataset = "addition"            # the folder data/<dataset>, written by its prepare.py
task = ""                       # the file of a task of your own, of which the dataset is
init_from = "scratch"           # scratch, resume (goes on from out_dir/ckpt_last.pt), or a checkpoint's path
seed = 1337                     # >= 0: of everything random: weights, batches, dropout, loop counts
# evaluation and logs
eval_interval = 500             # >= 1: iterations between evaluations; a checkpoint is saved before each
eval_iters = 20                 # >= 1: batches an evaluation averages over, the same ones each time
eval_only = False               # evaluate once and stop
save_every = 0                  # >= 0: iterations between snapshots ckpt_<iteration>.pt, which all stay; 0: none
log_interval = 50               # >= 1: iterations between log lines
wandb_log = False               # also log to Weights & Biases
wandb_project = "looplm"        # its project
wandb_run_name = "run"          # its run
# the batch
batch_size = 64                 # >= 1: rows of a micro-step
gradient_accumulation_steps = 1  # >= 1: micro-steps of an iteration, over all ranks together; at least one each
fresh_rows = False              # rows: draw new problems in every step instead of reading train.bin
swap_operands = False           # rows, where the task can: exchange the operands of half of them
flip_rows = 0.0                 # >= 0, <= 1: rows, where the task can: share that is written C=A+B
# the model; its other settings are listed below these
model_type = "loop"             # loop: LoopGPT; gpt: nanoGPT's GPT
# AdamW
learning_rate = 1e-3            # > 0: the highest, after the warm-up
max_iters = 5000                # >= 1: iterations in all
weight_decay = 0.1              # >= 0: of matrices and embeddings
beta1 = 0.9                     # >= 0, < 1: decay of the gradient's mean
beta2 = 0.99                    # >= 0, < 1: decay of its square
grad_clip = 1.0                 # >= 0: largest norm of the gradient; 0 never clips
ema_decay = 0.0                 # >= 0, < 1: averaged weights, for evaluation and sampling; 0: none, else 0.99 and up
decay_lr = True                 # cosine decay of the learning rate
warmup_iters = 100              # >= 0: iterations of linear warm-up
lr_decay_iters = 0              # >= 0: iteration at which the rate reaches min_lr; 0: max_iters
min_lr = 0.0                    # >= 0: where the decay ends
# the machine
device = "auto"                 # auto (a GPU, of Apple too, where there is one), cpu, cuda, cuda:1, mps, ...
dtype = "auto"                  # autocast to bfloat16, or float32 (tf32 products on CUDA); auto: bfloat16 if there
compile: bool | str = "auto"    # torch.compile; auto: on CUDA, unless cuda_graph is True
cuda_graph: bool | str = "auto"  # capture the whole step, one graph per loop count; auto: on CUDA, and compiled
deterministic = False           # bit-exact on CUDA too, slower; a CPU is in any case

OF_THIS_RUN = {"out_dir", "init_from", "eval_only", "device", "dtype", "compile", "cuda_graph", "wandb_log",
               "wandb_project", "wandb_run_name", "task"}  # what a resumed run does not take from its checkpoint
# model settings that a resumed run may change: those that training does not read
MAY_CHANGE_ON_RESUME = set(INFERENCE_SETTINGS) - {"num_loops", "prompt_loops"}
FIRST_LOG = 10                  # the iteration after which a line is logged early: it tells how long all will take
COLUMNS = tuple(columns.TABLES["train.py"][1])  # of log.csv


# ---- pure functions of the iteration

def lr_at(it):
    """Learning rate of an iteration: linear warm-up, cosine decay, then min_lr."""
    end = lr_decay_iters or max_iters
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if not decay_lr:
        return learning_rate
    done = min(1.0, (it - warmup_iters) / max(1, end - warmup_iters))
    return min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (learning_rate - min_lr)


def loops_at(run, it):
    """Loop count of an iteration, a pure function of (seed, iter) and so equal on all ranks; None for a GPT."""
    if model_type == "gpt":
        return None
    return int(np.random.default_rng([seed, it]).choice(loop_counts(run.settings["num_loops"])))


def batch(run, it, index):
    """Training batch number `index` of an iteration, over all ranks and micro-steps: X, Y (B,T)."""
    return get_batch(run.data, "train", (seed, it, index), batch_size, run.T, run.device,
                     fresh_rows, swap_operands, flip_rows, run.model_args.get("pack", 1))


# ---- set-up

def check_settings():
    """SystemExit for values that no run can have."""
    for key, value in (("compile", compile), ("cuda_graph", cuda_graph)):
        if value not in ("auto", True, False):
            raise SystemExit(f"--{key}={value}: auto, True or False")


def starting_point(settings, given):
    """(the checkpoint that a run starts from or None, its settings): resumed, a run has those of its checkpoint, but
    for those given and those of the machine."""
    if settings["init_from"] == "scratch":
        return None, settings
    if settings["init_from"] != "resume":
        return runtime.load_checkpoint(settings["init_from"]), settings
    path, of_nanogpt = (os.path.join(settings["out_dir"], name) for name in ("ckpt_last.pt", "ckpt.pt"))
    if os.path.exists(of_nanogpt) and not os.path.exists(path):
        raise SystemExit(f"{path} does not exist, but nanoGPT's ckpt.pt does: start with --init_from={of_nanogpt}")
    checkpoint = runtime.load_checkpoint(path, needed=("model", "model_args", "optimizer", "iter_num", "best_val_loss"))
    kind = "loop" if "num_loops" in checkpoint["model_args"] else "gpt"  # nanoGPT's says nothing of it
    saved, taken = dict(model_type=kind) | checkpoint.get("config", {}), {}
    with open(__file__, encoding="utf-8") as f:
        known = read_settings(f.read())
    for key in known.keys() & saved.keys() - given - OF_THIS_RUN:
        try:
            taken[key] = checked(saved[key], known[key])
        except ValueError as e:
            raise SystemExit(f"{path} was trained with {key}: {e}; give another --{key}") from None
    return checkpoint, settings | taken


def say_what_differs(run, checkpoint):
    """One line: which settings of a resumed run are not those of its checkpoint."""
    of_model = class_settings(LoopConfig)  # nanoGPT's settings have some of these names, too
    old = {k: v for k, v in checkpoint.get("config", {}).items() if k not in of_model} | checkpoint["model_args"]
    differ = [f"{k} {old[k]} -> {v}" for k, v in run.settings.items() if k in old and old[k] != v
              and k not in OF_THIS_RUN]
    print(f"resumed from {run.last_path} at iteration {run.it}, settings as there"
          + (f", but {', '.join(differ)}" if differ else ""))


def choose_machine(checkpoint):
    """Where and how this process computes: rank, world, device, dtype, cuda (bool), captured (a step is a CUDA graph),
    master (rank 0 or not), context (autocast); a resumed run on as many threads as before."""
    if deterministic:
        runtime.set_deterministic()
    torch.set_float32_matmul_precision("highest" if deterministic else "high")
    known = (checkpoint or {}).get("provenance") or {}
    place = runtime.choose_device(device, known.get("threads") if init_from == "resume" else None)
    rank, world, place = runtime.init_distributed(place)
    cuda, number = place.startswith("cuda"), runtime.choose_dtype(dtype, place)
    if cuda_graph is True and not cuda:
        raise SystemExit(f"--cuda_graph=True needs a CUDA GPU, and the device is {place}")
    return SimpleNamespace(rank=rank, world=world, device=place, dtype=number, cuda=cuda, master=rank == 0,
                           captured=cuda if cuda_graph == "auto" else cuda_graph,
                           context=runtime.autocast(place, number))


def make_model(settings, given, facts, checkpoint, path):
    """The model in float32 on the CPU, and its model_args: new, resumed, or new settings on the weights at a path."""
    args, resume = model_settings(settings, given, facts), init_from == "resume"
    runtime.seed_torch(seed)
    if checkpoint is None:
        return build(args), args
    old = checkpoint["model_args"]
    if ("num_loops" in old) != (model_type == "loop"):
        raise SystemExit(f"--model_type={model_type}, but the checkpoint of --init_from={init_from} is the other one")
    changed = [k for k in args if (k in given or k in FROM_DATASET) and args[k] != old.get(k, args[k])]
    fixed = [k for k in changed if resume and k not in MAY_CHANGE_ON_RESUME]
    if fixed:
        raise SystemExit(f"--init_from={init_from} with dataset {dataset}, but {', '.join(fixed)} differ from the "
                         f"checkpoint's ({', '.join(f'{k}={old[k]!r}' for k in fixed)})")
    args = {k: v if k in changed else old.get(k, v) for k, v in args.items()}
    model = build(args)
    weights = checkpoint["model"] if resume else checkpoint.get("ema") or checkpoint["model"]
    try:
        keys = load_weights(model, weights, strict=False)
    except ValueError as e:
        raise SystemExit(f"{path}: {e}") from None
    # a halt head may be new, or be left out by --halt_head=none
    unfit = [k for k in keys.unexpected_keys + keys.missing_keys if resume or not k.startswith("halt_head")]
    if unfit:
        raise SystemExit(f"--init_from={init_from} does not fit this model: {', '.join(unfit[:4])}")
    return model, args


def open_run(settings, given, checkpoint, last_path):
    """The dataset, the model, its model_args, and tokens T of a sequence; checkpoint: it starts from that, or None."""
    path = last_path if init_from == "resume" else init_from
    data = open_dataset(dataset, like=checkpoint if init_from == "resume" else None)
    facts = model_facts(data.meta)
    if checkpoint:
        require_same_tokens(checkpoint, path, data.meta, f"data/{dataset}")
        facts["vocab_size"] = checkpoint["model_args"].get("vocab_size")  # padded or not
    # 12 weights of 4 bytes per block and squared width, and what a block takes whatever its width
    blocks = settings["n_layer"] * (1 if settings["tie_loops"] else max(loop_counts(settings["num_loops"])))
    runtime.require_memory(blocks * (48 * settings["n_embd"] ** 2 + 20_000), "lower --n_layer or --n_embd")
    try:
        model, model_args = make_model(settings, given, facts, checkpoint, path)
        if model_type == "loop":
            check_halting(model.config, given)
    except (ValueError, RuntimeError) as e:
        if runtime.out_of_memory(e):
            raise
        raise SystemExit(f"train.py: {' '.join(str(e).split())[:300]}") from None
    settings.update({k: v for k, v in model_args.items() if k in settings})  # what the checkpoint decided
    T = sequence_length(data, settings["block_size"], model_args.get("pack", 1))
    if model.learned_positions and settings["block_size"] < T:
        raise SystemExit(f"--block_size={settings['block_size']}, but a row of {dataset} has {T} tokens")
    rows = data.meta.kind == "rows"
    otherwise = rows and hasattr(tasks.load(data.meta.task), "augment")
    if flip_rows and not (otherwise and data.meta.track == "next"):
        raise SystemExit(f"--flip_rows={flip_rows} is for rows of track next, of a task that can write C=A+B")
    if swap_operands and rows and not otherwise:
        raise SystemExit(f"--swap_operands: the task {data.meta.task} has no operands to exchange")
    return data, model, model_args, T


def compiled(run):
    """The model as a training step calls it: compiled where that pays; and one line on what a step is on a GPU."""
    model = run.raw_model
    wanted = run.cuda and cuda_graph is not True if compile == "auto" else compile
    why_not = runtime.why_not_compile(run.device) if wanted else ""
    if run.cuda and run.master and not eval_only:
        how = "captured, a CUDA graph per loop count" if run.captured else "plain (--cuda_graph=False)"
        reason = " since launches cost a small model more than arithmetic;" if run.captured else ""
        print(f"a step: {how},{reason} " + ("compiled" if wanted and not why_not else "not compiled"))
    if why_not:
        outputs.warn(f"torch.compile does not work here ({why_not}): going on without, slower")
    elif wanted:
        if run.master:
            print("torch.compile: the first steps, and the first evaluation, take up to minutes", flush=True)
        if model_type == "loop":  # one loop: all loop counts share it, and what a count unrolls would take minutes
            model.loop = torch.compile(model.loop)
            # loop 1, the others, with and without gradients, in evaluation, where tokens halt, by either backend
            torch._dynamo.config.recompile_limit = 32
        else:
            model = torch.compile(model)
    return model


def take_up(run, checkpoint):
    """Go on where a checkpoint stands: optimizer, averaged weights, iteration, lowest loss. SystemExit if damaged."""
    groups = run.optimizer.state_dict()["param_groups"]
    try:
        run.optimizer.load_state_dict(dict(checkpoint["optimizer"], param_groups=groups))
        for p, state in run.optimizer.state.items():
            if not all(x.shape in (p.shape, ()) and x.isfinite().all() for x in state.values()):
                raise ValueError("its optimizer does not fit its weights, or is not finite")
        if run.average:
            load_weights(run.average, checkpoint.get("ema") or checkpoint["model"])
        run.it = run.saved = checkpoint["iter_num"]
        run.best_val_loss = float(checkpoint["best_val_loss"])
        if run.it < 0 or math.isnan(run.best_val_loss):
            raise ValueError(f"iter_num {run.it}, best_val_loss {run.best_val_loss}")
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as e:
        raise SystemExit(f"{run.last_path} cannot be resumed: {type(e).__name__}: {e}\n  start from its weights: "
                         f"--init_from={run.last_path}") from None


def start_alike(run):
    """Give all ranks the weights and the optimizer of rank 0, which are theirs already where nothing differs between
    hosts. SystemExit if they would go on at different iterations."""
    if run.world == 1:
        return
    iterations = [None] * run.world
    dist.all_gather_object(iterations, run.it)
    if len(set(iterations)) > 1:
        raise SystemExit(f"the ranks go on at iterations {iterations}: {out_dir} must be one folder that all hosts see")
    models = [run.raw_model, *([run.average] if run.average else [])]
    state = [x for of_one in run.optimizer.state.values() for x in of_one.values()]
    for x in [*(p for model in models for p in model.parameters()), *state]:
        dist.broadcast(x.detach(), 0)


def set_up(settings, given, checkpoint):
    """A run before its first step, as a namespace: what choose_machine says, and

    settings, model_args               of train.py with the model's; of the model alone
    data, T, micro_steps               the dataset, tokens of a sequence, micro-steps of this rank in an iteration
    raw_model, model, average          as built; as a step calls it; its twin of averaged weights, or None
    params, averages, optimizer        what is trained, the average of each, AdamW
    graphs                             captured steps, {loop count: (graph, loss, norm)}
    it, best_val_loss                  iterations done, the lowest loss so far
    saved, between_steps               the iteration of ckpt_last.pt, or None; False while an update moves the weights
    last_path, best_path, log_path     what it writes
    log, wandb                         log.csv as a Table, None where this process writes no files; wandb's run, or None
    started, provenance                when, and what `provenance` of outputs.py says; main sets both
    """
    run = choose_machine(checkpoint)
    run.settings, run.it, run.best_val_loss, run.saved, run.between_steps = settings, 0, math.inf, None, True
    run.last_path, run.best_path, run.log_path = (
        os.path.join(out_dir, name) for name in ("ckpt_last.pt", "ckpt_best.pt", "log.csv"))
    run.data, run.raw_model, run.model_args, run.T = open_run(settings, given, checkpoint, run.last_path)
    runtime.require_backend(run.raw_model.config, run.device)
    run.raw_model.to(run.device).train()
    run.average = copy.deepcopy(run.raw_model).requires_grad_(False) if ema_decay else None
    trained = {name for name, p in run.raw_model.named_parameters() if p.requires_grad}
    run.params = [p for p in run.raw_model.parameters() if p.requires_grad]
    run.averages = [p for k, p in run.average.named_parameters() if k in trained] if run.average else None
    run.optimizer = run.raw_model.configure_optimizers(weight_decay, learning_rate, (beta1, beta2), run.device,
                                                       run.captured)
    run.graphs = {}
    if init_from == "resume":
        take_up(run, checkpoint)
    start_alike(run)
    run.micro_steps = -(-gradient_accumulation_steps // run.world)  # rounded up, so that every rank has as many
    if run.master and run.micro_steps * run.world != gradient_accumulation_steps:
        print(f"gradient_accumulation_steps {gradient_accumulation_steps} -> {run.micro_steps * run.world}, equal for "
              f"{run.world} processes: an iteration is larger than that of one process; set batch_size to match")
    run.model = compiled(run)
    run.log = start_files(run) if run.master and not eval_only else None  # an evaluation leaves the run as it is
    run.wandb = start_wandb(settings) if wandb_log and run.master else None
    return run


def say_depth(run, given):
    """One line where layers are asked for and no loops, as configs of nanoGPT do: every loop takes all layers."""
    layers = run.model_args["n_layer"]
    if model_type == "loop" and layers > 1 and "n_layer" in given and "num_loops" not in given:
        print(f"n_layer {layers} without num_loops: each of its {run.model_args['num_loops']} loops takes all layers; "
              "nanoGPT's plain stack is --model_type=gpt, one loop is --num_loops=1")


def say_idle_settings(run):
    """One line on keys of the command line that do nothing in this run."""
    rows, untrained = run.data.meta.kind == "rows", init_from == "scratch"
    say_without_effect(
        *idle_settings(run.raw_model.config),
        (rows and not run.raw_model.learned_positions, "rows have their length, and pos no end", "block_size"),
        (not rows and fresh_rows, "the data is a text", "fresh_rows"),
        (not rows and swap_operands, "the data is a text", "swap_operands"),
        (*tasks.idle(run.data.meta, task), "task"),
        (untrained and run.settings["halt_head"] == "after", "it learns what a model does that was never trained; "
         "--init_from=CHECKPOINT", "halt_head"),
        (not decay_lr, "decay_lr is False", "min_lr", "lr_decay_iters"),
        (not wandb_log, "wandb_log is False", "wandb_project", "wandb_run_name"))


# ---- a step

def forward_backward(run, X, Y, loops):
    """One micro-step: adds its share to the gradients and returns its share of the loss, of all ranks' micro-steps."""
    with run.context:
        loss = (run.model(X, Y, loops) if loops else run.model(X, Y))[1] / (run.micro_steps * run.world)
    loss.backward()
    return loss.detach()


def exchange(run, loss):
    """Sum the ranks' shares of the gradients, and of the loss, which is returned.

    One exchange of one piece of memory after the last micro-step. DistributedDataParallel sends pieces while backward
    still runs, but costs a small model more in launches than that hides, and runs code in backward that a CUDA graph
    does not replay. One loop injects nothing, so not every weight has a gradient in each step; loop counts are equal on
    all ranks, so the same ones have.
    """
    if run.world == 1:
        return loss
    trained = [p for p in run.params if p.grad is not None]
    parts = [*(p.grad.flatten() for p in trained), loss.flatten()]  # the loss at the end keeps the others aligned
    flat = runtime.sum_over_ranks(torch.cat(parts), run.world)
    for p, grad in zip(trained, flat.split([len(x) for x in parts]), strict=False):
        p.grad = grad.view_as(p)
    return flat[-1]


def update(run):
    """Clip, step, average the weights; returns the norm of the gradient."""
    norm = torch.nn.utils.clip_grad_norm_(run.params, grad_clip or math.inf, foreach=True)
    run.between_steps = False
    run.optimizer.step()
    if run.averages:
        torch._foreach_lerp_(run.averages, run.params, 1 - ema_decay)
    run.between_steps = True
    return norm


def plain_step(run, it):
    """Train one step; returns its loss and its gradient's norm."""
    run.optimizer.zero_grad(set_to_none=True)
    for group in run.optimizer.param_groups:
        group["lr"] = lr_at(it)
    loss = 0.0
    for micro in range(run.micro_steps):
        index = micro * run.world + run.rank
        X, Y = batch(run, it, index)
        runtime.seed_torch(seed, it, index)
        loss = loss + forward_backward(run, X, Y, loops_at(run, it))
    return exchange(run, loss), update(run)


def make_graph_step(run):
    """plain_step's twin for small models on a GPU, where launches cost more than arithmetic: the whole step, with the
    exchange between ranks, clipping, AdamW and averaging, replays as one CUDA graph per loop count. All ranks replay
    the same ones in the same order, as NCCL asks. Seeding before a replay seeds its dropout.
    """
    X, Y = (torch.stack(x) for x in zip(*(batch(run, 0, i) for i in range(run.micro_steps)), strict=True))
    pool = torch.cuda.graph_pool_handle()

    def all_micro_steps(loops):
        return exchange(run, sum(forward_backward(run, X[i], Y[i], loops) for i in range(run.micro_steps)))

    def step(run, it):
        loops = loops_at(run, it)
        if loops not in run.graphs:
            run.graphs[loops] = runtime.capture_step(lambda: all_micro_steps(loops), lambda: update(run),
                                                     run.optimizer, pool)
        for i in range(run.micro_steps):
            for static, fresh in zip((X[i], Y[i]), batch(run, it, i * run.world + run.rank), strict=True):
                static.copy_(fresh)
        for group in run.optimizer.param_groups:
            group["lr"].fill_(lr_at(it))
        runtime.seed_torch(seed, it, run.rank)
        graph, loss, norm = run.graphs[loops]
        graph.replay()
        return loss, norm
    return step


# ---- evaluations and checkpoints

@torch.no_grad()
def evaluate(run):
    """Mean loss after each loop for every split {split: [loss, ...]}, and the mean loops per token by the halting rule.

    The batches are the same at every evaluation and for every seed; the ranks share them out.
    """
    net = run.average or run.raw_model
    net.eval()
    losses, looped = {}, model_type == "loop"
    halting = looped and net.config.halt != "none"
    taken = torch.zeros(2, device=run.device)  # loops, tokens
    for split in run.data.splits:
        total = torch.zeros(net.trained_loops if looped else 1, device=run.device)
        for index in range(run.rank, eval_iters, run.world):
            X, Y = get_batch(run.data, split, (index,), batch_size, run.T, run.device)
            with run.context:
                total += net.loss_per_loop(X, Y) if looped else net(X, Y)[1]
                if halting and split == "val":
                    count = net.think(X, trace=False)[1]["loops"]
                    taken += torch.stack((count.sum(), (count > 0).sum()))
        losses[split] = (runtime.sum_over_ranks(total, run.world) / eval_iters).tolist()
    net.train()
    runtime.sum_over_ranks(taken, run.world)
    return losses, (taken[0] / taken[1]).item() if halting else None


def require_finite(run, loss):
    """Exit with status 1 once the loss or a weight, equal on all ranks, is not a number, before a checkpoint could take
    it in."""
    if not (torch.isfinite(loss) and weights_finite(run)):
        a = run.model_args
        alpha = "smaller alpha, " * (a.get("update", "replace") != "replace" and not isinstance(a["alpha"], str))
        end_together(run, f"the loss or a weight is not finite at iteration {run.it} (loss {float(loss):.4g}); "
                     f"{what_is_saved(run)}; try a {alpha}lower learning_rate, longer warmup_iters or --dtype=float32",
                     1)


def weights_finite(run):
    return all(torch.isfinite(p).all() for p in run.params)


def end_out_of_memory(run, error):
    """Save what is whole, and exit with status 1 and a line that says which settings take less memory."""
    if run.between_steps and run.it > (run.saved or 0):
        save(run, run.last_path)
    raise SystemExit(f"out of memory at iteration {run.it} ({runtime.first_line(error)[:150]}): lower --batch_size, "
                     f"now {batch_size}, and raise --gradient_accumulation_steps, now {gradient_accumulation_steps}, "
                     f"by the same factor{', or --cuda_graph=False' * run.captured}; {what_is_saved(run)}") from None


def end_alone(run, why):
    """Save what is whole, and exit with status 1 where another rank has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun tells all of them to end, which they do
    run.shown.clear()
    if run.between_steps and run.it > (run.saved or 0) and weights_finite(run):
        save(run, run.last_path)
    raise SystemExit(f"another process of this training has ended, and so does this one ({why}); {what_is_saved(run)}")


def what_is_saved(run):
    """What a run that ends early leaves."""
    if not run.master and os.path.exists(run.last_path):  # rank 0 writes it, and may have been at it
        with contextlib.suppress(SystemExit):
            run.saved = runtime.load_checkpoint(run.last_path)["iter_num"]
    if run.saved is None:
        return "no checkpoint was saved yet"
    return f"{run.last_path} is of iteration {run.saved}, --init_from=resume goes on there"


def save(run, path):
    """Write a checkpoint of the run as it stands; rank 0 does, unless it only evaluates."""
    if not run.log:
        return
    known = run.provenance | dict(seconds=round(time.time() - run.started, 1), threads=torch.get_num_threads())
    try:
        runtime.save_checkpoint(path, dict(
            model=run.raw_model.state_dict(), optimizer=run.optimizer.state_dict(), model_args=run.model_args,
            iter_num=run.it, best_val_loss=run.best_val_loss, config=run.settings, meta=vars(run.data.meta),
            provenance=known, **(dict(ema=run.average.state_dict()) if run.average else {})))
    except SystemExit as e:
        raise SystemExit(f"{e}; {what_is_saved(run)}") from None
    if path == run.last_path:
        run.saved = run.it


def stop_ranks(run):
    """Part from the other ranks, if any, once all of them, and so rank 0's checkpoint, are done."""
    run.graphs.clear()  # NCCL waits for the graphs that hold it, for ever
    runtime.leave_group()


def end_together(run, line, status):
    """Exit on all ranks, which all come here; rank 0 says why."""
    run.shown.clear()
    if run.master:
        print(line, file=sys.stderr, flush=True)
    stop_ranks(run)
    raise SystemExit(status)


# ---- logs

def start_wandb(settings):
    """wandb's run, or None with a warning: no login and no network must not stop a training."""
    try:
        import wandb
        if not wandb.api.api_key and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
            raise RuntimeError("no login; run: wandb login")  # wandb.init would ask on a terminal, and wait
        return wandb.init(project=wandb_project, name=wandb_run_name, config=settings,
                          settings=wandb.Settings(init_timeout=30))
    except Exception as e:
        print(f"wandb is off ({type(e).__name__}: {runtime.first_line(e)})")


def start_files(run):
    """Make out_dir, config.json and log.csv ready: new, another run there moved aside, or up to the iteration that a
    resumed run goes on from. Returns the log as a Table."""
    outputs.lock_folder(out_dir)
    rows, of_an_end = [], os.path.join(out_dir, "summary.json")
    if init_from == "resume":
        rows = keep_log(run)
    else:
        outputs.move_aside(out_dir)
    with outputs.one_line(of_an_end), contextlib.suppress(FileNotFoundError):
        os.remove(of_an_end)  # it says that a run came to its end, and this one has not
    outputs.write_json(os.path.join(out_dir, "config.json"), run.settings | dict(model_args=run.model_args))
    table = outputs.Table(run.log_path, COLUMNS, rows)
    table.add()
    return table


def keep_log(run):
    """The rows of log.csv up to the iteration that a resumed run goes on from; evaluations come again."""
    rows, whole = outputs.read_log(run.log_path)
    if not whole:
        with outputs.one_line(run.log_path):
            os.replace(run.log_path, f"{run.log_path}.broken")
        outputs.warn(f"{run.log_path} is damaged: put aside as {run.log_path}.broken; the {len(rows)} rows that can be "
                     "read are kept")
    return [{k: r.get(k, "") for k in COLUMNS} for r in rows if int(r["iter"]) < run.it + bool(r.get("loss"))]


def log(run, line, **values):
    """A line on the terminal, a row of log.csv, and wandb."""
    if not run.master:
        return
    run.shown.clear()
    print(line, flush=True)
    run.shown.said = time.monotonic()
    if run.log:
        run.log.add({k: "" if v is None else str(v) for k, v in values.items()})
    if run.wandb:
        try:
            run.wandb.log({k: v for k, v in values.items() if isinstance(v, (int, float))}, step=values["iter"])
        except Exception as e:  # as in start_wandb
            run.wandb = None
            outputs.warn(f"wandb is off from iteration {run.it} on ({type(e).__name__}: {runtime.first_line(e)})")


def log_step(run, loss, norm, loops, ms):
    """The line of a log step; loops and ms, the time of a step, are those since the line before."""
    it, peak = run.it, runtime.peak_flops(run.device)
    tokens_per_s = batch_size * run.micro_steps * run.world * run.T / ms * 1e3
    kept = run.settings["grad_loops"] or math.inf  # a loop without gradients costs a third of one with
    whole = np.mean([min(n, kept) + max(0, n - kept) / 3 for n in loops or [1]])
    mfu = peak and run.raw_model.estimate_mfu(batch_size * run.micro_steps, run.T, ms / 1e3, peak, whole)
    parts = [f"iter {it}/{max_iters} ({100 * it / max_iters:.1f}%): loss {loss:.4f}", f"{ms:.1f} ms",
             f"{tokens_per_s / 1e3:.1f}k tokens/s", f"MFU {100 * mfu:.1f}%" if mfu else None,
             f"loops {np.mean(loops):.1f}" if loops else None, f"ETA {outputs.human_time((max_iters - it) * ms / 1e3)}"]
    log(run, ", ".join(filter(None, parts)), iter=it, loss=loss, lr=lr_at(it - 1), grad_norm=norm, ms=round(ms, 3),
        tokens_per_s=round(tokens_per_s), loops=round(float(np.mean(loops)), 3) if loops else None)


def log_evaluation(run, losses, halted_after):
    """The line of an evaluation; a looped model shows the validation loss after each loop, the last one counts."""
    of_train, of_val = losses["train"][-1], losses["val"][-1]
    loops = " by loop " + " ".join(f"{x:.4f}" for x in losses["val"]) if len(losses["val"]) > 1 else ""
    halted = f", {halted_after:.2f} loops per token when halting" if halted_after else ""
    others = "".join(f", {s} {x[-1]:.4f}" for s, x in losses.items() if s not in ("train", "val"))
    log(run, f"eval {run.it}/{max_iters}: train {of_train:.4f}, val {of_val:.4f}{others}{loops}{halted}", iter=run.it,
        train_loss=of_train, val_loss=of_val, halted_after=halted_after,
        val_loss_per_loop=" ".join(f"{x:.6f}" for x in losses["val"]))


# ---- the run

def train(run, stop):
    """All iterations with their evaluations, checkpoints and log lines; returns the losses of the last evaluation.

    SystemExit: status 130 after a signal to stop, 1 where the loss is not finite, each with a good checkpoint.
    """
    step = make_graph_step(run) if run.captured else plain_step
    first = since_it = run.it
    since, loss, norm, loops = time.time(), torch.zeros(()), torch.zeros(()), []
    while True:
        if run.it >= max_iters or eval_only or run.it % eval_interval == 0:
            require_finite(run, loss)
            if run.it > first:  # before the evaluation, so that a failure in it loses nothing
                save(run, run.last_path)
            losses, halted_after = evaluate(run)
            log_evaluation(run, losses, halted_after)
            if losses["val"][-1] < run.best_val_loss:
                run.best_val_loss = losses["val"][-1]
                if run.it > 0:
                    save(run, run.best_path)
            since, since_it = time.time(), run.it
        if run.it >= max_iters or eval_only:
            return losses
        loss, norm = step(run, run.it)
        if model_type == "loop":
            loops.append(loops_at(run, run.it))
        run.it += 1
        if run.master:
            run.shown.add()
        log_now = run.it % log_interval == 0 or run.it == FIRST_LOG
        sync_now = log_now or not run.cuda  # reading the loss stalls a GPU
        if sync_now and not math.isfinite(float(loss)):
            require_finite(run, loss)
        if log_now:
            log_step(run, float(loss), float(norm), loops, (time.time() - since) / (run.it - since_it) * 1e3)
            since, since_it, loops = time.time(), run.it, []
        if save_every and run.it % save_every == 0:
            require_finite(run, loss)
            save(run, os.path.join(out_dir, f"ckpt_{run.it}.pt"))
        if (run.world == 1 or sync_now) and stop.anywhere(run.device, run.world):
            require_finite(run, loss)
            save(run, run.last_path)
            end_together(run, f"stopped; {what_is_saved(run)}", 130)


def summary(run, losses):
    """What a run came to, as plain values; seconds are those of this process."""
    ms = [float(r["ms"]) for r in run.log.rows if r.get("ms")] if run.log else []
    return dict(
        iterations=run.it, parameters=run.raw_model.get_num_params(),
        flops_per_token=run.raw_model.flops_per_token(run.T, getattr(run.raw_model, "trained_loops", 1)),
        train_loss=round(losses["train"][-1], 4), val_loss=round(losses["val"][-1], 4),
        best_val_loss=round(run.best_val_loss, 4), **(dict(ms=round(float(np.median(ms)), 2)) if ms else {}),
        seconds=round(time.time() - run.started, 1), device=torch.cuda.get_device_name() if run.cuda else run.device,
        torch=str(torch.__version__), checkpoint=run.last_path)


def main():
    own, of_model, given = configure(__file__, {"model settings": {
        k: s for k, s in class_settings(LoopConfig).items() if k not in FROM_DATASET}})
    checkpoint, settings = starting_point(own | of_model, given)
    globals().update({k: settings[k] for k in own})
    check_settings()
    if task:
        tasks.use(task)
    run = set_up(settings, given, checkpoint)
    run.started, run.provenance = time.time(), outputs.provenance(run.device) if run.log else None
    if run.master:
        say_depth(run, given)
        say_idle_settings(run)
        if init_from == "resume":
            say_what_differs(run, checkpoint)
        threads = f" with {torch.get_num_threads()} thread(s)" if run.device == "cpu" else ""
        parts = run.micro_steps * run.world
        rows = f"{batch_size * parts:,}" + f" ({batch_size} x {parts})" * (parts > 1)
        print(f"{model_type} with {run.raw_model.get_num_params():,} parameters, {run.dtype} on {run.device}{threads}, "
              f"{run.world} process(es); {rows} sequences of {run.T} tokens per iteration; "
              f"{dataset}, seed {seed}")
        if run.it >= max_iters and not eval_only:
            print(f"nothing to train: at iteration {run.it} already, and max_iters is {max_iters}")
    stop = runtime.StopSignal(run.master)  # only now: before the first step there is nothing to save
    run.shown = outputs.Progress("training", "iterations", max(0, max_iters - run.it))
    run.shown.live &= run.master
    if run.world > 1:
        runtime.end_if_stuck(lambda: what_is_saved(run))
    try:
        with run.shown:
            losses = train(run, stop)
    except runtime.RankLost as e:
        end_alone(run, e)
    except (MemoryError, RuntimeError) as e:
        if not runtime.out_of_memory(e):
            raise
        end_out_of_memory(run, e)
    if run.log:
        figures.draw_training(run.log.rows, out_dir, os.path.join(out_dir, "loss.png"))
    if run.master:
        found = summary(run, losses)
        print("---", *(f"{key}: {value}" for key, value in found.items()), sep="\n")
        if run.log:
            known = run.provenance | dict(seconds=found["seconds"])
            try:
                outputs.write_json(os.path.join(out_dir, "summary.json"), found | dict(provenance=known))
            except SystemExit as e:  # the checkpoint is there
                outputs.warn(str(e))
    if stop.anywhere(run.device, run.world):  # during the last evaluation
        end_together(run, f"stopped; {what_is_saved(run)}", 130)
    stop_ranks(run)


if __name__ == "__main__":
    runtime.run(main, "--batch_size, or the model: --n_embd, --n_layer")
