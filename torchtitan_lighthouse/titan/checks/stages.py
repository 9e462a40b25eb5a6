"""The steps of the two stages."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.stages import has_switch


def check_stages(job_config: JobConfig) -> None:
    if not job_config.lighthouse.enable:
        return
    section, training_steps = job_config.lighthouse, job_config.training.steps
    if not -1 <= section.steps <= training_steps:
        raise RefusalError(
            f"lighthouse.steps = {section.steps} must be from 0 to training.steps = "
            f"{training_steps}, or -1 for Lighthouse attention throughout"
        )


def check_single_stage(job_config: JobConfig) -> None:
    """Refuse a job that would have to switch the stage under torchtitan's own trainer."""
    section, training_steps = job_config.lighthouse, job_config.training.steps
    if has_switch(section, training_steps):
        raise RefusalError(
            f"lighthouse.steps = {section.steps} ends before training.steps = {training_steps}, "
            "and torchtitan's own trainer cannot switch the stage: launch "
            "-m torchtitan_lighthouse.train, or train each stage by itself (lighthouse.steps = -1, "
            "then lighthouse.enable = false)"
        )
