"""Means or sums over the gathered entries' windows: the gather, and the scatter's backward.

A program takes BLOCK_W neighbouring windows of the coarsest level of one head and walks through
them together, depth first: every row is read once, leaves are stored as they pass, and the sum of a
window is stored when its p children are summed.

The scatter's windows are the gather's moved by p^ℓ - 1 tokens. Counted in u = t + 1 they are
windows of the pyramid again, entry i having window i + 1. SHIFT is 1 for them, which are summed,
and 0 for the gather's, which are averaged.
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
from torchtitan_lighthouse.attention.pyramid import table_lengths


@triton.jit
def _store_rows(out, slots, rows, dims, D: tl.constexpr):
    mask = (slots >= 0)[:, None] & (dims < D)[None, :]
    p_out = out + slots.to(tl.int64)[:, None] * D + dims[None, :]
    tl.store(p_out, rows.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _sum_windows(
    x,
    stride_n,
    nodes,
    out,
    rotation,
    turned,
    windows,
    N,
    PIECE,
    piece,
    level: tl.constexpr,
    D: tl.constexpr,
    LOG_P: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store the entries in windows of a level of at least 1; return the windows' sums.

    With a rotation, what is summed so far is turned on by the tokens of a child as each is added.
    """
    acc_type = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    p: tl.constexpr = 1 << LOG_P
    dims = tl.arange(0, BLOCK_D)
    entries = PIECE >> (LOG_P * level)
    p_nodes = nodes + table_offset(N, level, LOG_P)
    b_nodes = load_nodes(p_nodes, windows - SHIFT, entries, piece)  # [BLOCK_W]
    b_sum = tl.zeros([windows.shape[0], BLOCK_D], dtype=acc_type)
    if rotation is not None:
        child_tokens = turned * tl.full([1], 1 << (LOG_P * (level - 1)), tl.int32)
        b_cos, b_sin = load_rotation(rotation, child_tokens, dims, D)  # [1, BLOCK_D/2]
    if level == 1:
        b_parents = load_nodes(p_nodes, windows, entries, piece) if SHIFT else b_nodes
        for child in tl.static_range(p):
            tokens = windows * p + child - SHIFT
            m_tokens = (tokens >= 0) & (tokens < PIECE)
            b_x = load_rows(x, stride_n, tokens, m_tokens, D, BLOCK_D).to(acc_type)
            if rotation is not None and child > 0:
                b_sum = turn(b_sum, b_cos, b_sin)
            b_sum += b_x
            if child < SHIFT:
                b_leaves = leaf_slots(b_nodes, p - 1, LOG_P)
            else:
                b_leaves = leaf_slots(b_parents, child - SHIFT, LOG_P)
            _store_rows(out, b_leaves, b_x, dims, D)
    else:
        for child in range(p):
            if rotation is not None:
                b_sum = turn(b_sum, b_cos, b_sin)
            b_sum += _sum_windows(
                x,
                stride_n,
                nodes,
                out,
                rotation,
                turned,
                windows * p + child,
                N,
                PIECE,
                piece,
                level - 1,
                D,
                LOG_P,
                SHIFT,
                BLOCK_D,
            )
    b_rows = b_sum if SHIFT else b_sum * (1.0 / (1 << (LOG_P * level)))
    _store_rows(out, b_nodes >> 1, b_rows, dims, D)
    return b_sum


