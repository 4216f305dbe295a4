"""Generation of any model with a KVCache, as in gpt-fast: reading, sampling, and many sequences at once.

R sequences (rows), t tokens of each read by a pass, V vocabulary, C width.
"""
import functools
import math
import sys
import time
from typing import NamedTuple

import torch

import think
from burst import KernelWriter
from cache import KVCache, looped
from looplm_kernels import at_least_float32, choose_backend
from static import KERNELS_AFTER, Kept, StepWriter, kept_for, rows_with_room
from think import MASK_FLOOR

CACHE_BYTES = 2 ** 30  # that sequences written at once may take, unless one alone takes more
SPLITMIX = tuple(x - 2 ** 64 for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))  # as int64


# reading -------------------------------------------------------------------------------------------------------------
def window_start(model, n):
    """Where the window of a sequence's n-th token begins, from 0. Learned positions end at block_size; there the window
    moves on by half a block. All other positions go on."""
    size = model.config.block_size
    if not model.learned_positions or n <= size:
        return 0
    half = max(1, size // 2)
    return -(-(n - size) // half) * half


def reading_plan(model, idx, thinks=False):
    """The HaltingPlan of tokens idx (R,t); thinks (R,1): whether the think token has been read before."""
    plan = think.halting_plan(model.config, idx, model.trained_loops, thinks)
    return plan if model.halts else plan._replace(active=torch.ones_like(plan.active))


def read(model, idx, cache, trace=False):
    """Read tokens idx (R,t) by a pass that the cache is ready for: logits (R,V) after the last one, and the dict of
    think.think with the loops (R,t) and, with trace, the rest; None of a plain GPT."""
    x0 = model.embed(idx, cache)
    if not looped(model):
        for block in model.transformer.h:
            x0 = block(x0, cache=cache)
        return model.readout(x0[:, -1]), None
    plan = reading_plan(model, idx, cache.thinks)
    if model.config.think_token is not None:
        cache.thinks = cache.thinks | (idx == model.config.think_token).any(1, keepdim=True)
    if trace:
        h, record = think.traced(model, x0, plan, model.readout(model.begin(x0)).argmax(-1), cache)
    elif model.halts and cache.static:
        h, loops = think.all_loops(model, x0, plan._replace(L=cache.loops), cache)
        record = dict(loops=loops)
    elif model.halts:
        h, record = adaptive(model, x0, plan, cache)
    else:
        h, record = think.fixed_depth(model, x0, plan.L, cache), dict(loops=torch.full_like(idx, plan.L))
    return model.readout(h[:, -1]), record


def read_whole(model, idx, trace=False, last=False):
    """Read tokens idx (R,t) without a cache: logits (R,t,V), of the last one (R,V), and the dict of `read`."""
    if not looped(model):
        return model(idx)[0][:, -1] if last else model.logits(idx), None
    h, record = think.follow(model, idx, reading_plan(model, idx), trace)
    return model.readout(h[:, -1] if last else h), record


def adaptive(model, x0, plan, cache):
    """think.adaptive with a cache. Rows of single tokens that have halted are left out once they are half of them."""
    history, state, rows = [], think.start(model, x0, plan), None
    for l in range(1, plan.L + 1):
        state, _, _ = think.halting_loop(model, x0, plan, l, state, history, cache.backend, cache=cache)
        if l == plan.L or not cache.ends_early:
            continue
        going = int(state.active.any(1).sum())  # the one number of a loop that crosses to the host
        if going == 0:
            cache.fill(model, state.h, x0, l)
            break
        if cache.positions is not None and 2 * going <= len(x0):
            if rows is None:
                h, loops, rows = state.h.clone(), state.loops.clone(), torch.arange(len(x0), device=x0.device)
            h[rows], loops[rows] = state.h, state.loops
            halted, index = ((state.active[:, 0] == on).nonzero()[:, 0] for on in (False, True))
            cache.fill(model, state.h, x0, l, halted)
            rows, x0 = rows[index], x0[index]
            state = think.State(*(x if x is None else x[index] for x in state))
            plan = plan._replace(active=plan.active[index], threshold=plan.threshold[index], limit=plan.limit[index])
            history[:] = [tuple(x[index] for x in pair) for pair in history]
            cache.pick(index)
    if rows is None:
        return state.h, dict(loops=state.loops)
    h[rows], loops[rows] = state.h, state.loops
    return h, dict(loops=loops)


def prefill(model, idx, cache, rows=slice(None), trace=False):
    """Read the first tokens idx (r,t) of the cache's sequences in slice rows; returns what `read` does."""
    cache.prompt(rows, idx.size(1))
    return read(model, idx, cache, trace)


def decode_one_token(model, idx, cache, trace=False):
    """Read one token more, idx (R,1), of every sequence of the cache; returns what `read` does."""
    cache.token()
    return read(model, idx, cache, trace)


class Reader:
    """What R sequences (lists of tokens) say next, by the cache; sorted by length, the shortest first."""
    most = 0  # loops that a token which wrote has taken
    cache = None

    def __init__(self, model, sequences, T):
        """T: tokens a sequence may have at most."""
        size = model.config.block_size if model.learned_positions else T
        self.model, self.sequences, self.starts = model, sequences, []
        self.cache = KVCache(model, len(sequences), min(T, size))

    def tensor(self, sequences):
        return torch.tensor(sequences, device=self.model.lm_head.weight.device)

    def windows(self):
        """Where each sequence's window begins."""
        return [window_start(self.model, len(x)) for x in self.sequences]

    def lengths(self):
        """Tokens of each sequence's window, of which no pass has read the last one."""
        return [len(x) - start for x, start in zip(self.sequences, self.starts or self.windows(), strict=True)]

    def before_move(self, n):
        """So many tokens of each sequence as n, or fewer, that can be read before a window moves."""
        if not self.model.learned_positions:
            return n
        return min(n, self.model.config.block_size + 1 - max(self.lengths()))

    def alike(self, values):
        """Slices of the sequences of equal length, which a pass can read together, with the first one's value each."""
        lengths = [len(x) for x in self.sequences]
        edges = [i for i, n in enumerate(lengths) if i == 0 or n != lengths[i - 1]] + [len(lengths)]
        return [(slice(a, b), values[a]) for a, b in zip(edges, edges[1:], strict=False)]

    def begin(self):
        """Read all but the last token of every window that has moved, or that nothing has been read of."""
        before, self.starts = self.starts, self.windows()
        for rows, start in self.alike(self.starts):
            if not before or start > before[rows.start]:
                windows = [x[start:-1] for x in self.sequences[rows]]
                self.cache.prompt(rows, 0)
                if windows[0]:
                    prefill(self.model, self.tensor(windows), self.cache, rows)

    def next(self, trace=False):
        """Logits (R,V) after all sequences, the loops of their last tokens as lists of one (None of a GPT), and with
        trace the dict of think.think about what was read of each for the first time."""
        if not self.starts:
            self.starts = self.windows()
            return self.gather([prefill(self.model, self.tensor([x[start:] for x in self.sequences[rows]]), self.cache,
                                        rows, trace) for rows, start in self.alike(self.starts)], trace)
        self.begin()
        newest = self.tensor([x[-1:] for x in self.sequences])
        return self.gather([decode_one_token(self.model, newest, self.cache, trace)], trace)

    def gather(self, parts, trace):
        """What `next` returns, of the results of several passes."""
        logits, records = zip(*parts, strict=True)
        if records[0] is None:
            return torch.cat(logits), None, None
        rows = [{k: x[i] for k, x in r.items()} for r in records for i in range(len(r["loops"]))] if trace else None
        loops = torch.cat([r["loops"][:, -1:] for r in records]).tolist()
        self.most = max(self.most, *map(max, loops))
        return torch.cat(logits), loops, rows

    def append(self, tokens):
        """Take lists of as many tokens more of every sequence."""
        for sequence, new in zip(self.sequences, tokens, strict=True):
            sequence += new

    def keep(self, rows):
        """Go on with the sequences in the list rows alone."""
        self.sequences, self.starts = ([x[i] for i in rows] for x in (self.sequences, self.starts))
        if self.cache is not None:
            self.cache.keep(rows)


class Rereader(Reader):
    """Reader without a cache: every token's whole window is read again. Slow, and the oracle of the cache."""

    def __init__(self, model, sequences, T):
        self.model, self.sequences, self.starts = model, sequences, []

    def next(self, trace=False):
        fresh, self.starts, parts = not self.starts, self.windows(), []
        for rows, start in self.alike(self.starts):
            idx = self.tensor([x[start:] for x in self.sequences[rows]])
            logits, record = read_whole(self.model, idx, trace, last=True)
            if record is not None and not fresh:
                record = {k: x[:, -1:] for k, x in record.items()}
            parts.append((logits, record))
        return self.gather(parts, trace)


# writing -------------------------------------------------------------------------------------------------------------
def mix(x):
    """The finalizer of SplitMix64 (Steele et al. 2014), int64 -> int64, of which every bit depends on every bit."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * SPLITMIX[1]
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * SPLITMIX[2]
    return x ^ (x >> 31 & (1 << 33) - 1)


def gumbel_noise(seed, rows, t, V):
    """Gumbel noise (R,V) float32 of the t-th tokens that sequences rows (R,) int64 write: a hash of these numbers and
    the seed, so that a draw depends neither on its neighbours nor on what else was drawn. seed, t: numbers, or tensors
    of one; t (n,1) gives (n,R,V)."""
    key = mix(mix(seed + (rows + 1) * SPLITMIX[0]) + (torch.zeros_like(rows) + t + 1) * SPLITMIX[0])[..., None]
    bits = mix(key + torch.arange(1, V + 1, device=rows.device) * SPLITMIX[0]) >> 41 & (1 << 23) - 1
    return -(-((bits.float() + 0.5) / 2 ** 23).log()).log()  # 23 bits and a half: neither 0 nor 1 in float32


def sample_token(logits, temperature, top_k, noise):
    """Tokens (R,) of logits (R,V), float32 or wider: the arg-max at temperature 0, else a draw from the top_k likeliest
    (0 or None: from all) by Gumbel noise (R,V): the arg-max of logits / temperature + noise has the distribution of
    their softmax (Gumbel 1954)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k:
        kth = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]  # [:, [-1]] would come from the host
        logits = logits.masked_fill(logits < kth, MASK_FLOOR)  # equal ones all stay
    return (logits + noise).argmax(-1)


def next_token(model, idx, cache, noise, temperature, top_k):
    """Read one token more, idx (R,1), of every sequence: the tokens (R,) drawn by noise (R,V) or None, and the loops
    (R,1), None of a plain GPT. The cache is ready for the pass."""
    logits, record = read(model, idx, cache)
    new = sample_token(at_least_float32(logits), temperature, top_k, noise)
    return new, None if record is None else record["loops"]


class Burst(NamedTuple):
    """Tokens that some sequences have got, one each or several: lists with an entry for each of these sequences."""
    rows: list    # which: their places among the prompts
    tokens: list  # the list of tokens written
    loops: list   # the list of the loops that the tokens took which wrote them; of a plain GPT None for all of it
    start: list   # where the window begins that was read
    trace: list   # the dict of think.think, (t,...), about the t tokens read for the first time: first the prompt's,
    #               later as many as were written before; without trace None for all of it
    done: list    # whether that was the end


# ways of writing -----------------------------------------------------------------------------------------------------
WAYS = ("auto", "kernel", "graph", "compiled", "eager")  # of the tokens after a prompt
AUTO = ("kernel", "graph")  # those that auto may take beside eager
TRIES = dict(eager=3)  # times that a way is tried before it is judged, 2 if it is not named: the first one sets up


def make_writer(reader, temperature, top_k, stop, seed, forced, way):
    """Who writes in a way other than eager, on where the reader stands; forced: the way is asked for by name."""
    noise = gumbel_noise if temperature else None
    if way == "kernel":
        return KernelWriter(reader, noise, temperature, top_k, stop, seed, forced)
    draw = functools.partial(next_token, temperature=temperature, top_k=top_k)
    return StepWriter(reader, draw, noise, (temperature, top_k), stop, seed, way == "compiled", forced)


def writers(way, model, trace, make):
    """The writers that a way of writing may use beside the reader: {way: writer}, of make(way).

    A writer has burst, leave and close, as StepWriter has them. auto: where it is a GPU. A way that is asked for by
    name and cannot be costs a line on stderr.
    """
    if way not in WAYS:
        raise ValueError(f"way {way!r} is none of {', '.join(WAYS)}")
    why_not = ("a trace is kept" if trace else
               "deterministic algorithms are asked for" if torch.are_deterministic_algorithms_enabled() else
               KernelWriter.why_not(model, 1, 1) if way == "kernel" else "")
    if way == "eager" or why_not:
        if way not in ("auto", "eager"):
            print(f"writing: token by token, not by way {way}, since {why_not}", file=sys.stderr)
        return {}
    if way != "auto":
        return {way: make(way)}
    backend, device = model.config.backend, model.lm_head.weight.device
    ways = ["kernel"] * ("kernel" in AUTO and device.type == "cuda" and choose_backend(backend, device) == "cutile"
                         and not KernelWriter.why_not(model, 1, 1))
    ways += ["graph"] * ("graph" in AUTO and device.type == "cuda" and backend == "auto")
    return {name: make(name) for name in ways}


def ranked(ways, pace, R):
    """The names of ways and eager in the order in which to try them for R sequences: first what was tried too seldom to
    be judged, then the faster ones. pace: {(way, R): (times tried, least seconds a token)}."""
    tried = {name: pace.get((name, R), (0, 0.0)) for name in ("eager", *ways)}
    return sorted(tried, key=lambda name: tried[name][1] * (tried[name][0] >= TRIES.get(name, 2)))


def written_ahead(names, ways, reader, rows, t, left):
    """What the first of the named ways makes that can, as burst of its writer, and its name; None, eager where the
    reader is to write the next token. The others give the cache back that they stand for."""
    for name in names:
        writer = ways.get(name)
        if writer is not None and not writer.is_ready(left):
            continue
        if reader.cache is not writer and reader.cache in ways.values():
            reader.cache.leave()
        made = None if writer is None else writer.burst(rows, t, left)
        if writer is None or made is not None:
            return made, name
    return None, "eager"


def read_and_draw(reader, trace, temperature, top_k, seed, numbers, t):
    """The t-th token of sequences numbers (R,) by a Reader: tokens, and loops, as a writer's burst has them, and the
    records of the trace."""
    logits, loops, records = reader.next(trace)
    noise = gumbel_noise(seed, numbers, t, logits.size(-1)) if temperature else None
    new = sample_token(at_least_float32(logits), temperature, top_k, noise)
    return ([[x] for x in new.tolist()], loops), records


def write_together(model, prompts, rows, room, temperature, top_k, stop, seed, trace, reread, way="auto"):
    """write of the prompts `rows` alone, which fit into memory together; room: tokens that each may get."""
    rows = sorted(rows, key=lambda i: len(prompts[i]))
    T = max(len(prompts[i]) + room[i] for i in rows)
    reader = (Rereader if reread else Reader)(model, [list(prompts[i]) for i in rows], T)
    ways = {} if reread else writers(way, model, trace, functools.partial(
        make_writer, reader, temperature, top_k, stop, seed, way != "auto"))
    t, kept = 0, Kept(None, model) if reread else kept_for(model)
    if way == "auto" and not reread and model.config.backend == "auto" and kept.seconds < KERNELS_AFTER:
        reader.cache.backend = "torch"
    numbers = torch.tensor(rows, device=model.lm_head.weight.device)
    try:
        while rows:
            began, R, made, name, records = time.perf_counter(), rows_with_room(len(rows)), None, "eager", None
            if ways:
                names = ranked(ways, kept.pace, R) if way == "auto" else [way, "eager"]
                if not t:  # the kernel also reads the last token of a prompt, the others only what was written
                    names = [x for x in names[:1] if x == "kernel"]
                made, name = written_ahead(names, ways, reader, rows, t, [room[i] - t for i in rows])
            if made is None:
                made, records = read_and_draw(reader, trace, temperature, top_k, seed, numbers, t)
            (written, loops), n = made, len(made[0][0])
            spent = time.perf_counter() - began
            kept.seconds += spent
            if t:  # the first one reads the prompt
                times, least = kept.pace.get((name, R), (0, math.inf))
                kept.pace[name, R] = times + 1, min(least, spent / n)
            new = [x[:room[i] - t] for x, i in zip(written, rows, strict=True)]  # nothing of prompts only read
            new = [x[:x.index(stop) + 1] if stop in x else x for x in new]
            t += n
            done = [stop in x or t >= room[i] for x, i in zip(new, rows, strict=True)]
            yield Burst(rows, new, loops and [l[:len(x)] for l, x in zip(loops, new, strict=True)], reader.starts,
                        records, done)
            reader.append(written)
            if any(done):
                going = [i for i, end in enumerate(done) if not end]
                rows = [rows[i] for i in going]
                if rows:
                    reader.keep(going)
                    numbers = torch.tensor(rows, device=numbers.device)
    finally:
        for writer in ways.values():
            writer.close()


@torch.no_grad()
def write(model, prompts, max_new_tokens, temperature=1.0, top_k=None, stop=None, seed=0, trace=False, reread=False,
          way="auto"):
    """Write on after every prompt (a list of tokens): yields a Burst whenever tokens are there.

    max_new_tokens: of each prompt, a number or a list; temperature, top_k: as sample_token has them; stop: the token
    with which a sequence ends; seed: of the draws, which depend on it and on the place of a prompt among the others;
    trace: also what was thought; reread: read every token's whole window again instead of keeping keys and values;
    way: of the tokens after the first, one of WAYS: eager reads one after the other; graph replays a CUDA graph of a
    step, where there is a GPU, compiled the compiled step's; auto takes what has been fastest for so many sequences.
    Sequences are written together, as many as CACHE_BYTES hold, and leave the rest once they are complete. ValueError
    where positions end.
    """
    room = max_new_tokens if isinstance(max_new_tokens, list) else [max_new_tokens] * len(prompts)
    c = model.config
    numbers = 2 * math.prod(model.cache_slots()) * c.kv_heads * (c.n_embd // c.n_head)  # of a token
    if looped(model) and (model.halts or trace):
        numbers += 4 * model.config.vocab_size  # a prompt's readouts, and what is scored of them
    size = numbers * model.lm_head.weight.element_size()
    longest = max((len(p) + n for p, n in zip(prompts, room, strict=True)), default=0)
    if model.learned_positions:
        longest = min(longest, model.config.block_size)
    together = max(1, CACHE_BYTES // max(1, size * longest))
    for first in range(0, len(prompts), together):
        rows = range(first, min(first + together, len(prompts)))
        yield from write_together(model, prompts, rows, room, temperature, top_k, stop, seed, trace, reread, way)


@torch.no_grad()
def generate(model, idx, max_new_tokens, temperature=1.0, top_k=None, stop=None, reread=False):
    """Append up to max_new_tokens to idx (B,T). temperature 0 takes the arg-max, top_k 0 or None draws from all;
    ends once every row has had the token `stop` (a row goes on until the last one has it). The draws are seeded by
    torch's own generator. reread: as in `write`."""
    B, seed = idx.size(0), int(torch.randint(2 ** 62, ()))
    new, stopped = [[] for _ in range(B)], set()
    for burst in write_together(model, idx.tolist(), range(B), [max_new_tokens] * B, temperature, top_k, None, seed,
                                False, reread):
        for row, tokens in zip(burst.rows, burst.tokens, strict=True):
            new[row] += tokens
            stopped |= {row} if stop in tokens else set()
        if len(stopped) == B:
            break
    return torch.cat((idx, torch.tensor(new, dtype=idx.dtype, device=idx.device).view(B, -1)), 1)
