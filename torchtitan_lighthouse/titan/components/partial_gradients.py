"""Gradients of which each rank has a part, summed before they are clipped.

Those of norms are, under tensor parallelism of a model that FSDP does not shard, and torch 2.11
leaves them as they are where it clips all others. This file can go with torch 2.11.
"""

from collections.abc import Iterable

from torch import nn
from torch.distributed.tensor import DTensor


def sum_partial_gradients(model_parts: Iterable[nn.Module]) -> None:
    """Place each gradient as its parameter is placed. A collective."""
    for part in model_parts:
        for parameter in part.parameters():
            gradient = parameter.grad
            if isinstance(gradient, DTensor) and any(p.is_partial() for p in gradient.placements):
                parameter.grad = gradient.redistribute(placements=parameter.placements)
