"""RoPE of four pairs of channels, and what it does over a few tokens."""

import torch
from torch import Tensor

FREQUENCIES = [1.0, 0.3, 0.05, 0.002]  # per token, of the pairs of a head dim of 8


def rope(x: Tensor, positions: Tensor | None = None) -> Tensor:
    """Rows [..., N, 8] turned by their positions, by default 0 to N - 1."""
    if positions is None:
        positions = torch.arange(x.shape[-2])
    angles = positions.unsqueeze(-1) * torch.tensor(FREQUENCIES, dtype=x.dtype)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def rotation_over(tokens: int) -> Tensor:
    """What ``lighthouse_attention`` takes: float64 [tokens, 4, 2]."""
    angles = torch.outer(torch.arange(tokens), torch.tensor(FREQUENCIES, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], -1)
