"""The files of a folder, each once, and what is left out of them and why."""

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torchtitan_lighthouse.data.kinds import Reader
from torchtitan_lighthouse.refusal import RefusalError


class CorpusFile(NamedTuple):
    """A file that is read; ``size`` in bytes."""

    path: Path
    reader: Reader
    size: int


@dataclass
class LeftOut:
    """How much is left out for one reason; ``first`` is one of them, to look at."""

    first: Path
    files: int = 0
    size: int = 0  # bytes


@dataclass
class Listing:
    """What ``list_files`` has found: the files to read, and by its reason what is left out."""

    files: list[CorpusFile] = field(default_factory=list)
    left_out: dict[str, LeftOut] = field(default_factory=dict)

    def leave_out(self, path: Path, reason: str, size: int = 0) -> None:
        """Count a file, of ``size`` bytes, as left out."""
        entry = self.left_out.setdefault(reason, LeftOut(path))
        entry.files += 1
        entry.size += size


def list_files(
    root: Path,
    reader_of: Callable[[Path], Reader | None],
    otherwise: str = "binary",
    skipped_names: Collection[str] = (),
) -> Listing:
    """The files at ``root``, itself a file or a folder, each folder's by name before its folders'.

    Links are followed. What several names lead to is read once, under the first of them.

    Args:
        reader_of: the reader for a regular file that is not empty; None leaves it out.
        otherwise: why those are left out.
        skipped_names: names of files and folders that are left out.

    Raises:
        RefusalError: a file or folder cannot be read, or ``reader_of`` refuses one.
    """
    listing = Listing()
    try:
        for path, status in _Walk(listing, skipped_names).files([root]):
            if not status.st_size:
                listing.leave_out(path, "empty")
            elif reader := reader_of(path):
                listing.files.append(CorpusFile(path, reader, status.st_size))
            else:
                listing.leave_out(path, otherwise, status.st_size)
    except OSError as error:
        raise RefusalError(
            f"{error.filename} cannot be read ({error.strerror}): make it readable, or move it out "
            "of the corpus"
        ) from error
    return listing


class _Walk:
    def __init__(self, listing: Listing, skipped_names: Collection[str]) -> None:
        self._leave_out = listing.leave_out
        self._skipped_names = skipped_names
        self._seen: set[tuple[int, int]] = set()

    def files(self, paths: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the regular files among ``paths`` and below the folders among them."""
        folders = []
        for path in paths:
            if (status := self._status(path)) is None:
                continue
            if stat.S_ISDIR(status.st_mode):
                folders.append(path)
            elif stat.S_ISREG(status.st_mode):
                yield path, status
            else:
                # Opening a pipe waits until someone writes to it.
                self._leave_out(path, "pipe, socket or device")
        for folder in folders:
            yield from self.files(self._entries(folder))

    def _status(self, path: Path) -> os.stat_result | None:
        """Return the status of what ``path`` leads to; None if it is missing or was met before."""
        try:
            status = path.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            self._leave_out(path, "broken link")
            return None
        identity = (status.st_dev, status.st_ino)
        if identity in self._seen:
            self._leave_out(path, "second name of what is read", status.st_size)
            return None
        self._seen.add(identity)
        return status

    def _entries(self, folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                self._leave_out(path, "hidden")
            elif path.name in self._skipped_names:
                self._leave_out(path, "skipped by name")
            else:
                yield path
