"""Checks the checkpoints that a run starts from, where torchtitan 0.2.2 goes wrong silently."""

import re
from pathlib import Path

from torchtitan.config import JobConfig
from torchtitan.tools.logging import logger

from torchtitan_lighthouse.refusal import RefusalError, neighbours
from torchtitan_lighthouse.titan.checks.saved_model import check_saved_model
from torchtitan_lighthouse.titan.folder.checkpoint import SavedCheckpoint, read_saved
from torchtitan_lighthouse.titan.folder.steps import (
    MARKERS,
    checkpoint_folder,
    saved_steps,
    step_of,
)
from torchtitan_lighthouse.titan.launch.ranks import number_of_ranks
from torchtitan_lighthouse.titan.models.of_job import model_args_of
from torchtitan_lighthouse.titan.stages import stage_at

_LATEST = -1
_EXCLUDABLE = ("optimizer", "dataloader", "lr_scheduler", "train_state")


def check_checkpoints(job_config: JobConfig) -> None:
    """Refuse a start from the wrong checkpoint, and warn of a last one that no one can resume.

    Raises:
        RefusalError: the checkpoint that is asked for is not there, cannot be loaded, holds less
            than is asked of it, or is of another model; or ``initial_load_path`` would be ignored.
    """
    checkpoint = job_config.checkpoint
    if checkpoint.create_seed_checkpoint:
        _check_seed(checkpoint.enable)
    if not checkpoint.enable:
        return
    _check_fields(job_config)
    saved = checkpoint_to_load(job_config)
    if saved is not None:
        difference = saved.difference(model_args_of(job_config))
        if difference:
            raise RefusalError(
                f"{saved.path} is of another model than model.flavor = "
                f"{job_config.model.flavor!r}: {difference}; use the flavor that saved it"
            )
        check_saved_model(job_config, saved)
    last_stage = stage_at(job_config.training.steps, job_config.lighthouse)
    if last_stage == "lighthouse" and checkpoint.last_save_model_only:
        logger.warning(
            "The last checkpoint will hold the weights only: set "
            "checkpoint.last_save_model_only = false if a dense stage is to resume it"
        )


def checkpoint_to_load(job_config: JobConfig) -> SavedCheckpoint | None:
    """Find the checkpoint that torchtitan will load, and check it; None for a fresh start.

    Weights in Hugging Face's format are not looked at.
    """
    checkpoint = job_config.checkpoint
    folder = checkpoint_folder(job_config)
    # torchtitan resumes from the run's folder if that exists, whatever initial_load_path says.
    if folder.exists():
        return _own_checkpoint(job_config, folder)
    if checkpoint.load_step != _LATEST:
        raise RefusalError(
            f"checkpoint.load_step = {checkpoint.load_step}, and there is no {folder}: use the "
            "job.dump_folder of the run that saved it, or checkpoint.initial_load_path"
        )
    if checkpoint.initial_load_path and not checkpoint.initial_load_in_hf:
        return _initial_checkpoint(job_config)
    return None


def _check_fields(job_config: JobConfig) -> None:
    checkpoint = job_config.checkpoint
    if checkpoint.load_step < _LATEST:
        raise RefusalError(
            f"checkpoint.load_step = {checkpoint.load_step} must be a step, or -1 for the latest"
        )
    if "model" in checkpoint.exclude_from_loading:
        raise RefusalError(
            "checkpoint.exclude_from_loading names model: training would go on from random "
            "weights. Leave it out, or choose another job.dump_folder to start afresh"
        )
    if unknown := set(checkpoint.exclude_from_loading) - set(_EXCLUDABLE):
        raise RefusalError(
            f"checkpoint.exclude_from_loading names {', '.join(sorted(unknown))}, and can name "
            f"{', '.join(_EXCLUDABLE)}"
        )
    if checkpoint.initial_load_in_hf and not checkpoint.initial_load_model_only:
        raise RefusalError(
            "checkpoint.initial_load_in_hf = true loads weights only: set "
            "checkpoint.initial_load_model_only = true"
        )
    if checkpoint.initial_load_in_hf_quantized and not checkpoint.initial_load_in_hf:
        raise RefusalError(
            "checkpoint.initial_load_in_hf_quantized = true is of weights that nothing loads: "
            "leave it out"
        )
    if checkpoint.last_save_in_hf and not checkpoint.last_save_model_only:
        raise RefusalError(
            "checkpoint.last_save_in_hf = true saves weights only: set "
            "checkpoint.last_save_model_only = true, or save a checkpoint that can be resumed and "
            "export it (python -m torchtitan_lighthouse export)"
        )


