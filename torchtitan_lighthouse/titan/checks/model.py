"""Checks the model that a job names."""

from torchtitan.config import JobConfig
from torchtitan.config.job_config import Model
from torchtitan.protocols.train_spec import get_train_spec

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.config.command_line import LAUNCH
from torchtitan_lighthouse.titan.models.flavors import MODEL_NAME
from torchtitan_lighthouse.titan.models.of_job import import_custom_module, model_args_of
from torchtitan_lighthouse.titan.models.parallelize import parallelize_lighthouse


def check_model(job_config: JobConfig) -> None:
    """Refuse a job without this package's sections, or with a model that is not its."""
    if not hasattr(job_config, "lighthouse"):
        raise RefusalError(
            "the job has no [lighthouse] section: set "
            'job.custom_config_module = "torchtitan_lighthouse.titan.config", or launch '
            "-m torchtitan_lighthouse.train"
        )
    import_custom_module(job_config)
    name = job_config.model.name
    if job_config.job.config_file is None and name == Model.name:
        raise RefusalError(f"no job is given: {LAUNCH}")
    if not _is_derived(name):
        raise RefusalError(
            f"model.name = {name!r} must be {MODEL_NAME!r}, or a train spec derived from it that "
            "experimental.custom_import registers; for dense training set lighthouse.enable = false"
        )
    model_args_of(job_config)


def _is_derived(name: str) -> bool:
    """Whether a train spec is this package's, whatever its flavors and other parts are."""
    try:
        return get_train_spec(name).parallelize_fn is parallelize_lighthouse
    except ValueError:
        return False
