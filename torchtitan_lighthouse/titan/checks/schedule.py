"""Checks the schedule of the learning rate."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError


def check_schedule(job_config: JobConfig) -> None:
    """Refuse a schedule that ends before the training: torchtitan goes below zero after it."""
    total, steps = job_config.lr_scheduler.total_steps, job_config.training.steps
    if total is not None and total < steps:
        raise RefusalError(
            f"lr_scheduler.total_steps = {total} must be at least training.steps = {steps}: there "
            "is no learning rate after the end of the schedule"
        )