def _check_seed(enabled: bool) -> None:
    """Refuse a seed checkpoint where torchtitan finds out after the model is built."""
    ranks = number_of_ranks()
    if ranks > 1 or not enabled:
        raise RefusalError(
            "checkpoint.create_seed_checkpoint = true needs checkpoint.enable = true and one rank, "
            f"not {ranks}: the same seed starts any number of them"
        )


def _own_checkpoint(job_config: JobConfig, folder: Path) -> SavedCheckpoint | None:
    checkpoint = job_config.checkpoint
    steps = saved_steps(folder)
    _check_initial_weights_are_not_ignored(job_config, folder, max(steps, default=0))
    if checkpoint.load_step == _LATEST:
        _check_latest_has_its_name(folder)
        _warn_of_unfinished(folder, steps)
        if not steps:
            return None
        step = steps[-1]
    else:
        step = checkpoint.load_step
        if not (folder / f"step-{step}").exists():
            found = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
            raise RefusalError(
                f"checkpoint.load_step = {step}: there is no step-{step} in {folder}; {found}"
            )
    earlier = [s for s in steps if s < step]
    otherwise = "move it away, or choose another job.dump_folder"
    if earlier:
        otherwise = f"set checkpoint.load_step = {earlier[-1]}, or {otherwise}"
    saved = read_saved(folder / f"step-{step}", otherwise)
    # Of step 0, a seed checkpoint, torchtitan loads the weights alone.
    if step > 0 and not saved.is_full:
        raise RefusalError(
            f"{saved.path} holds weights only, which cannot be resumed: {otherwise} and load it "
            "with checkpoint.initial_load_path"
        )
    return saved


def _check_initial_weights_are_not_ignored(
    job_config: JobConfig, folder: Path, latest: int
) -> None:
    """Refuse a folder without a checkpoint, where torchtitan would train from random weights."""
    checkpoint = job_config.checkpoint
    field, start = "", 0
    if checkpoint.initial_load_path:
        field = f"checkpoint.initial_load_path = {checkpoint.initial_load_path!r}"
        if not checkpoint.initial_load_model_only:
            start = step_of(Path(checkpoint.initial_load_path))
    elif checkpoint.initial_load_in_hf:
        field = "checkpoint.initial_load_in_hf = true"
    if field and latest <= start:
        raise RefusalError(
            f"{field} would be ignored, for {folder} exists, and it holds no later checkpoint: "
            "delete or move it, or choose another job.dump_folder"
        )


def _warn_of_unfinished(folder: Path, steps: list[int]) -> None:
    latest = steps[-1] if steps else 0
    passed_over = sorted(
        step_of(path) for path in folder.glob("step-*") if path.is_dir() and step_of(path) > latest
    )
    if passed_over:
        start = f"training goes on from step-{latest}" if steps else "training starts at step 1"
        logger.warning(
            f"{folder} holds {', '.join(f'step-{step}' for step in passed_over)}, not saved to the "
            f"end: {start}"
        )


def _initial_checkpoint(job_config: JobConfig) -> SavedCheckpoint:
    path = Path(job_config.checkpoint.initial_load_path)
    otherwise = (
        f"checkpoint.initial_load_path = {str(path)!r} must be a folder such as "
        ".../checkpoint/step-1000"
    )
    for folder in (path, path.parent):
        if steps := saved_steps(folder):
            step = step_of(path)
            near = neighbours(step, steps) if step else steps[-1:]
            otherwise += f"; there is {' and '.join(f'{folder}/step-{step}' for step in near)}"
    saved = read_saved(path, otherwise)
    if job_config.checkpoint.initial_load_model_only:
        logger.warning(
            f"Only the weights of {path} will be loaded, and training starts at step 1: set "
            "checkpoint.initial_load_model_only = false to continue the run that saved it"
        )
    elif not saved.is_full:
        raise RefusalError(
            f"checkpoint.initial_load_path = {str(path)!r} holds weights only: save it with "
            "checkpoint.last_save_model_only = false, or set "
            "checkpoint.initial_load_model_only = true to start at step 1 from them"
        )
    return saved


def _check_latest_has_its_name(folder: Path) -> None:
    """Refuse a latest step named step-6.bak, say: torchtitan takes it for a step-6, and fails."""
    names: dict[int, set[str]] = {}
    for marker in MARKERS:
        for path in folder.glob(f"*step-*/{marker}"):
            if match := re.search(r"step-(\d+)", path.parent.name):
                names.setdefault(int(match[1]), set()).add(path.parent.name)
    latest = max(names, default=0)
    if names and f"step-{latest}" not in names[latest]:
        raise RefusalError(
            f"{folder / min(names[latest])} would be taken for step-{latest}, which is not there: "
            "give it a name without 'step-', or move it out of the folder"
        )
