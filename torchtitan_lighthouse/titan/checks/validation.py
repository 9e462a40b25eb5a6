"""Checks what validation needs of the model, the data and the ranks."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.folder.data import data_parallel_ranks


def check_validation(job_config: JobConfig) -> None:
    """Refuse sequences longer than the training's, and ranks that would wait for each other.

    Raises:
        RefusalError: names the field, its value and what would work.
    """
    training, validation = job_config.training, job_config.validation
    if not validation.enable:
        return
    if validation.seq_len > training.seq_len:
        raise RefusalError(
            f"validation.seq_len = {validation.seq_len} must be at most training.seq_len = "
            f"{training.seq_len}, up to which the model has positions"
        )
    ranks, _ = data_parallel_ranks(job_config)
    if validation.steps == -1 and ranks * job_config.parallelism.pipeline_parallel_degree > 1:
        raise RefusalError(
            "validation.steps = -1 reads the held-out text to its end, where data-parallel ranks "
            "have different numbers of batches, and a pipeline not its microbatches: set a number"
        )
