"""LoopGPT: one shared Block applied L times to a latent state, each token deciding for itself when to stop.

    h = x0                                        # the embedded input is the state before loop 1; or another start
    for l in 1..L:
        u = (h if l == 1 else inject(h, x0)) + s_l  (from another start than x0 loop 1 injects, too)
        candidate = Block(u)                       (tie_loops = False: Block_l(u), one of its own for every loop)
        new = candidate                            (update = 'replace')
        new = h + alpha * (candidate - u)          (update = 'euler': a step of dh/dt = G(u), G(u) = Block(u) - u)
        new = h + alpha * mean slope               (update = 'heun', 'rk4': 2 and 4 evaluations of Block a loop)
        new = h - alpha * dE(h, x0)/dh             (update = 'energy': no Block, see energy.py)
        new = loop_norm(new)                       (if on)
        new = anderson(new and the loops before)   (inference, anderson = m > 0, from loop 2 on)
        h = where(active, new, h)
    logits = lm_head(ln_f(h))                      # the readout of every loop is the same

x0 (B,T,C) the embedded input, the observation      h_l (B,T,C) the state after loop l
s_l (C) the step encoding of loop l                 loops (B,T) the loops whose result is in a token's final state
delta_l (B,T) norm(h_l - h_{l-1}) / norm(h_{l-1})   L, l the loops asked for, the loop index from 1
slope (B,T,C) G(u) at the u of a state: dh/dt       f (B,T,C) the residual of a loop: what it makes of h, minus h

Weight-tied depth: Dehghani et al. 2019 (1807.03819); input injection and random depths: Geiping et al. 2025
(2502.05171); halting a token at a time: Graves 2016 (1603.08983). Abacus positions: McLeish et al. 2024 (2405.17399),
drawn as sorted random subsets: Ruoss et al. 2023 (2305.16843).
"""
import functools
import math
from dataclasses import dataclass, fields
from types import UnionType
from typing import get_args, get_origin

import torch
import torch.nn as nn
import torch.nn.functional as F

import think
from configurator import class_settings, in_range
from energy import EnergyBlock
from looplm_kernels import BACKENDS, INJECTS, RULES, LoopSpec, LoopTensors, forget_weights, split_heads
from model import GPT, Block, GPTConfig, make_norm, rope_angles
from static import forget_steps
from think import MASK_FLOOR

CHOICES = dict(pos=("learned", "none", "rope", "place"), start=("x0", "zero", "learned", "random"), inject=INJECTS,
               step_encoding=("none", "learned", "sinusoid", "rope"),
               update=("replace", "euler", "heun", "rk4", "energy"), keys=("state", "x0"),
               supervise=("last", "half", "all"), halt=tuple(RULES), halt_head=("none", "joint", "after"),
               backend=BACKENDS)

NEVER = 1 << 30  # a loop that no training reaches
MARGIN_WEIGHT = 0.1  # of the hinge in the loss; it is 0 once the gap is there
# explicit Runge-Kutta: of each stage after the first, how many steps it stands along the slope before it, and how much
# its own slope weighs, the first one's being 1 (Hairer, Norsett & Wanner 1993, II.1)
STAGES = dict(replace=(), euler=(), heun=((1, 1),), rk4=((0.5, 2), (0.5, 2), (1, 1)))

# settings that may differ after training
INFERENCE_SETTINGS = ("num_loops", "halt", "halt_threshold", "think_threshold", "min_loops", "prompt_loops",
                      "think_loops", "anderson", "log_scale", "backend")
# fields that the dataset sets, not the user
FROM_DATASET = ("vocab_size", "pad_token", "think_token", "number_tokens", "longest_number")


