"""From a job to the plain numbers that its memory is estimated from."""

from dataclasses import replace

from torchtitan.config import TORCH_DTYPE_MAP, JobConfig
from torchtitan.distributed import ParallelDims

from torchtitan_lighthouse.estimate.layout import Layout, checkpointing_of
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.checks.activation_checkpointing import (
    check_activation_checkpointing,
)
from torchtitan_lighthouse.titan.checks.attention import check_attention
from torchtitan_lighthouse.titan.checks.model import check_model
from torchtitan_lighthouse.titan.checks.parallelism import check_parallelism, check_sequence_lengths
from torchtitan_lighthouse.titan.checks.stages import check_stages
from torchtitan_lighthouse.titan.checks.values import check_values
from torchtitan_lighthouse.titan.models.of_job import model_args_of
from torchtitan_lighthouse.titan.stages import stage_at

_CHECKS = (
    *(check_model, check_values, check_parallelism, check_stages, check_attention),
    *(check_sequence_lengths, check_activation_checkpointing),
)
"""Those that look at numbers alone."""


def layouts_of(job_config: JobConfig, gpus: int | None = None) -> dict[str, Layout]:
    """Return the layout of each stage that the job passes through, by its name and in order.

    Args:
        job_config: a job of ``llama3_lighthouse``.
        gpus: how many it runs on; by default as few as its parallelism takes.

    Raises:
        RefusalError: a job that could not train, whatever its folders hold; parallelism that does
            not fit ``gpus``; or something whose memory is not modelled.
    """
    _check_modelled(job_config)
    for check in _CHECKS:
        check(job_config)
    layout = _layout(job_config, parallel_dims_of(job_config, gpus))
    stages = [stage_at(step, job_config.lighthouse) for step in (1, job_config.training.steps)]
    dense = replace(layout, lighthouse_layers=())
    return {stage: layout if stage == "lighthouse" else dense for stage in stages}


def parallel_dims_of(job_config: JobConfig, gpus: int | None) -> ParallelDims:
    """Return the degrees of parallelism of a job on ``gpus``; None: on as few as they take.

    Raises:
        RefusalError: they do not multiply to ``gpus``.
    """
    section = job_config.parallelism
    replicate = section.data_parallel_replicate_degree
    shard = section.data_parallel_shard_degree
    cp, tp = section.context_parallel_degree, section.tensor_parallel_degree
    fixed = replicate * cp * tp * max(shard, 1)
    if gpus is None:
        gpus = fixed
    if gpus < 1 or gpus % fixed or (shard != -1 and gpus != fixed):
        raise RefusalError(
            f"the [parallelism] degrees multiply to {fixed}, which is not {gpus} GPUs"
        )
    return ParallelDims(
        dp_replicate=replicate, dp_shard=shard, cp=cp, tp=tp, pp=1, ep=1, etp=1, world_size=gpus
    )


def _layout(job_config: JobConfig, dims: ParallelDims) -> Layout:
    args = model_args_of(job_config)
    args.update_from_config(job_config)
    training, compiler = job_config.training, job_config.compile
    parallelism = job_config.parallelism
    section = job_config.activation_checkpoint
    return Layout(
        dim=args.dim,
        heads=args.n_heads,
        kv_heads=args.n_kv_heads or args.n_heads,
        head_dim=args.dim // args.n_heads,
        ffn=args.ffn_width,
        vocab=args.vocab_size,
        checkpointing=tuple(
            checkpointing_of(layer, section.mode, section.selective_ac_option)
            for layer in range(args.n_layers)
        ),
        lighthouse_layers=args.lighthouse_layers,
        attention=args.lighthouse,
        local_batch_size=training.local_batch_size,
        global_batch_size=training.global_batch_size,
        replicas=dims.dp_replicate,
        shards=dims.dp_shard,
        context_parallel=dims.cp,
        tensor_parallel=dims.tp,
        ring_gathers=parallelism.context_parallel_rotate_method == "allgather",
        one_gather=parallelism.context_parallel_attention == "allgather",
        reshards=parallelism.fsdp_reshard_after_forward != "never",
        splits_loss=not parallelism.disable_loss_parallel,
        weight_size=TORCH_DTYPE_MAP[training.dtype].itemsize,
        low_precision_size=TORCH_DTYPE_MAP[training.mixed_precision_param].itemsize,
        compiled=compiler.enable and "model" in compiler.components,
        compiled_loss=compiler.enable and "loss" in compiler.components,
    )


def _check_modelled(job_config: JobConfig) -> None:
    beyond = {
        "parallelism.pipeline_parallel_degree": job_config.parallelism.pipeline_parallel_degree > 1,
        "training.enable_cpu_offload": job_config.training.enable_cpu_offload,
        "model.converters": bool(job_config.model.converters),
        "activation_checkpoint.mode": job_config.activation_checkpoint.mode == "memory_budget",
    }
    if used := [name for name, is_used in beyond.items() if is_used]:
        raise RefusalError(f"the memory of {' and '.join(used)} is not modelled: leave the default")
