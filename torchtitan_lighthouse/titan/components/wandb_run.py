"""The wandb run of a job: what wandb and torchtitan read of it from the environment."""

import os
import secrets
from pathlib import Path

from torchtitan.config import JobConfig
from torchtitan.tools.logging import logger

from torchtitan_lighthouse.runs.wandb_server import wandb_answers, wandb_has_key
from torchtitan_lighthouse.titan.folder.steps import continues_own_run, initial_step
from torchtitan_lighthouse.titan.stages import stage_at

RUN_ID_FILE = "wandb-run-id"
"""Where a dump folder keeps the id of its run, by which a relaunch continues it."""


def set_wandb_defaults(job_config: JobConfig, rank: int = 0) -> None:
    """Set what wandb and torchtitan read from the environment, where the user has not.

    Runs of one flavor and sequence length are one group, so that wandb draws stage 1, stage 2 and
    a dense baseline on one chart, against the step. A run is named after its dump folder, and a
    launch that resumes its checkpoint continues it. Without a key, or without a way to the server,
    wandb works offline.

    Args:
        rank: of ranks that each have a run (``metrics.save_for_all_ranks``).
    """
    # torchtitan 0.2.2 hands WANDB_RUN_TAGS to wandb as one string, which wandb takes for a list.
    # This can go when it splits them.
    tags = os.environ.pop("WANDB_RUN_TAGS", ",".join(_tags(job_config)))
    model, training = job_config.model, job_config.training
    defaults = {
        "WANDB_RUN_NAME": Path(job_config.job.dump_folder).resolve().name,
        "WANDB_RUN_GROUP": f"{model.flavor}-{training.seq_len}",
        "WANDB_TAGS": tags,
        "WANDB_RESUME": "allow",
    }
    if "WANDB_RUN_ID" not in os.environ:
        defaults["WANDB_RUN_ID"] = _run_id(job_config, rank)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if "WANDB_MODE" not in os.environ and not (wandb_has_key() and wandb_answers()):
        logger.info("No wandb key, or no way to its server: logging offline, for `wandb sync`")
        os.environ["WANDB_MODE"] = "offline"


def _run_id(job_config: JobConfig, rank: int) -> str:
    """Return the folder's run id; a new one where steps begin anew, as wandb takes none twice."""
    name = f"{RUN_ID_FILE}-{rank}" if job_config.metrics.save_for_all_ranks else RUN_ID_FILE
    file = Path(job_config.job.dump_folder, name)
    if not file.exists() or not continues_own_run(job_config):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4) + "\n")
    return file.read_text().strip()


def _tags(job_config: JobConfig) -> list[str]:
    section = job_config.lighthouse
    sizes = f"L{section.levels}-p{section.pooling_factor}-k{section.topk}"
    method = ["lighthouse", section.scorer, sizes] if section.enable else ["dense"]
    before = initial_step(job_config)
    ends = {stage_at(step, section) for step in (before + 1, job_config.training.steps)}
    stage1 = ["stage-1"] if "lighthouse" in ends else []
    # A dense baseline is of neither stage.
    stage2 = ["stage-2"] if "dense" in ends and (section.enable or before) else []
    return [*method, *stage1, *stage2]
