"""What a job must satisfy before anything is built: each refusal says what to change."""

from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.config.checkpoints import check_checkpoints
from torchtitan_lighthouse.titan.models.flavors import (
    FLAVORS,
    MODEL_NAME,
    LighthouseModelArgs,
    lighthouse_layers,
)
from torchtitan_lighthouse.titan.stages import has_switch


def check_job(job_config: JobConfig) -> None:
    """Refuse a job that this package cannot train as it is written.

    Raises:
        ValueError: names the field, its value and what would work.
    """
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
    check_checkpoints(job_config)
    _check_validation(job_config)
    _check_load_balancer(job_config, FLAVORS[model.flavor])
    if job_config.lighthouse.enable:
        _check_steps(job_config)
        _check_attention(job_config, FLAVORS[model.flavor])


def check_vocabulary(tokenizer: BaseTokenizer, model_args: LighthouseModelArgs) -> None:
    """Refuse a tokenizer whose ids the embedding does not have.

    Raises:
        ValueError: the tokenizer's vocabulary is larger than the flavor's.
    """
    size = tokenizer.get_vocab_size()
    if size > model_args.vocab_size:
        raise RefusalError(
            f"the tokenizer has {size} ids, but the flavor's embedding {model_args.vocab_size}: "
            "use a larger model.flavor or another tokenizer.name"
        )


def _check_steps(job_config: JobConfig) -> None:
    section, training_steps = job_config.lighthouse, job_config.training.steps
    if not -1 <= section.steps <= training_steps:
        raise RefusalError(
            f"lighthouse.steps = {section.steps} must be from 0 to training.steps = "
            f"{training_steps}, or -1 for Lighthouse attention throughout"
        )
    if has_switch(section, training_steps) and not section.two_stage_trainer:
        raise RefusalError(
            f"lighthouse.steps = {section.steps} ends before training.steps = {training_steps}, "
            "and torchtitan's own trainer cannot switch the stage: launch "
            "-m torchtitan_lighthouse.train, or train each stage by itself (lighthouse.steps = -1, "
            "then lighthouse.enable = false)"
        )


def _check_validation(job_config: JobConfig) -> None:
    training, validation = job_config.training, job_config.validation
    if validation.enable and validation.seq_len > training.seq_len:
        raise RefusalError(
            f"validation.seq_len = {validation.seq_len} must be at most training.seq_len = "
            f"{training.seq_len}, up to which the model has positions"
        )


def _check_load_balancer(job_config: JobConfig, model_args: LighthouseModelArgs) -> None:
    parallelism = job_config.parallelism
    balancer = parallelism.context_parallel_load_balancer
    if (
        parallelism.context_parallel_degree > 1
        and model_args.attn_type == "sdpa"
        and balancer != "headtail"
    ):
        raise RefusalError(
            f"parallelism.context_parallel_load_balancer = {balancer!r} must be 'headtail', the "
            "order in which SDPA takes the pieces of a sequence"
        )


def _check_attention(job_config: JobConfig, model_args: LighthouseModelArgs) -> None:
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
