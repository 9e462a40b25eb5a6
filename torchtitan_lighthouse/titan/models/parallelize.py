"""torchtitan's parallelisation of Llama-3, with Lighthouse attention around SDPA after it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from unittest import mock

import torch
from torch import nn
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims, activation_checkpoint
from torchtitan.models.llama3.infra import parallelize as titan

from torchtitan_lighthouse.attention import ops
from torchtitan_lighthouse.attention.context_parallel import ContextParallel
from torchtitan_lighthouse.attention.module import LighthouseAttention
from torchtitan_lighthouse.titan.cpu.device import (
    runs_on_cpu,
    use_all_gather_attention,
    use_sum_reductions,
    without_ring_attention,
)


@contextmanager
def _saving_selections() -> Iterator[None]:
    """Have activation checkpointing save the selections, for a recompute must not select anew.

    torchtitan 0.2.2 takes the ops that "op" checkpointing saves from a module global, where SDPA's
    CPU kernel is missing, and a checkpoint of a whole block saves nothing but its input. This can
    go when both are arguments or part of the job's config.
    """
    saved_ops = {
        *titan._op_sac_save_list,
        *ops.SELECTIVE_CHECKPOINT_SAVES,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
    wrapper = partial(
        activation_checkpoint.ptd_checkpoint_wrapper,
        context_fn=partial(create_selective_checkpoint_contexts, [*ops.SELECTION]),
    )
    with (
        mock.patch.object(titan, "_op_sac_save_list", saved_ops),
        mock.patch.object(activation_checkpoint, "ptd_checkpoint_wrapper", wrapper),
    ):
        yield


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
        _saving_selections(),
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
