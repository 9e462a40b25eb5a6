"""Spreading gathered entries over their windows: the scatter, and the gather's backward.

Written as a gather: a program takes BLOCK_N neighbouring tokens of one head, looks up the slot of
the one entry per level whose window holds each, and sums the rows. Every output row is written
once, so there are no atomics and the sum has one order.

SHIFT is 1 for the scatter's windows, which begin at the last token of the pyramid's; then the
entry of level ℓ at token t is (t + 1)//p^ℓ - 1 instead of t//p^ℓ.
"""

import triton
import triton.language as tl
from torch import Tensor

from torchtitan_lighthouse.attention.kernels.heads import of_head, place_of_head
from torchtitan_lighthouse.attention.kernels.layout import (
    cdiv,
    log2,
    next_power_of_2,
    with_contiguous_rows,
)
from torchtitan_lighthouse.attention.kernels.nodes import leaf_slots, load_nodes, table_offset
from torchtitan_lighthouse.attention.kernels.rotation import load_rotation, turn
from torchtitan_lighthouse.attention.kernels.rows import load_rows
from torchtitan_lighthouse.attention.reference import empty_rows


@triton.jit
def _load_slots(y, stride_s, slots, D: tl.constexpr, BLOCK_D: tl.constexpr):
    return load_rows(y, stride_s, slots.to(tl.int64), slots >= 0, D, BLOCK_D)


@triton.jit
def _slots_to_windows_kernel(
    q,
    k,  # as v None, and their strides, if there is q alone
    v,
    out_q,
    out_k,
    out_v,
    nodes,
    rotation,  # None, or float [p^(L-1), D/2, 2], which turns q and k
    q_stride_b,
    q_stride_h,
    q_stride_s,
    k_stride_b,
    k_stride_h,
    k_stride_s,
    v_stride_b,
    v_stride_h,
    v_stride_s,
    PIECE,  # tokens in one piece of the sequence
    PIECES,
    HEADS: tl.constexpr,  # of q
    KV_HEADS: tl.constexpr,  # of k and of v, and those of the selection
    ALL_HEADS: tl.constexpr,
    D: tl.constexpr,
    LEVELS: tl.constexpr,
    LOG_P: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Heads vary fastest: programs that run together write neighbouring memory.
    pid = tl.program_id(0).to(tl.int64)
    head = pid % ALL_HEADS
    pid = pid // ALL_HEADS
    block = pid % tl.cdiv(PIECE, BLOCK_N)
    pid = pid // tl.cdiv(PIECE, BLOCK_N)
    piece = pid % PIECES
    batch = pid // PIECES

    N = PIECE * PIECES
    y = of_head(head, q, k, v, HEADS, KV_HEADS)
    out = of_head(head, out_q, out_k, out_v, HEADS, KV_HEADS)
    stride_b = of_head(head, q_stride_b, k_stride_b, v_stride_b, HEADS, KV_HEADS)
    stride_h = of_head(head, q_stride_h, k_stride_h, v_stride_h, HEADS, KV_HEADS)
    stride_s = of_head(head, q_stride_s, k_stride_s, v_stride_s, HEADS, KV_HEADS)
    turned = (head < HEADS + KV_HEADS).to(tl.int32)  # q and k are; for v every offset is 0
    heads, head, selection_head = place_of_head(head, HEADS, KV_HEADS)
    y += batch * stride_b + head * stride_h
    nodes += (batch * KV_HEADS + selection_head) * table_offset(N, LEVELS, LOG_P)
    tokens = block * BLOCK_N + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)

    acc_type = tl.float64 if y.dtype.element_ty == tl.float64 else tl.float32
    b_parents = load_nodes(nodes, tokens >> LOG_P, PIECE >> LOG_P, piece)
    b_leaves = leaf_slots(b_parents, tokens & ((1 << LOG_P) - 1), LOG_P)
    b_out = _load_slots(y, stride_s, b_leaves, D, BLOCK_D).to(acc_type)  # [BLOCK_N, BLOCK_D]
    for level in tl.static_range(1, LEVELS):
        p_nodes = nodes + table_offset(N, level, LOG_P)
        index = ((tokens + SHIFT) >> (LOG_P * level)) - SHIFT
        b_slots = load_nodes(p_nodes, index, PIECE >> (LOG_P * level), piece) >> 1
        b_rows = _load_slots(y, stride_s, b_slots, D, BLOCK_D).to(acc_type)
        if rotation is not None:
            window = 1 << (LOG_P * level)
            to_last = (window - 1 - (tokens & (window - 1))) * turned
            b_cos, b_sin = load_rotation(rotation, to_last, dims, D)  # [BLOCK_N, BLOCK_D/2]
            b_rows = turn(b_rows, b_cos, -b_sin)
        b_out += b_rows if SHIFT else b_rows * (1.0 / (1 << (LOG_P * level)))

    p_rows = ((batch * N + piece * PIECE + tokens) * heads + head) * D
    mask = (tokens < PIECE)[:, None] & (dims < D)[None, :]
    tl.store(out + p_rows[:, None] + dims[None, :], b_out.to(out.dtype.element_ty), mask=mask)


def gather_backward(
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    nodes: Tensor,
    rotation: Tensor | None,
    seq_len: int,
    levels: int,
    pooling_factor: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.gather_backward``."""
    grads = (grad_q, grad_k, grad_v)
    q, k, v = _slots_to_windows(
        grads, nodes, rotation, seq_len, levels, pooling_factor, 1, shifted=False
    )
    return q, k, v


def scatter(
    y: Tensor, nodes: Tensor, seq_len: int, levels: int, pooling_factor: int, pieces: int
) -> Tensor:
    """See ``reference.scatter``."""
    (out,) = _slots_to_windows(
        (y,), nodes, None, seq_len, levels, pooling_factor, pieces, shifted=True
    )
    return out


def _slots_to_windows(
    tensors: tuple[Tensor, ...],
    nodes: Tensor,
    rotation: Tensor | None,
    seq_len: int,
    levels: int,
    pooling_factor: int,
    pieces: int,
    *,
    shifted: bool,
) -> list[Tensor]:
    """Launch the kernel, on q alone or on q, k and v at once."""
    tensors = tuple(with_contiguous_rows(x) for x in tensors)
    batch, heads, _, dim = tensors[0].shape
    out = [empty_rows(x, seq_len) for x in tensors]
    all_heads = sum(x.shape[1] for x in tensors)
    piece = seq_len // pieces
    block_d = next_power_of_2(dim)
    block_n = max(16, 2048 // block_d)
    absent = [None] * (3 - len(tensors))
    _slots_to_windows_kernel[(batch * pieces * cdiv(piece, block_n) * all_heads,)](
        *tensors,
        *absent,
        *out,
        *absent,
        nodes.contiguous(),
        None if rotation is None else rotation.contiguous(),
        *(stride for x in tensors for stride in x.stride()[:3]),
        *absent * 3,
        piece,
        pieces,
        HEADS=heads,
        KV_HEADS=nodes.shape[1],
        ALL_HEADS=all_heads,
        D=dim,
        LEVELS=levels,
        LOG_P=log2(pooling_factor),
        SHIFT=int(shifted),
        BLOCK_N=block_n,
        BLOCK_D=block_d,
        num_warps=2,
    )
    return out
