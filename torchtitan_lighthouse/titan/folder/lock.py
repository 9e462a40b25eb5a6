"""One launch at a time in a dump folder: two would write over each other's checkpoints."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from torchtitan.tools.logging import logger

from torchtitan_lighthouse.refusal import RefusalError

LOCK_FILE = "in-use"

_HELD = (BlockingIOError, PermissionError)


def lock_folder(folder: Path) -> IO[str]:
    """Hold a dump folder until the file that is returned is closed, or its process ends.

    The lock is the kernel's, of POSIX: it goes with the process, however that ends, its children
    do not have it, and the hosts that share a folder by NFS share its locks.

    Raises:
        RefusalError: another process holds the folder, or it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a+")
    except OSError as error:
        raise RefusalError(
            f"job.dump_folder = {str(folder)!r} cannot be used ({error.filename}: "
            f"{error.strerror}): choose another folder"
        ) from None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except _HELD:
        holder = _holder(file)
        raise RefusalError(
            f"job.dump_folder = {str(folder)!r} is in use by {holder}: wait for its end, or choose "
            "another folder"
        ) from None
    except OSError as error:
        logger.warning(f"{folder} cannot be locked ({error}): keep to one launch at a time there")
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def holder_of(folder: Path) -> str | None:
    """Name the process that holds a dump folder; None where none does, or that cannot be known."""
    try:
        file = (folder / LOCK_FILE).open("r+")
    except OSError:
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except _HELD:
        return _holder(file)
    except OSError:
        pass
    file.close()
    return None


def _holder(file: IO[str]) -> str:
    with file:
        file.seek(0)
        return file.read().strip() or "another process"
