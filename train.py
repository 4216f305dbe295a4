"""The only training loop, for GPT and LoopGPT, on one device or on several.

    python train.py config/demo_addition.py                          a laptop
    python train.py config/train_addition.py --cuda_graph=True       one GPU
    torchrun --standalone --nproc_per_node=2 train.py config/train_gpt_12l.py

Writes out_dir/ckpt_last.pt, ckpt_best.pt (lowest validation loss), config.json, log.csv and loss.png.
"""
import contextlib
import copy
import csv
import json
import math
import os
import time

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import dataset as datasets
import runtime
from configurator import class_settings, configure
from model import GPTConfig
from model_loop import FROM_DATASET, INFERENCE_SETTINGS, LoopConfig, build, load_weights, loop_counts

# input, output
out_dir = "out"                 # where checkpoints and logs go
dataset = "addition"            # the folder data/<dataset>, written by its prepare.py
init_from = "scratch"           # scratch, resume (goes on from out_dir/ckpt_last.pt), or a checkpoint's path
seed = 1337                     # of everything random: weights, batches, dropout, loop counts
# evaluation and logs
eval_interval = 500             # iterations between evaluations; a checkpoint is saved before each
eval_iters = 20                 # batches an evaluation averages over, the same ones each time
eval_only = False               # evaluate once and stop
log_interval = 50               # iterations between log lines
wandb_log = False               # also log to Weights & Biases
wandb_project = "looplm"        # its project
wandb_run_name = "run"          # its run
# the batch
batch_size = 64                 # rows of a micro-step
gradient_accumulation_steps = 1  # micro-steps of an iteration, over all ranks together; at least one each
fresh_rows = False              # addition: draw new problems in every step instead of reading train.bin
swap_operands = False           # addition: exchange the operands of half of the rows
flip_rows = 0.0                 # addition: share of rows written C=A+B
# the model; its other settings are listed below these
model_type = "loop"             # loop: LoopGPT; gpt: nanoGPT's GPT
# AdamW
learning_rate = 1e-3            # the highest, after the warm-up
max_iters = 5000                # iterations in all
weight_decay = 0.1              # of matrices and embeddings
beta1 = 0.9                     # decay of the gradient's mean
beta2 = 0.99                    # decay of its square
grad_clip = 1.0                 # largest norm of the gradient; 0 never clips
ema_decay = 0.0                 # keep averaged weights, which evaluation and sampling use; 0: none, else 0.99 and up
decay_lr = True                 # cosine decay of the learning rate
warmup_iters = 100              # iterations of linear warm-up
lr_decay_iters = 0              # iteration at which the rate reaches min_lr; 0: max_iters
min_lr = 0.0                    # where the decay ends
# the machine
device = "auto"                 # auto, cpu, cuda, cuda:1, ...
dtype = "auto"                  # autocast to bfloat16, or float32 (tf32 products on CUDA); auto: bfloat16 if there
compile: bool | str = "auto"    # torch.compile; auto: on CUDA, unless cuda_graph
cuda_graph = False              # capture the whole step, one graph a loop count; for small models on a GPU
deterministic = False           # bit-exact on CUDA too, slower; a CPU is in any case

FREE = set(INFERENCE_SETTINGS) - {"num_loops"}  # model settings that a resumed run may change
COLUMNS = ("iter", "loss", "lr", "grad_norm", "ms", "tokens_per_s", "loops", "train_loss", "val_loss",
           "val_loss_per_loop", "halted_after")  # of log.csv


def lr_at(it):
    """Learning rate of an iteration: linear warm-up, cosine decay, then min_lr."""
    end = lr_decay_iters or max_iters
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if not decay_lr:
        return learning_rate
    done = min(1.0, (it - warmup_iters) / max(1, end - warmup_iters))
    return min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (learning_rate - min_lr)


def loops_at(it):
    """Loop count of an iteration, a pure function of (seed, iter) and so equal on all ranks; None for a GPT."""
    if model_type == "gpt":
        return None
    return int(np.random.default_rng([seed, it]).choice(loop_counts(settings["num_loops"])))


def model_settings(facts):
    """The model_args of a new model: the settings that its config class has, and the facts of its dataset."""
    if model_type not in ("loop", "gpt"):
        raise SystemExit(f"--model_type={model_type}: loop or gpt")
    own = class_settings(LoopConfig if model_type == "loop" else GPTConfig)
    other = [k for k in class_settings(LoopConfig) if k in given and k not in own]
    if other:
        raise SystemExit(f"{', '.join(other)}: only model_type 'loop' has this; nanoGPT's GPT is the plain baseline")
    args = {k: settings[k] for k in own if k in settings} | {k: v for k, v in facts.items() if k in own}
    if model_type == "gpt" and "n_layer" not in given:
        args["n_layer"] = GPTConfig.n_layer  # LoopConfig's default is 1
    return args


