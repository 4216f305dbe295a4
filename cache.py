"""The exact cache of keys and values by which a token that was read need not be read again.

Attention is causal and a token halts by itself, so what a token contributes to later ones is fixed once it is read: its
keys and values in every loop, of every block and stage. A token that halts in loop m owes those of the loops after it,
from its frozen state: with one block in the loop a single projection, by that loop's block if each has its own, since
nothing else of it is read any more. Inside several blocks a frozen token goes on moving with its context; there it runs
on through all loops, to be exact.

R sequences (rows), t tokens of each read by a pass, L loops, C width, nh heads of hs channels, nkv of keys and values.
"""
import contextlib

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from looplm_kernels import attention, product_dtype, rotate_halves, split_heads

ANY_LENGTH = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class KVCache:
    """Keys and values of the tokens that R sequences have read, and what else their next token depends on.

    A pass begins with `prompt` or `token`; then every attention layer calls `attend`, in the order of the slots.
    """
    static = False  # whether a pass asks the host nothing, as StaticCache of static.py

    def __init__(self, model, R, T):
        """T: tokens there may be at most. Memory: 2 nkv hs T numbers a sequence, times the loops, times the Runge-Kutta
        stages and blocks in each; at first of few tokens, doubled as they come. Of loops that are alike no more are
        kept than any token has taken, and one: in it all halted tokens look as in every loop after it."""
        c, weight = model.config, model.lm_head.weight
        self.loops, self.slots_per_loop = model.cache_slots()
        self.backend = c.backend  # of kernels, for the passes
        self.T, self.window = T, [0] * R  # tokens that each sequence may have, and has
        self.ends_early = c.n_layer == 1
        self.later_alike = looped(model) and self.ends_early and model.loops_alike
        # zeros, since what is masked still takes part in a sum, with weight 0
        self.kv = [torch.zeros(self.slots_per_loop, 2, R, c.kv_heads, 0, c.n_embd // c.n_head, device=weight.device,
                               dtype=product_dtype(weight)) for _ in range(1 if self.later_alike else self.loops)]
        self.digits_of_all = torch.zeros(R, 1, dtype=torch.long, device=weight.device)
        self.thinks_of_all = torch.zeros(R, 1, dtype=torch.bool, device=weight.device)

    def prompt(self, rows, t):
        """The pass to come reads the first t tokens of the sequences in slice rows."""
        self.grow(t)
        self.rows, self.longest, self.positions, self.slot = rows, t, None, 0
        self.window[rows] = [t] * len(self.window[rows])
        self.digits_of_all[rows], self.thinks_of_all[rows] = 0, False

    def token(self):
        """The pass to come reads one token more of every sequence."""
        self.rows, self.slot, self.longest = slice(None), 0, max(self.window) + 1
        self.grow(self.longest)
        self.positions = torch.tensor(self.window, device=self.digits_of_all.device)[:, None]  # (R,1)
        even = min(self.window) == max(self.window)
        self.place, self.mask = self.window[0] if even else None, None
        if not even:
            self.mask = self.mask_ahead()
        self.picked = None  # all rows
        self.window = [n + 1 for n in self.window]

    def mask_ahead(self):
        """What is added to scores (R,1,1,T), so that no token sees what stands after it."""
        ahead = torch.arange(self.longest, device=self.positions.device) > self.positions
        return torch.zeros(ahead.shape, dtype=self.kv[0].dtype, device=ahead.device).masked_fill(
            ahead, -torch.inf)[:, None, None]

    def grow(self, t):
        """Make room for t tokens."""
        room = self.kv[0].size(4)
        if t > room:
            more = min(max(2 * room, t, 64), max(self.T, t)) - room
            for l, kv in enumerate(self.kv):
                self.kv[l] = F.pad(kv, (0, 0, 0, more))

    def dense(self, L, T):
        """A copy (L,2,R,nh,T,hs) of the keys and values of L loops, with room for T tokens, of a model with one block
        and no Runge-Kutta stages."""
        loops = [kv[0, ..., :T, :] for kv in self.kv]
        loops += loops[-1:] * (L - len(loops))  # all look as in the last that is kept
        return F.pad(torch.stack(loops), (0, 0, 0, T - loops[0].size(-2)))

    def keep(self, rows):
        """Go on with the sequences in the list rows alone."""
        index = torch.tensor(rows, device=self.digits_of_all.device)
        for l, kv in enumerate(self.kv):
            self.kv[l] = kv[:, :, index]
        self.digits_of_all, self.thinks_of_all = self.digits_of_all[index], self.thinks_of_all[index]
        self.window = [self.window[i] for i in rows]

    def pick(self, index):
        """The rest of a pass over single tokens goes on with those of index (A,) of its rows."""
        self.picked = index if self.picked is None else self.picked[index]
        self.positions, self.place = self.positions[index], None
        self.mask = self.mask if self.mask is None else self.mask[index]

    @property
    def digits(self):
        """(R,1) the place of the last token in its number, 0 of none, by which place ids go on."""
        return self.digits_of_all[self.rows]

    @digits.setter
    def digits(self, value):
        self.digits_of_all[self.rows] = value

    @property
    def thinks(self):
        """(R,1) whether the think token has been read."""
        return self.thinks_of_all[self.rows]

    @thinks.setter
    def thinks(self, value):
        self.thinks_of_all[self.rows] = value

    def put(self, slots, kv, index=None):
        """Write keys and values kv (...,2,R,nkv,t,hs) of the pass's tokens, or of those of index (A,), into slots."""
        if self.positions is None:
            slots[..., self.rows, :, :self.longest, :] = kv
        elif index is None and self.place is not None:
            slots[..., self.place:self.place + 1, :] = kv
        else:
            rows = torch.arange(len(self.window), device=kv.device) if self.picked is None else self.picked
            at = self.positions[:, 0]
            rows, at = (rows, at) if index is None else (rows[index], at[index])
            slots[..., rows, :, at, :] = kv.squeeze(-2).movedim(-3, 0)  # the dimensions of two indices come first

    def remember(self, kv):
        """Write keys and values kv (2,R,nkv,t,hs) of the pass's tokens, rotated, into the next slot."""
        l, i = divmod(self.slot, self.slots_per_loop)
        if l + 1 == len(self.kv) < self.loops:  # here these tokens still move: from now on loops l and later differ
            self.kv.append(self.kv[l].clone())
        self.put(self.kv[l][i], kv)
        self.slot += 1

    def remembered(self):
        """What stands in the last slot written, of all tokens up to those of a pass over single ones: keys and values
        (2,R,nkv,T,hs)."""
        l, i = divmod(self.slot - 1, self.slots_per_loop)
        slot = self.kv[l][i][..., :self.longest, :]
        return slot if self.picked is None else slot[:, self.picked]

    def attend(self, qkv, n_head, q_angle, k_angle):
        """What the tokens of the pass see, (R,t,C), of the packed projection qkv (R,t,3C), less where heads share
        keys."""
        kv_heads = self.kv[0].size(3)
        q, k, v = split_heads(qkv, n_head, kv_heads)  # (R,nh,t,hs), (R,nkv,t,hs) twice
        if k_angle is None:
            both = qkv.unflatten(2, (-1, q.size(-1)))[:, :, n_head:].unflatten(2, (2, kv_heads))
            self.remember(both.permute(2, 0, 3, 1, 4))
        else:
            self.remember(torch.stack((rotate_halves(k, k_angle), v)))
        if self.positions is None:
            return attention(qkv, n_head, q_angle, k_angle, self.backend, kv_heads)
        q, (keys, values) = q if q_angle is None else rotate_halves(q, q_angle), self.remembered()
        # cuDNN makes a plan for every length, which takes tens of milliseconds
        with contextlib.nullcontext() if self.static or not q.is_cuda else sdpa_kernel(ANY_LENGTH):
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=self.mask, enable_gqa=kv_heads != n_head)
        return y.transpose(1, 2).flatten(2)

    def fill(self, model, h, x0, l, index=None):
        """Write what tokens owe that have halted by loop l, with states h (R,t,C): all of the pass's, or those of index
        (A,) of its rows."""
        last = len(self.kv)
        if l == last:
            return
        if index is not None:
            h, x0 = h[index], x0[index]
        owed = model.owed_keys(h, x0, l + 1, last)  # (last-l or 1,R,t,2 nkv hs)
        k, v = owed.unflatten(-1, (2, self.kv[0].size(3), -1)).permute(3, 0, 1, 4, 2, 5)  # (last-l or 1,R,nkv,t,hs)
        k_angle = model.angles(h, last, self)[1]
        if k_angle is not None:
            k = rotate_halves(k, k_angle if index is None else k_angle[index])
        for slots, *kv in zip(self.kv[l:], k.expand(last - l, *k.shape[1:]), v.expand(last - l, *v.shape[1:]),
                              strict=True):
            self.put(slots, torch.stack(kv)[None], index)  # of all stages


def looped(model):
    """Whether a model loops, as opposed to a plain GPT."""
    return hasattr(model, "loop")
