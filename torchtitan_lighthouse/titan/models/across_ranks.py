"""How the layers attend across the ranks that share a sequence: by ring, or by one gather."""

from contextlib import AbstractContextManager, nullcontext
from unittest import mock

from torch import nn
from torchtitan.config import JobConfig
from torchtitan.models.llama3.infra import parallelize as titan

from torchtitan_lighthouse.attention.all_gather import AllGatherAttention
from torchtitan_lighthouse.attention.context_parallel import ContextParallel
from torchtitan_lighthouse.titan.cpu.device import runs_on_cpu


def gathers(job_config: JobConfig, attn_type: str) -> bool:
    """Whether SDPA shall gather keys and values; torch has no ring attention for the CPU."""
    asked = job_config.parallelism.context_parallel_attention == "allgather"
    return attn_type == "sdpa" and (asked or runs_on_cpu())


def without_ring_attention(gathers: bool) -> AbstractContextManager:
    """Keep torchtitan 0.2.2 from hooking its only form, ring attention, on SDPA."""
    if gathers:
        return mock.patch.object(titan, "apply_cp_to_attention_module")
    return nullcontext()


def use_all_gather_attention(model: nn.Module, context_parallel: ContextParallel) -> None:
    """Put attention by gathered keys and values where SDPA stands in each block."""
    for block in model.layers.values():
        block.attention.inner_attention = AllGatherAttention(context_parallel)
