"""Checks how a job's ranks divide the model and the data."""

import os
from math import gcd, prod

from torchtitan.config import JobConfig
from torchtitan.config.job_config import Parallelism

from torchtitan_lighthouse.refusal import RefusalError, multiples, refusal
from torchtitan_lighthouse.titan.checks.compiled import require_compiled_model
from torchtitan_lighthouse.titan.checks.context_parallel import check_context_parallel
from torchtitan_lighthouse.titan.checks.pipeline import check_pipeline
from torchtitan_lighthouse.titan.launch.ranks import number_of_ranks
from torchtitan_lighthouse.titan.models.of_job import model_args_of

_DEGREES = ("data_parallel_replicate", "context_parallel", "tensor_parallel", "pipeline_parallel")


def check_parallelism(job_config: JobConfig) -> None:
    """Refuse what torchtitan refuses late or trains otherwise."""
    layout = job_config.parallelism
    for kind in ("expert_parallel", "expert_tensor_parallel"):
        if (degree := getattr(layout, f"{kind}_degree")) != 1:
            raise refusal(f"parallelism.{kind}_degree", degree, "must be 1: there are no experts")
    _check_world(layout)
    _check_tensor_parallel(job_config)
    check_pipeline(job_config)
    check_context_parallel(job_config)


def _check_world(layout: Parallelism) -> None:
    """Refuse degrees that do not multiply to the ranks, or that torchtitan cannot combine."""
    degrees = {f"{kind}_degree": getattr(layout, f"{kind}_degree") for kind in _DEGREES}
    sharding = layout.data_parallel_shard_degree
    if "WORLD_SIZE" in os.environ:
        ranks, placed = number_of_ranks(), prod(degrees.values())
        if ranks % placed or sharding not in (-1, ranks // placed):
            product = " · ".join(f"{name} = {degree}" for name, degree in degrees.items())
            raise RefusalError(
                f"parallelism: {product} · data_parallel_shard_degree = {sharding} must be the "
                f"number of ranks, {ranks} (a data_parallel_shard_degree of -1 takes those left)"
            )
        sharding = ranks // placed
    replicas = layout.data_parallel_replicate_degree
    others = layout.tensor_parallel_degree * layout.pipeline_parallel_degree
    if replicas > 1 and sharding == 1 and layout.context_parallel_degree == 1 and others > 1:
        rule = (
            "replicates a model that tensor or pipeline parallelism splits, which torchtitan does "
            "only where it is sharded too: make parallelism.data_parallel_shard_degree 2 or more"
        )
        raise refusal("parallelism.data_parallel_replicate_degree", replicas, rule)


def _check_tensor_parallel(job_config: JobConfig) -> None:
    layout, args = job_config.parallelism, model_args_of(job_config)
    degree = layout.tensor_parallel_degree
    # The vocabulary may be any: torch splits it unevenly, and trains the same.
    split = {"key and value heads": args.n_kv_heads or args.n_heads, "FFN columns": args.ffn_width}
    for what, size in split.items():
        if size % degree:
            most = gcd(*split.values())
            working = [n for n in range(1, most + 1) if most % n == 0]
            rule = f"must divide the {size} {what} of model.flavor"
            raise refusal("parallelism.tensor_parallel_degree", degree, rule, *working)
    if layout.enable_async_tensor_parallel:
        require_compiled_model(job_config, "parallelism.enable_async_tensor_parallel", "true")


def check_sequence_lengths(job_config: JobConfig) -> None:
    """Refuse lengths that the ranks that share a sequence cannot cut as torchtitan wants."""
    layout = job_config.parallelism
    # torchtitan's rule, which it asks of any job, and of the training alone.
    unit = 2 * layout.tensor_parallel_degree * layout.context_parallel_degree
    sections = {"training": job_config.training}
    if job_config.validation.enable:
        sections["validation"] = job_config.validation
    for name, section in sections.items():
        if section.seq_len % unit:
            rule = (
                f"must be a multiple of {unit} = 2 · parallelism.tensor_parallel_degree · "
                "context_parallel_degree"
            )
            working = multiples(section.seq_len, unit)
            raise refusal(f"{name}.seq_len", section.seq_len, rule, *working)
