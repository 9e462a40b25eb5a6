"""Runs by the names that a command line gives them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.metrics import read_metrics
from torchtitan_lighthouse.runs.summary import training_records
from torchtitan_lighthouse.runs.wandb_history import read_wandb


def read_runs(
    paths: Sequence[str], labels: Sequence[str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The metrics of each run by its label.

    Args:
        paths: dump folders, or ``entity/project/id`` of runs on a wandb server where there is no
            such folder.
        labels: by default the folders' names, or the paths where two names are the same.

    Raises:
        FileNotFoundError: a folder has no metrics.
        ValueError: there is neither a folder nor a run, a run has logged no step yet, or there are
            not as many labels as runs.
    """
    names = [Path(path).resolve().name for path in paths]
    labels = labels or (names if len(set(names)) == len(names) else paths)
    if len(labels) != len(paths) or len(set(labels)) < len(labels):
        raise RefusalError(f"{len(paths)} runs need as many labels, and have {', '.join(labels)}")
    return {label: _read(path) for label, path in zip(labels, paths, strict=True)}


def _read(path: str) -> list[dict[str, Any]]:
    records = _read_source(path)
    if not training_records(records):
        raise RefusalError(f"{path} has logged no step yet")
    return records


def _read_source(path: str) -> list[dict[str, Any]]:
    if Path(path).is_dir():
        return read_metrics(path)
    if path.count("/") != 2:
        raise RefusalError(f"{path!r} is neither a dump folder nor a wandb run, entity/project/id")
    return read_wandb(path)
