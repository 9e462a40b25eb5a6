"""Means or sums over the gathered entries' windows: the gather, and the scatter's backward.

A program takes BLOCK_W neighbouring windows of the coarsest level of one head and walks through
them together, p tokens at a time. Every row is read once: leaves are stored as they pass, the sum
of p rows is an entry of level 1, and the sums of the levels above are carried along until their
windows are complete.

The scatter's windows are the gather's moved by p^ℓ - 1 tokens. Counted in u = t + 1 they are
windows of the pyramid again, entry i having window i + 1. SHIFT is 1 for them, which are summed,
and 0 for the gather's, which are averaged.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchtitan_lighthouse.attention.kernels.layout import (
    cdiv,
    log2,
    next_power_of_2,
    with_contiguous_rows,
)
from torchtitan_lighthouse.attention.kernels.nodes import leaf_slots, load_nodes, table_offset


@triton.jit
def _store_rows(out, slots, rows, dims, D: tl.constexpr):
    mask = (slots >= 0)[:, None] & (dims < D)[None, :]
    p_out = out + slots.to(tl.int64)[:, None] * D + dims[None, :]
    tl.store(p_out, rows.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _windows_to_slots_kernel(
    x,
    nodes,
    out,
    stride_b,
    stride_h,
    stride_n,
    S,
    PIECE,  # tokens in one piece of the sequence
    PIECES,
    WINDOWS,  # coarsest windows in one piece; one more if they are shifted
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # heads of x per selection head
    D: tl.constexpr,
    LEVELS: tl.constexpr,
    LOG_P: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_L: tl.constexpr,  # at least the LEVELS - 2 levels above level 1
):
    acc_type = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    p: tl.constexpr = 1 << LOG_P
    steps: tl.constexpr = 1 << (LOG_P * (LEVELS - 2))  # level-1 windows in a coarsest one

    # Heads vary fastest: programs that run together read neighbouring memory.
    pid = tl.program_id(0).to(tl.int64)
    head = pid % HEADS
    pid = pid // HEADS
    block = pid % tl.cdiv(WINDOWS, BLOCK_W)
    pid = pid // tl.cdiv(WINDOWS, BLOCK_W)
    piece = pid % PIECES
    batch = pid // PIECES

    N = PIECE * PIECES
    x += batch * stride_b + head * stride_h + piece * PIECE * stride_n
    selection_head = batch * (HEADS // GROUP) + head // GROUP
    nodes += selection_head * table_offset(N, LEVELS, LOG_P)
    out += (batch * HEADS + head) * S * D

    windows = block * BLOCK_W + tl.arange(0, BLOCK_W)
    dims = tl.arange(0, BLOCK_D)
    upper = tl.arange(0, BLOCK_L) + 2
    upper_sums = tl.zeros([BLOCK_L, BLOCK_W, BLOCK_D], dtype=acc_type)
    upper_nodes = tl.zeros([BLOCK_L], dtype=tl.int64)
    upper_scale = tl.zeros([BLOCK_L], dtype=acc_type)
    for level in tl.static_range(2, LEVELS):
        upper_nodes += tl.where(upper == level, table_offset(N, level, LOG_P), 0)
        upper_scale += tl.where(upper == level, 1.0 / (1 << (LOG_P * level)), 0.0)

    for step in range(steps):
        parents = windows * steps + step
        b_nodes = load_nodes(nodes, parents - SHIFT, PIECE >> LOG_P, piece)  # [BLOCK_W]
        b_parents = load_nodes(nodes, parents, PIECE >> LOG_P, piece) if SHIFT else b_nodes
        b_sum = tl.zeros([BLOCK_W, BLOCK_D], dtype=acc_type)
        for child in tl.static_range(p):
            tokens = parents * p + child - SHIFT
            m_rows = (tokens >= 0) & (tokens < PIECE)
            mask = m_rows[:, None] & (dims < D)[None, :]
            b_x = tl.load(x + tokens[:, None] * stride_n + dims[None, :], mask=mask, other=0.0)
            b_x = b_x.to(acc_type)  # [BLOCK_W, BLOCK_D]
            b_sum += b_x
            if child < SHIFT:
                b_leaves = leaf_slots(b_nodes, p - 1, LOG_P)
            else:
                b_leaves = leaf_slots(b_parents, child - SHIFT, LOG_P)
            _store_rows(out, b_leaves, b_x, dims, D)
        _store_rows(out, b_nodes >> 1, b_sum if SHIFT else b_sum * (1.0 / p), dims, D)

        if LEVELS > 2:
            upper_sums += tl.where((upper == 2)[:, None, None], b_sum[None, :, :], 0.0)
            if (step + 1) % p == 0:
                for level in tl.static_range(2, LEVELS - 1):
                    if (step + 1) % (1 << (LOG_P * (level - 1))) == 0:
                        at_level = (upper == level)[:, None, None]
                        b_level = tl.sum(tl.where(at_level, upper_sums, 0.0), axis=0)
                        above = (upper == level + 1)[:, None, None]
                        upper_sums += tl.where(above, b_level[None, :, :], 0.0)
                log_steps = LOG_P * (upper - 1)  # level-1 windows in one of each level above
                complete = ((step + 1) & ((1 << log_steps) - 1)) == 0
                complete = complete & (upper < LEVELS)
                entries = (PIECE >> (LOG_P * upper))[:, None]
                index = (parents[None, :] >> log_steps[:, None]) - SHIFT
                inside = complete[:, None] & (index >= 0) & (index < entries)
                p_nodes = nodes + upper_nodes[:, None] + piece * entries + index
                b_slots = tl.load(p_nodes, mask=inside, other=-1) >> 1  # [BLOCK_L, BLOCK_W]
                m_upper = (b_slots >= 0)[:, :, None] & (dims < D)[None, None, :]
                p_out = out + b_slots.to(tl.int64)[:, :, None] * D + dims[None, None, :]
                rows = upper_sums if SHIFT else upper_sums * upper_scale[:, None, None]
                tl.store(p_out, rows.to(out.dtype.element_ty), mask=m_upper)
                upper_sums = tl.where(complete[:, None, None], 0.0, upper_sums)


def windows_to_slots(
    x: Tensor,
    nodes: Tensor,
    slots: int,
    levels: int,
    pooling_factor: int,
    pieces: int = 1,
    *,
    shifted: bool,
) -> Tensor:
    """See ``reference.windows_to_slots``."""
    batch, heads, seq_len, dim = x.shape
    x = with_contiguous_rows(x)
    out = torch.empty(batch, heads, slots, dim, dtype=x.dtype, device=x.device)
    piece = seq_len // pieces
    windows = piece // pooling_factor ** (levels - 1) + shifted
    block_d = next_power_of_2(dim)
    block_l = next_power_of_2(max(1, levels - 2))
    block_w = max(1, 8192 // (block_d * pooling_factor * block_l))
    grid = (batch * pieces * cdiv(windows, block_w) * heads,)
    _windows_to_slots_kernel[grid](
        x,
        nodes.contiguous(),
        out,
        *x.stride()[:3],
        slots,
        piece,
        pieces,
        windows,
        HEADS=heads,
        GROUP=heads // nodes.shape[1],
        D=dim,
        LEVELS=levels,
        LOG_P=log2(pooling_factor),
        SHIFT=int(shifted),
        BLOCK_W=block_w,
        BLOCK_D=block_d,
        BLOCK_L=block_l,
    )
    return out
