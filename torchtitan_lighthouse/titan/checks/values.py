"""Checks values that torchtitan 0.2.2 does not check, and fails over late or silently."""

from collections.abc import Iterator
from math import isfinite, isnan
from typing import Any

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError, multiples, refusal
from torchtitan_lighthouse.titan.folder.data import data_parallel_ranks

_AT_LEAST = {
    "training.steps": 1,
    "training.seq_len": 1,
    "training.local_batch_size": 1,
    "training.gc_freq": 1,
    "training.dataloader.num_workers": 0,
    "validation.local_batch_size": 1,
    "validation.seq_len": 1,
    "validation.freq": 1,
    "validation.dataloader.num_workers": 0,
    "metrics.log_freq": 1,
    "optimizer.lr": 0,
    "optimizer.eps": 0,
    "optimizer.weight_decay": 0,
    "lr_scheduler.warmup_steps": 0,
    "lr_scheduler.total_steps": 1,
    "checkpoint.interval": 1,
    "checkpoint.keep_latest_k": 0,
    "checkpoint.load_step": -1,
    "parallelism.data_parallel_replicate_degree": 1,
    "parallelism.context_parallel_degree": 1,
    "parallelism.tensor_parallel_degree": 1,
    "parallelism.pipeline_parallel_degree": 1,
    "parallelism.pipeline_parallel_microbatch_size": 1,
    "parallelism.pipeline_parallel_layers_per_stage": 1,
    "parallelism.pipeline_parallel_first_stage_less_layers": 0,
    "parallelism.pipeline_parallel_last_stage_less_layers": 0,
    "profiling.profile_freq": 1,
    "profiling.profiler_active": 1,
    "profiling.profiler_warmup": 0,
    "comm.init_timeout_seconds": 1,
    "comm.train_timeout_seconds": 1,
    "comm.trace_buf_size": 0,
    "debug.seed": 0,
}
_SHARES = (
    "lr_scheduler.decay_ratio",
    "lr_scheduler.min_lr_factor",
    "activation_checkpoint.memory_budget",
)
_BETAS = ("optimizer.beta1", "optimizer.beta2")
_OPTIMIZERS = ("AdamW", "Adam")
_UNUSED_SECTIONS = ("fault_tolerance", "memory_estimation")
"""torchtitan's own trainer reads them nowhere."""


def check_values(job_config: JobConfig) -> None:
    """Refuse numbers out of their range, and names of what there is not.

    Raises:
        RefusalError: names the field, its value and what would work.
    """
    for field, value in _numbers(job_config):
        if isnan(value):
            raise refusal(field, value, "must be a number")
    for field, least in _AT_LEAST.items():
        value = _of(job_config, field)
        if value is not None and not (value >= least and isfinite(value)):
            raise refusal(field, value, f"must be at least {least}, and finite")
    for field in (*_SHARES, *_BETAS):
        value = _of(job_config, field)
        if value is not None and not (0 <= value < 1 or (value == 1 and field in _SHARES)):
            raise refusal(
                field, value, f"must be from 0 to {'1' if field in _SHARES else 'below 1'}"
            )
    _check_training(job_config)
    optimizer = job_config.optimizer
    if optimizer.name not in _OPTIMIZERS:
        raise refusal("optimizer.name", repr(optimizer.name), "is unknown", *_OPTIMIZERS)
    if optimizer.early_step_in_backward:
        rule = "steps before the gradient is accumulated and clipped: leave it false"
        raise refusal("optimizer.early_step_in_backward", "true", rule)
    if job_config.checkpoint.keep_latest_k == 1:
        rule = "could delete the only whole checkpoint while the next is written"
        raise refusal("checkpoint.keep_latest_k", 1, rule, 2, "0 to keep all")
    for name in _UNUSED_SECTIONS:
        if getattr(job_config, name).enable:
            raise RefusalError(f"{name}.enable = true: nothing in this trainer reads it")
    if job_config.comm.mode != "default":
        rule = "trains nothing"
        raise refusal("comm.mode", repr(job_config.comm.mode), rule, '"default"')


def _check_training(job_config: JobConfig) -> None:
    training = job_config.training
    if not training.max_norm > 0:
        rule = "must be above 0: every gradient would be clipped to nothing"
        raise refusal("training.max_norm", training.max_norm, rule, "inf not to clip")
    if training.global_batch_size != -1 and training.global_batch_size < 1:
        rule = "must be at least 1, or -1 for one batch of each data-parallel rank"
        raise refusal("training.global_batch_size", training.global_batch_size, rule)
    ranks, _ = data_parallel_ranks(job_config)
    at_once = training.local_batch_size * ranks
    if training.global_batch_size > 0 and training.global_batch_size % at_once:
        rule = (
            f"must be a multiple of {at_once} = training.local_batch_size times {ranks} "
            "data-parallel ranks"
        )
        working = multiples(training.global_batch_size, at_once)
        raise refusal("training.global_batch_size", training.global_batch_size, rule, *working)
    sections = {"training": training, "validation": job_config.validation}
    for name, section in sections.items():
        loading = section.dataloader
        if not loading.num_workers and (
            loading.persistent_workers or loading.prefetch_factor is not None
        ):
            raise RefusalError(
                f"{name}.dataloader: persistent_workers and prefetch_factor need num_workers of at "
                "least 1"
            )
        if loading.prefetch_factor is not None and loading.prefetch_factor < 1:
            field = f"{name}.dataloader.prefetch_factor"
            raise refusal(field, loading.prefetch_factor, "must be at least 1")


def _of(job_config: JobConfig, field: str) -> Any:
    value: Any = job_config
    for name in field.split("."):
        value = getattr(value, name)
    return value


def _numbers(job_config: JobConfig) -> Iterator[tuple[str, float]]:
    for section, values in job_config.to_dict().items():
        for name, value in values.items():
            if isinstance(value, float):
                yield f"{section}.{name}", value
