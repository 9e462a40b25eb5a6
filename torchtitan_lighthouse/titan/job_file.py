"""What a run keeps of its job: ``job.json`` beside its metrics, and in each of its checkpoints."""

import json
import os
from pathlib import Path
from typing import Any

from torchtitan.config import JobConfig

from torchtitan_lighthouse.titan.config import JOB_FILE


def write_job(file: Path, job_config: JobConfig) -> None:
    """Write a whole job as JSON: whoever reads it meanwhile gets the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f".{file.name}.{os.getpid()}")
    half.write_text(json.dumps(job_config.to_dict(), indent=2) + "\n")
    half.replace(file)


def job_file_of(checkpoint: Path) -> Path:
    """Where the job is that saved ``<dump folder>/<checkpoint folder>/step-N``.

    The checkpoint's own; or that of the dump folder, which is all that torchtitan's trainer leaves.
    """
    own = checkpoint / JOB_FILE
    return own if own.is_file() else checkpoint.absolute().parents[1] / JOB_FILE


def saved_job(checkpoint: Path) -> dict[str, Any] | None:
    """The sections and fields of the job that saved a checkpoint; None where it is not known."""
    try:
        return json.loads(job_file_of(checkpoint).read_text())
    except (OSError, ValueError):
        return None
