"""Scores of the norm scorer: one pass over q and k."""

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


@triton.jit
def _row_norms(base, stride_n, tokens, m_tokens, D: tl.constexpr, BLOCK_D: tl.constexpr):
    b_x = load_rows(base, stride_n, tokens, m_tokens, D, BLOCK_D).to(tl.float32)
    return tl.sqrt(tl.sum(b_x * b_x, axis=1))  # [BLOCK_N]


@triton.jit
def _norm_scores_kernel(
    q,
    k,
    query_scores,
    key_scores,
    q_stride_b,
    q_stride_h,
    q_stride_n,
    k_stride_b,
    k_stride_h,
    k_stride_n,
    N,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    batch, head, tokens, m_tokens = rows_of_program(N, H, BLOCK_N)
    p_q = q + batch * q_stride_b + head * GROUP * q_stride_h
    b_query = _row_norms(p_q, q_stride_n, tokens, m_tokens, D, BLOCK_D)
    for _ in tl.static_range(1, GROUP):
        p_q += q_stride_h
        b_query = tl.maximum(b_query, _row_norms(p_q, q_stride_n, tokens, m_tokens, D, BLOCK_D))
    p_k = k + batch * k_stride_b + head * k_stride_h
    b_key = _row_norms(p_k, k_stride_n, tokens, m_tokens, D, BLOCK_D)

    out = (batch * H + head) * N + tokens
    tl.store(query_scores + out, b_query, mask=m_tokens)
    tl.store(key_scores + out, b_key, mask=m_tokens)


def norm_scores(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """See ``reference.norm_scores``."""
    batch, heads, seq_len, dim = k.shape
    q, k = with_contiguous_rows(q), with_contiguous_rows(k)
    query_scores, key_scores = (
        torch.empty(k.shape[:-1], dtype=torch.float32, device=k.device) for _ in range(2)
    )
    block_d = next_power_of_2(dim)
    block_n = max(16, 8192 // block_d)
    grid = (batch * heads * cdiv(seq_len, block_n),)
    _norm_scores_kernel[grid](
        q,
        k,
        query_scores,
        key_scores,
        *q.stride()[:3],
        *k.stride()[:3],
        seq_len,
        H=heads,
        GROUP=q.shape[1] // heads,
        D=dim,
        BLOCK_N=block_n,
        BLOCK_D=block_d,
    )
    return query_scores, key_scores
