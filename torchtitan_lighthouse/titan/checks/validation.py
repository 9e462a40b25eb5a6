"""What validation needs of the model and the data."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError


def check_validation(job_config: JobConfig) -> None:
    training, validation = job_config.training, job_config.validation
    if validation.enable and validation.seq_len > training.seq_len:
        raise RefusalError(
            f"validation.seq_len = {validation.seq_len} must be at most training.seq_len = "
            f"{training.seq_len}, up to which the model has positions"
        )
