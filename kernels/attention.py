"""Causal attention of a packed projection: kernel, torch reference, operator, public function."""
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import tile
from kernels.backend import choose_backend, operator, run, unsupported, wide
from kernels.tile import APPROX, FLOOR, LOG2E, ZERO, Flag, Int, ct, power


def load_pieces(qkv, b, t, first, ROWS, PIECES, W):
    """Token tile t of one head as PIECES tiles (ROWS,W); first: its first piece."""
    pieces = ()
    for i in ct.static_iter(range(PIECES)):
        x = ct.load(qkv, (b, t, first + i, 0), (1, ROWS, 1, W), padding_mode=ZERO)
        pieces += (x.reshape((ROWS, W)),)
    return pieces


def rotate_pieces(x, table, t, ROWS, PIECES, W):
    """rotate_halves in float32: piece i of the first half of a head with piece i of the second."""
    half = PIECES // 2
    first, second = (), ()
    for i in ct.static_iter(range(PIECES // 2)):
        cos = ct.load(table, (0, t, i, 0), (1, ROWS, 1, W), padding_mode=ZERO).reshape((ROWS, W))
        sin = ct.load(table, (1, t, i, 0), (1, ROWS, 1, W), padding_mode=ZERO).reshape((ROWS, W))
        a, b = x[i].astype(ct.float32), x[i + half].astype(ct.float32)
        first += ((a * cos - b * sin).astype(x[i].dtype),)
        second += ((a * sin + b * cos).astype(x[i].dtype),)
    return first + second


def attend(q, state, qkv, k_table, b, j, at_k, at_v, row, scale, MASKED, N, PIECES, W, ROTATE_K):
    """One step of the online softmax over key tile j; q: pieces (M,W) of the queries of tokens row (M,1).

    state: the maximum (M,1) and sum (M,1) so far, in units of log2, and p v (M,W) for each piece. scale holds
    1 / sqrt(hs) and log2(e), and comes after the maximum, where it is part of a multiply-add.
    """
    top, total, acc = state
    k = load_pieces(qkv, b, j, at_k, N, PIECES, W)
    if ROTATE_K:
        k = rotate_pieces(k, k_table, j, N, PIECES, W)
    s = ct.zeros((q[0].shape[0], N), dtype=ct.float32)
    for i in ct.static_iter(range(PIECES)):
        s = ct.mma(q[i], ct.transpose(k[i]), s)
    if MASKED:  # a key past the last token is past every query as well
        s = ct.where(row >= j * N + ct.arange(N, dtype=ct.int32)[None, :], s, FLOOR)
    new_top = ct.maximum(top, ct.max(s, axis=1, keepdims=True) * scale)
    p = ct.exp2(s * scale - new_top, flush_to_zero=True)
    old = ct.exp2(top - new_top, flush_to_zero=True)
    total = total * old + ct.sum(p, axis=1, keepdims=True)
    p = p.astype(qkv.dtype)
    v = load_pieces(qkv, b, j, at_v, N, PIECES, W)
    new = ()
    for i in ct.static_iter(range(PIECES)):
        new += (ct.mma(p, v[i], acc[i] * old),)
    return new_top, total, new


@ct.kernel
def looplm_attention_kernel(qkv, y, q_table, k_table, scale: float, nh: int, M: Int, N: Int, PIECES: Int, W: Int,
                            ROTATE_Q: Int, ROTATE_K: Flag, LONG: Flag):
    """Causal attention: one block M queries of one head of one sequence, the blocks with the most keys first.

    qkv (B,T,3*nh*PIECES,hs/PIECES), y (B,T,nh*PIECES,hs/PIECES): a head in pieces, so that tiles are padded at the
    end of each. Tables (2,T,PIECES/2,hs/PIECES): cosines and sines; ROTATE_Q 1: (2,1,...), 2: (2,T,...), 0: not read.
    N keys a tile; LONG: T > N. Grid (nh,B,row tiles).
    """
    head, b, tile = ct.bid(0), ct.bid(1), ct.num_blocks(2) - 1 - ct.bid(2)
    at_q, at_k, at_v = head * PIECES, (nh + head) * PIECES, (2 * nh + head) * PIECES
    q = load_pieces(qkv, b, tile, at_q, M, PIECES, W)
    if ROTATE_Q == 1:
        q = rotate_pieces(q, q_table, 0, 1, PIECES, W)
    if ROTATE_Q == 2:
        q = rotate_pieces(q, q_table, tile, M, PIECES, W)
    acc = ()
    for _ in ct.static_iter(range(PIECES)):
        acc += (ct.zeros((M, W), dtype=ct.float32),)
    state = ct.full((M, 1), FLOOR, dtype=ct.float32), ct.zeros((M, 1), dtype=ct.float32), acc
    row = tile * M + ct.arange(M, dtype=ct.int32)[:, None]
    seen = (tile * M) // N if LONG else 0  # key tiles that every query of the block sees whole
    if LONG:
        for j in range(0, seen):
            state = attend(q, state, qkv, k_table, b, j, at_k, at_v, row, scale, False, N, PIECES, W, ROTATE_K)
    if M <= N:  # the diagonal lies in one key tile
        state = attend(q, state, qkv, k_table, b, seen, at_k, at_v, row, scale, True, N, PIECES, W, ROTATE_K)
    else:
        for j in range(seen, ct.cdiv(ct.minimum((tile + 1) * M, qkv.shape[1]), N)):
            state = attend(q, state, qkv, k_table, b, j, at_k, at_v, row, scale, True, N, PIECES, W, ROTATE_K)
    top, total, acc = state
    for i in ct.static_iter(range(PIECES)):
        out = ct.truediv(acc[i], total, flush_to_zero=True, rounding_mode=APPROX)
        ct.store(y, (b, tile, at_q + i, 0), out.astype(y.dtype).reshape((1, M, 1, W)))


def rotate_halves(x, angle):
    """Rotate the channel pairs (i, i + hs/2) of x (B,nh,T,hs) by angle, (T,hs/2) or (1,hs/2), in float32 or wider."""
    cos, sin = wide(angle).cos(), wide(angle).sin()
    a, b = wide(x).chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)


def attention_reference(qkv, n_head, q_angle=None, k_angle=None):
    B, T, C3 = qkv.shape
    q, k, v = (x.unflatten(2, (n_head, C3 // 3 // n_head)).transpose(1, 2) for x in qkv.split(C3 // 3, 2))
    q = q if q_angle is None else rotate_halves(q, q_angle)
    k = k if k_angle is None else rotate_halves(k, k_angle)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).reshape(B, T, C3 // 3)


def head_pieces(hs, rotates):
    """Into how many pieces a head of hs channels goes, and the width of their tiles, 16 at least (one wgmma step).

    Tiles are powers of two: 96 = 3 x 32 and 48 = 3 x 16 need no padding. A rotation pairs the two halves of a head.
    """
    pieces = 2 if rotates else 3 if hs == 3 * (hs & -hs) else 1
    return pieces, max(16, power(hs // pieces))


def angle_table(angle, device):
    """Angles (rows,hs/2) -> their cosines and sines (2,rows,1,hs/2), float32; a table never read for None."""
    if angle is None:
        return torch.empty(2, 2, 1, 16, device=device)
    return torch.stack((angle.cos(), angle.sin())).float().unsqueeze(2)


def attention_plan(T, hs, dtype, rotates, device):
    """Rows M and columns N of a tile, worker warps, blocks an SM (None: the compiler's choice)."""
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
    B, T, C3 = qkv.shape
    hs, rotates = C3 // 3 // n_head, q_angle is not None or k_angle is not None
    y = qkv.new_empty(B, T, C3 // 3)
    P, W = head_pieces(hs, rotates)
    M, N, warps, occupancy = attention_plan(T, hs, qkv.dtype, rotates, qkv.device)
    q_table, k_table = angle_table(q_angle, qkv.device), angle_table(k_angle, qkv.device)
    tile.launch(looplm_attention_kernel, (n_head, B, -(-T // M)), (
        qkv.view(B, T, 3 * n_head * P, hs // P), y.view(B, T, n_head * P, hs // P), q_table, k_table,
        LOG2E / math.sqrt(hs), n_head, M, N, P, W, 0 if q_angle is None else 1 if len(q_angle) == 1 else 2,
        k_angle is not None, T > N), qkv.device, num_worker_warps=warps, occupancy=occupancy)
    return y


@operator("attention", lambda qkv, *args: qkv.new_empty(*qkv.shape[:2], qkv.size(2) // 3))
def attention_op(qkv: Tensor, n_head: int, q_angle: Tensor | None, k_angle: Tensor | None, forced: bool) -> Tensor:
    """attention of qkv, contiguous."""
    def kernels():
        return launch_attention(qkv.contiguous(), n_head, q_angle, k_angle)

    def reference():
        return attention_reference(qkv, n_head, q_angle, k_angle).contiguous()

    return run("attention", forced, qkv.device, kernels, reference)


def attention(qkv, n_head, q_angle=None, k_angle=None, backend="auto"):
    """Causal attention of the packed projection: qkv (B,T,3C) -> (B,T,C); the kernel is for inference.

    q_angle, k_angle: rotations of the queries and of the keys, (T,hs/2), that of the queries also (1,hs/2), or None.
    """
    cannot = unsupported(qkv) or ("" if qkv.size(2) // 3 <= 128 * n_head else "heads are wider than 128")
    if not qkv.numel() or choose_backend(backend, qkv.device, cannot) == "torch":
        return attention_reference(qkv, n_head, q_angle, k_angle)
    return attention_op(qkv, n_head, q_angle, k_angle, backend == "cutile")