@dataclass
class LoopConfig(GPTConfig):
    n_layer: int = 1            # >= 1: distinct blocks inside the loop: n_layer blocks x num_loops loops
    num_loops: int | list[int] = 8  # >= 1: loops L; of a list one is drawn in each step, evaluation uses the largest
    pos: str = "learned"        # positions: learned, none, rope, place (a digit's index within its number)
    place_ids: int = 64         # >= 1: size of the table of place ids
    pack: int = 1               # >= 1: problems per training row, one after the other, each with place ids of its own
    place_subset: int = 16      # >= 0: ids that its training draws for a problem, sorted; 0 trains on 1, 2, 3, ...
    place_runs: float = 0.0     # >= 0, <= 1: share of training rows whose ids are consecutive, from a random one on
    place_next: bool = False    # a second table tells the place that follows: of '=' the first one, of symbols none
    place_below: bool = False   # with place_next: it tells the place below, where a carry comes from, of the first none
    place_end: bool = False     # '+' has the place that would follow in the number before it: where it ends is found
    place_margin: float = 0.0   # >= 0: gap in nats that heads learn to keep between all places of the table, in loop 1
    place_scale: float = 0.02   # > 0: standard deviation of the place tables at the start
    start: str = "x0"           # h before loop 1: x0; zero; learned, a vector; random, drawn per token in training
    tie_loops: bool = True      # all loops share their blocks; False: every loop has its own, for early exit of layers
    inject: str = "add"         # what re-enters from loop 2 on: add h + x0; none h; concat W [h; x0]; decay a*h + b*x0
    keys: str = "state"         # keys and values are of: state, what the block reads; x0, others' input, in all loops
    step_encoding: str = "none"  # what tells the loops apart: none, learned, sinusoid, rope (rotates the query)
    update: str = "replace"     # replace: Block(u); euler, heun, rk4: step of Block(u) - u; energy, inject none: down E
    alpha: float | str = 1.0    # > 0: step of all others; solvers: or 'learned', 'gate' a token; energy: or 'backtrack'
    loop_norm: bool = False     # layer norm of the state after every loop
    grad_loops: int = 0         # >= 0: loops that gradients go back through, the last ones of a step; 0: all
    supervise: str = "last"     # of those, the loops whose readout is trained: last, half (the second half), all
    halt_head: str = "none"     # learned halting: none, joint (trained along), after (on the frozen model)
    gate_encoding: bool = False  # that head is told the loop by a sinusoid of its own; else by step_encoding alone
    halt: str = "none"          # halting rule at inference: none, confidence, entropy, delta, kl, gate, energy
    halt_threshold: float | None = None  # >= 0: a token halts where its score passes this; None: the rule's own, RULES
    think_threshold: float | None = None  # >= 0: as that, from the think token on ('='); None: as that
    min_loops: int = 1          # >= 1: no rule halts a token earlier
    # In training a list alone matters: a row's prompt stands still after the count that it draws, of 0 not at all.
    prompt_loops: int | list[int] = 0  # >= 0: that tokens before the think token take, a list's largest; 0: by rule
    think_loops: int = 0        # >= 0: from it on exactly this many, beyond num_loops too; 0: by the rule
    log_scale: int = 0          # 0 or >= 2: keys beyond which attention logits grow with the log of their count; 0: off
    anderson: int = 0           # >= 0: earlier loops that Anderson acceleration mixes in, to settle sooner; 0: off
    backend: str = "auto"       # kernels at inference: auto, cutile, torch
    # FROM_DATASET, which train.py takes from the dataset
    pad_token: int | None = None  # pads start halted and take 0 loops
    think_token: int | None = None  # from this token on the answer is written
    number_tokens: tuple[int, ...] = ()  # tokens that place ids count, as digits and slots
    longest_number: int = 0     # digits of the longest number in training

    @property
    def reading(self):
        """Loops that tokens before the think token take at inference, 0: by the rule."""
        return max(loop_counts(self.prompt_loops))

    @property
    def place_ahead(self):
        """Places beyond the end of a number that are told of, 0 or 1: a number needs as many ids more."""
        return int(self.place_end or self.place_next and not self.place_below)


def loop_counts(loops):
    """num_loops or prompt_loops, one count or several, as a list."""
    return list(loops) if isinstance(loops, (list, tuple)) else [loops]


@functools.cache
def loop_settings():
    """The settings of LoopConfig with their ranges: {name: Setting}; not the thresholds, of which one that nothing
    passes switches a rule off."""
    return {k: s for k, s in class_settings(LoopConfig).items() if not k.endswith("threshold")}


def check(config):
    """ValueError for settings that do not go together, in words that name the key."""
    for key, allowed in CHOICES.items():
        if getattr(config, key) not in allowed:
            raise ValueError(f"{key} {getattr(config, key)!r} is none of {', '.join(allowed)}")
    for key, setting in loop_settings().items():  # of a config that no command line gave, too
        try:
            in_range(getattr(config, key), setting)
        except ValueError as e:
            raise ValueError(f"{key} {getattr(config, key)!r}: {e}") from None
    counts = loop_counts(config.num_loops)
    if not counts or not loop_counts(config.prompt_loops):
        raise ValueError("num_loops and prompt_loops must be one or more counts")
    if config.update == "energy":
        check_energy(config)
    elif config.inject == "none" and config.start != "x0":
        raise ValueError(f"start {config.start!r} needs an injection: with inject 'none' nothing would read the input")
    elif config.inject == "none" and 0 < config.grad_loops < max(counts):
        raise ValueError("grad_loops below num_loops needs an injection: inject 'none' reads the input in loop 1 "
                         "alone, and no gradient would reach the embeddings")
    if isinstance(config.alpha, str) and config.alpha not in ("learned", "gate", "backtrack"):
        raise ValueError(f"alpha {config.alpha!r} must be a number above 0, 'learned', 'gate' or, of update 'energy', "
                         "'backtrack'")
    if config.update != "energy" and (config.halt == "energy" or config.alpha == "backtrack"):
        raise ValueError(f"halt 'energy' and alpha 'backtrack' need a model of update 'energy', not {config.update!r}")
    if config.halt == "gate" and config.halt_head == "none":
        raise ValueError("halt 'gate' needs a model trained with --halt_head=joint or after")
    if config.anderson and config.step_encoding != "none":
        raise ValueError(f"anderson looks for a fixed point, which loops that differ by step_encoding "
                         f"{config.step_encoding!r} do not have")
    if not config.tie_loops and (isinstance(config.num_loops, (list, tuple)) or config.grad_loops or config.anderson):
        raise ValueError("tie_loops False has blocks of its own for every loop: num_loops must be one number, "
                         "grad_loops 0, so that every step trains all of them, and anderson 0")
    if (config.reading or config.think_loops) and config.think_token is None:
        raise ValueError("prompt_loops and think_loops need a dataset with a think token, as '=' of additions")
    if config.pos == "place" and not config.number_tokens:
        raise ValueError("pos 'place' counts digits from the least significant one, which this dataset does not write "
                         "first; use learned, rope or none")
    ids, needed = config.place_subset or config.place_ids, config.longest_number + config.place_ahead
    if config.pos == "place" and not needed <= ids <= config.place_ids:
        raise ValueError(f"place_subset {config.place_subset} must be 0 or at most place_ids {config.place_ids}, and "
                         f"the smaller one reach the {config.longest_number} digits of the longest number in training"
                         + (", and with place_next one place more" if config.place_ahead else ""))
    if config.pack > 1 and not (config.pos == "place" and 0 < config.pack * config.place_subset <= config.place_ids):
        raise ValueError(f"pack {config.pack} gives each problem of a row place ids of its own: it needs pos 'place', "
                         f"and place_ids {config.place_ids} of at least pack times place_subset {config.place_subset}")
    if config.pack > 1 and isinstance(config.prompt_loops, (list, tuple)):
        raise ValueError("a list of prompt_loops lets the prompt of a training row stand still, and the rows of "
                         f"pack {config.pack} have several")
    if config.place_next and config.pos != "place":
        raise ValueError(f"place_next tells the next of the places of pos 'place', not of {config.pos!r}")
    if (config.place_below or config.place_end or config.place_margin) and not config.place_next:
        raise ValueError("place_below, place_end and place_margin are about the other place that place_next tells of")
    if config.place_runs and not config.place_subset:
        raise ValueError(f"place_runs {config.place_runs} is a share of rows that draw place_subset ids, "
                         "which must then be above 0")
    if config.update == "replace" and config.alpha != 1.0:
        raise ValueError(f"alpha {config.alpha!r} is the step size of every other update; 'replace' has none")
    if "rope" in (config.pos, config.step_encoding) and config.n_embd // config.n_head % 2:
        raise ValueError("rope needs an even head size n_embd / n_head")


