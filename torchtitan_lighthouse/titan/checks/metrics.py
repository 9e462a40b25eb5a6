"""Checks where metrics go."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.runs.wandb_server import wandb_server


def check_metrics(job_config: JobConfig) -> None:
    """Refuse wandb with a server that is none; only one rank would find out later."""
    if job_config.metrics.enable_wandb:
        wandb_server()
