"""The train spec ``llama3_lighthouse``: torchtitan's ``llama3`` with this package's parts."""

from collections.abc import Callable
from dataclasses import replace

from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import JobConfig
from torchtitan.models import llama3
from torchtitan.protocols.train_spec import TrainSpec
from torchtitan.protocols.train_spec import get_train_spec as registered_spec

from torchtitan_lighthouse.titan.checks import (
    check_data,
    check_job,
    check_position,
    check_tokenizer,
)
from torchtitan_lighthouse.titan.checks.stock_trainer import check_stock_trainer
from torchtitan_lighthouse.titan.components.dataloader import build_dataloader
from torchtitan_lighthouse.titan.components.loss import layout_free
from torchtitan_lighthouse.titan.components.metrics import build_metrics_processor
from torchtitan_lighthouse.titan.components.tokenizer import build_tokenizer
from torchtitan_lighthouse.titan.components.validate import build_validator
from torchtitan_lighthouse.titan.models.flavors import FLAVORS
from torchtitan_lighthouse.titan.models.hf_adapter import LighthouseStateDictAdapter
from torchtitan_lighthouse.titan.models.of_job import model_args_of
from torchtitan_lighthouse.titan.models.parallelize import parallelize_lighthouse


def get_train_spec() -> TrainSpec:
    """Return torchtitan's own spec, but for what Lighthouse attention and its data need."""
    return replace(
        llama3.get_train_spec(),
        model_args=FLAVORS,
        parallelize_fn=parallelize_lighthouse,
        build_tokenizer_fn=_build_tokenizer,
        build_dataloader_fn=build_dataloader,
        build_validator_fn=build_validator,
        build_metrics_processor_fn=build_metrics_processor,
        state_dict_adapter=LighthouseStateDictAdapter,
    )


def build_checked_tokenizer(job_config: JobConfig) -> BaseTokenizer:
    """Check a job and build its tokenizer, the first thing that a trainer builds.

    Raises:
        RefusalError: the job cannot train (see ``checks``).
    """
    check_job(job_config)
    tokenizer = build_tokenizer(job_config)
    check_tokenizer(tokenizer, model_args_of(job_config))
    check_data(job_config, tokenizer)
    check_position(job_config, tokenizer)
    return tokenizer


def spec_with(tokenizer: BaseTokenizer) -> Callable[[str], TrainSpec]:
    """Return a ``get_train_spec`` for ``LighthouseTrainer``.

    Its specs come with this tokenizer, which is built and checked already, and with a loss whose
    gradient is the same in every layout of the ranks.
    """

    def get_spec(name: str) -> TrainSpec:
        spec = registered_spec(name)
        return replace(
            spec,
            build_tokenizer_fn=lambda job_config: tokenizer,
            build_loss_fn=layout_free(spec.build_loss_fn),
        )

    return get_spec


def _build_tokenizer(job_config: JobConfig) -> BaseTokenizer:
    """Build the tokenizer for torchtitan's own trainer; ``LighthouseTrainer`` brings its own."""
    tokenizer = build_checked_tokenizer(job_config)
    check_stock_trainer(job_config)
    return tokenizer
