"""The rows that ranks that share a sequence send each other beside those of attention."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, distributed
from torch.distributed.distributed_c10d import _resolve_process_group

from torchtitan_lighthouse.attention.define import define, differentiate

# torch 2.13 has new names for them and warns of the old ones.
all_gather: Callable[..., distributed.Work] = (
    getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
)
_reduce_scatter: Callable[..., distributed.Work] = (
    getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor
)


def _exchange(rows: Tensor, group_name: str, size: int) -> Tensor:
    by_rank = _exchange_fake(rows, group_name, size)
    all_gather(by_rank, rows.contiguous(), group=_resolve_process_group(group_name))
    return by_rank


def _exchange_fake(rows: Tensor, group_name: str, size: int) -> Tensor:
    return rows.new_empty(2 * size, *rows.shape[1:])


def _sum_over_ranks(grad: Tensor, group_name: str) -> Tensor:
    own = _sum_over_ranks_fake(grad, group_name)
    _reduce_scatter(own, grad.contiguous(), group=_resolve_process_group(group_name))
    return own


def _sum_over_ranks_fake(grad: Tensor, group_name: str) -> Tensor:
    return grad.new_empty(2, *grad.shape[1:])


exchange_edges = define(
    "exchange_edges",
    "(Tensor rows, str group_name, int size) -> Tensor",
    _exchange_fake,
    _exchange,
)
"""Gather the rows of each rank's two pieces: [2, ...] to [2W, ...], rank by rank. A collective.

An op of its own, for activation checkpointing to keep: a recompute that sent them again would have
the ranks wait for each other once more.
"""

_exchange_edges_backward = define(
    "exchange_edges_backward",
    "(Tensor grad, str group_name) -> Tensor",
    _sum_over_ranks_fake,
    _sum_over_ranks,
)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, ctx.group_name, _ = inputs


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _exchange_edges_backward(grad, ctx.group_name), None, None


differentiate("exchange_edges", _backward, _keep)
