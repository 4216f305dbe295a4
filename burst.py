"""Writing by the decode kernel: many tokens of some sequences in one launch, on where a Reader of generate.py stands.

R sequences (rows), N tokens of each in a launch, L loops, T tokens that the cache has room for, V vocabulary, C width.
"""
import sys
import threading
from types import SimpleNamespace

import torch
import torch.nn.functional as F

import think
from cache import looped
from looplm_kernels import (
    ERRORS,
    fastest_decode,
    first_line,
    why_not_decode_kernel,
    why_not_decode_of_many,
)

BURST = 16  # tokens of a launch
ROOM = (64, 128, 256)  # tokens in the cache, of which a launch is compiled for the smallest that suffices


class KernelWriter:
    """Writes on where a Reader stands, and stands in the place of the reader's cache while it does."""
    failed = ""    # why no launch is tried any more in this process
    compiled = {}  # variants of the kernel: the thread that compiles it

    def __init__(self, reader, make_noise, temperature, top_k, stop, seed, forced=False):
        """make_noise: gumbel_noise of generate.py, None where nothing is drawn; stop: a token or None; forced: wait for
        the compiler."""
        self.reader, self.make_noise, self.temperature, self.top_k = reader, make_noise, temperature, top_k or 0
        self.stop, self.seed, self.forced = stop, seed, forced
        self.kv = None  # (L,2,R,nh,T,hs) while it stands in the place of the cache

    @staticmethod
    def why_not(model, R, T):
        """What keeps the kernel from writing R sequences of a model with T tokens, "" if nothing does."""
        if not looped(model):
            return "a plain GPT has no loops"
        spec, L = model.loop_spec(), think.most_loops(model.config, model.trained_loops)
        if KernelWriter.failed or fastest_decode(spec, R, T, L):
            return KernelWriter.failed
        return why_not_decode_kernel(spec, 1, T, L) or why_not_decode_of_many(spec, T, L)

    def is_ready(self, left):
        """Whether a burst is worth trying: the kernel does it, and is compiled. If it is not, a thread of its own sees
        to it, once for each variant, while others write."""
        model, R, T = self.reader.model, len(left), self.room(1)
        if not T or self.why_not(model, R, T) or not self.reader.model.lm_head.weight.is_cuda:
            return bool(T) and not self.why_not(model, R, T)
        key = repr(model.config), R, T, self.top_k
        if key not in self.compiled:
            print("writing: the decode kernel compiles, or comes from the disk"
                  f"{'' if self.forced else ', while another way writes'} ...", file=sys.stderr)
            self.compiled[key] = threading.Thread(target=self.compile, args=(R, T), daemon=True)
            self.compiled[key].start()
        if self.forced:
            self.compiled[key].join()
        return not self.compiled[key].is_alive()

    @torch.no_grad()
    def compile(self, R, T):
        """Launch the kernel for no token."""
        model, c = self.reader.model, self.reader.model.config
        weight, L = model.lm_head.weight, think.most_loops(c, model.trained_loops)

        def zeros(*shape, dtype=torch.float32):
            return torch.zeros(shape, dtype=dtype, device=weight.device)
        kv = zeros(L, 2, R, c.n_head, T, c.n_embd // c.n_head, dtype=torch.bfloat16)
        try:
            fastest_decode(model.loop_spec(), R, T, L)(
                0, model.loop_spec(), model.transformer.wte.weight, kv, L, zeros(R), zeros(R),
                zeros(R, BURST, c.n_embd), *(zeros(R, BURST) for _ in range(3)), None, zeros(c.vocab_size),
                top_k=self.top_k)
        except ERRORS as error:
            KernelWriter.failed = first_line(error)

    def burst(self, numbers, t, left):
        """The next tokens of each sequence and the loops they took, lists of lists as long as each other; None where
        the reader has to write the next one.

        numbers: which they are among the prompts; t: tokens written of each; left: that each may still write. What
        stands after a sequence's end is not to be read.
        """
        if self.kv is None:
            self.cache, self.reader.cache = self.reader.cache, self
            self.kv = self.cache.dense(self.cache.loops, max(self.room(1), 1))
        n = self.tokens(left)
        T = self.room(n)
        if not n or not T:
            return self.leave()
        if self.kv.size(4) < T:
            self.kv = F.pad(self.kv, (0, 0, 0, T - self.kv.size(4)))
        try:
            args = self.arguments(numbers, t, n)
            write = fastest_decode(args[0], len(left), self.kv.size(4), args[3])
            tokens, loops = (x.tolist() for x in write(n, *args))
        except ERRORS as error:
            KernelWriter.failed = first_line(error)
            print(f"writing: without the decode kernel from now on: {self.failed}", file=sys.stderr)
            return self.leave()
        return self.take(tokens, loops)

    def room(self, n):
        """The room in the cache for n tokens more, of which a launch is compiled; 0 if there is none."""
        return next((room for room in ROOM if max(self.reader.lengths()) + n - 1 <= room), 0)

    def tokens(self, left):
        """Tokens that a launch may read of each sequence."""
        c = self.reader.model.config
        if c.pad_token is not None and any(x[-1] == c.pad_token for x in self.reader.sequences):
            return 0  # pads take no loop
        if c.think_token is not None and not self.cache.thinks_of_all.all():
            return 0  # from the think token on the settings may be others
        n = self.reader.before_move(min(BURST, max(left), ROOM[-1] + 1 - max(self.reader.lengths())))
        if c.pos == "place":  # the reader says which number is too long
            n = min(n, c.place_ids - c.place_ahead - int(self.cache.digits_of_all.max()) - 1)
        return max(n, 0)

    def arguments(self, numbers, t, n):
        """What decode_n_tokens takes after n, with room for BURST tokens, so that all launches are alike."""
        model, c, R = self.reader.model, self.reader.model.config, len(self.reader.sequences)
        self.last = torch.tensor([x[-1] for x in self.reader.sequences], device=self.kv.device)  # (R,)
        at = torch.tensor(self.reader.lengths(), device=self.kv.device) - 1  # (R,)
        positions = at[:, None] + torch.arange(BURST, device=at.device)  # (R,N)
        # A launch goes on as long as what is written is like this token: a digit, where digits have place ids.
        usual = c.number_tokens[0] if c.pos == "place" else next(
            i for i in range(c.vocab_size) if i not in (c.pad_token, c.think_token))
        self.read = torch.cat((self.last[:, None], torch.full((R, BURST - 1), usual, device=at.device)), 1)
        ends = torch.zeros(c.vocab_size, dtype=torch.bool, device=at.device)
        if c.pos == "place":
            ends[:] = True
            ends[list(c.number_tokens)] = False
        ends[[x for x in (c.pad_token, c.think_token, self.stop) if x is not None]] = True
        known = SimpleNamespace(positions=positions[:, :n], digits=self.cache.digits_of_all, longest=0,
                                static=True)
        places = model.positions(self.read[:, :n], known)  # (R,n,C)
        places = self.kv.new_zeros(R, n, c.n_embd) if places is None else places
        scale = torch.ones(R, BURST, device=at.device)
        if c.log_scale:
            scale = think.log_scale(positions, c.log_scale)
        plan = think.halting_plan(c, self.read, model.trained_loops, self.cache.thinks_of_all)
        noise = None
        if self.temperature:
            rows, times = torch.tensor(numbers, device=at.device), torch.arange(t, t + BURST, device=at.device)[:, None]
            noise = self.make_noise(self.seed, rows, times, c.vocab_size)
        return (model.loop_spec(), model.transformer.wte.weight, self.kv, plan.L, self.last, at,
                F.pad(places, (0, 0, 0, BURST - n)), scale, plan.threshold, plan.limit, noise, ends, self.temperature,
                self.top_k)

    def take(self, tokens, loops):
        """What `burst` returns of what a launch wrote (lists of lists, -1 after an end), up to the first symbol that
        ended a sequence in the launch alone: what it is followed by depends on it."""
        counts = [next((i for i, token in enumerate(x) if token < 0), len(x)) for x in tokens]
        n = min(max(counts), *(k for k, x in zip(counts, tokens, strict=True) if x[k - 1] != self.stop), BURST)
        if self.reader.model.config.pos == "place":
            known = SimpleNamespace(digits=self.cache.digits_of_all, longest=0, static=True)
            self.reader.model.place_index(self.read[:, :n], known)
            self.cache.digits_of_all = known.digits
        self.cache.window = [x + n for x in self.cache.window]
        self.reader.most = max(self.reader.most, *map(max, loops))
        return [x[:n] for x in tokens], [x[:n] for x in loops]

    def keep(self, rows):
        """As KVCache.keep."""
        index = torch.tensor(rows, device=self.kv.device)
        self.kv, self.cache.window = self.kv[:, :, index], [self.cache.window[i] for i in rows]
        self.cache.digits_of_all, self.cache.thinks_of_all = (
            x[index] for x in (self.cache.digits_of_all, self.cache.thinks_of_all))

    def leave(self):
        """Give the reader its cache back."""
        if self.kv is not None:
            self.cache.kv = list(self.kv[:, None])  # of all loops
            self.reader.cache, self.kv = self.cache, None

    close = leave