def rules_of(config):
    """The halting rules that a model can use, without none."""
    can = dict(gate=config.halt_head != "none", energy=config.update == "energy")
    return [rule for rule in RULES if rule != "none" and can.get(rule, True)]


def check_energy(config):
    """ValueError that names all settings that do not go with an energy, why, and the flags to take instead."""
    c = config
    needs = {"another energy in each loop": dict(inject="none", step_encoding="none", tie_loops=True, n_layer=1),
             "of Block, which an energy takes the place of": dict(block="nanogpt", n_kv_head=0, bias=False,
                                                                  dropout=0.0, place_margin=0.0),
             "rotates what an energy looks for": dict(pos="learned" if c.pos == "rope" else c.pos),
             "may lift E again": dict(loop_norm=False, anderson=0),
             "not tried with an energy": dict(start="x0", alpha=0.5 if c.alpha in ("learned", "gate") else c.alpha)}
    refused, flags = [], []
    for why, values in needs.items():
        wrong = {key: value for key, value in values.items() if getattr(c, key) != value}
        flags += [f"--{key}={value}" for key, value in wrong.items()]
        if wrong:
            refused.append(", ".join(f"{key} {getattr(c, key)!r}" for key in wrong) + f" ({why})")
    if refused:
        raise ValueError(f"update 'energy' goes without {', '.join(refused)}: take {' '.join(flags)}")


def check_halting(config, given):
    """ValueError for a rule by which no token could ever halt before the last loop, if a key in `given` asks for it.

    Apart from check(): what checkpoints hold still loads, and a rule may meet fewer loops than it was made for.
    """
    if config.halt == "none":
        return
    loops = max(loop_counts(config.num_loops))
    for key in ("halt_threshold", "think_threshold"):
        value = getattr(config, key)
        if value is not None and value > 1 and config.halt in ("confidence", "gate") and given & {"halt", key}:
            raise ValueError(f"{key} {value} is above 1, and the scores of halt {config.halt!r} are probabilities: no "
                             "token could halt; take one of 0 to 1")
    if config.min_loops > loops and "min_loops" in given:
        raise ValueError(f"min_loops {config.min_loops} is above num_loops {config.num_loops}: no token could "
                         "halt; take a smaller one")


def idle_settings(config, every_rule=False):
    """Settings that do nothing beside the others, as cases for say_without_effect of configurator.py.

    every_rule: halt is not the only rule that is looked at.
    """
    if not isinstance(config, LoopConfig):
        return []
    c, none = config, config.halt == "none"
    return [
        (c.halt_head == "none", "halt_head is none", "gate_encoding"),
        (none and not every_rule, "halt is none", "min_loops"),
        (none, "halt is none", "halt_threshold", "think_threshold"),
        (c.think_token is None, "the data has no think token", "think_threshold"),
        (c.think_loops, "think_loops says how many loops the answer takes", "think_threshold"),
        (c.reading and (c.think_loops or c.think_threshold is not None),
         "prompt_loops, and think_loops or think_threshold, say when tokens halt", "halt_threshold"),
        (c.pos != "place", f"pos is {c.pos}", "place_ids", "place_subset", "place_runs", "place_scale")]


class Inject(nn.Module):
    """How the observation x0 re-enters the state h from loop 2 on. (B,T,C), (B,T,C) -> (B,T,C)."""

    def __init__(self, kind, C):
        super().__init__()
        self.kind = kind
        if kind == "concat":
            self.mix = nn.Linear(2 * C, C, bias=False)
        if kind == "decay":  # a = sigmoid(.) starts at 0.5 and stays in (0,1): the linear part contracts
            self.a, self.b = nn.Parameter(torch.zeros(C)), nn.Parameter(torch.ones(C))

    def forward(self, h, x0):
        if self.kind == "add":
            return h + x0
        if self.kind == "concat":
            return self.mix(torch.cat((h, x0), -1)).to(h.dtype)  # autocast must not round the state
        return self.a.sigmoid() * h + self.b * x0 if self.kind == "decay" else h

    def of_input(self, x0, dtype):
        """What x0 (B,T,C) alone contributes, the same in every loop; products in dtype. None if it is x0 or nothing."""
        if self.kind == "decay":
            return self.b * x0
        if self.kind == "concat":
            return F.linear(x0.to(dtype), self.mix.weight[:, x0.size(2):].to(dtype))
        return None


