"""Blocks that are replayed as CUDA graphs, for models so small that launches set their pace."""

from typing import Any

import torch
from torch import nn


def use_cuda_graphs(model: nn.Module) -> None:
    """Compile the blocks of a model again, each to be recorded once and replayed from then on.

    Attention that is put in a block's place, by the switch of the stages or for validation, is
    compiled and recorded as a graph of its own.

    Args:
        model: a Llama-3 model on one GPU, whose blocks torchtitan has compiled.
    """
    for number, block in model.layers.named_children():
        graphed = torch.compile(
            block._orig_mod, fullgraph=True, options={"triton.cudagraphs": True}
        )
        model.layers.register_module(number, graphed)
    model.register_forward_pre_hook(_let_graphs_begin_anew)


def _let_graphs_begin_anew(model: nn.Module, _: Any) -> None:
    """Graphs may overwrite what earlier ones returned once no gradient is needed any more.

    That is before a step, but not between the batches that it accumulates gradients over.
    """
    accumulates = torch.is_grad_enabled() and next(model.parameters()).grad is not None
    if not accumulates:
        torch.compiler.cudagraph_mark_step_begin()
