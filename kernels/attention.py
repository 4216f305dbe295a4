"""Causal attention of a packed projection: kernel, torch reference, operator, public function.

The online softmax goes over the keys in tiles, with a running maximum m, in units of log2:

    s = q k^T scale     p = 2^(s - m)     total = sum p     acc = sum p v
    m rises to m':      total' = 2^(m - m') total     acc' = 2^(m - m') acc         y = acc / total
"""
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import tile
from kernels.backend import at_least_float32, choose_backend, operator, run_or_fall_back, why_not_tensors
from kernels.tile import APPROX, FLOOR, LOG2E, ZERO, Const, constants, ct, next_power_of_2


# kernel --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class AttentionSizes:
    """Constants of the attention kernel."""
    M: int           # queries per block
    N: int           # keys per tile
    PIECES: int      # pieces of a head
    W: int           # channels per tile of a piece
    ROTATE_Q: int    # queries: 0 not rotated, 1 all by one angle, 2 by an angle of their place
    ROTATE_K: bool   # keys are rotated by an angle of their place
    LONG: bool       # T > N


@dataclass(frozen=True)
class Keys:
    """Where the keys and values of a head lie, and what a step over them needs."""
    qkv: Any     # (B,T,3*nh*PIECES,hs/PIECES)
    table: Any   # (2,T,PIECES/2,hs/PIECES), cosines and sines
    b: Any       # the sequence
    at_k: Any    # first piece of the keys in qkv
    at_v: Any    # first piece of the values
    row: Any     # (M,1) tokens of the queries
    scale: Any   # log2(e) / sqrt(hs)


def load_pieces(qkv, b, t, first, ROWS, p):
    """Token tile t of one head as PIECES tiles (ROWS,W); first: its first piece."""
    pieces = ()
    for i in ct.static_iter(range(p.PIECES)):
        x = ct.load(qkv, (b, t, first + i, 0), (1, ROWS, 1, p.W), padding_mode=ZERO)
        pieces += (x.reshape((ROWS, p.W)),)
    return pieces


