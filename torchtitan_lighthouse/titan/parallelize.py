"""torchtitan's parallelisation of Llama-3, with Lighthouse attention around SDPA after it."""

from contextlib import nullcontext
from unittest import mock

import torch
from torch import nn
from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims
from torchtitan.models.llama3.infra import parallelize as titan

from torchtitan_lighthouse.attention.context_parallel import ContextParallel
from torchtitan_lighthouse.attention.module import LighthouseAttention
from torchtitan_lighthouse.attention.ops import SELECTIVE_CHECKPOINT_SAVES
from torchtitan_lighthouse.titan.cpu import (
    runs_on_cpu,
    use_all_gather_attention,
    use_sum_reductions,
    without_ring_attention,
)

# torchtitan 0.2.2 takes the ops that selective checkpointing saves from a module global. The
# selection must be among them, for a recompute must not select differently; SDPA's CPU kernel is
# missing there. This can go when the list is an argument or part of the job's config.
_SAVED_OPS = {
    *titan._op_sac_save_list,
    *SELECTIVE_CHECKPOINT_SAVES,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def parallelize_lighthouse(
    model: nn.Module, parallel_dims: ParallelDims, job_config: JobConfig
) -> nn.Module:
    """Parallelise a Llama-3 model, or one pipeline stage of it, and wrap its Lighthouse layers.

    Wrapping comes last: whatever torchtitan hooks on SDPA stays on SDPA, inside Lighthouse
    attention.

    Args:
        model: a ``Transformer`` on the meta device, whose ``model_args`` name the layers.
    """
    args = model.model_args
    context_parallel = None
    if parallel_dims.cp_enabled:
        context_parallel = ContextParallel.of(parallel_dims.get_mesh("cp").get_group())
    no_ring = runs_on_cpu() and args.attn_type == "sdpa"
    with (
        mock.patch.object(titan, "_op_sac_save_list", _SAVED_OPS),
        without_ring_attention() if no_ring else nullcontext(),
    ):
        model = titan.parallelize_llama(model, parallel_dims, job_config)
    if no_ring and context_parallel:
        use_all_gather_attention(model, context_parallel)
    if runs_on_cpu():
        use_sum_reductions(model)
    for number in args.lighthouse_layers:
        # A pipeline stage holds some of the layers, under their numbers in the whole model.
        if str(number) in model.layers:
            attention = model.layers[str(number)].attention
            attention.inner_attention = LighthouseAttention(
                attention.inner_attention, args.lighthouse, context_parallel
            )
    return model
