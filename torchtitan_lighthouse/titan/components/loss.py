"""torchtitan's loss with a gradient that is the same in every layout of the ranks.

torchtitan 0.2.2 divides the summed loss by the tokens of the step before the backward, but under
pipeline parallelism after it, where only the figure that is logged is left to divide. And where
data parallel ranks replicate the model without sharding it, DDP takes the mean of their gradients,
which are shares of one sum already. This file can go when torchtitan does neither.
"""

from collections.abc import Callable

from torch import Tensor
from torchtitan.components.loss import build_cross_entropy_loss
from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims


class LayoutFreeLoss:
    """A summed loss, whose backward takes ``gradient_scale`` times the gradient that comes to it."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._loss = loss
        self.gradient_scale: float | Tensor = 1.0

    def __call__(self, pred: Tensor, labels: Tensor) -> Tensor:
        """``pred`` [B, N, vocabulary] and ``labels`` int64 [B, N] to the sum over tokens, a scalar."""
        loss = self._loss(pred, labels)
        if loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * self.gradient_scale)
        return loss


def build_loss(job_config: JobConfig, parallel_dims: ParallelDims) -> LayoutFreeLoss:
    """The builder that a TrainSpec takes."""
    loss = LayoutFreeLoss(build_cross_entropy_loss(job_config))
    if parallel_dims.dp_replicate_enabled and not parallel_dims.fsdp_enabled:
        loss.gradient_scale = parallel_dims.dp_replicate
    return loss