@triton.jit
def _windows_to_slots_kernel(
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
    q_stride_n,
    k_stride_b,
    k_stride_h,
    k_stride_n,
    v_stride_b,
    v_stride_h,
    v_stride_n,
    S,
    PIECE,  # tokens in one piece of the sequence
    PIECES,
    HEADS: tl.constexpr,  # of q
    KV_HEADS: tl.constexpr,  # of k and of v, and those of the selection
    ALL_HEADS: tl.constexpr,
    D: tl.constexpr,
    LEVELS: tl.constexpr,
    LOG_P: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # Heads vary fastest: programs that run together read neighbouring memory.
    pid = tl.program_id(0).to(tl.int64)
    head = pid % ALL_HEADS
    pid = pid // ALL_HEADS
    windows = (PIECE >> (LOG_P * (LEVELS - 1))) + SHIFT  # coarsest ones in one piece
    block = pid % tl.cdiv(windows, BLOCK_W)
    pid = pid // tl.cdiv(windows, BLOCK_W)
    piece = pid % PIECES
    batch = pid // PIECES

    N = PIECE * PIECES
    x = of_head(head, q, k, v, HEADS, KV_HEADS)
    out = of_head(head, out_q, out_k, out_v, HEADS, KV_HEADS)
    stride_b = of_head(head, q_stride_b, k_stride_b, v_stride_b, HEADS, KV_HEADS)
    stride_h = of_head(head, q_stride_h, k_stride_h, v_stride_h, HEADS, KV_HEADS)
    stride_n = of_head(head, q_stride_n, k_stride_n, v_stride_n, HEADS, KV_HEADS)
    turned = (head < HEADS + KV_HEADS).to(tl.int32)  # q and k are; for v every offset is 0
    heads, head, selection_head = place_of_head(head, HEADS, KV_HEADS)
    x += batch * stride_b + head * stride_h + piece * PIECE * stride_n
    nodes += (batch * KV_HEADS + selection_head) * table_offset(N, LEVELS, LOG_P)
    out += (batch * heads + head) * S * D
    _sum_windows(
        x,
        stride_n,
        nodes,
        out,
        rotation,
        turned,
        block * BLOCK_W + tl.arange(0, BLOCK_W),
        N,
        PIECE,
        piece,
        LEVELS - 1,
        D,
        LOG_P,
        SHIFT,
        BLOCK_D,
    )


def gather(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    nodes: Tensor,
    rotation: Tensor | None,
    slots: int,
    levels: int,
    pooling_factor: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.gather``."""
    q, k, v = _windows_to_slots(
        (q, k, v), nodes, rotation, slots, levels, pooling_factor, 1, shifted=False
    )
    return q, k, v


def scatter_backward(
    grad: Tensor, nodes: Tensor, slots: int, levels: int, pooling_factor: int, pieces: int
) -> Tensor:
    """See ``reference.scatter_backward``."""
    (rows,) = _windows_to_slots(
        (grad,), nodes, None, slots, levels, pooling_factor, pieces, shifted=True
    )
    return rows


def _windows_to_slots(
    tensors: tuple[Tensor, ...],
    nodes: Tensor,
    rotation: Tensor | None,
    slots: int,
    levels: int,
    pooling_factor: int,
    pieces: int,
    *,
    shifted: bool,
) -> list[Tensor]:
    """Launch the kernel, on q alone or on q, k and v at once."""
    tensors = tuple(with_contiguous_rows(x) for x in tensors)
    batch, heads, seq_len, dim = tensors[0].shape
    out = [x.new_empty(batch, x.shape[1], slots, dim) for x in tensors]
    all_heads = sum(x.shape[1] for x in tensors)
    piece = seq_len // pieces
    windows = table_lengths(piece, levels, pooling_factor)[-1] + shifted  # coarsest ones
    block_d = next_power_of_2(dim)
    upper_levels = next_power_of_2(max(1, levels - 2))  # whose sums wait in registers
    block_w = max(1, 8192 // (block_d * pooling_factor * upper_levels))
    absent = [None] * (3 - len(tensors))
    _windows_to_slots_kernel[(batch * pieces * cdiv(windows, block_w) * all_heads,)](
        *tensors,
        *absent,
        *out,
        *absent,
        nodes.contiguous(),
        None if rotation is None else rotation.contiguous(),
        *(stride for x in tensors for stride in x.stride()[:3]),
        *absent * 3,
        slots,
        piece,
        pieces,
        HEADS=heads,
        KV_HEADS=nodes.shape[1],
        ALL_HEADS=all_heads,
        D=dim,
        LEVELS=levels,
        LOG_P=log2(pooling_factor),
        SHIFT=int(shifted),
        BLOCK_W=block_w,
        BLOCK_D=block_d,
    )
    return out
