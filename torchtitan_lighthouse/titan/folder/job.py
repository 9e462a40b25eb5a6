"""What a run keeps of its job: ``job.json`` beside its metrics, and in each of its checkpoints."""

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from torchtitan.config import JobConfig

from torchtitan_lighthouse.runs.whole_file import write_whole
from torchtitan_lighthouse.titan.config import JOB_FILE


def write_job(file: Path, job_config: JobConfig) -> None:
    """Write a whole job as JSON: whoever reads it meanwhile gets the old one or the new one."""
    write_whole(file, json.dumps(job_config.to_dict(), indent=2) + "\n")


def job_file_of(checkpoint: Path) -> Path:
    """Find the job file of ``<dump folder>/<checkpoint folder>/step-N``.

    It is the checkpoint's own, or that of the dump folder, all that torchtitan's trainer leaves.
    """
    own = checkpoint / JOB_FILE
    return own if own.is_file() else checkpoint.absolute().parents[1] / JOB_FILE


def saved_job(checkpoint: Path) -> dict[str, Any] | None:
    """Read the sections and fields of the job that saved a checkpoint; None where unknown."""
    try:
        saved = json.loads(job_file_of(checkpoint).read_text())
    except (OSError, ValueError):
        return None
    return saved if isinstance(saved, dict) else None


def changed_fields(
    saved: dict[str, Any], asked: dict[str, Any], *, beside: Container[str]
) -> dict[str, tuple[Any, Any]]:
    """Compare two jobs: both values of each field that differs, the saved one first.

    A field that only one of them has is of another version of the package, and left out.

    Args:
        beside: sections that are left out.
    """
    old, new = (_leaves(job, beside=beside) for job in (saved, asked))
    return {n: (old[n], new[n]) for n in new if n in old and old[n] != new[n]}


def _leaves(job: dict[str, Any], prefix: str = "", *, beside: Container[str]) -> dict[str, Any]:
    """Collect all fields by their dotted names, as JSON has them."""
    leaves: dict[str, Any] = {}
    for name, value in job.items():
        if prefix + name in beside:
            continue
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{name}.", beside=beside)
        else:
            leaves[prefix + name] = list(value) if isinstance(value, tuple) else value
    return leaves
