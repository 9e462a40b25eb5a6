"""The ops as PyTorch sees them: schemas, implementations, autograd formulas.

Each op has a plain implementation on every device, and most a Triton kernel on CUDA where Triton
is installed. Callers name the op, never the implementation. Pyramids have at least two levels.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from torchtitan_lighthouse.attention import reference
from torchtitan_lighthouse.attention.pyramid import sub_sequence_length, table_lengths

kernels: ModuleType | None = None
if find_spec("triton") is not None:
    from torchtitan_lighthouse.attention import kernels

_PYRAMID = "int levels, int pooling_factor"


def _define(
    name: str, schema: str, fake: Callable, implementation: str, **options: Any
) -> Callable:
    """An op that ``reference`` implements, and ``kernels`` where it helps, by one signature."""
    qualified = f"lighthouse::{name}"
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(qualified, fake)
    for module, device in ((reference, "CompositeExplicitAutograd"), (kernels, "CUDA")):
        if hasattr(module, implementation):
            function = partial(getattr(module, implementation), **options)
            torch.library.impl(qualified, device, _as_the_tensors_are(function))
    op: Callable = getattr(torch.ops.lighthouse, name).default
    return op


def _as_the_tensors_are(function: Callable) -> Callable:
    """On their device, where Triton would take the current one, and in their dtypes.

    Autocast does not reach into a compiled graph's ops, so eager ones must not see it either.
    """

    def run(first: Tensor, *rest: Any) -> Any:
        autocast_off = torch.autocast(first.device.type, enabled=False)
        with torch.cuda.device_of(first), autocast_off:
            return function(first, *rest)

    return run


def _scores_fake(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    scores = torch.empty(k.shape[:-1], dtype=torch.float32, device=k.device)
    return scores, torch.empty_like(scores)


_SCORES = "(Tensor query_scores, Tensor key_scores)"
norm_scores = _define(
    "norm_scores", f"(Tensor q, Tensor k) -> {_SCORES}", _scores_fake, "norm_scores"
)
dilated_scores = _define(
    "dilated_scores",
    f"(Tensor q, Tensor k, Tensor v, int dilation) -> {_SCORES}",
    _scores_fake,
    "dilated_scores",
)
gla_scores = _define(
    "gla_scores",
    f"(Tensor q, Tensor k, Tensor v, Tensor log_decay) -> {_SCORES}",
    _scores_fake,
    "gla_scores",
)


def _select_fake(
    query_scores: Tensor,
    key_scores: Tensor,
    levels: int,
    pooling_factor: int,
    topk: int,
    tile: int,
    pin_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, seq_len = query_scores.shape
    slots = sub_sequence_length(seq_len, levels, pooling_factor, topk)
    entries = sum(table_lengths(seq_len, levels, pooling_factor))
    level, index, nodes = (
        query_scores.new_empty(batch, heads, size, dtype=torch.int32)
        for size in (slots, slots, entries)
    )
    return level, index, nodes


select = _define(
    "select",
    f"(Tensor query_scores, Tensor key_scores, {_PYRAMID}, int topk, int tile, bool pin_first)"
    " -> (Tensor level, Tensor index, Tensor nodes)",
    _select_fake,
    "select",
)


def _slots_fake(x: Tensor, nodes: Tensor, slots: int, *_: int) -> Tensor:
    batch, heads, _seq_len, dim = x.shape
    return x.new_empty(batch, heads, slots, dim)


def _rows_fake(y: Tensor, nodes: Tensor, seq_len: int, *_: int) -> Tensor:
    return reference.empty_rows(y, seq_len)


gather = _define(
    "gather",
    f"(Tensor x, Tensor nodes, SymInt slots, {_PYRAMID}) -> Tensor",
    _slots_fake,
    "windows_to_slots",
    shifted=False,
)
gather_backward = _define(
    "gather_backward",
    f"(Tensor grad, Tensor nodes, SymInt seq_len, {_PYRAMID}) -> Tensor",
    _rows_fake,
    "slots_to_windows",
    shifted=False,
)
scatter = _define(
    "scatter",
    f"(Tensor y, Tensor nodes, SymInt seq_len, {_PYRAMID}, int pieces) -> Tensor",
    _rows_fake,
    "slots_to_windows",
    shifted=True,
)
scatter_backward = _define(
    "scatter_backward",
    f"(Tensor grad, Tensor nodes, SymInt slots, {_PYRAMID}, int pieces) -> Tensor",
    _slots_fake,
    "windows_to_slots",
    shifted=True,
)


def _keep_nodes(ctx: Any, inputs: tuple, output: Tensor) -> None:
    rows, nodes, _length, *ctx.pyramid = inputs
    ctx.length = rows.shape[2]
    ctx.save_for_backward(nodes)


def _register_transpose(name: str, transpose: Callable) -> None:
    """The ops are linear in their rows, and nothing else of theirs has a gradient."""

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (nodes,) = ctx.saved_tensors
        rows = transpose(grad, nodes, ctx.length, *ctx.pyramid)
        return (rows, None, None, *[None] * len(ctx.pyramid))

    torch.library.register_autograd(f"lighthouse::{name}", backward, setup_context=_keep_nodes)


_register_transpose("gather", gather_backward)
_register_transpose("gather_backward", gather)
_register_transpose("scatter", scatter_backward)
_register_transpose("scatter_backward", scatter)

SELECTION = frozenset({norm_scores, dilated_scores, gla_scores, select})
"""What any activation checkpointing should keep of a Lighthouse layer: which entries it selected.

So that a recompute cannot select differently, nor scores what nothing else needs.
"""

SELECTIVE_CHECKPOINT_SAVES = SELECTION | {gather}
"""What selective activation checkpointing should keep of a Lighthouse layer, beside SDPA's output.

The gathered rows too, 3·S of them, because SDPA's backward reads them. Only the scatter is
recomputed, one pass over memory: keeping its N rows would cost more than all of these.
"""
