"""torchtitan's metrics with the stage in them, kept in ``metrics.jsonl`` too."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

import torch
from torchtitan.components.metrics import BaseLogger, MetricsProcessor, _get_metrics_rank
from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims
from torchtitan.protocols import BaseModelArgs
from torchtitan.tools.logging import logger

from torchtitan_lighthouse.runs.metrics import (
    HELD_OUT_LIGHTHOUSE_LOSS,
    MetricsLog,
    continue_metrics,
)
from torchtitan_lighthouse.titan.components.norm_spread import ROUNDING, NormSpread
from torchtitan_lighthouse.titan.components.wandb_run import set_wandb_defaults
from torchtitan_lighthouse.titan.launch.rank_log import show_rank
from torchtitan_lighthouse.titan.stages import Stage, stage_at


class LighthouseMetricsProcessor(MetricsProcessor):
    """torchtitan's MetricsProcessor, which also says the stage.

    It does so on the console, in ``metrics.jsonl``, in wandb and in TensorBoard.
    """

    def __init__(
        self, job_config: JobConfig, parallel_dims: ParallelDims, tag: str | None = None
    ) -> None:
        config = job_config.metrics
        metrics_rank = _get_metrics_rank(parallel_dims, job_config)
        show_rank(metrics_rank)
        logs = torch.distributed.get_rank() == metrics_rank
        if config.enable_wandb and (logs or config.save_for_all_ranks):
            set_wandb_defaults(job_config, torch.distributed.get_rank())
        super().__init__(job_config, parallel_dims, tag)
        self._logs, self._warned = logs, set[str]()
        self.norm_spread: NormSpread | None = None
        log = _open_metrics_log(job_config) if logs else None
        self.logger: _StageLogger = _StageLogger(self.logger, log)
        self.logger.stage = stage_at(1, job_config.lighthouse)

    @property
    def stage(self) -> Stage:
        """The stage of the steps that are logged."""
        return self.logger.stage

    def enter(self, stage: Stage, flops_per_token: int) -> None:
        """Begin a stage: the next figures that are logged are of its steps alone."""
        self.logger.stage = stage
        self.num_flops_per_token = flops_per_token
        self.begin_interval()

    def begin_interval(self) -> None:
        """Start the interval of the next logged figures now."""
        self.ntokens_since_last_log = 0
        self.data_loading_times.clear()
        self.time_last_log = time.perf_counter()
        self.device_memory_monitor.reset_peak_stats()

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        # torchtitan 0.2.2 takes the tokens of a sequence for those of each of the ranks that share
        # it: it counts them that often, and divides a rank's loss by all of them. This can go when
        # it counts a rank's own.
        degree = self.parallel_dims.cp
        metrics = dict(extra_metrics or {})
        if "n_tokens_seen" in metrics:
            metrics["n_tokens_seen"] //= degree
        # And it divides the time by metrics.log_freq, however many steps there were.
        seconds = time.perf_counter() - self.time_last_log
        metrics["time_metrics/end_to_end(s)"] = seconds / self._steps_in_interval()
        least = self.norm_spread.least() if self.norm_spread else {}
        for name, (layer, spread) in least.items():
            metrics[f"lighthouse/norm_spread_{name}/min"] = spread
            self._warn_of_equal_norms(step, name, layer, spread)
        self._warn_of_lost_weights(step, global_avg_loss, grad_norm)
        with _at_line_end(f"  stage: {self.stage}"):
            super().log(step, global_avg_loss, global_max_loss * degree, grad_norm, metrics)

    def log_validation(
        self, loss: float, step: int, extra_metrics: dict[str, Any] | None = None
    ) -> None:
        text = f"  stage: {self.stage}"
        if extra_metrics and HELD_OUT_LIGHTHOUSE_LOSS in extra_metrics:
            text += f"  under Lighthouse: {extra_metrics[HELD_OUT_LIGHTHOUSE_LOSS]:.4f}"
        with _at_line_end(text):
            super().log_validation(loss, step, extra_metrics)
        self.data_loading_times.clear()

    def _steps_in_interval(self) -> float:
        training, dims = self.job_config.training, self.parallel_dims
        at_once = training.local_batch_size * dims.dp_replicate * dims.dp_shard
        return len(self.data_loading_times) / max(training.global_batch_size // at_once, 1)

    def _warn_of_lost_weights(self, step: int, loss: float, grad_norm: float) -> None:
        """Warn where the loss or the gradient norm is not finite.

        The norm is that of all ranks, and once it is not finite no weight is.
        """
        if not isfinite(loss + grad_norm):
            self._warn_once(
                "lost weights",
                f"Step {step}: the loss is {loss} and the norm of the gradient {grad_norm}. No "
                "weight recovers from that, and training goes on as torchtitan's does: stop it, "
                "and resume a checkpoint from before (checkpoint.load_step)",
            )

    def _warn_of_equal_norms(self, step: int, name: str, layer: int, spread: float) -> None:
        if spread < ROUNDING:
            self._warn_once(
                f"norms of {name}",
                f"Step {step}: in layer {layer} the norms of {name} spread over {spread:.1e} of "
                f"their median, less than the {ROUNDING:.1e} that bfloat16 rounds by: what "
                'lighthouse.scorer = "norm" selects there is close to arbitrary. Try another '
                f"scorer, or add {layer} to lighthouse.dense_layers",
            )

    def _warn_once(self, what: str, message: str) -> None:
        if self._logs and what not in self._warned:
            self._warned.add(what)
            logger.warning(message)


def build_metrics_processor(
    job_config: JobConfig,
    parallel_dims: ParallelDims,
    model_args: BaseModelArgs | None = None,
    tag: str | None = None,
) -> LighthouseMetricsProcessor:
    """Build the metrics processor; the signature is that of TrainSpec's builders."""
    return LighthouseMetricsProcessor(job_config, parallel_dims, tag)


class _StageLogger(BaseLogger):
    """Adds the stage to the metrics, writes them to ``log`` and hands them on to ``inner``."""

    stage: Stage

    def __init__(self, inner: BaseLogger, log: MetricsLog | None) -> None:
        self._inner = inner
        self._log = log

    def log(self, metrics: dict[str, Any], step: int) -> None:
        metrics = {**metrics, "lighthouse/stage": int(self.stage == "lighthouse")}
        if self._log:
            self._log.append(step, self.stage, metrics)
        self._inner.log(metrics, step)

    def close(self) -> None:
        if self._log:
            self._log.close()
        self._inner.close()


def _open_metrics_log(job_config: JobConfig) -> MetricsLog:
    folder, checkpoint = job_config.job.dump_folder, job_config.checkpoint
    if (
        checkpoint.enable
        and checkpoint.initial_load_path
        and not checkpoint.initial_load_model_only
    ):
        continue_metrics(folder, checkpoint.initial_load_path)
    return MetricsLog(folder)


@contextmanager
def _at_line_end(text: str) -> Iterator[None]:
    """Add ``text`` to the lines that torchtitan logs inside the context."""

    def add(record: logging.LogRecord) -> bool:
        record.msg += text
        return True

    logger.addFilter(add)
    try:
        yield
    finally:
        logger.removeFilter(add)