def make_model(data, checkpoint):
    """The model in float32 on the CPU: new, resumed, or new settings on the weights of another checkpoint."""
    args, resume = model_settings(datasets.model_facts(data.meta)), init_from == "resume"
    runtime.seed_torch(seed)
    if checkpoint is None:
        return build(args), args
    old = checkpoint["model_args"]
    if ("num_loops" in old) != (model_type == "loop"):
        raise SystemExit(f"--model_type={model_type}, but the checkpoint of --init_from={init_from} is the other one")
    changed = [k for k in args if (k in given or k in FROM_DATASET) and args[k] != old.get(k, args[k])]
    fixed = [k for k in changed if (k not in FREE if resume else k == "vocab_size")]
    if fixed:
        raise SystemExit(f"--init_from={init_from} with dataset {dataset}, but {', '.join(fixed)} differ from the "
                         f"checkpoint's ({', '.join(f'{k}={old[k]!r}' for k in fixed)})")
    args = {k: v if k in changed else old.get(k, v) for k, v in args.items()}
    model = build(args)
    weights = checkpoint["model"] if resume else checkpoint.get("ema") or checkpoint["model"]
    lost = load_weights(model, weights, strict=False)
    wrong = lost.unexpected_keys + [k for k in lost.missing_keys if resume or not k.startswith("halt_head")]
    if wrong:
        raise SystemExit(f"--init_from={init_from} does not fit this model: {', '.join(wrong[:4])}")
    return model, args


@torch.no_grad()
def evaluate():
    """Mean loss after each loop for every split {split: [loss, ...]}, and the loops a token takes by the halting rule.

    The batches are the same at every evaluation and for every seed; the ranks share them out.
    """
    net = average or raw_model
    net.eval()
    losses, looped = {}, model_type == "loop"
    halting = looped and net.config.halt != "none"
    taken = torch.zeros(2, device=device)  # loops, tokens
    for split in data.splits:
        total = torch.zeros(net.trained_loops if looped else 1, device=device)
        for index in range(rank, eval_iters, world):
            X, Y = datasets.get_batch(data, split, (index,), batch_size, T, device)
            with context:
                total += net.loss_per_loop(X, Y) if looped else net(X, Y)[1]
                if halting and split == "val":
                    count = net.think(X, trace=False)[1]["loops"]
                    taken += torch.stack((count.sum(), (count > 0).sum()))
        losses[split] = (runtime.mean_over_ranks(total, world) * world / eval_iters).tolist()
    net.train()
    runtime.mean_over_ranks(taken, world)
    return losses, (taken[0] / taken[1]).item() if halting else None


def forward_backward(X, Y, loops):
    """One micro-step: adds its share to the gradients and returns its share of the loss."""
    with context:
        loss = (model(X, Y, loops) if loops else model(X, Y))[1] / micro_steps
    loss.backward()
    return loss.detach()


def update():
    """Clip, step, average the weights; returns the norm of the gradient."""
    norm = torch.nn.utils.clip_grad_norm_(params, grad_clip or math.inf, foreach=True)
    optimizer.step()
    if averages:
        torch._foreach_lerp_(averages, params, 1 - ema_decay)
    return norm


def batch(it, index):
    """Training batch number `index` of an iteration, over all ranks and micro-steps."""
    return datasets.get_batch(data, "train", (seed, it, index), batch_size, T, device,
                              fresh_rows, swap_operands, flip_rows)


def plain_step(it):
    """Train one step; returns its loss and its gradient's norm."""
    optimizer.zero_grad(set_to_none=True)
    for group in optimizer.param_groups:
        group["lr"] = lr_at(it)
    loss = 0.0
    for micro in range(micro_steps):
        index = micro * world + rank
        X, Y = batch(it, index)
        runtime.seed_torch(seed, it, index)
        last = micro == micro_steps - 1  # the ranks exchange gradients once, in the last micro-step
        with contextlib.nullcontext() if last or world == 1 else model.no_sync():
            loss = loss + forward_backward(X, Y, loops_at(it))
    return loss, update()


