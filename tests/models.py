"""Models that several tests share: small, random, and undecided in different loops."""
import torch

from looplm_kernels import RULES

RULES_OF_BLOCKS = [rule for rule in RULES if rule != "energy"]  # test_energy.py has those of an energy
# thresholds that everything passes, and that nothing does
EASY = {"confidence": 0.0, "gate": 0.0, "entropy": 1e9, "delta": 1e9, "kl": 1e9, "energy": 1e9}
NEVER = {"confidence": 1.5, "gate": 1.5, "entropy": -1.0, "delta": -1.0, "kl": -1.0, "energy": -1e9}


def random_weights(model):
    """The model in float64 and in eval mode, far from its initial state, in which zero biases and tiny weights hide
    mistakes and every token is undecided."""
    for name, p in model.double().eval().named_parameters():
        p.data += (0.1 if name.startswith("halt_head") else 0.3) * torch.randn_like(p)  # a sure gate rounds to 1
    return model


def halfway(model, idx, rule):
    """Sets the rule and a threshold that about half of the tokens pass before the last loop, so loops differ; in the
    widest gap between their scores, which float32 may round."""
    c = model.config
    c.halt, c.halt_threshold = rule, NEVER[rule]
    score = model.think(idx)[1]["score"][..., c.min_loops - 1:model.trained_loops - 1]  # (B,T,l)
    score = score[~score.isnan().all(-1)]
    best = score.nan_to_num(-torch.inf).amax(-1) if RULES[rule].above else score.nan_to_num(torch.inf).amin(-1)
    middle = best.sort().values[len(best) // 3:-(len(best) // 3)]
    i = middle.diff().argmax()
    c.halt_threshold = middle[i:i + 2].mean().float().item()  # as float32 has it
    return model
