"""The sections that this package adds to torchtitan's config, and what reads a job.

``job.custom_config_module = "torchtitan_lighthouse.titan.config"`` names it in a stock launch.
"""

from torchtitan_lighthouse.titan.config.job_config import JobConfig, Lighthouse, Rope, Tokenizer
from torchtitan_lighthouse.titan.config.manager import (
    JOB_FILE,
    LighthouseConfigManager,
    read_job,
)

__all__ = [
    "JOB_FILE",
    "JobConfig",
    "Lighthouse",
    "LighthouseConfigManager",
    "Rope",
    "Tokenizer",
    "read_job",
]
