"""The model that a job names."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.models.flavors import FLAVORS, MODEL_NAME


def check_model(job_config: JobConfig) -> None:
    """Refuse a job without this package's sections, or with a model that is not its."""
    if not hasattr(job_config, "lighthouse"):
        raise RefusalError(
            "the job has no [lighthouse] section: set "
            'job.custom_config_module = "torchtitan_lighthouse.titan.config", or launch '
            "-m torchtitan_lighthouse.train"
        )
    model = job_config.model
    if model.name != MODEL_NAME:
        raise RefusalError(
            f"model.name = {model.name!r} must be {MODEL_NAME!r}; for dense training set "
            "lighthouse.enable = false"
        )
    if model.flavor not in FLAVORS:
        raise RefusalError(f"model.flavor = {model.flavor!r} must be one of {', '.join(FLAVORS)}")
