"""One token of R sequences in shapes that never change: a step that a CUDA graph replays, with the draw and the next
token inside.

A pass by KVCache asks the host after every loop, and its tensors grow. Here all loops run, there is room from the
start, and what differs from token to token stands in tensors. A token that has halted stands still and runs on, so the
loops themselves write what it owes to later ones. A sequence that is done stands still too, until the host looks: every
BURST tokens.

R sequences (rows), T tokens that there is room for, C width, nh heads of hs channels.
"""
import copy
import sys
import time
import weakref
from collections import OrderedDict

import torch

from cache import KVCache, looped
from looplm_kernels import ERRORS, capture, first_line, next_power_of_2, product_dtype

BURST = 8            # tokens from one look of the host to the next
KEPT_BYTES = 2 ** 31  # of the steps of a model that are kept, the last used ones
SHORTEST = 64        # room of the smallest step
WORTH = 16           # tokens to come, from which on a step that is not there yet is worth its capture
NOISE = 2 ** 24      # numbers of noise that are drawn at once, unless a token's are more
KERNELS_AFTER = 5    # seconds of writing in a process before which auto waits for no kernel's compiler
COMPILE_AFTER = 30   # seconds of replays after which a step is compiled, which takes some tens of seconds


# a step --------------------------------------------------------------------------------------------------------------
class StaticCache(KVCache):
    """KVCache for a pass over one token of every sequence, which asks the host nothing and changes no shape."""
    static = True

    def __init__(self, kv, positions, digits, thinks):
        """kv: a tensor (slots,2,R,nh,T,hs) of each loop, written in place; positions, digits, thinks (R,1): where the
        tokens stand, the places of those before, whether the think token has been read."""
        self.kv, self.loops, self.slots_per_loop, self.longest = kv, len(kv), kv[0].size(0), kv[0].size(4)
        self.window, self.positions, self.rows = [0] * positions.size(0), positions, slice(None)
        self.digits_of_all, self.thinks_of_all = digits.clone(), thinks.clone()
        self.slot, self.place, self.picked, self.mask = 0, None, None, self.mask_ahead()


