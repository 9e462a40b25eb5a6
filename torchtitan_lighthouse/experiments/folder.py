"""What a run's folder says of it: whether it is finished, of this job, and how far it has come."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchtitan_lighthouse.experiments.run import Run
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.metrics import METRICS_FILE
from torchtitan_lighthouse.titan.config import JOB_FILE
from torchtitan_lighthouse.titan.folder.job import changed_fields
from torchtitan_lighthouse.titan.folder.steps import saved_steps

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
    """Refuse a folder with a step of another job than the run's.

    The trainer's own record of its job decides; a folder without one is taken as it is.

    Raises:
        RefusalError: names the fields that differ.
    """
    file = run.folder / (run.job.job.save_config_file or JOB_FILE)
    if not file.exists() or not any(latest_records(run.folder)):
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
