"""Files on this machine as streamed ``datasets``: a local corpus, and Python's own sources."""

import hashlib
import sysconfig
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from datasets import IterableDataset
from datasets.iterable_dataset import ExamplesIterable

from torchtitan_lighthouse.data.documents import documents
from torchtitan_lighthouse.data.files import CorpusFile, Listing, list_files
from torchtitan_lighthouse.data.kinds import Reader, is_binary, reader_of
from torchtitan_lighthouse.data.sections import (
    FEWEST_TO_HOLD_OUT,
    SHORTEST_CUT,
    Part,
    Section,
    cut,
    part_of,
)
from torchtitan_lighthouse.refusal import RefusalError

_NOT_OF_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "encodings"}


@dataclass(frozen=True)
class Corpus:
    """The files at ``path`` that are read, what is left out, and how the files are cut."""

    path: str
    listing: Listing
    sections: list[Section]

    def stream(self, part: Part) -> IterableDataset:
        """Stream the documents of one part of the corpus, unread, for ``read_document``.

        Raises:
            RefusalError: there is too little to hold anything out.
        """
        sections = part_of(self.sections, part)
        if not sections:
            raise RefusalError(
                f"{self.path!r} is too small to hold a part of it out for validation: it comes in "
                f"{len(self.sections)} section(s) (a file, {SHORTEST_CUT >> 10} KiB of text, "
                f"a row of others), and {FEWEST_TO_HOLD_OUT} are needed; add text, or set "
                "validation.dataset to 'local' and validation.dataset_path to other text"
            )
        return IterableDataset(ExamplesIterable(documents, {"sections": sections}))

    def fingerprint(self) -> str:
        """Digest what a position in the corpus depends on: each section's file, place and order."""
        root, digest = Path(self.path), hashlib.sha256()
        for path, *rest in self.sections:
            digest.update(repr((str(Path(path).relative_to(root)), *rest)).encode())
        return digest.hexdigest()[:16]

    def summary(self) -> str:
        """Say in one line what is read, by reader, and what is left out, by reason."""
        read = [
            f"{reader} {_count(files)} ({_names(files)})"
            for reader in Reader
            if (files := [file for file in self.listing.files if file.reader is reader])
        ]
        left_out = [
            f"{entry.files} {reason} ({_size(entry.size)}, such as {entry.first})"
            for reason, entry in self.listing.left_out.items()
        ]
        return f"{self.path}: read {', '.join(read)}; left out {', '.join(left_out) or 'nothing'}"

    def doubts(self) -> list[str]:
        """Say what the user may not have meant, one sentence for each doubt."""
        readers = {file.reader for file in self.listing.files}
        left_out = self.listing.left_out
        doubts = []
        if Reader.TEXT in readers and len(readers) > 1:
            doubts.append("text files beside files of rows are read as text")
        if "broken link" in left_out:
            doubts.append("links lead nowhere")
        binary = left_out["binary"].size if "binary" in left_out else 0
        if binary > sum(file.size for file in self.listing.files):
            doubts.append("most bytes are left out")
        return doubts


@cache
def local_corpus(path: str) -> Corpus:
    """Read text, JSON lines and parquet from ``path``, a file or a folder.

    Hidden and binary files are left out. A launch looks once, so that its training and held-out
    parts are of the same files.

    Raises:
        RefusalError: no path was given, there is nothing at it or nothing to read, or a file is in
            a form that is not read here (see ``kinds``).
    """
    return _corpus(path, list_files(_root(path), reader_of))


@cache
def local_text_corpus(path: str) -> Corpus:
    """Read every file under ``path`` that is neither hidden nor binary as plain text.

    Raises:
        RefusalError: as ``local_corpus`` does.
    """
    return _corpus(
        path, list_files(_root(path), lambda file: None if is_binary(file) else Reader.TEXT)
    )


@cache
def python_stdlib_corpus(path: str) -> Corpus:
    """The ``.py`` files of the standard library at ``path``, without installed packages, its tests,
    which repeat themselves and break encodings on purpose, and its tables of character encodings.

    Raises:
        RefusalError: there are none.
    """
    listing = list_files(
        _root(path),
        lambda file: Reader.TEXT if file.suffix == ".py" else None,
        otherwise="no .py file",
        skipped_names=_NOT_OF_THE_LIBRARY,
    )
    return _corpus(path, listing)


def stdlib_path() -> str:
    """The folder of the running interpreter's standard library."""
    return sysconfig.get_path("stdlib")


CORPORA: dict[str, tuple[Callable[[str], Corpus], str]] = {
    "local": (local_corpus, ""),
    "local_text": (local_text_corpus, ""),
    "python_stdlib": (python_stdlib_corpus, stdlib_path()),
}
"""What ``training.dataset`` names, and where it is when no path is given."""

LOCAL = {name for name, (_, path) in CORPORA.items() if not path}
"""Those that need a path."""

HELD_OUT = "_validation"
"""Ends the name of the part of a corpus that is held out."""


def corpus_of(dataset: str, path: str | None) -> Corpus | None:
    """The corpus that ``training.dataset`` and its path name; None if it is none of these."""
    entry = CORPORA.get(dataset.lower().removesuffix(HELD_OUT))
    if entry is None:
        return None
    load, default_path = entry
    return load(path or default_path)


def _root(path: str) -> Path:
    if not path:
        raise RefusalError(
            "a local corpus needs a path: set training.dataset_path (or validation.dataset_path) "
            "to a file or folder"
        )
    root = Path(path).expanduser()
    if not root.exists():
        raise RefusalError(f"dataset_path={path!r} does not exist (looked in {Path.cwd()})")
    return root


def _corpus(path: str, listing: Listing) -> Corpus:
    corpus = Corpus(str(_root(path)), listing, cut(listing.files))
    if not corpus.sections:
        raise RefusalError(
            "no text in "
            f"{corpus.summary()}; it needs text, JSON lines or parquet, neither hidden nor binary"
        )
    return corpus


def _count(files: list[CorpusFile]) -> str:
    return f"{len(files)} file{'s' * (len(files) > 1)} {_size(sum(file.size for file in files))}"


def _names(files: list[CorpusFile]) -> str:
    suffixes = Counter(file.path.suffix or "no suffix" for file in files).most_common(5)
    return ", ".join(f"{suffix} {count}" for suffix, count in suffixes)


def _size(size: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.3g} {units[0]}"
