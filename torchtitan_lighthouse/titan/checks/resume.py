"""Checks a resume under other settings than those that the checkpoint was saved under."""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from torchtitan.config import JobConfig, LRScheduler
from torchtitan.tools.logging import logger

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.config import Lighthouse
from torchtitan_lighthouse.titan.folder.job import changed_fields, saved_job
from torchtitan_lighthouse.titan.folder.steps import checkpoint_folder, resumed_checkpoint
from torchtitan_lighthouse.titan.schedule import learning_rate_factors, schedule_steps
from torchtitan_lighthouse.titan.stages import stage_at

# Sections that only say where a run is kept and watched.
_FREE_SECTIONS = {"job", "comm", "metrics", "profiling", "checkpoint"}
# Fields whose values torchtitan 0.2.2 restores with a state of the checkpoint, ignoring the job's.
_RESTORED = {
    "optimizer": [f"optimizer.{name}" for name in ("beta1", "beta2", "eps", "weight_decay")],
    "lr_scheduler": ["optimizer.lr"],
}
_AFRESH = (
    "or begin at step 1 from the weights alone: another job.dump_folder, with "
    "checkpoint.initial_load_path and checkpoint.initial_load_model_only = true"
)


def check_resume(job_config: JobConfig) -> None:
    """Refuse what makes no sense after the steps that are there, and name all else that differs.

    Raises:
        RefusalError: the run would go back to Lighthouse attention, its learning rate would jump,
            a setting would be ignored, or nothing is left to train.
    """
    checkpoint = resumed_checkpoint(job_config)
    if checkpoint and "train_state" in job_config.checkpoint.exclude_from_loading:
        _check_count_from_one(job_config, checkpoint)
        return
    saved = saved_job(checkpoint) if checkpoint else None
    if checkpoint is None or saved is None:
        return
    number = checkpoint.name.removeprefix("step-")
    if not number.isdecimal():
        return
    step = int(number)
    if step >= job_config.training.steps:
        # Only of another run's checkpoint: of its own the trainer says that the run is finished.
        raise RefusalError(
            f"training.steps = {job_config.training.steps} leaves nothing to train after "
            f"{checkpoint}: set more"
        )
    changes = changed_fields(saved, job_config.to_dict(), beside=_FREE_SECTIONS)
    excluded = job_config.checkpoint.exclude_from_loading
    _check_stage(job_config, saved, step)
    restored = [n for state, names in _RESTORED.items() if state not in excluded for n in names]
    _check_restored(changes, restored)
    if "lr_scheduler" not in excluded:
        _check_schedule(job_config, saved, step, changes)
    if changes:
        listed = ", ".join(f"{name} {old!r} → {new!r}" for name, (old, new) in changes.items())
        logger.info(f"Step {step} was saved under other settings: {listed}")


def _check_count_from_one(job_config: JobConfig, checkpoint: Path) -> None:
    """Refuse steps that count from 1 beside those that are there, or in a schedule that goes on."""
    goes_on = "lr_scheduler" not in job_config.checkpoint.exclude_from_loading
    if goes_on or checkpoint.parent == checkpoint_folder(job_config):
        beside = "the schedule goes on" if goes_on else f"those of {checkpoint.parent} are there"
        raise RefusalError(
            "checkpoint.exclude_from_loading names train_state: steps would count from 1, and "
            f"{beside}. Leave it out, {_AFRESH}"
        )


def _check_stage(job_config: JobConfig, saved: dict[str, Any], step: int) -> None:
    asked = job_config.lighthouse
    known = {f.name for f in fields(Lighthouse)}  # another version of the package may have others
    section = saved.get("lighthouse", {"enable": False})  # torchtitan's own llama3 has none
    was = Lighthouse(**{name: v for name, v in section.items() if name in known})
    if stage_at(step, was) == "dense" and stage_at(step + 1, asked) == "lighthouse":
        raise RefusalError(
            f"step {step} was trained with dense SDPA, and lighthouse.steps = {asked.steps} would "
            f"go back to Lighthouse attention: set lighthouse.steps = {min(was.steps, step)}"
            f"{'' if was.enable else ' or lighthouse.enable = false'}, resume a step before the "
            f"switch, {_AFRESH}"
        )


def _check_restored(changes: dict[str, tuple[Any, Any]], restored: list[str]) -> None:
    ignored = [name for name in restored if name in changes]
    if ignored:
        asked = ", ".join(f"{name} = {changes[name][1]}" for name in ignored)
        values = ", ".join(str(changes[name][0]) for name in ignored)
        raise RefusalError(
            f"{asked} would be ignored, for a resume restores it from the checkpoint: use "
            f"{values}, as saved, {_AFRESH}"
        )


def _check_schedule(
    job_config: JobConfig, saved: dict[str, Any], step: int, changes: dict[str, tuple[Any, Any]]
) -> None:
    section, steps = job_config.lr_scheduler, job_config.training.steps
    old_section, old_steps = LRScheduler(**saved["lr_scheduler"]), saved["training"]["steps"]
    old = learning_rate_factors(old_section, old_steps)(step)
    new = learning_rate_factors(section, steps)(step)
    if math.isclose(old, new, rel_tol=1e-6, abs_tol=1e-9):
        return
    made_for = schedule_steps(old_section, old_steps)
    names = [n for n in changes if n.startswith("lr_scheduler.")] or ["lr_scheduler.total_steps"]
    ways = "resume a step before the decay"
    if made_for >= steps:
        ways = f"set lr_scheduler.total_steps = {made_for} and the rest as saved"
    raise RefusalError(
        f"the learning rate would jump at step {step + 1}, from {old:.3g} to {new:.3g} of "
        f"optimizer.lr: the checkpoint's schedule is of {made_for} steps, this one of "
        f"{schedule_steps(section, steps)} ({', '.join(names)}): {ways}, {_AFRESH}"
    )
