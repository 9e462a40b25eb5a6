"""The two stages: which one a step is in, and turning a model from one to the other."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn
from torchtitan.models.llama3.model.model import Attention

from torchtitan_lighthouse.attention.module import LighthouseAttention
from torchtitan_lighthouse.titan.config import Lighthouse

Stage = Literal["lighthouse", "dense"]


def stage_at(step: int, section: Lighthouse) -> Stage:
    """Return the stage of a training step, counted from 1. It depends on nothing else."""
    in_first_stage = section.steps == -1 or step <= section.steps
    return "lighthouse" if section.enable and in_first_stage else "dense"


def has_switch(section: Lighthouse, training_steps: int) -> bool:
    """Whether a run of ``training_steps`` leaves the Lighthouse stage on its way."""
    return section.enable and 0 <= section.steps < training_steps


class AttentionSwitch:
    """Turns the Lighthouse layers of a model to dense SDPA and back.

    It reaches them through whatever wraps the blocks: activation checkpointing, ``torch.compile``
    and FSDP leave a block's attention assignable. A layer in dense use runs the very module that
    its Lighthouse wrapper holds, so it shares the compiled graph of the layers that are always
    dense.
    """

    def __init__(self, model_parts: Iterable[nn.Module]) -> None:
        """Take a model, or its pipeline stages, as the Lighthouse stage has them."""
        self._layers = [
            (module, module.inner_attention)
            for part in model_parts
            for module in part.modules()
            if isinstance(module, Attention)
            and isinstance(module.inner_attention, LighthouseAttention)
        ]
        self.stage: Stage = "lighthouse"

    def use(self, stage: Stage) -> None:
        """Run the Lighthouse layers as the stage wants them."""
        for layer, lighthouse in self._layers:
            layer.inner_attention = lighthouse if stage == "lighthouse" else lighthouse.attention
        self.stage = stage

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Run every layer dense inside the context, whatever the stage is."""
        stage = self.stage
        self.use("dense")
        try:
            yield
        finally:
            self.use(stage)
