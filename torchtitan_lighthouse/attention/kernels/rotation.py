"""Turning pairs of channels (2i, 2i + 1) inside kernels, by a table of cosines and sines.

The table is [offsets, D/2, 2], the pair (cosine, sine) innermost; offset 0 does not turn.
"""

import triton
import triton.language as tl


@triton.jit
def load_rotation(rotation, offsets, dims, D: tl.constexpr):
    """Load the cosines and sines of offsets [T]: [T, BLOCK_D/2] each."""
    mask = dims[None, :] < D
    b_pairs = tl.load(rotation + offsets[:, None] * D + dims[None, :], mask=mask, other=0.0)
    return tl.split(tl.reshape(b_pairs, (b_pairs.shape[0], b_pairs.shape[1] // 2, 2)))


@triton.jit
def turn(rows, cos, sin):
    """Turn rows [R, BLOCK_D] by cos and sin, [R or 1, BLOCK_D/2]."""
    even, odd = tl.split(tl.reshape(rows, (rows.shape[0], rows.shape[1] // 2, 2)))
    cos, sin = cos.to(rows.dtype), sin.to(rows.dtype)
    turned = tl.join(even * cos - odd * sin, even * sin + odd * cos)
    return tl.reshape(turned, (rows.shape[0], rows.shape[1]))
