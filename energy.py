"""An energy of every token given its past, which a loop descends: update = 'energy' of LoopGPT.

    g(h) = h / sqrt(mean(h^2) + EPS)                                       |g|^2 <= C, so E is bounded from below
    E_t(h) = - sum_i a_i / beta log sum_{s <= t} exp(beta k_si . q_i(h))   attention: head i looks for keys like q
             - 1/2 sum_j c_j relu(w_j . g(h))^2                            memory: patterns w_j
             + 1/2 |h - x0_t|^2                                            anchor: holds the token to its input
    q_i = W_qi g(h), and k_si = W_ki g(h_s), the token's own key too, are what the past is: they do not move with h

    dE_t/dh = h - x0 - J(h)^T (sum_i a_i W_qi^T sum_s p_si k_si + sum_j c_j relu(w_j . g) w_j)      p: the softmax
    J(h)^T v = (v - g mean(g v)) / sqrt(mean(h^2) + EPS)
    h <- h - alpha dE_t/dh

a_i and c_j are learned and may be of either sign. The anchor's weight is 1, since a factor on all of E would only be a
factor on alpha. After NRGPT (2512.16762) and the Energy Transformer (Hoover et al. 2023, 2302.07253): there a norm of
layers and energies of their own, here one norm inside E, whose derivative is part of the gradient. A key has as many
channels as a key and a value of Block: no other matrix reads what is found. Training differentiates these steps as
those of any block, through the keys too.

B batch, T tokens, C width, nh heads, hs channels of a head of Block, S tokens that may be attended to.
"""
import math
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from looplm_kernels import at_least_float32
from think import MASK_FLOOR, log_scale

EPS = 1e-5
HALVINGS = 5     # of a backtracked step, until the token stays where it is
# strengths at the start: about as loud as the embeddings. Ten times as much, or weights of GPT-2's 0.02, learn late.
HEADS, MEMORIES = 0.1, 0.03


class Past(NamedTuple):
    """What an energy knows beside its own state and input."""
    keys: Tensor         # (B,nh,S,2 hs)
    mask: Tensor | None  # what is added to scores, (T,S) or (B,1,1,S): no token sees those after it
    beta: Tensor         # (1), (T) or (B,1,1), of the scores


def normed(h):
    """g(h) and the root mean square it divides by, of states h (B,T,C): (B,T,C), (B,T,1)."""
    size = (h.square().mean(-1, keepdim=True) + EPS).sqrt()
    return h / size, size


