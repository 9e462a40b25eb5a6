"""Checks a job for torchtitan's own trainer, which can do less than this package's."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.launch.ranks import number_of_ranks
from torchtitan_lighthouse.titan.stages import has_switch
from torchtitan_lighthouse.titan.torch_version import torch_is_before


def check_stock_trainer(job_config: JobConfig) -> None:
    """Refuse a switch of the stage, and layouts whose gradient is scaled or clipped otherwise."""
    section, training_steps = job_config.lighthouse, job_config.training.steps
    if has_switch(section, training_steps):
        raise RefusalError(
            f"lighthouse.steps = {section.steps} ends before training.steps = {training_steps}, "
            "and torchtitan's own trainer cannot switch the stage: launch "
            "-m torchtitan_lighthouse.train, or train each stage by itself (lighthouse.steps = -1, "
            "then lighthouse.enable = false)"
        )
    layout = job_config.parallelism
    for field in ("pipeline_parallel_degree", "data_parallel_replicate_degree"):
        if (degree := getattr(layout, field)) > 1:
            raise RefusalError(
                f"parallelism.{field} = {degree}: torchtitan's own trainer scales the gradient by "
                "the layout of the ranks there: launch -m torchtitan_lighthouse.train"
            )
    tensor = layout.tensor_parallel_degree
    if tensor > 1 and tensor == number_of_ranks() and torch_is_before(2, 12):
        raise RefusalError(
            f"parallelism.tensor_parallel_degree = {tensor}: torchtitan's own trainer does not "
            "clip the gradients of norms there before torch 2.12: launch "
            "-m torchtitan_lighthouse.train"
        )
