"""torchtitan's trainer, in two stages."""

import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torchtitan.train
from torchtitan.config import JobConfig
from torchtitan.distributed.utils import set_pg_timeouts
from torchtitan.protocols import train_spec
from torchtitan.tools.logging import logger
from torchtitan.train import Trainer

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.components.checkpoints import LighthouseCheckpointManager
from torchtitan_lighthouse.titan.components.loss import LayoutFreeLoss
from torchtitan_lighthouse.titan.components.norm_spread import NormSpread
from torchtitan_lighthouse.titan.components.partial_gradients import sum_partial_gradients
from torchtitan_lighthouse.titan.config import JOB_FILE
from torchtitan_lighthouse.titan.config.command_line import LAUNCH
from torchtitan_lighthouse.titan.folder.job import write_job
from torchtitan_lighthouse.titan.folder.lock import lock_folder
from torchtitan_lighthouse.titan.folder.steps import finished_step, set_later_steps_aside
from torchtitan_lighthouse.titan.launch.error_file import record_message
from torchtitan_lighthouse.titan.launch.rank_log import show_warnings_of_all_ranks
from torchtitan_lighthouse.titan.launch.ranks import this_rank
from torchtitan_lighthouse.titan.launch.stop import StopRequest
from torchtitan_lighthouse.titan.spec import build_checked_tokenizer, spec_with
from torchtitan_lighthouse.titan.stages import AttentionSwitch, Stage, stage_at
from torchtitan_lighthouse.titan.torch_version import torch_is_before

_NAMES = {"lighthouse": "Lighthouse attention", "dense": "dense SDPA"}

_STEPS_BETWEEN_LOOKS = 10
"""At the norms that select: a look launches as many kernels as the forward of a block."""


class LighthouseTrainer(Trainer):
    """Trains with Lighthouse attention up to step ``lighthouse.steps``, with dense SDPA after it.

    The stage follows from the step alone, so a restart at any step is in the right one.

    Raises:
        RefusalError: the job cannot train; raised before any process group or model is built.
        SystemExit: status 0, where the run is finished, as early; 128 + N, from ``train``, when
            signal N has stopped it.
    """

    checkpointer: LighthouseCheckpointManager
    loss_fn: LayoutFreeLoss

    def __init__(self, job_config: JobConfig) -> None:
        if (step := finished_step(job_config)) is not None:
            logger.info(f"Finished at step {step}, nothing to train: {job_config.job.dump_folder}")
            raise SystemExit(0)
        tokenizer = build_checked_tokenizer(job_config)
        # torchtitan would write the file here; it is this run's only when it has trained a step.
        self._job_file = Path(
            job_config.job.dump_folder, job_config.job.save_config_file or JOB_FILE
        )
        job_config.job.save_config_file = None
        if "LOCAL_RANK" not in os.environ:
            raise RefusalError(f"there are no ranks without torchrun: {LAUNCH}")
        if _is_first_rank():
            self._lock = lock_folder(Path(job_config.job.dump_folder))
        # torchtitan 0.2.2's TrainSpec names builders of all parts but this one.
        checkpoint_manager = partial(LighthouseCheckpointManager, job_config, tokenizer)
        with (
            mock.patch.object(torchtitan.train, "CheckpointManager", checkpoint_manager),
            mock.patch.object(train_spec, "get_train_spec", spec_with(tokenizer)),
        ):
            super().__init__(job_config)
        self.attention_switch = AttentionSwitch(self.model_parts)
        first_stage_flops = self.metrics_processor.num_flops_per_token
        saved = self.model_args.flops_saved(job_config.training.seq_len)
        self._flops_per_token: dict[Stage, int] = {
            "lighthouse": first_stage_flops,
            "dense": first_stage_flops + saved,
        }
        self._norm_spread = NormSpread(self.model_parts)
        self.metrics_processor.norm_spread = self._norm_spread
        self._stage: Stage | None = None
        self._has_trained = False
        self._stop = StopRequest()

    def train(self) -> None:
        with self._stop.listening():
            super().train()

    def should_continue_training(self) -> bool:
        if not super().should_continue_training():
            return False
        if received := self._stop.agreed():
            self._end_early(received)
        return True

    def train_step(
        self, data_iterator: Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]
    ) -> None:
        stage = stage_at(self.step, self.job_config.lighthouse)
        if stage == self._stage:
            self._step_in_stage(data_iterator)
        elif self._stage is None:
            self._enter(stage)
            self._step_in_stage(data_iterator)
            self._begin()
        else:
            # The step may compile, so it gets the time that torchtitan gives the very first one.
            self._set_timeouts(self.job_config.comm.init_timeout_seconds)
            self._enter(stage)
            self._step_in_stage(data_iterator)
            self._set_timeouts(self.job_config.comm.train_timeout_seconds)

    def forward_backward_step(
        self,
        *,
        input_dict: dict[str, torch.Tensor],
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor,
    ) -> torch.Tensor:
        if self.parallel_dims.pp_enabled:
            self.loss_fn.gradient_scale = 1 / global_valid_tokens
        loss = super().forward_backward_step(
            input_dict=input_dict, labels=labels, global_valid_tokens=global_valid_tokens
        )
        if torch_is_before(2, 12):
            sum_partial_gradients(self.model_parts)
        return loss

    def _step_in_stage(
        self, data_iterator: Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]
    ) -> None:
        due = self.step == 1 or self.step % _STEPS_BETWEEN_LOOKS == 0
        looks = due and self.metrics_processor.should_log(self.step)
        looks = looks and self._stage == "lighthouse"
        with self._norm_spread.measured(self.device) if looks else nullcontext():
            super().train_step(data_iterator)

    def _enter(self, stage: Stage) -> None:
        logger.info(f"Step {self.step}: training with {_NAMES[stage]}")
        self.attention_switch.use(stage)
        self._stage = stage
        self.metrics_processor.enter(stage, self._flops_per_token[stage])

    def _begin(self) -> None:
        """Take over the dump folder, now that this launch has trained a step."""
        self._has_trained = True
        show_warnings_of_all_ranks()
        if _is_first_rank():
            write_job(self._job_file, self.job_config)
            if aside := set_later_steps_aside(self.job_config):
                logger.warning(
                    f"Checkpoints after step {self.job_config.checkpoint.load_step} are in {aside} "
                    "now. Leave out checkpoint.load_step to continue this run"
                )

    def _end_early(self, received: signal.Signals) -> None:
        saved = self.checkpointer.save_whole(self.step) if self._has_trained else None
        if saved:
            outcome = f"saved in {saved}. The same command continues from there"
        elif self._has_trained:
            outcome = "nothing is saved, as the job has no checkpoints"
        else:
            outcome = "this launch had trained nothing yet"
        message = f"Stopped by {received.name} after step {self.step}: {outcome}."
        logger.info(message)
        record_message(message)
        self.close()
        torch.distributed.destroy_process_group()
        raise SystemExit(128 + received)

    def _set_timeouts(self, seconds: int) -> None:
        set_pg_timeouts(timedelta(seconds=seconds), self.parallel_dims)


def _is_first_rank() -> bool:
    return this_rank() == 0
