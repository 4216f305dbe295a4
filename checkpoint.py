"""The settings of a model that train.py makes; and a checkpoint for a script: the model in eval mode, what is known of
its tokens, and the settings that may change. A model from Python, in the project's folder:

    from checkpoint import open_model
    from dataset import decode, encode
    from generate import write
    model, meta, *_ = open_model("out/novel/ckpt_best.pt")
    print(*(decode(meta, burst.tokens[0]) for burst in write(model, [encode(meta, "It was")], 200, 0.8)), sep="")

burst.loops are those that each token took. A model of a task reads and writes rows: tasks.read, tasks.show.
"""
import os

from configurator import class_settings
from dataset import GPT2_TOKENS, checkpoint_meta, read_meta
from looplm_kernels import RULES
from model import GPTConfig
from model_loop import INFERENCE_SETTINGS, LoopConfig, LoopGPT, from_checkpoint, loop_counts
from outputs import warn
from runtime import load_checkpoint, require_backend


def model_settings(settings, given, facts):
    """The model_args of a new model: the settings that its config class has, and the facts of its dataset."""
    kind = settings["model_type"]
    if kind not in ("loop", "gpt"):
        raise SystemExit(f"--model_type={kind}: loop or gpt")
    own = class_settings(LoopConfig if kind == "loop" else GPTConfig)
    other = [k for k in class_settings(LoopConfig) if k in given and k not in own]
    if other:
        raise SystemExit(f"{', '.join(other)}: only model_type 'loop' has this; nanoGPT's GPT is the plain baseline")
    args = {k: settings[k] for k in own if k in settings} | {k: v for k, v in facts.items() if k in own}
    if kind == "gpt" and "n_layer" not in given:
        args["n_layer"] = GPTConfig.n_layer  # LoopConfig's default is 1
    return args


def inference_settings():
    """The group of settings, for configure, that may differ from those of the training: {title: settings}."""
    return {"halting settings, by default as in the checkpoint": class_settings(LoopConfig, INFERENCE_SETTINGS)}


def find_checkpoint(path, out_dir):
    """The path given, or of out_dir the best checkpoint, else the last one, else nanoGPT's."""
    best, last, nanogpt = (os.path.join(out_dir, name) for name in ("ckpt_best.pt", "ckpt_last.pt", "ckpt.pt"))
    return path or next(filter(os.path.exists, (best, last, nanogpt)), last)


def characters(path):
    """The characters that are the tokens of a checkpoint, or of a meta.json. SystemExit if they are something else."""
    json = path.endswith(".json")
    meta = read_meta(*os.path.split(path)) if json else checkpoint_meta(load_checkpoint(path), path)
    if meta.kind != "text" or meta.vocab is None or any(len(s) > 1 for s in meta.vocab):
        raise SystemExit(f"--vocab_from={path}: its tokens are not the characters of a text")
    return meta.vocab


def say_default_threshold(model, meta, saved, overrides):
    """A line, if the answer halts by another rule than the checkpoint's own, at that rule's default threshold."""
    rule, own = overrides.get("halt", "none"), saved["model_args"].get("halt", "none")
    given = overrides.keys() & {"halt_threshold", "think_threshold"}
    if rule not in ("none", own) and not given and not model.config.think_loops:
        what = "evaluate.py --frontier=True" if meta.kind == "rows" else "evaluate.py"
        warn(f"halt={rule} at its default {RULES[rule].threshold:g} was not chosen for this model: {what} shows what "
             "it costs")


def say_fast_reading(model, saved, overrides):
    """A line, if the prompt takes fewer loops than any in training, or may by a rule, and the answer is told to take
    more: loops that were only trained on a prompt that thinks on meet one that was frozen early."""
    trained, c = saved["model_args"], model.config
    least, drawn = min(loop_counts(trained.get("num_loops", 0))), trained.get("prompt_loops")
    if isinstance(drawn, (list, tuple)):
        least = min([least, *filter(None, drawn)])
    fixed = max(loop_counts(c.num_loops)) if c.halt == "none" else 0  # of a token without a count of its own
    fewest, most = c.reading or fixed or c.min_loops, c.think_loops or fixed
    if overrides.keys() & {"prompt_loops", "think_loops"} and 0 < fewest < least < most:
        read = (f"prompt_loops={c.reading}" if c.reading else
                f"num_loops={fixed} for the prompt" if fixed else f"halt={c.halt} for the prompt")
        wrote = f"think_loops={most}" if c.think_loops else f"num_loops={most} for the answer"
        warn(f"{read} with {wrote}: in training every token took {least} "
             "loops or more, and an answer that thinks on after a faster reading may break: evaluate.py --waiting=True "
             "shows what it costs")


def open_model(checkpoint="", out_dir="out", device="cpu", overrides=None):
    """(model, meta, saved, path) of the checkpoint at a path, "" for that of out_dir. SystemExit with one line if none.

    model: GPT or LoopGPT on the device; meta: a namespace on its tokens; saved: the whole dict of the file;
    overrides: {inference setting: value} that shall differ from those it was trained with.
    """
    path = find_checkpoint(checkpoint, out_dir)
    saved = load_checkpoint(path)
    meta = checkpoint_meta(saved, path)
    try:
        model = from_checkpoint(saved, **overrides or {})
    except ValueError as e:
        raise SystemExit(f"{path}: {e}") from None
    say_default_threshold(model, meta, saved, overrides or {})
    if isinstance(model, LoopGPT):
        say_fast_reading(model, saved, overrides or {})
    require_backend(model.config, device)
    model.crop_vocabulary(min(meta.vocab_size, GPT2_TOKENS) if meta.encoding == "gpt2" else meta.vocab_size)
    return model.to(device), meta, saved, path
