"""Where a run's checkpoints would lead it astray without a word from torchtitan 0.2.2."""

from pathlib import Path

from torch.distributed.checkpoint import FileSystemReader
from torchtitan.config import JobConfig
from torchtitan.tools.logging import logger

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.stages import stage_at


def check_checkpoints(job_config: JobConfig) -> None:
    """Refuse a start from the wrong checkpoint, and warn of a last one that no one can resume.

    Raises:
        ValueError: ``initial_load_path`` would be ignored, or holds less than is asked of it; or
            the run's own last checkpoint cannot be resumed.
    """
    checkpoint = job_config.checkpoint
    if not checkpoint.enable:
        return
    folder = Path(job_config.job.dump_folder, checkpoint.folder)
    if folder.exists():
        _check_own_checkpoints(job_config, folder)
    elif checkpoint.initial_load_path and not checkpoint.initial_load_in_hf:
        _check_initial_load(job_config)
    last_stage = stage_at(job_config.training.steps, job_config.lighthouse)
    if last_stage == "lighthouse" and checkpoint.last_save_model_only:
        logger.warning(
            "The last checkpoint will hold the weights only: set "
            "checkpoint.last_save_model_only = false if a dense stage is to resume it"
        )


def _check_own_checkpoints(job_config: JobConfig, folder: Path) -> None:
    """torchtitan resumes from the run's folder if that exists, whatever initial_load_path says."""
    checkpoint = job_config.checkpoint
    # Its rule for what a checkpoint is.
    markers = (".metadata", "model.safetensors.index.json")
    saved = [_step(path) for m in markers for path in folder.glob(f"step-*/{m}")]
    latest = max(saved, default=0)
    if checkpoint.initial_load_path:
        start = 0
        if not checkpoint.initial_load_model_only:
            start = _step(Path(checkpoint.initial_load_path, ".metadata"))
        if latest <= start:
            raise RefusalError(
                f"checkpoint.initial_load_path = {checkpoint.initial_load_path!r} would be "
                f"ignored, for {folder} exists, and it holds no later checkpoint: delete or move "
                "it, or choose another job.dump_folder"
            )
    step = latest if checkpoint.load_step == -1 else checkpoint.load_step
    if step > 0 and not _is_full(folder / f"step-{step}"):
        raise RefusalError(
            f"{folder}/step-{step} holds weights only, which cannot be resumed: set "
            "checkpoint.load_step to an earlier step, or choose another job.dump_folder and load "
            "it with checkpoint.initial_load_path"
        )


def _check_initial_load(job_config: JobConfig) -> None:
    path = Path(job_config.checkpoint.initial_load_path)
    if not (path / ".metadata").is_file():
        raise RefusalError(
            f"checkpoint.initial_load_path = {str(path)!r} is no checkpoint: it must be a folder "
            "such as .../checkpoint/step-1000"
        )
    if job_config.checkpoint.initial_load_model_only:
        logger.warning(
            f"Only the weights of {path} will be loaded, and training starts at step 1: set "
            "checkpoint.initial_load_model_only = false to continue the run that saved it"
        )
    elif not _is_full(path):
        raise RefusalError(
            f"checkpoint.initial_load_path = {str(path)!r} holds weights only: save it with "
            "checkpoint.last_save_model_only = false, or set "
            "checkpoint.initial_load_model_only = true to start at step 1 from them"
        )


def _is_full(path: Path) -> bool:
    """Whether a checkpoint holds the trainer's state, and with it all that a resume needs."""
    if not (path / ".metadata").is_file():
        return False
    return "train_state.step" in FileSystemReader(path).read_metadata().state_dict_metadata


def _step(marker: Path) -> int:
    """The N of .../step-N/marker, 0 where the folder has another name."""
    number = marker.parent.name.removeprefix("step-")
    return int(number) if number.isdecimal() else 0
