"""Metrics processors of jobs that never train."""

from pathlib import Path

from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims

from torchtitan_lighthouse.titan.components.metrics import (
    LighthouseMetricsProcessor,
    build_metrics_processor,
)
from torchtitan_lighthouse.titan.config import LighthouseConfigManager


def job(folder: Path, *args: str) -> JobConfig:
    return LighthouseConfigManager().parse_args(
        ["--job.dump_folder", str(folder), "--model.flavor", "tiny_byte", *args]
    )


def build(job_config: JobConfig, cp: int = 1) -> LighthouseMetricsProcessor:
    degrees = {"dp_replicate": 1, "dp_shard": 1, "cp": cp, "tp": 1, "pp": 1, "ep": 1, "etp": 1}
    dims = ParallelDims(**degrees, world_size=cp)
    processor = build_metrics_processor(job_config, dims)
    processor.num_flops_per_token = 1
    return processor


def log(processor: LighthouseMetricsProcessor, step: int, loss: float = 1.0) -> None:
    processor.data_loading_times.append(0.1)
    processor.ntokens_since_last_log = 10
    processor.log(step, loss, loss, 0.5, extra_metrics={"lr": 0.25})
