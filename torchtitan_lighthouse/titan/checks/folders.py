"""Checks where a run writes."""

import os
from pathlib import Path

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError, refusal


def check_folders(job_config: JobConfig) -> None:
    """Refuse folders without a name, and a dump folder that cannot be made or written to."""
    names = {
        "job.dump_folder": job_config.job.dump_folder,
        "checkpoint.folder": job_config.checkpoint.folder,
    }
    for field, name in names.items():
        if not name:
            raise RefusalError(f"{field} is empty: name a folder")
    folder = Path(job_config.job.dump_folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists() or path.is_symlink())
    if not there.exists():
        rule = f"cannot be made: {there} is a link to {there.readlink()}, which is not there"
        raise refusal("job.dump_folder", repr(str(folder)), rule)
    if not there.is_dir():
        raise refusal("job.dump_folder", repr(str(folder)), f"is no folder: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        rule = f"cannot be written to: {there} allows it not to this user"
        raise refusal("job.dump_folder", repr(str(folder)), rule)
