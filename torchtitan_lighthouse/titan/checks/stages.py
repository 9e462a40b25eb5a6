"""Checks the steps of the two stages."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError


def check_stages(job_config: JobConfig) -> None:
    """Refuse a ``lighthouse.steps`` that is beyond the training, or negative and not -1.

    Raises:
        RefusalError: names the field, its value and what would work.
    """
    if not job_config.lighthouse.enable:
        return
    section, training_steps = job_config.lighthouse, job_config.training.steps
    if not -1 <= section.steps <= training_steps:
        raise RefusalError(
            f"lighthouse.steps = {section.steps} must be from 0 to training.steps = "
            f"{training_steps}, or -1 for Lighthouse attention throughout"
        )
