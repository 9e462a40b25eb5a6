"""Rows of D of one head: which ones a program works on, and reading them."""

import triton
import triton.language as tl


@triton.jit
def rows_of_program(N, H: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return a program's batch and head, and its rows with their mask, [BLOCK_N] of N each.

    Heads vary fastest: programs that run together use neighbouring memory.
    """
    pid = tl.program_id(0).to(tl.int64)
    head = pid % H
    block = pid // H % tl.cdiv(N, BLOCK_N)
    batch = pid // H // tl.cdiv(N, BLOCK_N)
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    return batch, head, rows, rows < N


@triton.jit
def load_rows(x, stride_n, rows, m_rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Load the rows whose mask is set, [BLOCK_N, BLOCK_D], and zeros in place of all else."""
    dims = tl.arange(0, BLOCK_D)
    mask = m_rows[:, None] & (dims < D)[None, :]
    return tl.load(x + rows[:, None] * stride_n + dims[None, :], mask=mask, other=0.0)
