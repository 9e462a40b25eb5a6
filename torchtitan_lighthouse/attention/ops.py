"""The ops as PyTorch sees them: schemas, implementations, autograd formulas.

Each op has a plain implementation on every device, and most a Triton kernel on CUDA where Triton
is installed. Callers name the op, never the implementation. Pyramids have at least two levels.
"""

from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torchtitan_lighthouse.attention import reference
from torchtitan_lighthouse.attention.define import define, differentiate
from torchtitan_lighthouse.attention.pyramid import table_lengths

kernels: ModuleType | None = None
if find_spec("triton") is not None:
    from torchtitan_lighthouse.attention import kernels

_PYRAMID = "int levels, int pooling_factor"


def _define(name: str, schema: str, fake: Callable) -> Callable:
    """Define an op that ``reference`` implements by the same name, and maybe ``kernels`` too."""
    return define(name, schema, fake, getattr(reference, name), getattr(kernels, name, None))


def _scores_fake(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    scores = torch.empty(k.shape[:-1], dtype=torch.float32, device=k.device)
    return scores, torch.empty_like(scores)


_SCORES = "(Tensor query_scores, Tensor key_scores)"
norm_scores = _define("norm_scores", f"(Tensor q, Tensor k) -> {_SCORES}", _scores_fake)
dilated_scores = _define(
    "dilated_scores",
    f"(Tensor q, Tensor k, Tensor v, int dilation) -> {_SCORES}",
    _scores_fake,
)
gla_scores = _define(
    "gla_scores", f"(Tensor q, Tensor k, Tensor v, Tensor log_decay) -> {_SCORES}", _scores_fake
)


def _select_fake(
    query_scores: Tensor,
    key_scores: Tensor,
    levels: int,
    pooling_factor: int,
    topk: int,
    tile: int,
    pin_first: bool,
) -> Tensor:
    batch, heads, seq_len = query_scores.shape
    entries = sum(table_lengths(seq_len, levels, pooling_factor))
    return query_scores.new_empty(batch, heads, entries, dtype=torch.int32)


select = _define(
    "select",
    f"(Tensor query_scores, Tensor key_scores, {_PYRAMID}, int topk, int tile, bool pin_first)"
    " -> Tensor",
    _select_fake,
)


def _slots_fake(x: Tensor, nodes: Tensor, slots: int, *_: int) -> Tensor:
    batch, heads, _seq_len, dim = x.shape
    return x.new_empty(batch, heads, slots, dim)


def _rows_fake(y: Tensor, nodes: Tensor, seq_len: int, *_: int) -> Tensor:
    return reference.empty_rows(y, seq_len)


def _of_three(fake: Callable) -> Callable:
    return lambda q, k, v, nodes, rotation, length, *_: tuple(
        fake(x, nodes, length) for x in (q, k, v)
    )


gather = _define(
    "gather",
    f"(Tensor q, Tensor k, Tensor v, Tensor nodes, Tensor? rotation, SymInt slots, {_PYRAMID})"
    " -> (Tensor q, Tensor k, Tensor v)",
    _of_three(_slots_fake),
)
gather_backward = _define(
    "gather_backward",
    "(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor nodes, Tensor? rotation, SymInt seq_len,"
    f" {_PYRAMID}) -> (Tensor q, Tensor k, Tensor v)",
    _of_three(_rows_fake),
)
scatter = _define(
    "scatter",
    f"(Tensor y, Tensor nodes, SymInt seq_len, {_PYRAMID}, int pieces) -> Tensor",
    _rows_fake,
)
scatter_backward = _define(
    "scatter_backward",
    f"(Tensor grad, Tensor nodes, SymInt slots, {_PYRAMID}, int pieces) -> Tensor",
    _slots_fake,
)


def _merge_fake(own: Tensor, own_lse: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    out = reference.empty_rows(own, own.shape[2], dtype=rest[-1])
    return out, own_lse.new_empty(own_lse.shape)


merge = _define(
    "merge",
    "(Tensor own, Tensor own_lse, Tensor? earlier, Tensor? earlier_lse, Tensor? later,"
    " Tensor? later_lse, ScalarType dtype) -> (Tensor out, Tensor lse)",
    _merge_fake,
)


def _register_transpose(name: str, transpose: Callable, rows: int, tables: int) -> None:
    """Make ``transpose`` the backward of an op, which is linear in its rows.

    Nothing else of the op has a gradient.

    Args:
        rows: how many tensors of rows the op takes, first of its arguments.
        tables: how many tensors follow them.
    """

    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.save_for_backward(*inputs[rows : rows + tables])
        ctx.length = inputs[0].shape[2]
        ctx.numbers = inputs[rows + tables + 1 :]

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        result = transpose(*grads, *ctx.saved_tensors, ctx.length, *ctx.numbers)
        result = result if isinstance(result, tuple) else (result,)
        return (*result, *[None] * (tables + 1 + len(ctx.numbers)))

    differentiate(name, backward, setup_context)


_register_transpose("gather", gather_backward, rows=3, tables=2)
_register_transpose("scatter", scatter_backward, rows=1, tables=1)

SELECTION = frozenset({norm_scores, dilated_scores, gla_scores, select})
"""What any activation checkpointing should keep of a Lighthouse layer: which entries it selected.

A recompute then cannot select differently, and does not compute scores that nothing else needs.
"""

SELECTIVE_CHECKPOINT_SAVES = SELECTION | {gather}
"""What selective activation checkpointing should keep of a Lighthouse layer, beside SDPA's output.

It keeps the gathered rows, 3·S of them, because SDPA's backward reads them. Only the scatter is
recomputed, in one pass over memory: keeping its N rows would cost more than all of these.
"""
