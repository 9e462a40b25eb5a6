"""Attention to all keys out of attention to some of them at a time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtitan_lighthouse.attention.reference.windows import empty_rows


def merge(
    own: Tensor,
    own_lse: Tensor,
    earlier: Tensor | None,
    earlier_lse: Tensor | None,
    later: Tensor | None,
    later_lse: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Merge what a rank's rows get from its own keys with what they get from those of others.

    Args:
        own: [B, H, N, D], N even, of any floating dtype.
        own_lse: the log-sum-exp of its softmax, [B, H, N], float32 or float64.
        earlier, earlier_lse: the same of keys that all rows see beside their own, if there are any.
        later, later_lse: [B, H, N/2, D] and [B, H, N/2], of keys that the second half of the rows
            sees beside those, if there are any.
        dtype: of the output.

    Returns:
        What one softmax over all of these keys gives, [B, H, N, D] of ``dtype``, laid out in memory
        as [B, N, H, D], and its log-sum-exp, [B, H, N] of own_lse's dtype, in which all is
        computed. A row that sees nothing, whose log-sum-exps are all -∞, is zero.
    """
    parts = [(own, own_lse)]
    if earlier is not None and earlier_lse is not None:
        parts.append((earlier, earlier_lse))
    if later is not None and later_lse is not None:
        unseen = own.shape[2] // 2
        later_lse = F.pad(later_lse, (unseen, 0), value=-math.inf)
        parts.append((F.pad(later, (0, 0, unseen, 0)), later_lse))
    most = torch.stack([lse for _, lse in parts]).amax(0)
    finite = most.masked_fill(most == -math.inf, 0.0)  # -∞ - -∞ would be NaN
    shares = [(lse - finite).exp() for _, lse in parts]
    total = torch.stack(shares).sum(0)
    total = total.masked_fill(total == 0, 1.0)
    merged = empty_rows(own, own.shape[2], own_lse.dtype).zero_()
    for (part, _), share in zip(parts, shares, strict=True):
        merged += part.to(merged.dtype) * (share / total).unsqueeze(-1)
    return merged.to(dtype), (most + total.log()).contiguous()
