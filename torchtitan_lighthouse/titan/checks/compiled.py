"""Whether torchtitan compiles the model, which several parts of a job ask."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import refusal


def compiles_model(job_config: JobConfig) -> bool:
    """Whether the blocks are compiled, and not the loss alone."""
    section = job_config.compile
    return section.enable and "model" in section.components


def require_compiled_model(job_config: JobConfig, field: str, value: str) -> None:
    """Refuse a field's value that needs compiled blocks, where there are none."""
    if not compiles_model(job_config):
        rule = "needs compile.enable = true with the model in compile.components"
        raise refusal(field, value, rule)
