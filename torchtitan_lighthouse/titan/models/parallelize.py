"""torchtitan's parallelisation of Llama-3, with Lighthouse attention around SDPA after it."""

from torch import nn
from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims
from torchtitan.models.llama3.infra import parallelize as titan

from torchtitan_lighthouse.attention.context_parallel import ContextParallel
from torchtitan_lighthouse.attention.module import LighthouseAttention
from torchtitan_lighthouse.titan.cpu.device import runs_on_cpu, use_sum_reductions
from torchtitan_lighthouse.titan.models.across_ranks import (
    gathers,
    use_all_gather_attention,
    without_ring_attention,
)
from torchtitan_lighthouse.titan.models.checkpointing import torchtitan_checkpointing
from torchtitan_lighthouse.titan.models.cuda_graphs import use_cuda_graphs
from torchtitan_lighthouse.titan.models.piece_order import remember_piece_order
from torchtitan_lighthouse.titan.models.rope import rotation_of, use_real_rotation
from torchtitan_lighthouse.titan.models.static_graphs import use_static_graphs


def parallelize_lighthouse(
    model: nn.Module, parallel_dims: ParallelDims, job_config: JobConfig
) -> nn.Module:
    """Parallelise a Llama-3 model, or one pipeline stage of it, and wrap its Lighthouse layers.

    Wrapping comes last: whatever torchtitan hooks on SDPA stays on SDPA, inside Lighthouse
    attention.

    Args:
        model: a ``Transformer`` on the meta device, whose ``model_args`` name the layers.
    """
    use_real_rotation()
    use_static_graphs()
    args = model.model_args
    context_parallel = None
    if parallel_dims.cp_enabled:
        context_parallel = ContextParallel.of(parallel_dims.get_mesh("cp").get_group())
        remember_piece_order()
    no_ring = gathers(job_config, args.attn_type)
    with (
        torchtitan_checkpointing(job_config) as titan_job,
        without_ring_attention(no_ring),
    ):
        model = titan.parallelize_llama(model, parallel_dims, titan_job)
    if job_config.compile.cuda_graphs and not runs_on_cpu():
        use_cuda_graphs(model)
    if no_ring and context_parallel:
        use_all_gather_attention(model, context_parallel)
    if runs_on_cpu():
        use_sum_reductions(model)
    rotation = None
    if args.lighthouse and args.lighthouse.rope_aligned:
        rotation = rotation_of(args, args.lighthouse.coarsest_window)
    for number in args.lighthouse_layers:
        # A pipeline stage holds some of the layers, under their numbers in the whole model.
        if str(number) in model.layers:
            attention = model.layers[str(number)].attention
            attention.inner_attention = LighthouseAttention(
                attention.inner_attention, args.lighthouse, context_parallel, rotation
            )
    return model
