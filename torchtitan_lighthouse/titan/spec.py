"""The train spec ``llama3_lighthouse``: torchtitan's ``llama3`` with this package's parts."""

from dataclasses import replace

from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import JobConfig
from torchtitan.models import llama3
from torchtitan.protocols.train_spec import TrainSpec

from torchtitan_lighthouse.titan.checks import (
    check_data,
    check_job,
    check_position,
    check_tokenizer,
)
from torchtitan_lighthouse.titan.components.dataloader import build_dataloader
from torchtitan_lighthouse.titan.components.metrics import build_metrics_processor
from torchtitan_lighthouse.titan.components.tokenizer import build_tokenizer
from torchtitan_lighthouse.titan.components.validate import build_validator
from torchtitan_lighthouse.titan.models.flavors import FLAVORS
from torchtitan_lighthouse.titan.models.of_job import model_args_of
from torchtitan_lighthouse.titan.models.parallelize import parallelize_lighthouse


def get_train_spec() -> TrainSpec:
    """torchtitan's own spec, but for what Lighthouse attention and its data need."""
    return replace(
        llama3.get_train_spec(),
        model_args=FLAVORS,
        parallelize_fn=parallelize_lighthouse,
        build_tokenizer_fn=build_checked_tokenizer,
        build_dataloader_fn=build_dataloader,
        build_validator_fn=build_validator,
        build_metrics_processor_fn=build_metrics_processor,
    )


def build_checked_tokenizer(job_config: JobConfig) -> BaseTokenizer:
    """The job's tokenizer, the first thing that a trainer builds: hence the place to refuse a job.

    ``LighthouseTrainer`` builds it before torchtitan asks for it; it is checked once.

    Raises:
        ValueError: the job cannot train (see ``checks``).
    """
    section = getattr(job_config, "tokenizer", None)
    if section is not None and section.built is not None:
        return section.built
    check_job(job_config)
    tokenizer = build_tokenizer(job_config)
    check_tokenizer(tokenizer, model_args_of(job_config))
    check_data(job_config, tokenizer)
    check_position(job_config, tokenizer)
    return tokenizer
