"""What a model predicts after the last tokens of a prompt."""

from collections.abc import Callable

import torch
from torch import nn

LastLogits = Callable[[torch.Tensor], torch.Tensor]
"""From tokens, int64 [B, N], to the logits of the last position, [B, V]."""

Greedy = Callable[[torch.Tensor, int], torch.Tensor]
"""From tokens, int64 [B, N], and n: the likeliest token after each of the last n, int64 [B, n]."""


def last_logits_of(model: nn.Module, dtype: torch.dtype) -> LastLogits:
    """Run torchtitan's model under autocast to ``dtype``, for the last position's logits alone.

    The model is changed: its ``output`` is taken from it.
    """
    last = _last_of(model, dtype)
    return lambda tokens: last(tokens, 1)[:, 0]


def greedy_of(model: nn.Module, dtype: torch.dtype) -> Greedy:
    """Do as ``last_logits_of``, for the likeliest token after each of the last n."""
    last = _last_of(model, dtype)
    return lambda tokens, n: last(tokens, n).argmax(-1)


def _last_of(model: nn.Module, dtype: torch.dtype) -> Callable[[torch.Tensor, int], torch.Tensor]:
    output, model.output = model.output, None
    device = output.weight.device

    @torch.inference_mode()
    def last(tokens: torch.Tensor, n: int) -> torch.Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            hidden = model(tokens.to(device))[:, -n:]
        # Not in bfloat16, whose few digits make ties.
        return output(hidden.to(output.weight.dtype))

    return last