def rotate_pieces(x, table, t, ROWS, p):
    """rotate_halves in float32: piece i of the first half of a head with piece i of the second."""
    half = p.PIECES // 2
    first, second = (), ()
    for i in ct.static_iter(range(p.PIECES // 2)):
        cos = ct.load(table, (0, t, i, 0), (1, ROWS, 1, p.W), padding_mode=ZERO).reshape((ROWS, p.W))
        sin = ct.load(table, (1, t, i, 0), (1, ROWS, 1, p.W), padding_mode=ZERO).reshape((ROWS, p.W))
        a, b = x[i].astype(ct.float32), x[i + half].astype(ct.float32)
        first += ((a * cos - b * sin).astype(x[i].dtype),)
        second += ((a * sin + b * cos).astype(x[i].dtype),)
    return first + second


def attend(q, state, keys, j, MASKED, p):
    """One step of the online softmax over key tile j; q: pieces (M,W) of the queries.

    state: m (M,1), total (M,1), and acc (M,W) for each piece. The scale comes after the maximum, where it is part of a
    multiply-add.
    """
    top, total, acc = state
    k = load_pieces(keys.qkv, keys.b, j, keys.at_k, p.N, p)
    if p.ROTATE_K:
        k = rotate_pieces(k, keys.table, j, p.N, p)
    s = ct.zeros((q[0].shape[0], p.N), dtype=ct.float32)
    for i in ct.static_iter(range(p.PIECES)):
        s = ct.mma(q[i], ct.transpose(k[i]), s)
    if MASKED:  # a key past the last token is past every query as well
        s = ct.where(keys.row >= j * p.N + ct.arange(p.N, dtype=ct.int32)[None, :], s, FLOOR)
    new_top = ct.maximum(top, ct.max(s, axis=1, keepdims=True) * keys.scale)
    weight = ct.exp2(s * keys.scale - new_top, flush_to_zero=True)
    old = ct.exp2(top - new_top, flush_to_zero=True)
    total = total * old + ct.sum(weight, axis=1, keepdims=True)
    weight = weight.astype(keys.qkv.dtype)
    v = load_pieces(keys.qkv, keys.b, j, keys.at_v, p.N, p)
    new = ()
    for i in ct.static_iter(range(p.PIECES)):
        new += (ct.mma(weight, v[i], acc[i] * old),)
    return new_top, total, new


@ct.kernel
def looplm_attention_kernel(
        qkv,             # (B,T,3*nh*PIECES,hs/PIECES): a head in pieces, so that tiles are padded at the end of each
        y,               # (B,T,nh*PIECES,hs/PIECES) out
        q_table,         # cosines and sines (2,1 or T,PIECES/2,hs/PIECES) of the queries' angles
        k_table,         # (2,T,PIECES/2,hs/PIECES) of the keys'
        scale,           # log2(e) / sqrt(hs)
        nh,              # heads
        plan: Const):    # AttentionSizes
    """Causal attention: one block takes M queries of one head of one sequence. Grid (nh, B, row tiles).

    The blocks with the most keys come first, since the last to start decide when all are done.
    """
    p = AttentionSizes(*plan)
    head, b, rows = ct.bid(0), ct.bid(1), ct.num_blocks(2) - 1 - ct.bid(2)
    at_q, at_k, at_v = head * p.PIECES, (nh + head) * p.PIECES, (2 * nh + head) * p.PIECES
    q = load_pieces(qkv, b, rows, at_q, p.M, p)
    if p.ROTATE_Q == 1:
        q = rotate_pieces(q, q_table, 0, 1, p)
    if p.ROTATE_Q == 2:
        q = rotate_pieces(q, q_table, rows, p.M, p)
    acc = ()
    for _ in ct.static_iter(range(p.PIECES)):
        acc += (ct.zeros((p.M, p.W), dtype=ct.float32),)
    state = ct.full((p.M, 1), FLOOR, dtype=ct.float32), ct.zeros((p.M, 1), dtype=ct.float32), acc
    keys = Keys(qkv, k_table, b, at_k, at_v, rows * p.M + ct.arange(p.M, dtype=ct.int32)[:, None], scale)
    whole = (rows * p.M) // p.N if p.LONG else 0  # key tiles that every query of the block sees whole: no mask
    if p.LONG:
        for j in range(0, whole):
            state = attend(q, state, keys, j, False, p)
    if p.M <= p.N:  # the diagonal lies in one key tile
        state = attend(q, state, keys, whole, True, p)
    else:
        for j in range(whole, ct.cdiv(ct.minimum((rows + 1) * p.M, qkv.shape[1]), p.N)):
            state = attend(q, state, keys, j, True, p)
    top, total, acc = state
    for i in ct.static_iter(range(p.PIECES)):
        out = ct.truediv(acc[i], total, flush_to_zero=True, rounding_mode=APPROX)
        ct.store(y, (b, rows, at_q + i, 0), out.astype(y.dtype).reshape((1, p.M, 1, p.W)))


# torch reference -----------------------------------------------------------------------------------------------------
def rotate_halves(x, angle):
    """Rotate the channel pairs (i, i + hs/2) of x (B,nh,T,hs) by angle, (T,hs/2) or (1,hs/2), in float32 or wider."""
    cos, sin = at_least_float32(angle).cos(), at_least_float32(angle).sin()
    a, b = at_least_float32(x).chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


def split_heads(qkv, n_head, n_kv_head):
    """Queries (B,n_head,T,hs), keys and values (B,n_kv_head,T,hs) of their packed projection."""
    sizes = n_head, n_kv_head, n_kv_head
    return qkv.unflatten(2, (sum(sizes), -1)).transpose(1, 2).split(sizes, 1)


def attention_reference(qkv, n_head, q_angle=None, k_angle=None, n_kv_head=None):
    """attention in torch."""
    q, k, v = split_heads(qkv, n_head, n_kv_head or n_head)
    q = q if q_angle is None else rotate_halves(q, q_angle)
    k = k if k_angle is None else rotate_halves(k, k_angle)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.size(1) != k.size(1))
    return y.transpose(1, 2).flatten(2)


# operator ------------------------------------------------------------------------------------------------------------
def head_pieces(hs, rotates):
    """Into how many pieces a head of hs channels goes, and the width of their tiles, 16 at least (one wgmma step).

    Tiles are powers of two: 96 = 3 x 32 and 48 = 3 x 16 need no padding. A rotation pairs the two halves of a head.
    """
    pieces = 2 if rotates else 3 if hs == 3 * (hs & -hs) else 1
    return pieces, max(16, next_power_of_2(hs // pieces))


def angle_table(angle, device):
    """Angles (rows,hs/2) -> their cosines and sines (2,rows,1,hs/2), float32; a table never read for None."""
    if angle is None:
        return torch.empty(2, 2, 1, 16, device=device)
    return torch.stack((angle.cos(), angle.sin())).float().unsqueeze(2)


def attention_plan(T, hs, dtype, rotates, device):
    """Rows M and columns N of a tile, worker warps, blocks per SM (None: the compiler's choice); tuned on an H200."""
    if dtype == torch.float32:  # on the CUDA cores, for tests: exact, not fast
        return 32, 32, 4, None
    if rotates:
        return 64, 64, 4, 2
    if T <= 128:
        return 64, 64 if T <= 64 else 128, 4, 4 if hs <= 32 else 2
    if tile.gpu(device).major not in (9, 10):  # less shared memory a block, no wgmma
        return 64, 64, 4, 2
    if hs > 64:
        return 128, 128, 8, 1
    if T <= 256:
        return 64, 128, 4, 2
    return (64, 64, 4, 3) if T <= 1024 else (128, 64, 8, 2)


def launch_attention(qkv, n_head, q_angle, k_angle):
    """attention of qkv (B,T,3C), contiguous, by the kernel."""
    B, T, C3 = qkv.shape
    hs, rotates = C3 // 3 // n_head, q_angle is not None or k_angle is not None
    y = qkv.new_empty(B, T, C3 // 3)
    P, W = head_pieces(hs, rotates)
    M, N, warps, occupancy = attention_plan(T, hs, qkv.dtype, rotates, qkv.device)
    sizes = AttentionSizes(M, N, P, W, 0 if q_angle is None else 1 if len(q_angle) == 1 else 2, k_angle is not None,
                           T > N)
    q_table, k_table = angle_table(q_angle, qkv.device), angle_table(k_angle, qkv.device)
    tile.launch(looplm_attention_kernel, (n_head, B, -(-T // M)), (
        qkv.view(B, T, 3 * n_head * P, hs // P), y.view(B, T, n_head * P, hs // P), q_table, k_table,
        LOG2E / math.sqrt(hs), n_head, constants(sizes)), qkv.device, num_worker_warps=warps, occupancy=occupancy)
    return y


@operator("attention", lambda qkv, *args: qkv.new_empty(*qkv.shape[:2], qkv.size(2) // 3))
def attention_op(qkv: Tensor, n_head: int, q_angle: Tensor | None, k_angle: Tensor | None, forced: bool) -> Tensor:
    """attention of qkv, contiguous or not."""
    def kernels():
        return launch_attention(qkv.contiguous(), n_head, q_angle, k_angle)

    def reference():
        return attention_reference(qkv, n_head, q_angle, k_angle).contiguous()

    return run_or_fall_back("attention", forced, qkv.device, kernels, reference)


# public function -----------------------------------------------------------------------------------------------------
def attention(qkv, n_head, q_angle=None, k_angle=None, backend="auto", n_kv_head=None):
    """Causal attention of the packed projection: qkv (B,T,3C) -> (B,T,C); the kernel is for inference.

    q_angle, k_angle: rotations of the queries and of the keys in radians, (T,hs/2), that of the queries also (1,hs/2),
    or None. n_kv_head: heads of the keys and of the values, each for n_head / n_kv_head queries in a row, so that qkv
    is (B,T,C + 2 n_kv_head hs); None: n_head. Errors of choose_backend.
    """
    shared, hs = n_kv_head or n_head, qkv.size(2) // (n_head + 2 * (n_kv_head or n_head))
    why_not = why_not_tensors(qkv) or ("" if hs <= 128 else "heads are wider than 128")
    if not qkv.numel() or choose_backend(backend, qkv.device, why_not) == "torch":
        return attention_reference(qkv, n_head, q_angle, k_angle, shared)
    if shared != n_head:  # the kernel has keys for every head
        parts = split_heads(qkv, n_head, shared)
        qkv = torch.cat([x.repeat_interleave(n_head // x.size(1), 1).transpose(1, 2).flatten(2) for x in parts], 2)
    return attention_op(qkv, n_head, q_angle, k_angle, backend == "cutile")
