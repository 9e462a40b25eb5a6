"""The loss on held-out text: under dense SDPA, and in the Lighthouse stage under Lighthouse too."""

from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn
from torchtitan.components import validate

from torchtitan_lighthouse.runs.metrics import HELD_OUT_LIGHTHOUSE_LOSS
from torchtitan_lighthouse.titan.components.dataloader import build_validation_dataloader
from torchtitan_lighthouse.titan.stages import AttentionSwitch


class LighthouseValidator(validate.Validator):
    """torchtitan's Validator, on the same text each time.

    ``validation_metrics/loss`` is the loss under dense SDPA in either stage: the model will be
    served with it. In the Lighthouse stage ``validation_metrics/lighthouse_loss`` is that under the
    attention it trains with; the gap between them is what the dense stage has to recover.
    """

    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        self.metrics_processor.begin_interval()
        extra_metrics = {}
        if self.metrics_processor.stage == "lighthouse":
            extra_metrics[HELD_OUT_LIGHTHOUSE_LOSS] = self._loss(model_parts, step)
        with AttentionSwitch(model_parts).dense():
            loss = self._loss(model_parts, step)
        self.metrics_processor.log_validation(loss, step, extra_metrics)

    @torch.no_grad()
    def _loss(self, model_parts: list[nn.Module], step: int) -> float:
        """Measure the loss with the attention that the model has now."""
        recorder = _Recorder()
        with mock.patch.object(self, "metrics_processor", recorder):
            super().validate(model_parts, step)
        self.metrics_processor.ntokens_since_last_log += recorder.ntokens_since_last_log
        # torchtitan 0.2.2 sums the losses of the ranks that share a sequence, but not the tokens
        # that it divides by. This can go when it does.
        return recorder.loss / self.parallel_dims.cp


@dataclass
class _Recorder:
    """Takes the loss that torchtitan's validator logs, for it returns nothing."""

    ntokens_since_last_log: int = 0
    loss: float = float("nan")

    def log_validation(self, loss: float, step: int) -> None:
        self.loss = loss


def build_validator(**components: Any) -> LighthouseValidator:
    """Build the validator; the signature is that of TrainSpec's builders."""
    # torchtitan 0.2.2's Validator takes no dataloader, and builds one that waits forever where a
    # rank has no document. This can go when it takes one.
    with mock.patch.object(
        validate, "build_text_validation_dataloader", build_validation_dataloader
    ):
        return LighthouseValidator(**components)