def make_graph_step():
    """plain_step's twin for small models on a GPU, where launches cost more than arithmetic: the whole step, with
    clipping, AdamW and averaging, replays as one CUDA graph a loop count. Seeding before a replay seeds its dropout."""
    X, Y = (torch.stack(x) for x in zip(*(batch(0, i) for i in range(micro_steps)), strict=True))
    graphs, pool = {}, torch.cuda.graph_pool_handle()

    def all_micro_steps(loops):
        return sum(forward_backward(X[i], Y[i], loops) for i in range(micro_steps))

    def step(it):
        loops = loops_at(it)
        if loops not in graphs:
            graphs[loops] = runtime.capture(lambda: all_micro_steps(loops), update, optimizer, pool)
        for i in range(micro_steps):
            for static, fresh in zip((X[i], Y[i]), batch(it, i), strict=True):
                static.copy_(fresh)
        for group in optimizer.param_groups:
            group["lr"].fill_(lr_at(it))
        runtime.seed_torch(seed, it, 0)
        graph, loss, norm = graphs[loops]
        graph.replay()
        return loss, norm
    return step


def require_finite(loss):
    """Exit with status 1 once the loss or a weight is not a number, before a checkpoint could take it in."""
    if torch.isfinite(loss) and all(torch.isfinite(p).all() for p in params):
        return
    good = f"the last good checkpoint is {last_path}" if saved else "no checkpoint was saved yet"
    raise SystemExit(f"the loss or a weight is not finite at iteration {it} (loss {float(loss):.4g}); {good}; "
                     "try a lower learning_rate, a longer warmup_iters or --dtype=float32")


def save(path):
    """Write a checkpoint of the run as it stands; rank 0 does, unless it only evaluates."""
    if writes:
        runtime.save_checkpoint(path, dict(
            model=raw_model.state_dict(), optimizer=optimizer.state_dict(), model_args=model_args, iter_num=it,
            best_val_loss=best_val_loss, config=settings, meta=vars(data.meta),
            **(dict(ema=average.state_dict()) if average else {})))


def stop_ranks():
    """Part from the other ranks, if any, once all of them, and so rank 0's checkpoint, are done."""
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def start_wandb():
    """wandb's run, or None with a warning: no login and no network must not stop a training."""
    try:
        import wandb
        if not wandb.api.api_key and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
            raise RuntimeError("no login; run: wandb login")  # wandb.init would ask on a terminal, and wait
        return wandb.init(project=wandb_project, name=wandb_run_name, config=settings,
                          settings=wandb.Settings(init_timeout=30))
    except Exception as e:
        print(f"wandb is off ({type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else 'no reason'})")


def log(line, **values):
    """A line on the terminal, a row of log.csv, and wandb."""
    if not master:
        return
    print(line, flush=True)
    rows.append({k: "" if v is None else str(v) for k, v in values.items()})
    if writes:
        with open(log_path, "a", newline="") as f:
            csv.DictWriter(f, COLUMNS).writerow(rows[-1])
    if wandb_run:
        wandb_run.log({k: v for k, v in values.items() if isinstance(v, (int, float))}, step=values["iter"])


