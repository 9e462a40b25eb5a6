"""Checks that a job must pass before anything is built; each refusal says what to change.

One file for each part of a job, with one function that ``check_job`` calls.
"""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.titan.checks.activation_checkpointing import (
    check_activation_checkpointing,
)
from torchtitan_lighthouse.titan.checks.attention import check_attention
from torchtitan_lighthouse.titan.checks.checkpoints import check_checkpoints
from torchtitan_lighthouse.titan.checks.cuda_graphs import check_cuda_graphs
from torchtitan_lighthouse.titan.checks.data import check_data
from torchtitan_lighthouse.titan.checks.folders import check_folders
from torchtitan_lighthouse.titan.checks.hf_weights import check_hf_weights
from torchtitan_lighthouse.titan.checks.metrics import check_metrics
from torchtitan_lighthouse.titan.checks.model import check_model
from torchtitan_lighthouse.titan.checks.parallelism import check_parallelism, check_sequence_lengths
from torchtitan_lighthouse.titan.checks.position import check_position
from torchtitan_lighthouse.titan.checks.profiling import check_profiling
from torchtitan_lighthouse.titan.checks.resume import check_resume
from torchtitan_lighthouse.titan.checks.schedule import check_schedule
from torchtitan_lighthouse.titan.checks.stages import check_stages
from torchtitan_lighthouse.titan.checks.tokenizer import check_tokenizer
from torchtitan_lighthouse.titan.checks.validation import check_validation
from torchtitan_lighthouse.titan.checks.values import check_values
from torchtitan_lighthouse.titan.config.field_types import refuse_wrong_types

__all__ = ["check_data", "check_job", "check_position", "check_tokenizer"]


def check_job(job_config: JobConfig) -> None:
    """Refuse a job that this package cannot train as it is written.

    Raises:
        RefusalError: names the field, its value and what would work.
    """
    refuse_wrong_types(type(job_config), job_config.to_dict())
    check_model(job_config)
    check_values(job_config)
    check_folders(job_config)
    check_hf_weights(job_config)
    check_checkpoints(job_config)
    check_validation(job_config)
    check_parallelism(job_config)
    check_stages(job_config)
    check_schedule(job_config)
    check_attention(job_config)
    check_sequence_lengths(job_config)
    check_activation_checkpointing(job_config)
    check_cuda_graphs(job_config)
    check_metrics(job_config)
    check_profiling(job_config)
    check_resume(job_config)
