"""torchtitan's parallelisation of Llama-3, with Lighthouse attention around SDPA after it."""

from unittest import mock

import torch
from torch import nn
from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims
from torchtitan.models.llama3.infra import parallelize as titan

from torchtitan_lighthouse.attention.module import LighthouseAttention
from torchtitan_lighthouse.attention.ops import SELECTIVE_CHECKPOINT_SAVES
from torchtitan_lighthouse.titan.cpu import runs_on_cpu, use_sum_reductions

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
    with mock.patch.object(titan, "_op_sac_save_list", _SAVED_OPS):
        model = titan.parallelize_llama(model, parallel_dims, job_config)
    if runs_on_cpu():
        use_sum_reductions(model)
    args = model.model_args
    for number in args.lighthouse_layers:
        # A pipeline stage holds some of the layers, under their numbers in the whole model.
        if str(number) in model.layers:
            attention = model.layers[str(number)].attention
            attention.inner_attention = LighthouseAttention(
                attention.inner_attention, args.lighthouse
            )
    return model
