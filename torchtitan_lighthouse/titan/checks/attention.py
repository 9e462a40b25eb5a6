"""Checks Lighthouse attention in the model, at every sequence length that the job has."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.models.args import lighthouse_layers
from torchtitan_lighthouse.titan.models.of_job import model_args_of


def check_attention(job_config: JobConfig) -> None:
    """Refuse layers, a geometry, a scorer or lengths that do not fit each other.

    Raises:
        RefusalError: names the field, its value and what would work.
    """
    if not job_config.lighthouse.enable:
        return
    model_args = model_args_of(job_config)
    if model_args.attn_type != "sdpa":
        raise RefusalError(
            f"model.flavor = {job_config.model.flavor!r} has attn_type "
            f"{model_args.attn_type!r}: Lighthouse attention runs on SDPA, so use a flavor with "
            "attn_type 'sdpa', or set lighthouse.enable = false"
        )
    section = job_config.lighthouse
    lighthouse_layers(model_args.n_layers, section.dense_layers)
    config = section.attention_config()
    degree = job_config.parallelism.context_parallel_degree
    for seq_len in _sequence_lengths(job_config):
        if degree > 1:
            config.validate_context_parallel(degree, seq_len)
        else:
            config.validate_seq_len(seq_len)


def _sequence_lengths(job_config: JobConfig) -> list[int]:
    training, validation = job_config.training, job_config.validation
    return [training.seq_len, *([validation.seq_len] if validation.enable else [])]
