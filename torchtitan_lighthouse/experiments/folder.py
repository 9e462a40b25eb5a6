"""What a run's folder says of it: whether it is finished, of this job, and how far it has come."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchtitan_lighthouse.experiments.run import Run
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.metrics import LOSS, METRICS_FILE, read_metrics
from torchtitan_lighthouse.titan.config import JOB_FILE
from torchtitan_lighthouse.titan.folder.job import changed_fields
from torchtitan_lighthouse.titan.folder.steps import saved_steps, step_of

OUTPUT_FILE = "output.txt"
FINISHED_FILE = "finished"
"""Says that the trainer has ended well, which the last step's metrics do not: its checkpoint and
validation come after them."""

_TAIL_BYTES = 1 << 16
# Sections in which a trained run may differ from the plan: none of them changes a loss.
_FREE_SECTIONS = {"job", "comm", "metrics", "profiling"}


def is_finished(run: Run) -> bool:
    """Whether the run has been trained to its last step."""
    return (run.folder / FINISHED_FILE).exists()


def check_trained(run: Run) -> None:
    """Refuse a folder with a step of another job than the run's, or without what it should have.

    The trainer's own record of its job decides; a folder without one is taken as it is.

    Raises:
        RefusalError: names the fields that differ, or what is lacking.
    """
    if not any(latest_records(run.folder)):
        if is_finished(run):
            raise RefusalError(
                f"{run.folder} is of a finished run, and has no metrics of it: remove the folder"
            )
        return
    if run.source:
        _check_source(run, run.folder.with_name(run.source))
    file = run.folder / (run.job.job.save_config_file or JOB_FILE)
    if not file.exists():
        return
    trained = json.loads(file.read_text())
    changes = changed_fields(trained, run.job.to_dict(), beside=_FREE_SECTIONS)
    if changes:
        was, now = (
            ", ".join(f"{name} = {pair[side]!r}" for name, pair in changes.items())
            for side in (0, 1)
        )
        raise RefusalError(
            f"{run.folder} was trained with {was}, and {now} is asked for: choose another --out, "
            "or remove the folder"
        )


def _check_source(run: Run, source: Path) -> None:
    """Refuse a run that has begun from another training of its source than is there now."""
    at = step_of(Path(run.job.checkpoint.initial_load_path))
    began, there = _last_loss(run.folder, at), _last_loss(source, at)
    if began and began != there:
        is_so = "has been trained anew since" if there else "is not there any more"
        raise RefusalError(
            f"{run.folder} was trained from step {at} of {source}, which {is_so}: remove the "
            "folder, or choose another --out"
        )


def _last_loss(folder: Path, step: int) -> tuple[int, float] | None:
    """Return the last training loss up to a step, after that loss's own step."""
    if not (folder / METRICS_FILE).exists():
        return None
    records = [r for r in read_metrics(folder) if LOSS in r and r["step"] <= step]
    return (records[-1]["step"], records[-1][LOSS]) if records else None


def remove_unfinished(checkpoints: Path) -> None:
    """Remove the steps of a folder in which none was finished: no run starts from or beside it."""
    if checkpoints.exists() and not any(checkpoints.glob("*/.metadata")):
        for step in checkpoints.glob("step-*"):
            shutil.rmtree(step)
        if not any(checkpoints.iterdir()):
            checkpoints.rmdir()


def remove_unneeded(run: Run) -> None:
    """Remove the checkpoints that no other run begins from, but for the last two."""
    if run.kept:
        for step in saved_steps(run.checkpoints)[:-2]:
            if step not in run.kept:
                shutil.rmtree(run.checkpoints / f"step-{step}")


def latest_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Read the records in the metrics' last ``_TAIL_BYTES``, the last one first."""
    path = folder / METRICS_FILE
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            yield json.loads(line)
        except ValueError:  # cut short by a kill, or by the start of the tail
            continue
