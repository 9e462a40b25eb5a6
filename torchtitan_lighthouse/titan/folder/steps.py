"""The checkpoints of a run by their steps, and whether they leave anything to train."""

import time
from pathlib import Path

from torchtitan.config import JobConfig

# The files by which torchtitan 0.2.2 recognises a checkpoint in its own or Hugging Face's format.
INDEX = ".metadata"
HF_INDEX = "model.safetensors.index.json"
MARKERS = (INDEX, HF_INDEX)


def checkpoint_folder(job_config: JobConfig) -> Path:
    """Return the folder of the run's own checkpoints."""
    return Path(job_config.job.dump_folder, job_config.checkpoint.folder)


def step_of(path: Path) -> int:
    """Return the N of .../step-N, 0 where the folder has another name."""
    number = path.name.removeprefix("step-")
    return int(number) if number.isdecimal() else 0


def saved_steps(folder: Path) -> list[int]:
    """List the N of every whole ``step-N``, in order."""
    saved = {path.parent.name for marker in MARKERS for path in folder.glob(f"step-*/{marker}")}
    return sorted(int(n) for name in saved if (n := name.removeprefix("step-")).isdecimal())


def finished_step(job_config: JobConfig) -> int | None:
    """Return the step that a launch would load, if that is not before ``training.steps``."""
    checkpoint = job_config.checkpoint
    if not checkpoint.enable or checkpoint.create_seed_checkpoint:
        return None
    steps = saved_steps(checkpoint_folder(job_config))
    if checkpoint.load_step != -1:
        steps = [step for step in steps if step == checkpoint.load_step]
    return steps[-1] if steps and steps[-1] >= job_config.training.steps else None


def resumed_checkpoint(job_config: JobConfig) -> Path | None:
    """Return the checkpoint that is loaded with optimizer, schedule and data, if one is."""
    section = job_config.checkpoint
    if not section.enable:
        return None
    folder = checkpoint_folder(job_config)
    if folder.exists():
        step = section.load_step if section.load_step != -1 else max(saved_steps(folder), default=0)
        return folder / f"step-{step}" if step > 0 else None
    if not section.initial_load_path or section.initial_load_model_only:
        return None
    return Path(section.initial_load_path)


def initial_step(job_config: JobConfig) -> int:
    """Return the last step of another run that this one continues; 0 where it begins by itself."""
    section = job_config.checkpoint
    if not section.enable or section.initial_load_model_only or section.initial_load_in_hf:
        return 0
    return step_of(Path(section.initial_load_path or ""))


def continues_own_run(job_config: JobConfig) -> bool:
    """Whether the steps go on from the last that this run's own folder has."""
    steps = saved_steps(checkpoint_folder(job_config))
    checkpoint = job_config.checkpoint
    return checkpoint.enable and bool(steps) and checkpoint.load_step in (-1, steps[-1])


def set_later_steps_aside(job_config: JobConfig) -> Path | None:
    """Move the checkpoints that a run with ``checkpoint.load_step`` has gone back behind.

    A later launch would continue from the last of them, and not from this run's.

    Returns:
        The folder that has them now, beside their old one; None where there were none.
    """
    checkpoint, folder = job_config.checkpoint, checkpoint_folder(job_config)
    later = [n for n in saved_steps(folder) if -1 < checkpoint.load_step < n]
    if not checkpoint.enable or not later:
        return None
    aside = folder.with_name(f"{folder.name}-left-{time.strftime('%Y%m%d-%H%M%S')}")
    aside.mkdir()
    for step in later:
        (folder / f"step-{step}").rename(aside / f"step-{step}")
    return aside
