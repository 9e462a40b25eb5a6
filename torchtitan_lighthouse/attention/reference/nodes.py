"""Reading the nodes table (see ``selection.Selection``)."""

import torch
from torch import Tensor

from torchtitan_lighthouse.attention.pyramid import table_lengths


def entry_slots(
    nodes: Tensor, level: int, seq_len: int, levels: int, pooling_factor: int
) -> Tensor:
    """The slot of every entry of one level, -1 if it is not gathered: int64 [B, H, N/p^level]."""
    if level == 0:
        parents = nodes[..., : seq_len // pooling_factor].long()
        first_child = torch.where(parents & 1 == 1, parents // 2 - pooling_factor, -seq_len)
        children = torch.arange(pooling_factor, device=nodes.device)
        return (first_child.unsqueeze(-1) + children).flatten(-2).clamp(min=-1)
    lengths = table_lengths(seq_len, levels, pooling_factor)
    return nodes.split(lengths, -1)[level - 1].long() >> 1