class Step:
    """The state of R sequences in tensors of its own, and run(): each of them that is not done writes a token.

    Where a token that has halted looks alike in all later loops, a step need not run loops that nobody takes: with one
    loop less than it runs being the most that a token may take. Before the first token that would take more, all stand
    still.
    """

    def __init__(self, model, R, T, loops, draw, make_noise, compiled):
        """loops: that it runs; draw(model, token, cache, noise): next_token of generate.py, for some temperature and
        top_k; make_noise: gumbel_noise of generate.py, None where nothing is drawn; compiled: by torch.compile."""
        c, weight = model.config, model.lm_head.weight
        every, slots = model.cache_slots()

        def zeros(*shape, dtype=torch.long):  # apart from each other: parts of one tensor would cost a compiler a lot
            return torch.zeros(shape, dtype=dtype, device=weight.device)
        self.model, self.draw, self.make_noise, self.R, self.T, self.seconds = model, draw, make_noise, R, T, 0.0
        self.burst = max(1, min(BURST, NOISE // (R * weight.size(0)))) if make_noise else BURST
        self.most = every if loops == every else loops - 1  # that a token may take
        self.kv = [zeros(slots, 2, R, c.kv_heads, T, c.n_embd // c.n_head, dtype=product_dtype(weight))
                   for _ in range(loops)]
        # of each: the token to be read, where it stands, the place of the one before, tokens that may still come
        self.token, self.positions, self.digits, self.left = (zeros(R, 1) for _ in range(4))
        self.thinks = zeros(R, 1, dtype=torch.bool)
        self.numbers = zeros(R)  # which it is among the prompts
        self.t, self.seed, self.stop = (zeros() for _ in range(3))
        self.noise = zeros(self.burst, R, weight.size(0), dtype=torch.float32) if make_noise else None
        self.written = zeros(2, R, self.burst)  # tokens and their loops since the last look of the host
        self.column = zeros(1)  # how many
        self.stuck = zeros(1, dtype=torch.bool)  # whether the next token would take more loops
        self.last_position = min(T, c.block_size if model.learned_positions else T) - 1
        self.prepare(compiled)

    def prepare(self, compiled):
        """Make run(): a CUDA graph, where there is a GPU. What the sequences have come to stays as it is."""
        run, self.compiled = self.advance, compiled
        if not self.token.is_cuda:
            self.run, self.draw_noise = run, self.fill_noise
            return
        if compiled:  # each step is a function of its own to the compiler, and there may be many
            run = torch._dynamo.config.patch(recompile_limit=64)(torch.compile(run, dynamic=False, fullgraph=True))
        kept = [x.clone() for x in (self.left, self.t, self.column)]
        self.left.zero_()  # so that they stand still
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        try:  # without autocast's cache of weights, which would be freed while the graph goes on reading them
            with (torch.cuda.device(self.token.device),
                  torch.autocast("cuda", dtype, dtype is not None, cache_enabled=False)):
                graph, _ = capture(run, error_mode="thread_local")
                noise = capture(self.fill_noise, error_mode="thread_local")[0] if self.make_noise else None
        finally:
            for x, value in zip((self.left, self.t, self.column), kept, strict=True):
                x.copy_(value)
        self.run, self.draw_noise = graph.replay, noise.replay if noise else self.fill_noise  # that does nothing

    def fill_noise(self):
        """The noise of the next tokens. Apart from the step: torch 2.13's code of it for a CPU, once compiled, spoils
        memory."""
        if self.make_noise:
            t = (self.t + torch.arange(self.burst, device=self.t.device))[:, None]
            self.noise.copy_(self.make_noise(self.seed, self.numbers, t, self.noise.size(2)))

    def advance(self):
        """Read a token of each sequence, and draw the next one."""
        cache = StaticCache(self.kv, self.positions, self.digits, self.thinks)
        at = self.column.clamp(max=self.burst - 1)  # while a graph is made, steps run that nobody counts
        noise = self.noise.index_select(0, at)[0] if self.make_noise else None  # (R,V)
        new, loops = self.draw(self.model, self.token, cache, noise)  # (R), (R,1)
        new, going = new[:, None], self.left > 0
        loops = torch.zeros_like(new) if loops is None else loops
        self.stuck.logical_or_((going & (loops > self.most)).any())
        going = going & ~self.stuck
        self.written.index_copy_(2, at, torch.stack((new, loops)))
        self.digits.copy_(torch.where(going, cache.digits, self.digits))
        self.thinks.copy_(torch.where(going, cache.thinks, self.thinks))
        self.token.copy_(torch.where(going, new, self.token))
        self.positions.copy_((self.positions + going).clamp(max=self.last_position))
        self.left.copy_(torch.where(going, torch.where(new == self.stop, 0, self.left - 1), self.left))
        self.t.add_(~self.stuck[0])
        self.column.add_(~self.stuck)

    def steps(self, n):
        """Run n times, burst at most: what every sequence wrote (R,n or less), and its loops, as lists."""
        began = time.perf_counter()
        self.draw_noise()
        self.column.zero_()
        self.stuck.zero_()
        for _ in range(n):
            self.run()
        tokens, loops = self.written[:, :, :int(self.column)].tolist()
        self.seconds += time.perf_counter() - began
        return tokens, loops

    def load(self, cache, **values):
        """Begin where a KVCache stands. values: the first numbers of tensors of this name, the others are 0."""
        n, R = max(cache.window), len(cache.window)
        for l, kv in enumerate(self.kv):
            kept = cache.kv[min(l, len(cache.kv) - 1)]  # in loops that it lacks all tokens have halted
            kv[:, :, :R, :, :n] = kept[:, :, :, :, :n]
        values |= dict(digits=cache.digits_of_all[:, 0], thinks=cache.thinks_of_all[:, 0])
        for name, value in values.items():
            x = getattr(self, name)
            value = torch.as_tensor(value, device=x.device)
            if x.dim():
                x.zero_().view(-1)[:len(value)] = value
            else:
                x.copy_(value)

    def store(self, cache, rows, window, before):
        """Have a KVCache, which this step was loaded from, go on with its rows (a list) alone.

        window: how many tokens each of them has read, before: how many it had read; lists.
        """
        index, n = torch.tensor(rows, device=self.token.device), max(window)
        cache.grow(n)
        kv = [kv[:, :, index, :, :n] for kv in self.kv]
        # the later loops of what was read before are the cache's own, in them what this step read stands still
        old = torch.arange(n, device=index.device) < torch.tensor(before, device=index.device)[:, None]  # (R,n)
        kv += [torch.where(old[:, None, :, None], later[:, :, index, :, :n], kv[-1]) for later in cache.kv[len(kv):]]
        cache.kv, cache.window = kv, window
        cache.digits_of_all, cache.thinks_of_all = self.digits[index], self.thinks[index]


# those of a model ----------------------------------------------------------------------------------------------------
class Kept:
    """The steps of a model, {what they were made for: Step}, the model that they read, how fast each way of writing
    was, as `ranked` of generate.py has it, and how many seconds it has written in all."""

    def __init__(self, key, model):
        self.key, self.model, self.steps, self.pace, self.seconds = key, model, OrderedDict(), {}, 0.0


kept_steps = weakref.WeakKeyDictionary()  # model -> Kept; a copy starts anew


def forget_steps(model):
    """Drop what is kept for a model whose weights may have changed unseen (a CUDA graph changes them so)."""
    kept_steps.pop(model, None)


def lowered(model, dtype):
    """The model, or a copy whose products have their weights in dtype: autocast would cast them in every loop."""
    if model.lm_head.weight.dtype == dtype:
        return model
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(module.weight.to(dtype), requires_grad=False)
    return model


def kept_for(model):
    """The Kept of a model, a new one where a weight or a setting has changed."""
    dtype = product_dtype(model.lm_head.weight)
    key = (dtype, repr(model.config), getattr(model, "trained_loops", None),
           *((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()))
    if model not in kept_steps or kept_steps[model].key != key:
        kept_steps[model] = Kept(key, lowered(model, dtype))
    return kept_steps[model]


def rows_with_room(n):
    """n sequences, or so many more that few steps serve all numbers: four sizes from one power of two to the next."""
    unit = max(1, 1 << max(0, (n - 1).bit_length() - 3))
    return -(-n // unit) * unit


# writing -------------------------------------------------------------------------------------------------------------
class StepWriter:
    """Writes on where a Reader of generate.py stands, and stands in the place of the reader's cache while it does."""
    failed = {}  # graph or compiled -> why that could not be made in this process

    def __init__(self, reader, draw, make_noise, key, stop, seed, compiled=False, forced=False):
        """draw, make_noise: as Step takes them, for what key says; stop: a token or None; compiled: from the start, not
        when it has run for long; forced: also where the few tokens to come are not worth it."""
        self.reader, self.draw, self.make_noise, self.key = reader, draw, make_noise, key
        self.compiled, self.forced, self.stop = compiled, forced, -1 if stop is None else stop
        self.seed, self.step, self.kept = seed, None, kept_for(reader.model)

    def is_ready(self, left):
        """Whether a burst is worth trying."""
        return True

    def burst(self, numbers, t, left):
        """The next tokens of each sequence and the loops they took, lists of lists (loops None of a GPT); None where
        the reader has to write the next one.

        numbers: which they are among the prompts; t: tokens written of each; left: that each may still write.
        """
        longest = max(self.reader.lengths())
        n = self.reader.before_move(min(BURST, max(left)))
        if self.step is not None and (n < 1 or longest + n - 1 > self.step.T):
            self.leave()
        if n < 1 or self.step is None and not self.enter(numbers, t, left):
            return None
        if not self.step.compiled and self.step.seconds > COMPILE_AFTER and "compiled" not in self.failed:
            print("writing: a step is compiled, some tens of seconds ...", file=sys.stderr)
            self.attempt("compiled", lambda: self.step.prepare(compiled=True))
        tokens, loops = ([rows[i] for i in self.at] for rows in self.step.steps(min(n, self.step.burst)))
        if not tokens[0]:  # the reader tells how many loops it takes
            self.leave()
            return None
        self.reader.most = max(self.reader.most, *map(max, loops))
        return tokens, loops if looped(self.reader.model) else None

    def enter(self, numbers, t, left):
        """Take the reader's cache into a step; whether that was possible and worth it."""
        reader, window = self.reader, self.reader.lengths()
        model, cache, R = reader.model, reader.cache, rows_with_room(len(window))
        c, (loops, _) = model.config, model.cache_slots()
        if getattr(c, "pos", "") == "place":
            ids = c.place_ids - c.place_ahead
            if any(d + n >= ids for (d,), n in zip(cache.digits_of_all.tolist(), left, strict=True)):
                return False  # the reader says which number is too long
        T = next_power_of_2(max(SHORTEST, max(window) + (max(left) if self.compiled else BURST) - 1))
        if model.learned_positions:
            T = min(T, -(-c.block_size // 8) * 8)  # attention wants its keys by 8
        if cache.later_alike and model.halts:  # one to spare, for the next token may take more
            loops = min(loops, rows_with_room(reader.most + 1) + 1)
        enough = [k[2] for k in self.kept.steps if k[2] >= loops and k == (R, T, k[2], self.key)]
        key, way = (R, T, min(enough, default=loops), self.key), "compiled" if self.compiled else "graph"
        step = self.kept.steps.pop(key, None)  # no other writer shall take it meanwhile
        if step is None or self.compiled and not step.compiled:
            if way in self.failed or not self.forced and max(left) < WORTH:
                return False
            step = self.attempt(way, lambda: Step(self.kept.model, R, T, key[2], self.draw, self.make_noise,
                                                  self.compiled))
            if step is None:
                return False
        step.load(cache, token=[x[-1] for x in reader.sequences], positions=cache.window, left=left, numbers=numbers,
                  t=t, seed=self.seed, stop=self.stop)
        self.step, self.step_key, self.cache, self.at = step, key, cache, list(range(len(window)))
        self.before, reader.cache = cache.window, self
        return True

    def attempt(self, way, make):
        """make(), or None and a line where it fails."""
        try:
            return make()
        except ERRORS as error:  # of a compiler, of a driver, or memory that is full
            self.failed[way] = first_line(error)
            print(f"writing: no step is {'compiled' if way == 'compiled' else 'captured'} from now on: "
                  f"{self.failed[way]}", file=sys.stderr)
            return None

    def keep(self, rows):
        """As KVCache.keep."""
        self.at = [self.at[i] for i in rows]
        if 2 * rows_with_room(len(rows)) <= self.step.R:
            self.leave()

    def leave(self):
        """Give the reader its cache back."""
        self.step.store(self.cache, self.at, [n - 1 for n in self.reader.lengths()], [self.before[i] for i in self.at])
        self.reader.cache = self.cache
        self.close()

    def close(self):
        """Put the step where others find it."""
        if self.step is not None:
            steps = self.kept.steps
            steps[self.step_key], self.step = self.step, None
            while len(steps) > 1 and sum(kv.nbytes for step in steps.values() for kv in step.kv) > KEPT_BYTES:
                steps.popitem(last=False)
