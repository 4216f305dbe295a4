"""Inference of any model: the halting plan, the adaptive loop in torch, the trace, Anderson acceleration.

Functions over a model that is given to them; this file imports none. What a looped model brings:

    config                  the settings of LoopConfig
    embed(idx)              tokens (B,T) -> x0 (B,T,C)
    begin(x0)               the states (B,T,C) before loop 1
    loop(h, x0, l, active, cache)  states (B,T,C) before loop l -> after it
    readout(h)              states (...,C) -> logits (...,V)
    halt_logits(h, l)       the halt head's log-odds (B,T), for rule gate
    energies(x0, of, *states)  energies (B,T) given a past of states `of`, for rule energy
    alpha(h, x0)            step size, by which delta is divided
    loop_spec()             what the kernels are told of it
"""
import contextlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from looplm_kernels import (
    RULES,
    HaltingPlan,
    adaptive_loop,
    at_least_float32,
    choose_backend,
    comes_seldom,
    halt_update,
    head_halt,
    product_dtype,
    softmax_statistics,
    state_delta,
)

MASK_FLOOR = -1e20  # finite, so that a row of masked scores can never turn into NaN
TIKHONOV = 1e-4  # of anderson, relative to a diagonal of ones


def log_scale(positions, trained_length):
    """log(keys) / log(trained_length) of tokens at positions (...), which see one key more, and 1 at least."""
    return ((positions + 1).log() / math.log(trained_length)).clamp(min=1)


# when tokens halt ----------------------------------------------------------------------------------------------------
def most_loops(config, L):
    """The loops that any token may take, of L asked for: prompt_loops and think_loops may ask for more."""
    return max(config.think_loops or L, config.reading or L)


def thinks(config, idx, before=False):
    """Which tokens idx (B,T) write the answer: the think token, which writes the first one of it, and all that follow;
    before (B,1): whether one stands before idx."""
    if config.think_token is None:
        return torch.zeros_like(idx, dtype=torch.bool)
    return (idx == config.think_token).cumsum(1) + before > 0


def halting_plan(config, idx, L, thinks_before=False):
    """HaltingPlan of tokens idx (B,T) for L loops: prompt and answer apart, by the settings in config.

    thinks_before (B,1): whether a think token stands before idx.
    """
    c = config
    active = torch.ones_like(idx, dtype=torch.bool) if c.pad_token is None else idx != c.pad_token  # (B,T)
    writes = thinks(c, idx, thinks_before)
    never = float("inf") if RULES[c.halt].above else float("-inf")
    usual = RULES[c.halt].threshold if c.halt_threshold is None else c.halt_threshold
    read = never if c.reading else usual
    write = usual if c.think_threshold is None else c.think_threshold
    write = never if c.think_loops else write
    threshold = torch.where(writes, write, read).float()
    limit = torch.where(writes, c.think_loops or L, c.reading or L)
    return HaltingPlan(active, threshold, limit, most_loops(c, L), c.halt)


def fixed_plan(idx, L):
    """HaltingPlan of the fixed depth: every token of idx (B,T) takes all L loops."""
    every = torch.ones_like(idx, dtype=torch.bool)
    return HaltingPlan(every, every.float(), L, L, "none")


# the loop in torch ---------------------------------------------------------------------------------------------------
class State(NamedTuple):
    """Where all tokens stand after a loop."""
    h: Tensor              # (B,T,C)
    active: Tensor         # (B,T) bool
    loops: Tensor          # (B,T) int64, loops taken
    logits: Tensor | None  # (B,T,V) the readout of the loop's result, where it was needed


def start(model, x0, plan):
    """The State before loop 1."""
    return State(model.begin(x0), plan.active, torch.zeros_like(plan.active, dtype=torch.long), None)


def accelerate(model, h, new, l, history):
    """The state after loop l, which took h to new: new itself, or at inference what anderson makes of it.

    Its history begins with loop 2: loop 1 injects nothing, so it is another map.
    """
    m = 0 if model.training or l == 1 else model.config.anderson
    return anderson(h, new, history, m) if m else new


def fixed_depth(model, x0, L, cache=None):
    """The states (B,T,C) after L loops from x0 (B,T,C) on, no token halting."""
    h, history = model.begin(x0), []
    for l in range(1, L + 1):
        h = accelerate(model, h, model.loop(h, x0, l, None, cache), l, history)
    return h


