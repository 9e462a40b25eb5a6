"""Names of runs, and of files by the runs in them: no call overwrites what another has written."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

_LONGEST = 120  # file systems take 255 bytes


def file_name(kind: str, subjects: Iterable[str], suffix: str) -> str:
    """Make ``KIND_SUBJECT_….SUFFIX``; a digest stands for the last of very many subjects."""
    stem = "_".join([kind, *(re.sub(r"[^\w.-]+", "-", subject) for subject in subjects)])
    if len(stem) > _LONGEST:
        stem = f"{stem[:_LONGEST]}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"
    return stem + suffix


def without_seed(run: str) -> str:
    """Return what runs that differ in their seeds have in common: ``NAME`` of ``NAME-seed3``."""
    return re.sub(r"-seed\d+$", "", run)


def path_name(path: str | Path) -> str:
    """Name a file by what is at ``path``: from the working directory, if that is above it."""
    path, here = Path(path).absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path).strip("/")