class LoopGPT(GPT):
    def __init__(self, config):
        check(config)
        self.learned_positions = config.pos == "learned"
        super().__init__(config)
        C = config.n_embd
        self.trained_loops = max(loop_counts(config.num_loops))
        self.inject = Inject(config.inject, C)
        if config.start == "learned":
            self.first_state = nn.Parameter(nn.init.normal_(torch.empty(C), std=0.02))
        if config.start == "random":  # out of training always the same, so that what is written depends on no chance
            self.register_buffer("first_state", nn.init.normal_(torch.empty(C)))
        if isinstance(config.prompt_loops, (list, tuple)):  # a tensor made in a step would stall a CUDA graph's capture
            self.register_buffer("prompt_counts", torch.tensor(config.prompt_loops), persistent=False)
        if config.step_encoding == "learned":
            self.step_bias = nn.Parameter(nn.init.normal_(torch.empty(self.trained_loops, C), std=0.02))
        if config.step_encoding == "sinusoid":  # starts as loud as the token embeddings
            self.step_scale = nn.Parameter(torch.tensor(0.02))
        self.check_loops()
        if config.alpha == "learned":
            self.step_size = nn.Parameter(torch.tensor(1.0))
        if config.alpha == "gate":
            self.step_gate = nn.Linear(2 * C, 1)
        if config.loop_norm:
            self.loop_norm = make_norm(config)
        if config.pos == "place":  # row 0: symbols; 1..place_ids: digits; the last: '='
            self.place = nn.Embedding(config.place_ids + 2, C)
            if config.place_next:  # row 0: no place follows; 1..place_ids: digits
                self.place_next = nn.Embedding(config.place_ids + 1, C)
            self.register_buffer("numbers", torch.tensor(config.number_tokens), persistent=False)
        if config.halt_head != "none":
            self.halt_head = nn.Sequential(nn.Linear(2 * C, C), nn.GELU(), nn.Linear(C, 1))
        for name, module in self.named_children():  # what is new here; GPT has initialised its own
            if name not in ("transformer", "lm_head"):
                module.apply(self._init_weights)
        if config.update == "energy":
            self.transformer.h[0].reset()
        for name, table in self.named_children():
            if name.startswith("place"):
                table.weight.data.mul_(config.place_scale / 0.02)  # 0.02 is that of _init_weights
        if config.halt_head == "after":
            for name, p in self.named_parameters():
                p.requires_grad_(name.startswith("halt_head"))
            self.train()

    def train(self, mode=True):
        super().train(mode)
        forget_weights(self)
        forget_steps(self)
        if self.config.halt_head == "after":
            self.transformer.eval()  # the halt head learns what the frozen model does without dropout
        return self

    @staticmethod
    def make_block(config):
        return (EnergyBlock if config.update == "energy" else Block)(config)

    @staticmethod
    def distinct_blocks(config):
        return config.n_layer * (1 if config.tie_loops else max(loop_counts(config.num_loops)))

    @property
    def loops_alike(self):
        """Whether all loops from the second on make the same of the same state."""
        c = self.config
        return c.tie_loops and (c.keys == "x0" or c.step_encoding not in ("learned", "sinusoid"))

    @property
    def loop_limit(self):
        """Loops that there are weights for: blocks of their own, learned steps. Infinite where loops share all."""
        blocks = math.inf if self.config.tie_loops else len(self.transformer.h) // self.config.n_layer
        return min(blocks, len(self.step_bias) if self.config.step_encoding == "learned" else math.inf)

    def check_loops(self, L=None):
        """ValueError if L loops, by default all that any token may take, are more than there are weights for."""
        c, by = self.config, ""
        if L is None:
            L = think.most_loops(c, self.trained_loops)
            asked = dict(num_loops=self.trained_loops, prompt_loops=c.reading, think_loops=c.think_loops)
            by = f" of {next(key for key, count in asked.items() if count == L)}"
        if L <= self.loop_limit:
            return
        why = ("with tie_loops False there are blocks for the {} that it was trained with"
               if not c.tie_loops else
               "step_encoding 'learned' ends at the {} that it was trained with; sinusoid, rope and none extend")
        raise ValueError(f"{L} loops{by}, but {why.format(self.loop_limit)}")

    def cache_slots(self):
        return think.most_loops(self.config, self.trained_loops), self.evaluations * self.config.n_layer

    @property
    def evaluations(self):
        """How often a loop runs its blocks; those of an energy once, whose tries have the keys of the first."""
        return 1 + len(STAGES.get(self.config.update, ()))

    def place_index(self, idx, cache=None):
        """Rows of the place tables for tokens idx (B,T): of `place` a digit's index in its number from 1, '=' its own,
        else 0; of `place_next`, None without it, one more at a digit, 1 at '=', where the answer begins, else 0; with
        place_below one less at a digit, else 0.
        With place_end a symbol right after a number, '=' apart, has the index that would follow in it.

        Depends on earlier tokens only, since numbers are written least significant digit first. In training each
        problem's indices 1, 2, 3, ... become a sorted random subset of the table, the same one for both; problems of a
        row, which padding parts, have no id in common.
        A number goes on where that of the cache ends.
        """
        c, (B, T) = self.config, idx.shape
        t = torch.arange(T, device=idx.device)
        digits_before = 0 if cache is None else cache.digits
        digit = (idx[..., None] == self.numbers).any(-1)  # torch.isin may sort, which no CUDA graph captures
        last_symbol = torch.where(digit, -1 - digits_before, t).cummax(1).values
        own, following = t - last_symbol, None  # (B,T) 1, 2, 3, ... along a number; 0 at symbols
        before = torch.cat((own.new_zeros(B, 1) + digits_before, own[:, :-1]), 1)  # of the token before
        if cache is not None:
            cache.digits, T = own[:, -1:], cache.longest
        random = self.training and c.place_subset > 0
        largest = (c.place_subset if random else c.place_ids) - c.place_ahead
        # then check() or who writes has seen to it, and nothing need cross to the host
        known = self.training and c.longest_number if cache is None else cache.static
        if T > largest and not known and (longest := int(own.max())) > largest:
            key = "place_subset" if random else "place_ids"
            raise ValueError(f"a number of {longest} digits, but {key} is {largest + c.place_ahead}"
                             f"{', place_next takes one' if c.place_ahead else ''}: train with a larger one")
        if c.place_next:
            first = 0 if c.place_below or c.think_token is None else (idx == c.think_token).long()
            following = torch.where(own > 0, own - 1 if c.place_below else own + 1, first)
        if c.place_end:
            own = torch.where((own == 0) & (before > 0), before + 1, own)
        if random:
            problem = 0
            if c.pack > 1:
                pad = idx == c.pad_token
                problem = (~pad & F.pad(pad, (1, -1))).cumsum(1).clamp(max=c.pack - 1)
            subset = F.pad(self.random_places(B, idx.device), (1, 0)).flatten(1)  # index 0 stays 0
            own, following = (k if k is None else subset.gather(1, k + problem * (1 + c.place_subset))
                              for k in (own, following))
        return own if c.think_token is None else own.masked_fill(idx == c.think_token, c.place_ids + 1), following

    def random_places(self, B, device):
        """The place ids (B, pack, place_subset) of the problems of B training rows, of each ascending, and without
        repeats in a row: of a share place_runs of the rows consecutive ones, since high ids seldom stand beside their
        neighbours in a random subset."""
        c = self.config
        drawn = torch.rand(B, c.place_ids, device=device).topk(c.pack * c.place_subset).indices
        subset = drawn.view(B, c.pack, c.place_subset).sort(2).values + 1
        if not c.place_runs:
            return subset
        runs, *start = torch.rand(1 + c.pack, B, 1, 1, device=device)
        start = torch.cat(start, 1).sort(1).values * (c.place_ids - c.pack * c.place_subset + 1)
        first = 1 + start.long() + c.place_subset * torch.arange(c.pack, device=device)[:, None]
        if c.pack > 1:  # which of them has the lowest ids must tell nothing
            first = first.gather(1, torch.rand(B, c.pack, 1, device=device).argsort(1))
        return torch.where(runs < c.place_runs, first + torch.arange(c.place_subset, device=device), subset)

    def margin_loss(self):
        """How far the heads of loop 1 are from telling all places of the table apart: a scalar, 0 if a head that looks
        for equal places scores the right one place_margin above every other.

        A training row holds few ids, so the loss of its tokens leaves most pairs of them as they are. Here every id is
        compared with every other, at digits drawn anew. A head counts by the probability that it gives to the right
        place now: to the one that place_next tells, and to its own.
        """
        c, n = self.config, self.config.place_ids - self.config.place_ahead
        step = -1 if c.place_below else 1
        ids, block = torch.arange(1, n + 1, device=self.numbers.device), self.transformer.h[0]
        tokens = self.numbers[torch.randint(len(self.numbers), (2, n), device=ids.device)]
        x, s = self.transformer.wte(tokens) + self.place(ids) + self.place_next(ids + step), self.step_encoding(1)
        source = block.ln_1(x) if c.keys == "x0" else None
        x = self.reads(self.begin(x), x, 1)
        q, k, _ = split_heads(block.attn.project(block.ln_1(x if s is None else x + s), source), c.n_head, c.kv_heads)
        k = k.repeat_interleave(c.n_head // c.kv_heads, 1)  # (2,nh,n,hs), as q
        score = torch.einsum("hid,hjd->hij", q[0], k[1]).float() / math.sqrt(q.size(-1))  # (nh,n,n)
        loss = 0.0
        for ahead in (0, step):
            of = score[:, max(0, -ahead):n - max(0, ahead)]  # the last place has no next one, the first none below
            at = max(0, ahead)
            right = of.diagonal(at, 1, 2)
            wrong = of.masked_fill(torch.ones_like(of[0], dtype=torch.bool).triu(at).tril(at), MASK_FLOOR)
            looks = (right - of.logsumexp(-1)).exp().mean(-1).detach()  # (nh)
            loss = loss + (looks * F.relu(c.place_margin - right + wrong.amax(-1)).mean(-1)).sum()
        return loss

    def positions(self, idx, cache=None):
        if self.config.pos == "place":
            own, following = self.place_index(idx, cache)
            return self.place(own) if following is None else self.place(own) + self.place_next(following)
        return super().positions(idx, cache) if self.learned_positions else None  # rope acts in the attention

    def step_encoding(self, l):
        """s_l (C), or None where the step encoding adds nothing to the state."""
        if self.config.step_encoding == "learned":
            self.check_loops(l)
            return self.step_bias[l - 1]
        if self.config.step_encoding == "sinusoid":
            return self.step_scale * self.wave(l)
        return None

    def wave(self, l):
        """Sines and cosines (C) of loop l, in the dtype of the norms, which static.py never lowers."""
        C, weight = self.config.n_embd, self.transformer.ln_f.weight
        at = torch.full((1,), l, device=weight.device)  # torch.tensor would stall a CUDA graph's capture
        angle = rope_angles(at, C)[0]
        return torch.cat((angle.sin(), angle.cos()))[:C].to(weight.dtype)

    def gate_step(self, l):
        """What tells the halt head that it reads loop l, (C); None where nothing does."""
        return self.wave(l) if self.config.gate_encoding else self.step_encoding(l)

    def angles(self, u, l, cache=None):
        """Rotations of the queries and the keys of u (B,T,C) in loop l: (T,hs/2), (1,hs/2) or (B,1,T,hs/2) each, or
        None."""
        q = k = None
        hs = self.config.n_embd // self.config.n_head
        if self.config.pos == "rope":
            known = cache is not None and cache.positions is not None
            at = cache.positions[:, None] if known else torch.arange(u.size(1), device=u.device)
            q = k = rope_angles(at, hs)
        if self.config.step_encoding == "rope":  # of q alone: rotating both alike would cancel in q.k
            step = rope_angles(torch.full((1,), l - 1, device=u.device), hs)
            q = step if q is None else q + step
        return q, k

    def alpha(self, h, x0):
        """Step size of every update but replace: a number, a scalar tensor or (B,T,1)."""
        if self.config.alpha == "learned":
            return self.step_size
        if self.config.alpha == "backtrack":
            return 1.0  # what is tried first
        if self.config.alpha == "gate":
            return self.step_gate(torch.cat((h, x0), -1)).sigmoid()
        return self.config.alpha

    def begin(self, x0):
        """The states (B,T,C) before loop 1 of embedded tokens x0 (B,T,C). Those of start 'random' are as large as what
        loop_norm leaves."""
        if self.config.start == "x0":
            return x0
        if self.config.start == "random" and self.training:
            return torch.randn_like(x0)
        if self.config.start == "zero":
            return torch.zeros_like(x0)
        return self.first_state.to(x0.dtype).expand_as(x0).contiguous()  # jvp takes no expanded state

    def reads(self, h, x0, l):
        """What loop l makes of states h and x0 (B,T,C) before it adds s_l."""
        return h if l == 1 and self.config.start == "x0" else self.inject(h, x0)  # x0 is read once

    def blocks(self, l):
        """The blocks of loop l. ValueError beyond the last one, where each loop has its own."""
        if self.config.tie_loops:
            return self.transformer.h
        self.check_loops(l)
        n = self.config.n_layer
        return [self.transformer.h[i] for i in range((l - 1) * n, l * n)]

    def descend(self, h, x0, cache=None):
        """A loop of update 'energy': states h (B,T,C) -> new ones."""
        return self.transformer.h[0](h, x0, self.past(x0, h, cache), self.config.alpha)

    def past(self, x0, of, cache=None, again=False):
        """What an energy knows of other tokens, whose states are `of` (B,T,C) for inputs x0; the rest: EnergyBlock."""
        return self.transformer.h[0].past(x0 if self.config.keys == "x0" else of, cache, again)

    def energies(self, x0, of, *states, cache=None):
        """The energies (B,T) of each of the states (B,T,C) for inputs x0 and a past of states `of` (B,T,C); cache: as
        loop takes it, which has just run on them."""
        past = self.past(x0, of, cache, again=True)
        return [self.transformer.h[0].energy(h, x0, past) for h in states]

    def run_blocks(self, u, x0, l, cache=None):
        """u + s_l, which is what the blocks read, and what they make of it, for u, x0 (B,T,C) in loop l."""
        s, source = self.step_encoding(l), x0 if self.config.keys == "x0" else None
        u = candidate = u if s is None else u + s
        for block in self.blocks(l):
            candidate = block(candidate, *self.angles(u, l, cache), cache, source)
        return u, candidate

    def loop(self, h, x0, l, active=None, cache=None):
        """Loop l (from 1) of every token: states h (B,T,C) -> new states (B,T,C). active (B,T): which have not halted.
        cache: the tokens before these, where h does not begin with the first one; takes their keys and values.

        Every Runge-Kutta stage evaluates G at that stage's own input u. s_l and alpha are fixed for the whole step.
        Halted tokens do not move between stages: others must see their frozen state.
        """
        if self.config.update == "energy":
            return self.descend(h, x0, cache)
        u, candidate = self.run_blocks(self.reads(h, x0, l), x0, l, cache)
        new = candidate
        if self.config.update != "replace":
            alpha, slope = self.alpha(h, x0), candidate - u
            total, weights = slope, 1
            for reach, weight in STAGES[self.config.update]:
                moved = reach * alpha * slope
                if active is not None:
                    moved = torch.where(active[..., None], moved, 0.0)
                # Later stages inject x0 even in loop 1, where the first stage did not. So with an injection the very
                # first step is only first-order accurate.
                u, candidate = self.run_blocks(self.inject(h + moved, x0), x0, l, cache)
                slope = candidate - u
                total, weights = total + weight * slope, weights + weight
            new = h + alpha / weights * total
        return self.loop_norm(new) if self.config.loop_norm else new

    def owed_keys(self, h, x0, first, last):
        """What halted tokens owe in loops first..last: keys and values (loops,B,T,2 nkv hs) of states h (B,T,C), not
        rotated; one loop that serves all where they are alike. Of a model with one block a loop: inside several, a
        halted token goes on moving with its context. All stages are alike, since it stands still between them.
        """
        u, loops = (x0 if self.config.keys == "x0" else self.inject(h, x0))[None], range(first, last + 1)
        steps = [self.step_encoding(l) for l in loops]
        if steps[0] is not None and self.config.keys == "state":
            u = u + torch.stack(steps)[:, None, None]
        if self.config.tie_loops:
            return self.transformer.h[0].keys_values(u)
        own, u = [self.blocks(l)[0] for l in loops], u.expand(len(loops), *u.shape[1:])
        return torch.stack([block.keys_values(x) for block, x in zip(own, u, strict=True)])

    def flops_per_token(self, T, num_loops=1):
        """As of a GPT, of every evaluation of a loop; and 6 a weight of the injection's matrix, if it has one."""
        evaluations = num_loops * self.evaluations
        matrix = sum(p.numel() for p in self.inject.parameters() if p.dim() == 2)
        injections = evaluations - (self.config.start == "x0")  # x0 is read once
        return super().flops_per_token(T, evaluations) + 6 * injections * matrix

    def loops_asked(self, num_loops):
        """num_loops, or those trained with if it is None. ValueError below 1."""
        L = self.trained_loops if num_loops is None else num_loops
        if L < 1:
            raise ValueError(f"num_loops {L} must be at least 1")
        return L

    def states(self, idx, num_loops=None, no_grad_loops=0):
        """h_1 ... h_L of tokens idx (B,T), one (B,T,C) after the other; every token takes every loop, the first
        no_grad_loops ones without a gradient. In training with a list of prompt_loops prompts stand still early."""
        x0 = self.embed(idx)
        h = self.begin(x0)
        history, moves = [], self.loops_while_training(idx)
        for l in range(1, self.loops_asked(num_loops) + 1):
            active = None if moves is None else l <= moves
            with torch.set_grad_enabled(torch.is_grad_enabled() and l > no_grad_loops):
                new = think.accelerate(self, h, self.loop(h, x0, l, active), l, history)
                h = new if active is None else torch.where(active[..., None], new, h)
            yield h

    def loops_while_training(self, idx):
        """Loops (B,T) after which tokens idx (B,T) of a training step stand still, as a prompt that was read quickly
        does at inference while its answer is still written; None if none does."""
        if not self.training or not isinstance(self.config.prompt_loops, (list, tuple)):
            return None
        drawn = self.prompt_counts[torch.randint(len(self.prompt_counts), (len(idx), 1), device=idx.device)]
        return drawn.masked_fill((drawn == 0) | think.thinks(self.config, idx), NEVER)

    def last_state(self, idx, num_loops=None):
        """h_L (B,T,C), in one launch where a kernel does it."""
        return think.last_state(self, idx, self.loops_asked(num_loops))

    def forward(self, idx, targets=None, num_loops=None, trace=False, exact_loops=None):
        """Logits and loss, as GPT.forward; with trace=True also the dict that `think` describes.

        num_loops: loops to take (default: those trained with, the largest of a list). Training goes through all of
        them; in eval mode tokens halt by config.halt, or after exact_loops (B,T), which overrides every rule.
        """
        if self.training:
            return self.training_loss(idx, targets, num_loops)
        record = None
        if self.halts or trace or exact_loops is not None:
            h, record = self.think(idx, num_loops, trace, exact_loops)
        else:
            h = self.last_state(idx, num_loops)
        logits = self.readout(h if targets is not None or trace else h[:, [-1]])
        loss = None if targets is None else self.loss(logits, targets)
        return (logits, loss, record) if trace else (logits, loss)

    def training_loss(self, idx, targets, num_loops=None):
        """Logits of the last loop and the loss over the supervised ones, back-propagated through the last grad_loops:
        a state that drifts in long thinking is trained to stay, at the cost of a forward pass (Geiping et al. 2025)."""
        c, keep = self.config, self.config.halt_head == "after"
        no_grad_loops = max(0, self.loops_asked(num_loops) - c.grad_loops) if c.grad_loops else 0
        with torch.set_grad_enabled(torch.is_grad_enabled() and not keep):
            states = list(self.states(idx, num_loops, no_grad_loops))
        if targets is None:
            return self.readout(states[-1][:, [-1]]), None
        first = dict(last=len(states) - 1, half=(no_grad_loops + len(states)) // 2, all=no_grad_loops)[c.supervise]
        logits = self.readout(torch.stack(states[first:]))  # (S,B,T,V)
        loss = 0.0 if keep else self.loss(logits, targets.expand(logits.shape[:-1]))
        if c.halt_head != "none":
            loss = loss + self.halt_loss(torch.stack(states), targets)
        if c.place_margin and not keep:
            loss = loss + MARGIN_WEIGHT * self.margin_loss()
        return logits[-1], loss

    def halt_logits(self, h, l):
        """The halt head on h_l (B,T,C): the log-odds (B,T) that no later loop will change the arg-max."""
        s = self.gate_step(l)
        s = torch.zeros_like(h) if s is None else s.expand_as(h)
        return self.halt_head(torch.cat((h, s), -1)).squeeze(-1)

    def halt_loss(self, states, targets):
        """Binary cross entropy of the halt head on states (L,B,T,C): 1 if loops l..L all have the arg-max of L."""
        with torch.no_grad():
            best = torch.stack([self.readout(h).argmax(-1) for h in states])  # (L,B,T)
            settled = (best == best[-1]).flip(0).cumprod(0).flip(0).float()
        odds = torch.stack([self.halt_logits(h, l) for l, h in enumerate(states, 1)])
        weight = (targets >= 0).float().expand_as(odds)
        loss = F.binary_cross_entropy_with_logits(odds.float(), settled, reduction="none")
        return (loss * weight).sum() / weight.sum().clamp(min=1)

    @torch.no_grad()
    def loss_per_loop(self, idx, targets, num_loops=None):
        """The loss (L,) that the readout after each loop would have, no token halting."""
        with think.backend_for(self, idx, "losses"):
            return torch.stack([self.loss(self.readout(h), targets) for h in self.states(idx, num_loops)])

    @property
    def halts(self):
        """Whether tokens may take different loops."""
        c = self.config
        return c.halt != "none" or bool(c.reading or c.think_loops)

    def halting_plan(self, idx, L):
        """think.halting_plan by this model's settings."""
        return think.halting_plan(self.config, idx, L)

    def think(self, idx, num_loops=None, trace=True, exact_loops=None):
        """think.think of this model: the final states (B,T,C), and a dict of what happened."""
        return think.think(self, idx, self.loops_asked(num_loops), trace, exact_loops)

    def loop_tensors(self, L):
        """The weights that L loops read, as they are, for the kernels."""
        c, block, head = self.config, self.transformer.h[0], getattr(self, "halt_head", None)
        steps, told = ([of(l) for l in range(1, L + 1)] for of in (self.step_encoding, self.gate_step))
        return LoopTensors(
            ln_1=block.ln_1.weight, qkv=block.attn.c_attn.weight, proj=block.attn.c_proj.weight,
            ln_2=block.ln_2.weight, fc=block.mlp.c_fc.weight, out=block.mlp.c_proj.weight,
            ln_f=self.transformer.ln_f.weight, head=self.lm_head.weight,
            steps=None if steps[0] is None else torch.stack(steps),
            alpha=self.step_size if c.alpha == "learned" else c.alpha,
            loop_norm=self.loop_norm.weight if c.loop_norm else None,
            decay=self.inject.a.sigmoid() if c.inject == "decay" else None,
            mix=self.inject.mix.weight if c.inject == "concat" else None,
            gate=(head[0].weight, head[0].bias, head[2].weight, head[2].bias) if c.halt == "gate" else None,
            gate_steps=None if told[0] is None else torch.stack(told))

    def loop_spec(self):
        """What the kernels are told of this model."""
        return LoopSpec(owner=self, config=self.config, step_limit=self.loop_limit, training=self.training,
                        head=self.lm_head.weight, parameters=self.parameters, tensors=self.loop_tensors,
                        injected=self.inject.of_input, in_torch=functools.partial(think.all_loops, self))


def is_of_type(value, kind):
    """Whether a value, as a checkpoint holds it, is of the type that a field is annotated with."""
    kinds = [get_origin(k) or k for k in (get_args(kind) if isinstance(kind, UnionType) else (kind,))]
    if isinstance(value, (list, tuple)):
        return (list in kinds or tuple in kinds) and all(type(x) is int for x in value)
    return type(value) in kinds or (type(value) is int and float in kinds)


def build(model_args):
    """GPT or LoopGPT from the model_args of a checkpoint; nanoGPT's make a GPT. ValueError that names what is wrong."""
    model, config = (LoopGPT, LoopConfig) if "num_loops" in model_args else (GPT, GPTConfig)
    kinds = {field.name: field.type for field in fields(config)}
    unknown = set(model_args) - set(kinds)
    if unknown:
        raise ValueError(f"model_args {', '.join(sorted(map(str, unknown)))} are unknown to {model.__name__}")
    unfit = [k for k, v in model_args.items() if not is_of_type(v, kinds[k])]
    if unfit:
        raise ValueError(f"model_args: {', '.join(f'{k} {model_args[k]!r}' for k in unfit)} of the wrong type")
    made = config(**model_args)
    small = [k for k in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd") if getattr(made, k) < 1]
    if small:
        raise ValueError(f"model_args: {', '.join(small)} must be at least 1")
    return model(made)


def load_weights(model, state, strict=True):
    """Load a state dict, also one that torch.compile (_orig_mod.) or nanoGPT's attention mask (attn.bias) marked.

    ValueError in one line if it does not fit the model, or is not finite.
    """
    if not all(isinstance(k, str) and isinstance(v, torch.Tensor) and v.layout == torch.strided and
               v.is_floating_point() for k, v in state.items()):
        raise ValueError("damaged, its weights are not tensors of numbers by name")
    state = {k.removeprefix("_orig_mod."): v for k, v in state.items() if not k.endswith(".attn.bias")}
    unfit = [k for k, v in state.items() if not v.isfinite().all()]
    if unfit:
        raise ValueError(f"{len(unfit)} of its {len(state)} weights, {unfit[0]} first, are not finite numbers: take "
                         "another checkpoint")
    own = model.state_dict()
    wrong = [f"{k} {list(v.shape)} where it has {list(own[k].shape)}" for k, v in state.items()
             if k in own and v.shape != own[k].shape]
    wrong += [f"{k} on one side alone" for k in sorted(own.keys() ^ state.keys())] if strict else []
    if wrong:
        raise ValueError(f"its weights do not fit the model: {', '.join(wrong[:3])}" + ", ..." * (len(wrong) > 3))
    return model.load_state_dict(state, strict=strict)


def from_checkpoint(checkpoint, **overrides):
    """The model of a loaded checkpoint in eval mode, with its averaged weights if it has them; overrides as below."""
    model = build(checkpoint["model_args"])
    load_weights(model, checkpoint.get("ema") or checkpoint["model"])
    return override(model, overrides).eval()


def override(model, overrides):
    """The model with other INFERENCE_SETTINGS {key: value}, checked. ValueError if they do not go with it.

    Another rule starts from its own threshold, since that of the old one means something else.
    """
    if overrides and not isinstance(model, LoopGPT):
        raise ValueError(f"{', '.join(overrides)}: this checkpoint is a plain GPT, which has no loops")
    if overrides.get("halt", "none") not in ("none", getattr(model.config, "halt", None)):
        overrides = dict(halt_threshold=None, think_threshold=None) | overrides
    for key, value in overrides.items():
        setattr(model.config, key, value)
    if isinstance(model, LoopGPT):
        check(model.config)
        check_halting(model.config, set(overrides))
        model.trained_loops = max(loop_counts(model.config.num_loops))
        model.check_loops()
    return model
