"""A checkpoint for a script: the model in eval mode, what is known of its tokens, and the settings that may change."""
import os

from configurator import class_settings
from dataset import checkpoint_meta
from model_loop import INFERENCE_SETTINGS, LoopConfig, from_checkpoint
from runtime import load_checkpoint, require_backend


def inference_settings():
    """The group of settings, for configure, that may differ from those of the training: {title: settings}."""
    return {"halting settings, by default as in the checkpoint": class_settings(LoopConfig, INFERENCE_SETTINGS)}


def find_checkpoint(path, out_dir):
    """The path given, or the best and else the last checkpoint of out_dir."""
    best, last = (os.path.join(out_dir, name) for name in ("ckpt_best.pt", "ckpt_last.pt"))
    return path or (best if os.path.exists(best) else last)


def open_model(checkpoint, out_dir, device, overrides):
    """(model, meta, saved, path) of the checkpoint at a path, "" for that of out_dir. SystemExit with one line if none.

    model: GPT or LoopGPT on the device; meta: a namespace on its tokens; saved: the whole dict of the file;
    overrides: {inference setting: value} that shall differ from those it was trained with.
    """
    path = find_checkpoint(checkpoint, out_dir)
    saved = load_checkpoint(path)
    try:
        model = from_checkpoint(saved, **overrides).to(device)
    except (ValueError, RuntimeError) as e:
        raise SystemExit(f"{path}: {e}") from None
    require_backend(model.config, device)
    return model, checkpoint_meta(saved), saved, path
