"""torchtitan's loss with a gradient that is the same in every layout of the ranks.

torchtitan 0.2.2 divides the summed loss by the tokens of the step before the backward, but under
pipeline parallelism after it, where only the figure that is logged is left to divide. And where
data parallel ranks replicate the model without sharding it, DDP takes the mean of their gradients,
which are shares of one sum already. This file can go when torchtitan does neither.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims
from torchtitan.protocols.train_spec import LossFunctionBuilder


class LayoutFreeLoss:
    """A summed loss whose gradient is multiplied by ``gradient_scale``."""

    def __init__(self, loss: Callable[..., Tensor], gradient_scale: float | Tensor = 1.0) -> None:
        self._loss = loss
        self.gradient_scale = gradient_scale

    def __call__(self, *args: Any, **named: Any) -> Tensor:
        """Compute the loss of what torchtitan passes: a scalar, the sum over tokens."""
        loss = self._loss(*args, **named)
        if loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * self.gradient_scale)
        return loss


def layout_free(build_loss: LossFunctionBuilder) -> LossFunctionBuilder:
    """Wrap a TrainSpec's loss builder, so that it builds a ``LayoutFreeLoss`` of its loss.

    ``LighthouseTrainer`` sets the scale of each step under pipeline parallelism.
    """

    def build(job_config: JobConfig, parallel_dims: ParallelDims) -> LayoutFreeLoss:
        only_replicated = parallel_dims.dp_replicate_enabled and not parallel_dims.fsdp_enabled
        scale = parallel_dims.dp_replicate if only_replicated else 1.0
        return LayoutFreeLoss(build_loss(job_config, parallel_dims=parallel_dims), scale)

    return build
