"""The rows that ranks that share a sequence send each other beside those of attention."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import _resolve_process_group

# torch 2.13 has new names for them and warns of the old ones.
all_gather: Callable[..., distributed.Work] = (
    getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
)
_reduce_scatter: Callable[..., distributed.Work] = (
    getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor
)


@torch.library.custom_op("lighthouse::exchange_edges", mutates_args=())
def exchange_edges(rows: Tensor, group_name: str, size: int) -> Tensor:
    """Gather the rows of each rank's two pieces: [2, ...] to [2W, ...], rank by rank.

    A collective. An op of its own, for activation checkpointing to keep: a recompute that sent them
    again would have the ranks wait for each other once more.
    """
    by_rank = rows.new_empty(2 * size, *rows.shape[1:])
    group = _resolve_process_group(group_name)
    all_gather(by_rank, rows.contiguous(), group=group)
    return by_rank


@torch.library.custom_op("lighthouse::exchange_edges_backward", mutates_args=())
def exchange_edges_backward(grad: Tensor, group_name: str, size: int) -> Tensor:
    """Sum the gradients of each rank's rows over all ranks: [2W, ...] to [2, ...]. A collective."""
    own = grad.new_empty(2, *grad.shape[1:])
    group = _resolve_process_group(group_name)
    _reduce_scatter(own, grad.contiguous(), group=group)
    return own


@exchange_edges.register_fake
def _(rows: Tensor, group_name: str, size: int) -> Tensor:
    return rows.new_empty(2 * size, *rows.shape[1:])


@exchange_edges_backward.register_fake
def _(grad: Tensor, group_name: str, size: int) -> Tensor:
    return grad.new_empty(2, *grad.shape[1:])


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, ctx.group_name, ctx.size = inputs


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return exchange_edges_backward(grad, ctx.group_name, ctx.size), None, None


exchange_edges.register_autograd(_backward, setup_context=_keep)

EXCHANGE = torch.ops.lighthouse.exchange_edges.default
"""What activation checkpointing should keep of it."""
