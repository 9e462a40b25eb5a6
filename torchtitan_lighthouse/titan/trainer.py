"""torchtitan's trainer, in two stages."""

import time
from collections.abc import Iterator
from datetime import timedelta

import torch
from torchtitan.config import JobConfig
from torchtitan.distributed.utils import set_pg_timeouts
from torchtitan.tools.logging import logger
from torchtitan.train import Trainer

from torchtitan_lighthouse.titan.config import JOB_FILE
from torchtitan_lighthouse.titan.spec import build_checked_tokenizer
from torchtitan_lighthouse.titan.stages import AttentionSwitch, Stage, stage_at

_NAMES = {"lighthouse": "Lighthouse attention", "dense": "dense SDPA"}


class LighthouseTrainer(Trainer):
    """Trains with Lighthouse attention up to step ``lighthouse.steps``, with dense SDPA after it.

    The stage follows from the step alone, so a restart at any step is in the right one.

    Raises:
        ValueError: the job cannot train; raised before any process group or model is built.
    """

    def __init__(self, job_config: JobConfig) -> None:
        job_config.lighthouse.two_stage_trainer = True
        job_config.job.save_config_file = job_config.job.save_config_file or JOB_FILE
        job_config.tokenizer.built = build_checked_tokenizer(job_config)
        super().__init__(job_config)
        self.attention_switch = AttentionSwitch(self.model_parts)
        first_stage_flops = self.metrics_processor.num_flops_per_token
        saved = self.model_args.flops_saved(job_config.training.seq_len)
        self._flops_per_token: dict[Stage, int] = {
            "lighthouse": first_stage_flops,
            "dense": first_stage_flops + saved,
        }
        self._stage: Stage | None = None

    def train_step(
        self, data_iterator: Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]
    ) -> None:
        stage = stage_at(self.step, self.job_config.lighthouse)
        if stage == self._stage:
            super().train_step(data_iterator)
        elif self._stage is None:
            self._enter(stage)
            super().train_step(data_iterator)
        else:
            # The step may compile, so it gets the time that torchtitan gives the very first one.
            self._set_timeouts(self.job_config.comm.init_timeout_seconds)
            self._enter(stage)
            super().train_step(data_iterator)
            self._set_timeouts(self.job_config.comm.train_timeout_seconds)

    def _enter(self, stage: Stage) -> None:
        logger.info(f"Step {self.step}: training with {_NAMES[stage]}")
        self.attention_switch.use(stage)
        self._stage = stage
        metrics = self.metrics_processor
        metrics.set_stage(stage)
        metrics.num_flops_per_token = self._flops_per_token[stage]
        # The next throughput is that of this stage alone.
        metrics.ntokens_since_last_log = 0
        metrics.data_loading_times.clear()
        metrics.time_last_log = time.perf_counter()

    def _set_timeouts(self, seconds: int) -> None:
        set_pg_timeouts(timedelta(seconds=seconds), self.parallel_dims)
