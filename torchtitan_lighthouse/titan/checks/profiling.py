"""Checks torchtitan's profilers."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError, refusal
from torchtitan_lighthouse.titan.cpu.device import runs_on_cpu


def check_profiling(job_config: JobConfig) -> None:
    """Refuse to profile without a GPU, or more often than a profile takes.

    Raises:
        RefusalError: names the field, its value and what would work.
    """
    section = job_config.profiling
    for field in ("enable_profiling", "enable_memory_snapshot"):
        if getattr(section, field) and runs_on_cpu():
            raise RefusalError(
                f"profiling.{field} = true needs a GPU: torchtitan 0.2.2 profiles no CPU"
            )
    cycle = section.profiler_warmup + section.profiler_active
    if section.enable_profiling and section.profile_freq < cycle:
        rule = "must be at least profiling.profiler_warmup + profiler_active"
        raise refusal("profiling.profile_freq", section.profile_freq, rule, cycle)
