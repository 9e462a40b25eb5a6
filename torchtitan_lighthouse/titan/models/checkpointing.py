"""What activation checkpointing keeps: torchtitan's forms, with selections, and "attention".

"attention" keeps the output and the log-sum-exp of SDPA, N rows in a dense layer and S in a
Lighthouse one, and recomputes the rest of a block: a checkpoint of a whole block that does not run
SDPA twice. It is a value of ``activation_checkpoint.selective_ac_option``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest import mock

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from torchtitan.config import JobConfig
from torchtitan.config.job_config import ActivationCheckpoint
from torchtitan.distributed import activation_checkpoint
from torchtitan.models.llama3.infra import parallelize as titan
from torchtitan.tools.logging import logger

from torchtitan_lighthouse.attention import ops
from torchtitan_lighthouse.attention.all_gather import attend_across_ranks
from torchtitan_lighthouse.attention.exchange import exchange_edges

_SDPA = {
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable.default,
    attend_across_ranks,
    torch.ops.torch_attn._varlen_attn.default,
    torch._higher_order_ops.flex_attention,
}
"""Every form of attention that a flavor's layers may run, in every backend."""


def keeps_attention(section: ActivationCheckpoint) -> bool:
    """Whether a job's section asks for the form "attention"."""
    return section.mode == "selective" and section.selective_ac_option == "attention"


@contextmanager
def torchtitan_checkpointing(job_config: JobConfig) -> Iterator[JobConfig]:
    """Yield the job as torchtitan understands it, and have torchtitan save this package's ops.

    The context is for parallelizing the model. A selection is always saved, for a recompute must
    not select anew.

    torchtitan 0.2.2 takes the ops that "op" checkpointing saves from a module global, where SDPA's
    CPU kernel is missing, and a checkpoint of a whole block saves nothing but its input. This can
    go when both are arguments or part of the job's config.
    """
    section = job_config.activation_checkpoint
    saved_in_op = {
        *titan._op_sac_save_list,
        *ops.SELECTIVE_CHECKPOINT_SAVES,
        exchange_edges,
        *_SDPA,
    }
    saved_in_block = {*ops.SELECTION, exchange_edges}
    if keeps_attention(section):
        saved_in_block |= _SDPA
        job_config = replace(job_config, activation_checkpoint=replace(section, mode="full"))
        logger.info("Checkpoints of whole blocks will keep what attention returns")
    wrapper = partial(
        activation_checkpoint.ptd_checkpoint_wrapper,
        context_fn=partial(create_selective_checkpoint_contexts, [*saved_in_block]),
    )
    with (
        mock.patch.object(titan, "_op_sac_save_list", saved_in_op),
        mock.patch.object(activation_checkpoint, "ptd_checkpoint_wrapper", wrapper),
    ):
        yield job_config
