"""Runs by the names that a command line gives them."""

import json
from collections.abc import Sequence
from pathlib import Path

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.metrics import read_metrics
from torchtitan_lighthouse.runs.summary import Records, training_records
from torchtitan_lighthouse.runs.wandb_history import read_wandb


def read_runs(paths: Sequence[str], labels: Sequence[str] | None = None) -> dict[str, Records]:
    """Read the metrics of each run, by its label.

    Args:
        paths: dump folders; the ``metrics_thin.jsonl`` of experiments, which hold several runs; or
            ``entity/project/id`` of runs on a wandb server, where there is neither.
        labels: by default the folders' names and those in the files, or the paths with them where
            two names are the same.

    Raises:
        FileNotFoundError: a folder has no metrics.
        RefusalError: there is neither a folder, a file nor a run, a run has logged no step yet, or
            there are not as many labels as runs.
    """
    found = [(path, *run) for path in paths for run in _read(path)]
    names = [name for _, name, _ in found]
    if labels is None:
        several = len(set(names)) < len(names)
        labels = [_whole_name(path, name) if several else name for path, name, _ in found]
    if len(labels) != len(found) or len(set(labels)) < len(labels):
        raise RefusalError(f"{len(found)} runs need as many labels, and have {', '.join(labels)}")
    return {label: records for label, (_, _, records) in zip(labels, found, strict=True)}


def _whole_name(path: str, name: str) -> str:
    return f"{path}:{name}" if Path(path).is_file() else path


def _read(path: str) -> list[tuple[str, Records]]:
    """Read the names and the records of the runs at one path."""
    runs = _read_source(path)
    for name, records in runs:
        if not training_records(records):
            raise RefusalError(f"{path if len(runs) == 1 else name} has logged no step yet")
    return runs


def _read_source(path: str) -> list[tuple[str, Records]]:
    name = Path(path).resolve().name
    if Path(path).is_dir():
        return [(name, read_metrics(path))]
    if Path(path).is_file():
        return _read_several(Path(path))
    if path.count("/") != 2:
        raise RefusalError(f"{path!r} is neither a dump folder nor a wandb run, entity/project/id")
    return [(name, read_wandb(path))]


def _read_several(file: Path) -> list[tuple[str, Records]]:
    """Read the runs of a file whose every line names its run."""
    runs: dict[str, Records] = {}
    try:
        for line in file.read_text().splitlines():
            record = json.loads(line)
            runs.setdefault(record.pop("run"), []).append(record)
    except (ValueError, KeyError, AttributeError) as error:
        raise RefusalError(
            f"{file} is no metrics_thin.jsonl of an experiment: for one run give its dump folder"
        ) from error
    return list(runs.items())
