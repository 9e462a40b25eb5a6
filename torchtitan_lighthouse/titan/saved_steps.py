"""The checkpoints of a run by their steps, and whether they leave anything to train."""

from pathlib import Path

from torchtitan.config import JobConfig

# By which torchtitan 0.2.2 knows a checkpoint: its own format's file, and Hugging Face's.
_MARKERS = (".metadata", "model.safetensors.index.json")


def checkpoint_folder(job_config: JobConfig) -> Path:
    return Path(job_config.job.dump_folder, job_config.checkpoint.folder)


def saved_steps(folder: Path) -> list[int]:
    """The N of every whole ``step-N``, in order."""
    saved = {path.parent.name for marker in _MARKERS for path in folder.glob(f"step-*/{marker}")}
    return sorted(int(n) for name in saved if (n := name.removeprefix("step-")).isdecimal())


def finished_step(job_config: JobConfig) -> int | None:
    """The step that a launch would load, if that is not before ``training.steps``."""
    checkpoint = job_config.checkpoint
    if not checkpoint.enable or checkpoint.create_seed_checkpoint:
        return None
    steps = saved_steps(checkpoint_folder(job_config))
    if checkpoint.load_step != -1:
        steps = [step for step in steps if step == checkpoint.load_step]
    return steps[-1] if steps and steps[-1] >= job_config.training.steps else None
