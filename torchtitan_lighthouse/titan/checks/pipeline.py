"""Checks what pipeline parallelism needs of a job."""

from math import ceil

from torchtitan.config import JobConfig
from torchtitan.distributed.pipeline_parallel import generate_llm_fqn_per_model_part

from torchtitan_lighthouse.refusal import RefusalError, multiples, refusal
from torchtitan_lighthouse.titan.checks.compiled import compiles_model
from torchtitan_lighthouse.titan.models.of_job import model_args_of
from torchtitan_lighthouse.titan.torch_version import torch_is_before

_ONE_STAGE = ("1F1B", "GPipe")
_ZERO_BUBBLE = ("InterleavedZeroBubble", "ZBVZeroBubble")
_SCHEDULES = (*_ONE_STAGE, "Interleaved1F1B", "LoopedBFS", *_ZERO_BUBBLE)
"""torchtitan's but for DualPipeV: it is for experts, and its loss is not on the rank that logs."""


def check_pipeline(job_config: JobConfig) -> None:
    """Refuse what torchtitan refuses late, hangs in, or trains with another gradient.

    Raises:
        RefusalError: names the field and what would work.
    """
    layout = job_config.parallelism
    degree, schedule = layout.pipeline_parallel_degree, layout.pipeline_parallel_schedule
    if degree == 1:
        return
    if layout.pipeline_parallel_schedule_csv:
        raise refusal(
            "parallelism.pipeline_parallel_schedule_csv",
            repr(layout.pipeline_parallel_schedule_csv),
            "is not supported; leave it out and name a pipeline_parallel_schedule",
        )
    if schedule not in _SCHEDULES:
        rule = "is no schedule that this package trains with"
        raise refusal("parallelism.pipeline_parallel_schedule", repr(schedule), rule, *_SCHEDULES)
    if schedule in _ZERO_BUBBLE:
        _check_zero_bubble(job_config)
    microbatches = _check_microbatches(job_config)
    _check_stages(job_config)
    if job_config.validation.enable:
        _check_validation(job_config, microbatches)


def _check_validation(job_config: JobConfig, microbatches: int) -> None:
    """Refuse batches that a pipeline which has trained cannot take."""
    training, validation = job_config.training, job_config.validation
    size = validation.local_batch_size
    if size % microbatches:
        rule = (
            f"must be a multiple of the {microbatches} microbatches of training "
            "(training.local_batch_size / parallelism.pipeline_parallel_microbatch_size)"
        )
        raise refusal("validation.local_batch_size", size, rule, *multiples(size, microbatches))
    if not torch_is_before(2, 12):
        return
    # Ranks of torch 2.11 receive each batch in what they have allocated for the first.
    for field in ("local_batch_size", "seq_len"):
        trained, validated = getattr(training, field), getattr(validation, field)
        if trained != validated:
            rule = f"must be training.{field} in a pipeline before torch 2.12"
            raise refusal(f"validation.{field}", validated, rule, trained)


def _check_zero_bubble(job_config: JobConfig) -> None:
    """Refuse zero-bubble schedules with compile or checkpointing.

    They run the backward in two parts, which neither of these can do.
    """
    schedule = job_config.parallelism.pipeline_parallel_schedule
    mode = job_config.activation_checkpoint.mode
    others = [name for name in _SCHEDULES if name not in _ZERO_BUBBLE]
    if compiles_model(job_config) or mode != "none":
        working = 'compile.enable = false and activation_checkpoint.mode = "none"'
    elif job_config.validation.enable and schedule == "ZBVZeroBubble":
        working = "validation.enable = false"
    else:
        return
    raise refusal(
        "parallelism.pipeline_parallel_schedule",
        repr(schedule),
        f"needs {working}",
        *others,
    )


def _check_microbatches(job_config: JobConfig) -> int:
    """Check and return the number of microbatches."""
    layout, batch = job_config.parallelism, job_config.training.local_batch_size
    degree, schedule = layout.pipeline_parallel_degree, layout.pipeline_parallel_schedule
    size = layout.pipeline_parallel_microbatch_size
    if batch % size:
        rule = f"must be a multiple of parallelism.pipeline_parallel_microbatch_size = {size}"
        raise refusal("training.local_batch_size", batch, rule, *multiples(batch, size))
    microbatches = batch // size
    if schedule == "1F1B" and microbatches < degree:
        rule = (
            f"must give 1F1B a microbatch of {size} for each of the {degree} stages "
            "(parallelism.pipeline_parallel_microbatch_size, pipeline_parallel_degree)"
        )
        raise refusal("training.local_batch_size", batch, rule, size * degree)
    rounds = max(1, microbatches // degree)
    if schedule in ("Interleaved1F1B", "InterleavedZeroBubble") and microbatches % rounds:
        rule = (
            f"gives {schedule} {microbatches} microbatches, which must be a multiple of the "
            f"{degree} ranks of parallelism.pipeline_parallel_degree, or fewer"
        )
        unit = size * degree
        raise refusal("training.local_batch_size", batch, rule, *multiples(batch, unit))
    return microbatches


def _check_stages(job_config: JobConfig) -> None:
    """Refuse stages that are not as many for a rank as the schedule wants, or have no layer."""
    layout, layers = job_config.parallelism, model_args_of(job_config).n_layers
    degree, schedule = layout.pipeline_parallel_degree, layout.pipeline_parallel_schedule
    if layout.module_fqns_per_model_part is not None:
        raise RefusalError(
            "parallelism.module_fqns_per_model_part is not supported: leave it out, and set "
            "parallelism.pipeline_parallel_layers_per_stage"
        )
    ends = (
        layout.pipeline_parallel_first_stage_less_layers,
        layout.pipeline_parallel_last_stage_less_layers,
    )
    stages = degree * (1 if schedule in _ONE_STAGE else 2)
    if (per_stage := layout.pipeline_parallel_layers_per_stage) is not None:
        stages = ceil((layers + sum(ends)) / per_stage)
        of_a_rank = stages / degree
        if schedule in _ONE_STAGE:
            right = of_a_rank == 1
        elif schedule == "ZBVZeroBubble":
            right = of_a_rank == 2
        else:
            right = of_a_rank >= 2 and stages % degree == 0
        if not right:
            rule = (
                f"makes {stages} stages of {layers} layers, and {schedule} on {degree} ranks "
                "does not take so many; leave it out"
            )
            raise refusal("parallelism.pipeline_parallel_layers_per_stage", per_stage, rule)
    try:
        generate_llm_fqn_per_model_part(stages, layers, *ends)
    except ValueError as error:
        raise RefusalError(f"parallelism.pipeline_parallel_degree = {degree}: {error}") from None
