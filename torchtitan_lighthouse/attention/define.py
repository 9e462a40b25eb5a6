"""Defining an op: one schema, a plain implementation for every device, maybe a kernel for CUDA.

By ``torch.library.define``: the ``custom_op`` decorator would cost microseconds more in each call.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchtitan_lighthouse.refusal import RefusalError


def define(
    name: str, schema: str, fake: Callable, plain: Callable, kernel: Callable | None = None
) -> Callable:
    """Define ``lighthouse::name``, whose first argument is a tensor.

    Args:
        schema: its arguments and results.
        fake: what allocates its results, and computes nothing.
        plain: what computes them.
        kernel: what computes them on CUDA, if that is another function.

    Returns:
        The op, which activation checkpointing knows by this object.
    """
    qualified = f"lighthouse::{name}"
    torch.library.define(qualified, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(qualified, fake)
    torch.library.impl(qualified, "CompositeExplicitAutograd", _as_the_tensors_are(plain))
    if kernel is not None:
        torch.library.impl(qualified, "CUDA", _as_the_tensors_are(kernel))
    op: Callable = getattr(torch.ops.lighthouse, name).default
    return op


def differentiate(name: str, backward: Callable, setup_context: Callable) -> None:
    """Give an op its backward, by ``torch.library.register_autograd``, and no second derivative.

    Only that would need a formula for the backward's own op, and every call would pay for it.
    """

    def once(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in grads):
            raise RefusalError("Lighthouse attention has no second derivative (create_graph=True)")
        return backward(ctx, *grads)

    torch.library.register_autograd(f"lighthouse::{name}", once, setup_context=setup_context)


def _as_the_tensors_are(function: Callable) -> Callable:
    """Run an op on its tensors' device and in their dtypes.

    Triton would take the current device. Autocast does not reach into a compiled graph's ops, so
    eager ones must not see it either.
    """

    def run(first: Tensor, *rest: Any) -> Any:
        with torch.cuda.device_of(first):
            if not torch.is_autocast_enabled(first.device.type):
                return function(first, *rest)
            with torch.autocast(first.device.type, enabled=False):
                return function(first, *rest)

    return run