def halting_loop(model, x0, plan, l, state, history, backend, readout=False, cache=None):
    """Loop l of the active tokens: the State after it, the candidate states (B,T,C), and the scores (B,T).

    readout: whether logits are needed whatever the rule. cache: as LoopGPT.loop takes it.
    """
    c, rule = model.config, plan.rule
    step = model.loop(state.h, x0, l, state.active, cache)  # (B,T,C)
    new = accelerate(model, state.h, step, l, history)
    logits = model.readout(new) if readout or RULES[rule].needs_logits else None
    gate = model.halt_logits(new, l).float().sigmoid() if rule == "gate" else None
    if rule == "energy":  # given the past that the loop saw
        before, after = model.energies(x0, state.h, state.h, step, cache=cache)
        gate = before - after
    scaled = rule == "delta" and c.update != "replace"  # so that a small step cannot pass for convergence
    alpha = torch.as_tensor(model.alpha(state.h, x0)).abs().squeeze(-1) if scaled else 1.0
    h, active, loops, score = halt_update(
        rule, state.h, step, state.active, state.loops, l, plan.threshold, plan.limit, c.min_loops, backend,
        logits=logits, previous=state.logits, gate=gate, alpha=alpha)
    if new is not step:  # anderson's: delta judged the loop's own step, the residual
        h = torch.where(state.active[..., None], new, state.h)
    return State(h, active, loops, logits), new, score


def halting_loop_without_logits(model, x0, plan, l, state, history):
    """halting_loop by the head kernel, which writes no logits: the State after it."""
    c, norm = model.config, model.transformer.ln_f
    head = model.lm_head.weight
    new = accelerate(model, state.h, model.loop(state.h, x0, l, state.active), l, history)
    h, active, loops, *_ = head_halt(
        plan.rule, state.h, new, state.active, state.loops, l, plan.threshold, plan.limit,
        head.to(product_dtype(head)), norm.weight, norm.bias, c.min_loops, c.backend)
    return State(h, active, loops, None)


def adaptive(model, x0, plan):
    """The states (B,T,C) from x0 (B,T,C) on and the loops taken (B,T); ends with the last active token."""
    c, head, history, state = model.config, model.lm_head.weight, [], start(model, x0, plan)
    fused = (plan.rule in ("confidence", "entropy") and product_dtype(head) != torch.float32 and "rms" not in c.parts
             and choose_backend(c.backend, x0.device) == "cutile")
    for l in range(1, plan.L + 1):
        if fused:
            state = halting_loop_without_logits(model, x0, plan, l, state, history)
        else:
            state, _, _ = halting_loop(model, x0, plan, l, state, history, c.backend)
        if not state.active.any():  # the one flag of a loop that crosses to the host
            break
    return state.h, state.loops


def all_loops(model, x0, plan, cache=None):
    """As adaptive, but it never asks the host whether a token is still active: what a CUDA graph can capture. The
    loops are None at a fixed depth. cache: as LoopGPT.loop takes it."""
    if plan.fixed:
        return fixed_depth(model, x0, plan.L, cache), None
    history, state = [], start(model, x0, plan)
    for l in range(1, plan.L + 1):
        state, _, _ = halting_loop(model, x0, plan, l, state, history, "torch", cache=cache)
    return state.h, state.loops


# the trace -----------------------------------------------------------------------------------------------------------
def trace_row(h, new, logits, active, score, last):
    """One loop of the trace: the entries of `think`, (B,T) each, for the tokens that were active in it."""
    _, confidence, entropy = softmax_statistics(logits)  # (B,T) each
    seen = dict(entropy=entropy, confidence=confidence, delta=state_delta(new, h), score=score)
    row = {key: x.float().masked_fill(~active, torch.nan) for key, x in seen.items()}
    row["prediction"] = torch.where(active, logits.argmax(-1), last)
    return row


def traced(model, x0, plan, last, cache=None):
    """As adaptive, with the whole trace: the states (B,T,C) and the dict of `think`.

    last (B,T): the arg-max of what they begin with. Pads never run a loop, so the trace shows it for them.
    cache: as LoopGPT.loop takes it.
    """
    history, rows, state = [], [], start(model, x0, plan)
    for l in range(1, plan.L + 1):
        before = state
        state, new, score = halting_loop(model, x0, plan, l, before, history, readout=True, cache=cache,
                                         backend=model.config.backend if cache is None else cache.backend)
        rows.append(trace_row(before.h, new, state.logits, before.active, score, last))
        last = rows[-1]["prediction"]
        if (cache is None or cache.ends_early) and not state.active.any():
            if cache is not None:
                cache.fill(model, state.h, x0, l)
            break
    silent = {key: torch.full_like(x, torch.nan) for key, x in rows[0].items() if key != "prediction"}
    rows += [dict(silent, prediction=last)] * (plan.L - len(rows))  # loops that nobody took
    return state.h, dict({key: torch.stack([row[key] for row in rows], -1) for key in rows[0]}, loops=state.loops)