def start_log():
    """Open log.csv: new, or up to the iteration that a resumed run goes on from. Returns its rows."""
    rows = []
    if init_from == "resume" and os.path.exists(log_path):
        with open(log_path) as f:
            rows = [r for r in csv.DictReader(f) if int(r["iter"]) < it + bool(r["loss"])]  # evaluations come again
    with open(log_path, "w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return rows


def plot():
    """loss.png: the loss of training batches, and the losses of the evaluations."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for key, label, style in (("loss", "training batch", "0.6"), ("train_loss", "training set", "k:"),
                              ("val_loss", "validation set", "ko-")):
        points = [(int(r["iter"]), float(r[key])) for r in rows if r.get(key)]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, ms=4)
    axes.set(xlabel="iteration", ylabel="loss (nats a token)", yscale="log", title=out_dir)
    axes.legend()
    figure.savefig(os.path.join(out_dir, "loss.png"), dpi=120)


def span(seconds):
    """Seconds as people read them: 47s, 3m05s, 2h10m."""
    s = int(seconds)
    return f"{s}s" if s < 60 else f"{s // 60}m{s % 60:02}s" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02}m"


def log_step(loss, norm, loops):
    """The line of a log step; the time is the mean since the line before."""
    ms = (time.time() - since) / (it - since_it) * 1e3
    tokens_per_s = batch_size * micro_steps * world * T / ms * 1e3
    kept = settings["grad_loops"] or math.inf  # a loop without gradients costs a third of one with
    whole = np.mean([min(n, kept) + max(0, n - kept) / 3 for n in loops or [1]])
    mfu = raw_model.estimate_mfu(batch_size * micro_steps, T, ms / 1e3, peak, whole) if peak else None
    parts = [f"iter {it}/{max_iters} ({100 * it / max_iters:.1f}%): loss {loss:.4f}", f"{ms:.1f} ms",
             f"{tokens_per_s / 1e3:.1f}k tokens/s", f"MFU {100 * mfu:.1f}%" if mfu else None,
             f"loops {np.mean(loops):.1f}" if loops else None, f"ETA {span((max_iters - it) * ms / 1e3)}"]
    log(", ".join(filter(None, parts)), iter=it, loss=loss, lr=lr_at(it - 1), grad_norm=norm, ms=round(ms, 3),
        tokens_per_s=round(tokens_per_s), loops=round(float(np.mean(loops)), 3) if loops else None)


def log_evaluation(losses, halted_after):
    """The line of an evaluation; a looped model shows the validation loss after each loop, the last one counts."""
    loops = " by loop " + " ".join(f"{x:.4f}" for x in losses["val"]) if len(losses["val"]) > 1 else ""
    halted = f", halted after {halted_after:.2f} loops" if halted_after else ""
    others = "".join(f", {s} {x[-1]:.4f}" for s, x in losses.items() if s not in ("train", "val"))
    log(f"eval {it}/{max_iters}: train {losses['train'][-1]:.4f}, val {losses['val'][-1]:.4f}{others}{loops}{halted}",
        iter=it, train_loss=losses["train"][-1], val_loss=losses["val"][-1], halted_after=halted_after,
        val_loss_per_loop=" ".join(f"{x:.6f}" for x in losses["val"]))


# ---- set-up

stop = runtime.StopSignal()
own, of_model, given = configure(__file__, {"model settings": {
    k: s for k, s in class_settings(LoopConfig).items() if k not in FROM_DATASET}})
globals().update(own)
settings = own | of_model
for key in ("batch_size", "gradient_accumulation_steps", "eval_interval", "eval_iters", "log_interval"):
    if settings[key] < 1:
        raise SystemExit(f"--{key}={settings[key]}: must be at least 1")
if deterministic:
    runtime.set_deterministic()
torch.set_float32_matmul_precision("highest" if deterministic else "high")
rank, world, device = runtime.init_distributed(runtime.choose_device(device))
dtype, master, cuda = runtime.choose_dtype(dtype, device), rank == 0, device.startswith("cuda")
if cuda_graph and (not cuda or world > 1):
    raise SystemExit("--cuda_graph=True needs one process on one CUDA GPU")
context, peak = runtime.autocast(device, dtype), runtime.peak_flops(device)

last_path, best_path, log_path = (os.path.join(out_dir, x) for x in ("ckpt_last.pt", "ckpt_best.pt", "log.csv"))
checkpoint = None
if init_from == "resume":
    checkpoint = runtime.load_checkpoint(last_path, needed=("model", "model_args", "optimizer", "iter_num"))
elif init_from != "scratch":
    checkpoint = runtime.load_checkpoint(init_from)
data = datasets.open_dataset(dataset, like=checkpoint.get("meta") if init_from == "resume" else None)
try:
    raw_model, model_args = make_model(data, checkpoint)
except ValueError as e:
    raise SystemExit(f"train.py: {e}") from None
except RuntimeError as e:
    raise SystemExit(f"--init_from={init_from} does not fit this model: {' '.join(str(e).split())[:200]}") from None
settings.update({k: v for k, v in model_args.items() if k in settings})  # what the checkpoint decided
T = datasets.sequence_length(data, settings["block_size"])
if raw_model.learned_positions and settings["block_size"] < T:
    raise SystemExit(f"--block_size={settings['block_size']}, but a row of {dataset} has {T} tokens")
if flip_rows and (data.meta.kind != "rows" or data.meta.track != "next"):
    raise SystemExit(f"--flip_rows={flip_rows} is for addition rows of track next")
raw_model.to(device).train()
average = copy.deepcopy(raw_model).requires_grad_(False) if ema_decay else None
trained = {name for name, p in raw_model.named_parameters() if p.requires_grad}
params = [p for p in raw_model.parameters() if p.requires_grad]
averages = [p for name, p in average.named_parameters() if name in trained] if average else None
optimizer = raw_model.configure_optimizers(weight_decay, learning_rate, (beta1, beta2), device, cuda_graph)
it, best_val_loss = 0, math.inf
if init_from == "resume":
    optimizer.load_state_dict(dict(checkpoint["optimizer"], param_groups=optimizer.state_dict()["param_groups"]))
    it, best_val_loss = checkpoint["iter_num"], checkpoint["best_val_loss"]
    if average:
        load_weights(average, checkpoint.get("ema") or checkpoint["model"])
checkpoint = None  # frees the memory
micro_steps = -(-gradient_accumulation_steps // world)  # rounded up, so that every rank has as many
if master and micro_steps * world != gradient_accumulation_steps:
    print(f"gradient_accumulation_steps {gradient_accumulation_steps} -> {micro_steps * world}, equal for {world} "
          "processes: an iteration is larger than that of one process; set batch_size to match")
if compile not in ("auto", True, False):
    raise SystemExit(f"--compile={compile}: auto, True or False")
model = raw_model
if cuda and not cuda_graph if compile == "auto" else compile:
    if model_type == "loop":  # one loop: all loop counts share it, and what a count unrolls would take minutes
        raw_model.loop = torch.compile(raw_model.loop)
        torch._dynamo.config.recompile_limit = 32  # loop 1, the others, with and without gradients, in evaluation
    else:
        model = torch.compile(raw_model)
if world > 1:
    unused = model_type == "loop" and 1 in loop_counts(settings["num_loops"])  # one loop injects nothing
    model = DistributedDataParallel(model, device_ids=[device] if cuda else None, find_unused_parameters=unused)
train_step = make_graph_step() if cuda_graph else plain_step

writes = master and not eval_only  # an evaluation leaves the files of the run that it measures as they are
if writes:
    try:
        os.makedirs(out_dir, exist_ok=True)
        if init_from != "resume" and os.path.exists(best_path):
            os.replace(best_path, f"{best_path}.old")  # of another run: sampling must not take it for this one's
    except OSError as e:
        raise SystemExit(f"--out_dir={out_dir} cannot be written: {e.strerror}") from None
    with runtime.open_output(os.path.join(out_dir, "config.json")) as f:
        json.dump(settings | dict(model_args=model_args), f, indent=1)
rows = start_log() if writes else []
wandb_run = start_wandb() if wandb_log and master else None
if master:
    print(f"{model_type} with {raw_model.get_num_params():,} parameters, {dtype} on {device}, {world} process(es); "
          f"{batch_size} x {micro_steps * world} sequences of {T} tokens an iteration; {dataset}, seed {seed}")

# ---- training

started = since = time.time()
first = since_it = it
saved, loss, norm, loops, losses = init_from == "resume", torch.zeros(()), torch.zeros(()), [], None
while True:
    if it >= max_iters or eval_only or it % eval_interval == 0:
        require_finite(loss)
        if it > first:  # before the evaluation, so that a failure in it loses nothing
            save(last_path)
            saved = True
        losses, halted_after = evaluate()
        log_evaluation(losses, halted_after)
        if losses["val"][-1] < best_val_loss:
            best_val_loss = losses["val"][-1]
            if it > 0:
                save(best_path)
        since, since_it = time.time(), it
    if it >= max_iters or eval_only:
        break
    loss, norm = train_step(it)
    if model_type == "loop":
        loops.append(loops_at(it))
    it += 1
    look = it % log_interval == 0 or not cuda  # reading the loss stalls a GPU
    if look:
        loss = runtime.mean_over_ranks(loss.clone(), world)  # so that all ranks stop where one must
        if not math.isfinite(float(loss)):
            require_finite(loss)
    if it % log_interval == 0:
        log_step(float(loss), float(norm), loops)
        since, since_it, loops = time.time(), it, []
    if (world == 1 or look) and stop.anywhere(device, world):
        require_finite(loss)
        save(last_path)
        stop_ranks()
        raise SystemExit(130)

# ---- summary

if writes:
    plot()
if master:
    print("---")
    ms = [float(r["ms"]) for r in rows if r.get("ms")]
    for key, value in dict(
            iterations=it, parameters=raw_model.get_num_params(),
            flops_per_token=raw_model.flops_per_token(T, getattr(raw_model, "trained_loops", 1)),
            train_loss=f"{losses['train'][-1]:.4f}", val_loss=f"{losses['val'][-1]:.4f}",
            best_val_loss=f"{best_val_loss:.4f}", **(dict(ms=f"{np.median(ms):.2f}") if ms else {}),
            seconds=f"{time.time() - started:.1f}", device=torch.cuda.get_device_name() if cuda else "cpu",
            torch=torch.__version__, checkpoint=last_path).items():
        print(f"{key}: {value}")
stop_ranks()
if stop.received:  # during the last evaluation
    raise SystemExit(130)
