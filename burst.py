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
    product_dtype,
    why_not_decode_kernel,
    why_not_decode_of_many,
)
from static import KERNELS_AFTER, kept_for

BURST = 128  # tokens of a launch, 10 to 20 ms: what the host does between two launches takes as long as ten of them
ROOM = 256   # tokens in the cache; for 64, a variant to be compiled, a launch was 6% faster


class KernelWriter:
    """Writes on where a Reader stands, and stands in the place of the reader's cache while it does."""
    failed = ""    # why no launch is tried any more in this process
    compiled = {}  # variants of the kernel: the thread that compiles it

    def __init__(self, reader, make_noise, temperature, top_k, stop, seed, forced=False):
        """make_noise: gumbel_noise of generate.py, None where nothing is drawn; stop: a token or None; forced: wait for
        the compiler."""
        self.reader, self.make_noise, self.temperature, self.top_k = reader, make_noise, temperature, top_k or 0
        self.stop, self.seed, self.forced = stop, seed, forced
        self.kept = kept_for(reader.model)
        self.kv = None  # (L,2,R,nh,T,hs) while it stands in the place of the cache
        c = reader.model.config
        ends = [c.pos == "place" and i not in c.number_tokens or i in (c.pad_token, c.think_token, stop)
                for i in range(c.vocab_size)]
        self.ends = torch.tensor(ends, device=reader.model.lm_head.weight.device)  # (V,)
        # A launch goes on as long as what is written is like this token: a digit, where digits have place ids.
        self.usual = c.number_tokens[0] if c.pos == "place" else next(
            i for i in range(c.vocab_size) if i not in (c.pad_token, c.think_token))

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
        """Whether a burst is worth trying: the kernel does it, and is compiled. If not, and if much has been written, a
        thread of its own sees to it, once for each variant, while others write."""
        model, R = self.reader.model, len(left)
        L = think.most_loops(model.config, model.trained_loops)
        write = None if self.failed else fastest_decode(model.loop_spec(), R, ROOM, L)
        fits = write is not None and max(self.reader.lengths()) <= ROOM
        if not fits or not model.lm_head.weight.is_cuda:
            return fits
        key = repr(model.config), write, R, self.top_k
        if key not in self.compiled:
            if not self.forced and self.kept.seconds < KERNELS_AFTER:
                return False
            if all(k[:2] != key[:2] for k in self.compiled):  # other numbers of sequences take a moment
                print("writing: the decode kernel compiles, 5 to 15 s"
                      f"{'' if self.forced else ', while another way writes'} ...", file=sys.stderr)
            self.compiled[key] = threading.Thread(
                target=self.compile, args=(write, R, L, product_dtype(model.lm_head.weight)), daemon=True)
            self.compiled[key].start()
        if self.forced:
            self.compiled[key].join()
        return not self.compiled[key].is_alive()

    @torch.no_grad()
    def compile(self, write, R, L, dtype):
        """Launch the kernel of `write` for no token. dtype: of products, for autocast is each thread's own."""
        model, c, weight = self.reader.model, self.reader.model.config, self.reader.model.lm_head.weight

        def zeros(*shape, dtype=torch.float32):
            return torch.zeros(shape, dtype=dtype, device=weight.device)
        kv = zeros(L, 2, R, c.n_head, ROOM, c.n_embd // c.n_head, dtype=torch.bfloat16)
        try:
            with torch.autocast(weight.device.type, dtype, dtype != weight.dtype):
                write(0, model.loop_spec(), model.transformer.wte.weight, kv, L, zeros(R), zeros(R),
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
            if not self.reader.starts:
                self.reader.begin()
            self.cache, self.reader.cache = self.reader.cache, self
            self.kv = self.cache.dense(self.cache.loops, ROOM)
        n = self.tokens(left)
        if not n:
            return self.leave()
        try:
            args = self.arguments(numbers, t, n)
            write = fastest_decode(args[0], len(left), ROOM, args[3])
            tokens, loops = (x.tolist() for x in write(n, *args))
        except ERRORS as error:
            KernelWriter.failed = first_line(error)
            print(f"writing: without the decode kernel from now on: {self.failed}", file=sys.stderr)
            return self.leave()
        return self.take(tokens, loops)

    def tokens(self, left):
        """Tokens that a launch may read of each sequence."""
        c = self.reader.model.config
        if c.pad_token is not None and any(x[-1] == c.pad_token for x in self.reader.sequences):
            return 0  # pads take no loop
        if c.think_token is not None and not self.cache.thinks_of_all.all():
            return 0  # from the think token on the settings may be others
        n = self.reader.before_move(min(BURST, max(left), ROOM + 1 - max(self.reader.lengths())))
        if c.pos == "place":  # the reader says which number is too long
            n = min(n, c.place_ids - c.place_ahead - int(self.cache.digits_of_all.max()) - 1)
        return max(n, 0)

    def arguments(self, numbers, t, n):
        """What decode_n_tokens takes after n, with room for BURST tokens, so that all launches are alike."""
        model, c, R = self.reader.model, self.reader.model.config, len(self.reader.sequences)
        last, at, rows = torch.tensor(
            [[x[-1] for x in self.reader.sequences], [n - 1 for n in self.reader.lengths()], list(numbers)],
            device=self.kv.device)  # (R,) each
        ahead = torch.arange(BURST, device=at.device)
        positions = at[:, None] + ahead  # (R,N)
        self.read = torch.where(ahead == 0, last[:, None], self.usual)
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
            noise = self.make_noise(self.seed, rows, t + ahead[:, None], c.vocab_size)
        return (model.loop_spec(), model.transformer.wte.weight, self.kv, plan.L, last, at,
                F.pad(places, (0, 0, 0, BURST - n)), scale, plan.threshold, plan.limit, noise, self.ends,
                self.temperature, self.top_k)

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