# what scripts call ---------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def backend_for(model, idx, *what):
    """The backend of one call on tokens idx (B,T): that of the model's settings, but PyTorch instead of auto where
    kernels for `what`, any hashable values, are asked for too seldom to earn their compiler's time.

    The settings say so meanwhile, to every operation inside, so calls of one model may not overlap in threads.
    """
    given, weight = model.config.backend, model.lm_head.weight
    sizes = weight.size(1), -(-idx.size(1) // 64), product_dtype(weight)
    if given == "auto" and comes_seldom(idx.device, *what, *sizes):
        model.config.backend = "torch"
    try:
        yield model.config.backend
    finally:
        model.config.backend = given


def last_state(model, idx, L):
    """h_L (B,T,C) of tokens idx (B,T), no token halting; in one launch where a kernel does it."""
    x0, plan = model.embed(idx), fixed_plan(idx, L)
    with backend_for(model, idx, plan.rule, False) as backend:
        done = adaptive_loop(model.loop_spec(), x0, plan, backend=backend)
        return fixed_depth(model, x0, L) if done is None else done[0]


@torch.no_grad()
def think(model, idx, L, trace=True, exact_loops=None):
    """The adaptive loop over tokens idx (B,T), L loops at most: the final states (B,T,C), and a dict of what happened.

    loops       (B,T) int64: loops taken, the one in which a token halts included; pads 0
    entropy     (B,T,L) float32 after each loop, in nats; NaN after a token has halted, as the next three
    confidence  (B,T,L) float32: the largest probability
    delta       (B,T,L) float32: the relative change of the state
    score       (B,T,L) float32: what the halting rule looked at
    prediction  (B,T,L) int64: the arg-max after each loop, of the frozen state once a token has halted

    With trace=False only loops. exact_loops (B,T): so many loops for each token, whatever the rule. A token's result
    depends on no later token. Frozen tokens are still attended to.
    """
    plan = halting_plan(model.config, idx, L)
    if exact_loops is not None:
        plan = plan._replace(active=plan.active & (exact_loops > 0), limit=exact_loops,
                             L=max(1, int(exact_loops.max())), rule="none")
    return follow(model, idx, plan, trace)


def follow(model, idx, plan, trace):
    """think by a HaltingPlan of tokens idx (B,T)."""
    x0 = model.embed(idx)
    last = model.readout(model.begin(x0)).argmax(-1) if trace else None
    with backend_for(model, idx, plan.rule, trace) as backend:
        done = adaptive_loop(model.loop_spec(), x0, plan, last, trace, backend)
        if done is not None:
            return done[0], dict(done[2] or {}, loops=done[1])
        if trace:
            return traced(model, x0, plan, last)
        h, loops = adaptive(model, x0, plan)
        return h, dict(loops=loops)


def anderson(h, new, history, m):
    """The state (B,T,C) that Anderson acceleration takes after a loop from h to new, which it adds to the history.

    Type II with mixing 1 (Walker & Ni 2011), as DEQ solves for its fixed point (Bai et al. 2019, 1909.01377): of the
    last m + 1 residuals f = new - h the affine combination of least norm, and the new states combined alike. A token
    has weights of its own, so no later token matters to it. As attention couples tokens, this is a heuristic on the
    way, but not in its goal: where f is 0 it takes new = h, and where it stays put for m loops, f was 0.
    """
    f, g = at_least_float32(new) - at_least_float32(h), at_least_float32(new)
    history[:] = [*history[-m:], (f, g)]
    if len(history) == 1:
        return new
    df, dg = (torch.stack([x - old[i] for old in history[:-1]], -2) for i, x in enumerate((f, g)))  # (B,T,m,C)
    size = df.norm(dim=-1, keepdim=True).clamp(min=1e-15)  # at length 1 the old ones do not drown the last
    df, dg = df / size, dg / size
    with torch.autocast(h.device.type, enabled=False):  # which would round the products to bfloat16
        gram = df @ df.mT + TIKHONOV * torch.eye(df.size(-2), device=h.device, dtype=df.dtype)
        weight = torch.linalg.solve_ex(gram, df @ f[..., None])[0]  # (B,T,m,1); _ex asks the device for no check
    return (g - (weight * dg).sum(-2)).to(h.dtype)