class EnergyBlock(nn.Module):
    """The energy and its descent. It has 12 C^2 + nh - 8 weights, Block 12 C^2 + 2 C."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        if C % config.n_head:
            raise ValueError(f"n_embd {C} is not a multiple of n_head {config.n_head}")
        self.n_head, self.config = config.n_head, config
        self.c_q, self.c_k = (nn.Linear(C, 2 * C, bias=False) for _ in range(2))
        self.c_fc = nn.Linear(C, 8 * C - 8, bias=False)
        self.head_strength = nn.Parameter(torch.full((config.n_head,), HEADS))
        self.memory_strength = nn.Parameter(nn.init.normal_(torch.empty(8 * C - 8), std=MEMORIES))

    def reset(self):
        """Weights for a g whose channels are about 1, so that heads tell keys apart from the start."""
        for w in (self.c_q, self.c_k, self.c_fc):
            nn.init.normal_(w.weight, std=w.in_features ** -0.5)

    def flops_per_token(self, T):
        """Training FLOPs of a step per token at length T: 6 of each product, of which the gradient has those of the
        energy twice. Backtracking evaluates the energy before and after every try, forward alone."""
        scores = 2 * self.config.n_embd * T
        energy = self.c_q.weight.numel() + self.c_fc.weight.numel() + scores  # products
        tries = HALVINGS + 2 if self.config.alpha == "backtrack" else 0
        return 6 * (self.c_k.weight.numel() + 2 * energy) + 2 * tries * energy

    def heads(self, x):
        """x (B,T,2C), half of the channels of every head and then the other half -> (B,nh,T,2 hs)."""
        return x.unflatten(-1, (2, self.n_head, -1)).permute(0, 3, 1, 2, 4).flatten(3)

    def keys_values(self, x):
        """The keys (...,2C) of states x (...,C): a cache keeps one half as a Block's keys, the other as its values."""
        return self.c_k(normed(x)[0])

    def past(self, x, cache=None, again=False):
        """The Past of tokens with states x (B,T,C), of which the keys are. cache: as LoopGPT.loop takes it; again: the
        keys of this pass are in its last slot already."""
        T, trained = x.size(1), self.config.log_scale
        alone = cache is not None and cache.positions is not None  # one token of each sequence, after others
        kv = None if again and alone else self.keys_values(x)
        if cache is not None and not again:
            cache.remember(kv.unflatten(-1, (2, self.n_head, -1)).permute(2, 0, 3, 1, 4))
        if alone:
            keys = cache.remembered().permute(1, 2, 3, 0, 4).flatten(3)
            mask, at = cache.mask, cache.positions[..., None]
        else:
            keys, at = self.heads(kv), torch.arange(T, device=x.device)
            mask = x.new_zeros(T, T).masked_fill(
                torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1), MASK_FLOOR)
        beta = x.new_full((1,), 1 / math.sqrt(keys.size(-1)))
        return Past(keys, mask, beta * log_scale(at, trained) if trained else beta)

    def scores(self, q, past):
        """beta k . q of queries q (B,nh,T,2 hs) for every token that they may look at: (B,nh,T,S)."""
        score = (q * past.beta[..., None]) @ past.keys.mT
        return score if past.mask is None else score + past.mask

    def energy(self, h, x0, past):
        """E (B,T) of states h (B,T,C) with inputs x0 (B,T,C), in float32 or wider: small differences of it count."""
        with torch.autocast(h.device.type, enabled=False):
            h, x0 = at_least_float32(h), at_least_float32(x0)
            past = past._replace(keys=past.keys.to(h.dtype))
            g = normed(h)[0]
            q, m = (F.linear(g, w.weight.to(h.dtype)) for w in (self.c_q, self.c_fc))
            found = self.scores(self.heads(q), past).logsumexp(-1) / past.beta
            attention = (self.head_strength[:, None] * found).sum(1)
            memory = (self.memory_strength * m.relu().square()).sum(-1) / 2
            return (h - x0).square().sum(-1) / 2 - attention - memory

    def gradient(self, h, x0, past):
        """dE/dh (B,T,C) in closed form, of what energy takes."""
        g, size = normed(h)
        found = self.scores(self.heads(self.c_q(g)), past).softmax(-1) @ past.keys  # (B,nh,T,2 hs)
        found = self.head_strength[:, None, None] * found
        found = found.unflatten(-1, (2, -1)).permute(0, 2, 3, 1, 4).flatten(2)  # (B,T,2C), as heads was given it
        stored = self.memory_strength * self.c_fc(g).relu()
        v = F.linear(found, self.c_q.weight.T) + F.linear(stored, self.c_fc.weight.T)
        return h - x0 - (v - g * (g * v).mean(-1, keepdim=True)) / size

    def forward(self, h, x0, past, alpha):
        """States h (B,T,C) after a step of alpha down the gradient; alpha 'backtrack': a step of 1, halved until the
        energy does not rise, and none at all where HALVINGS do not suffice."""
        slope = self.gradient(h, x0, past)
        if alpha != "backtrack":
            return h - alpha * slope
        with torch.no_grad():  # the choice is no part of what is trained
            before, alpha = self.energy(h, x0, past), h.new_ones(*h.shape[:-1], 1)
            for i in range(HALVINGS + 1):
                rises = (self.energy(h - alpha * slope, x0, past) > before)[..., None]
                alpha = torch.where(rises, alpha / 2 if i < HALVINGS else 0, alpha)
        return h - alpha * slope
