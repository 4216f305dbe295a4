"""Every kernel of LoopLM, its torch reference beside it, and the one dispatch between them.

An operation stands here as: kernel, torch reference, public function. There is one so far, the halt update that
follows each loop; it has only its reference, which is what a CPU uses in any case.

    python looplm_kernels.py        says what this machine can run
"""
import functools
import sys

import torch

RULES = ("none", "confidence", "entropy", "delta", "kl", "gate")
NEEDS_LOGITS = ("confidence", "entropy", "kl")
HALTS_ABOVE = ("confidence", "gate")  # these halt at score >= threshold, the others at score <= threshold


@functools.cache  # so that the choice is printed once
def choose_backend(backend="auto", device_type="cpu"):
    """'auto', 'cutile' or 'torch' -> the backend that runs, 'cutile' or 'torch', with its reason on stderr."""
    if backend not in ("auto", "cutile", "torch"):
        raise ValueError(f"backend {backend!r} is none of auto, cutile, torch")
    reason = "there is no cuTile kernel yet" if device_type == "cuda" else f"a {device_type} device has no cuTile"
    if backend == "cutile":
        raise RuntimeError(f"backend cutile cannot run here: {reason}; use torch or auto")
    if backend == "auto":
        print(f"halting: torch backend ({reason})", file=sys.stderr)
    return "torch"


def softmax_statistics(logits):
    """log p (N,V), the largest probability (N,) and the entropy in nats (N,), float32 or wider, of logits (N,V).

    The largest probability is 1 / sum exp(z - z_max): its own numerator is exp(0). Logits of -inf count as
    MASK_FLOOR, so that 0 * log 0 is 0 and not NaN.
    """
    z = logits if logits.dtype == torch.float64 else logits.float()
    z = z.clamp(min=-1e20)
    z = z - z.max(-1, keepdim=True).values
    total = z.exp().sum(-1, keepdim=True)
    logp = z - total.log()
    return logp, 1 / total.squeeze(-1), -(logp.exp() * logp).sum(-1)


def relative_change(new, h):
    """delta = norm(new - h) / norm(h) of each token; states (...,C) -> (...), float32 or wider."""
    new, h = (x if x.dtype == torch.float64 else x.float() for x in (new, h))
    return (new - h).norm(dim=-1) / h.norm(dim=-1).clamp(min=1e-20)


def halt_score(rule, h, new, logits=None, previous=None, gate=None, alpha=1.0):
    """The score (...) of a rule after a loop that took the states h (...,C) to new, NaN where it has none yet.

    logits, previous (...,V): the readout of new and of h (None before loop 1); gate (...): the halt head's
    probability; alpha: the step size of update euler, by which delta is divided.
    """
    if rule == "confidence":
        return softmax_statistics(logits)[1]
    if rule == "entropy":
        return softmax_statistics(logits)[2]
    if rule == "delta":
        return relative_change(new, h) / alpha
    if rule == "gate":
        return gate.float()
    if rule == "kl" and previous is not None:
        logp, logq = softmax_statistics(logits)[0], softmax_statistics(previous)[0]
        return (logp.exp() * (logp - logq)).sum(-1)
    return torch.full(h.shape[:-1], torch.nan, device=h.device)  # rule none, and kl before loop 2


def halt_update_reference(rule, h, new, active, loops, loop, threshold, limit, min_loops=1, **inputs):
    score = halt_score(rule, h, new, **inputs)
    passes = score >= threshold if rule in HALTS_ABOVE else score <= threshold  # a NaN passes nothing
    halted = (passes & (loop >= min_loops)) | (loop >= limit)
    return (torch.where(active[..., None], new, h), active & ~halted, torch.where(active, loop, loops),
            score.masked_fill(~active, torch.nan))


def halt_update(rule, h, new, active, loops, loop, threshold, limit, min_loops=1, backend="auto", **inputs):
    """What follows loop number `loop` (from 1): score every token, move the active ones, let those that pass halt.

    rule       one of RULES
    h, new     (...,C) states before and after the loop
    active     (...) bool, False for tokens that have halted and for pads
    loops      (...) int64, loops whose result is in h
    threshold  (...) float32, the score at which a token halts; an infinite one that nothing passes switches it off
    limit      (...) int64, the loop in which a token halts whatever its score
    inputs     what halt_score needs for the rule: logits, previous, gate, alpha

    Returns h, active, loops (the loop in which a token halts counts) and score (NaN for tokens that had halted).
    A halted token keeps its state to the bit.
    """
    if rule not in RULES:
        raise ValueError(f"halting rule {rule!r} is none of {', '.join(RULES)}")
    choose_backend(backend, h.device.type)
    return halt_update_reference(rule, h, new, active, loops, loop, threshold, limit, min_loops, **inputs)


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"torch {torch.__version__}, device {device}")
    choose_backend("auto", device)
