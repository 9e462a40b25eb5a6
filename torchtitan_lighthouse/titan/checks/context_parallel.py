"""Checks how ranks that share a sequence attend."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError, refusal
from torchtitan_lighthouse.titan.cpu.device import runs_on_cpu
from torchtitan_lighthouse.titan.models.of_job import model_args_of


def check_context_parallel(job_config: JobConfig) -> None:
    """Refuse what torch's ring attention, or this package's one gather, would compute wrong.

    Raises:
        RefusalError: names the field, its value and what would work.
    """
    layout = job_config.parallelism
    way = layout.context_parallel_attention
    if way not in ("ring", "allgather"):
        rule = "is no way to attend across ranks"
        raise refusal(
            "parallelism.context_parallel_attention", repr(way), rule, "ring", "allgather"
        )
    if layout.context_parallel_degree == 1:
        return
    attn_type = model_args_of(job_config).attn_type
    balancer = layout.context_parallel_load_balancer
    if attn_type == "sdpa" and balancer != "headtail":
        raise RefusalError(
            f"parallelism.context_parallel_load_balancer = {balancer!r} must be 'headtail', the "
            "order in which SDPA takes the pieces of a sequence"
        )
    if way == "allgather":
        _check_one_gather(job_config, attn_type)


def _check_one_gather(job_config: JobConfig, attn_type: str) -> None:
    field = "parallelism.context_parallel_attention"
    if attn_type != "sdpa":
        rule = f"is for SDPA, and model.flavor has attn_type {attn_type!r}"
        raise refusal(field, "'allgather'", rule, "ring")
    if job_config.training.mixed_precision_param == "float32" and not runs_on_cpu():
        rule = 'needs training.mixed_precision_param = "bfloat16" on GPUs'
        raise refusal(field, "'allgather'", rule)
