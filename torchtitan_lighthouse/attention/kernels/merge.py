"""Attention to all keys out of attention to some of them at a time, in one pass over memory.

A program takes BLOCK_N neighbouring rows of one head. All is computed in the log-sum-exps' dtype.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchtitan_lighthouse.attention.kernels.layout import (
    cdiv,
    next_power_of_2,
    with_contiguous_rows,
)
from torchtitan_lighthouse.attention.kernels.rows import load_rows, rows_of_program
from torchtitan_lighthouse.attention.reference import empty_rows


@triton.jit
def _load_lse(lse, index, mask):
    return tl.load(lse + index, mask=mask, other=-float("inf"))


@triton.jit
def _merge_kernel(
    own,
    own_lse,
    earlier,  # None, as its lse and strides, if there is none
    earlier_lse,
    later,  # the same; only of the second half of the rows
    later_lse,
    out,
    out_lse,
    own_stride_b,
    own_stride_h,
    own_stride_n,
    earlier_stride_b,
    earlier_stride_h,
    earlier_stride_n,
    later_stride_b,
    later_stride_h,
    later_stride_n,
    N,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    batch, head, rows, m_rows = rows_of_program(N, H, BLOCK_N)
    first = (batch * H + head) * N  # of the head's log-sum-exps

    b_own = _load_lse(own_lse, first + rows, m_rows)  # [BLOCK_N]
    b_most = b_own
    if earlier is not None:
        b_earlier = _load_lse(earlier_lse, first + rows, m_rows)
        b_most = tl.maximum(b_most, b_earlier)
    if later is not None:
        later_rows = rows - N // 2
        m_later = m_rows & (later_rows >= 0)
        b_later = _load_lse(later_lse, first // 2 + later_rows, m_later)
        b_most = tl.maximum(b_most, b_later)
    b_finite = tl.where(b_most == -float("inf"), 0.0, b_most)  # -∞ - -∞ would be NaN

    acc_type = own_lse.dtype.element_ty
    own += batch * own_stride_b + head * own_stride_h
    b_sum = tl.exp(b_own - b_finite)
    b_rows = load_rows(own, own_stride_n, rows, m_rows, D, BLOCK_D)
    b_out = b_rows.to(acc_type) * b_sum[:, None]  # [BLOCK_N, BLOCK_D]
    if earlier is not None:
        earlier += batch * earlier_stride_b + head * earlier_stride_h
        b_share = tl.exp(b_earlier - b_finite)
        b_rows = load_rows(earlier, earlier_stride_n, rows, m_rows, D, BLOCK_D)
        b_out += b_rows.to(acc_type) * b_share[:, None]
        b_sum += b_share
    if later is not None:
        later += batch * later_stride_b + head * later_stride_h
        b_share = tl.exp(b_later - b_finite)
        b_rows = load_rows(later, later_stride_n, later_rows, m_later, D, BLOCK_D)
        b_out += b_rows.to(acc_type) * b_share[:, None]
        b_sum += b_share

    b_sum = tl.where(b_sum == 0.0, 1.0, b_sum)
    b_out = b_out / b_sum[:, None]
    dims = tl.arange(0, BLOCK_D)
    p_out = out + ((batch * N + rows) * H + head)[:, None] * D + dims[None, :]
    mask = m_rows[:, None] & (dims < D)[None, :]
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=mask)
    tl.store(out_lse + first + rows, b_most + tl.log(b_sum), mask=m_rows)


def merge(
    own: Tensor,
    own_lse: Tensor,
    earlier: Tensor | None,
    earlier_lse: Tensor | None,
    later: Tensor | None,
    later_lse: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """See ``reference.merge``."""
    batch, heads, length, dim = own.shape
    out = empty_rows(own, length, dtype)
    lse = own_lse.new_empty(own_lse.shape)
    block_d = next_power_of_2(dim)
    block_n = max(16, 4096 // block_d)
    parts = [None if x is None else with_contiguous_rows(x) for x in (own, earlier, later)]
    lses = [None if x is None else x.contiguous() for x in (own_lse, earlier_lse, later_lse)]
    absent = (None, None, None)
    _merge_kernel[(batch * heads * cdiv(length, block_n),)](
        *(x for pair in zip(parts, lses, strict=True) for x in pair),
        out,
        lse,
        *(stride for x in parts for stride in (absent if x is None else x.stride()[:3])),
        length,
        H=heads,
        D=dim,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
    )
    return out, lse
