"""Layouts of the ranks."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError, refusal
from torchtitan_lighthouse.titan.models.of_job import model_args_of


def check_parallelism(job_config: JobConfig) -> None:
    model_args = model_args_of(job_config)
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
    attention = parallelism.context_parallel_attention
    if attention not in ("ring", "allgather"):
        raise refusal(
            "parallelism.context_parallel_attention",
            repr(attention),
            "is no way to attend across ranks",
            *("ring", "allgather"),
        )
