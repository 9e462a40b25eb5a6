"""Files on this machine as streamed ``datasets``: a local corpus, and Python's own sources.

A corpus is a list of *sections*, each a part of one file small enough to read at once. Sections
are what data-parallel ranks share out, what each epoch shuffles and what the held-out part is
made of. A *document*, which the tokenizer puts between bos and eos, is

- a section of a text file: the whole file, or part of a long one, cut where a line ends. Long is
  a thousandth of the corpus, but 16 KiB at least and ``LONGEST_DOCUMENT`` at most;
- the ``text`` of one row of a ``.jsonl`` or ``.parquet`` file, whatever its length.
"""

import json
import os
import random
import sysconfig
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import IterableDataset
from datasets.iterable_dataset import ExamplesIterable

from torchtitan_lighthouse.refusal import RefusalError

LONGEST_DOCUMENT = 1 << 20  # bytes
_SHORTEST_CUT = 1 << 14  # bytes
# Small corpora are cut finer: ranks, shuffling and the held-out part need many sections.
_FEWEST_SECTIONS = 1000
_HELD_OUT_EVERY = 50  # sections
_LINE_END_SEARCH = 1 << 12  # bytes; below half of _SHORTEST_CUT, so that no section is empty

Part = Literal["training", "held-out"]


class Section(NamedTuple):
    """``start`` to ``stop`` of one file: bytes of a text or .jsonl file, row groups of .parquet."""

    path: str
    start: int
    stop: int


def load_local(path: str, part: Part) -> IterableDataset:
    """Every text, .jsonl and .parquet file under ``path``, itself a file or a folder.

    Hidden files and folders are left out, and so are files that look binary (a NUL byte among
    their first 8,192, git's rule).

    Raises:
        ValueError: no path was given, nothing there can be read, or it is too small to hold
            anything out.
        FileNotFoundError: there is nothing at ``path``.
    """
    if not path:
        raise RefusalError(
            "a local corpus needs a path: set training.dataset_path to a file or folder"
        )
    root = Path(path).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"dataset_path={path!r} does not exist (looked in {Path.cwd()})")
    files = [root] if root.is_file() else _files_below(root)
    return _stream([f for f in files if f.suffix == ".parquet" or _is_text(f)], path, part)


def load_python_stdlib(path: str, part: Part) -> IterableDataset:
    """The ``.py`` files of the standard library at ``path``, without installed packages, its tests,
    which repeat themselves and break encodings on purpose, and its tables of character encodings.

    Raises:
        ValueError: there are none.
    """
    left_out = {"site-packages", "dist-packages", "test", "tests", "encodings"}
    files = [f for f in _files_below(Path(path), left_out) if f.suffix == ".py"]
    return _stream(files, path, part)


def stdlib_path() -> str:
    """The folder of the running interpreter's standard library."""
    return sysconfig.get_path("stdlib")


def read_document(sample: dict[str, Callable[[], str]]) -> str:
    """The text of one sample of the datasets above.

    Bytes of text files that are no UTF-8 become surrogate escapes; those of rows become U+FFFD.

    Raises:
        ValueError: a .jsonl line is no JSON object with a string under ``text``.
    """
    return sample["read"]()


def _files_below(folder: Path, left_out: Collection[str] = ()) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in left_out)
        found += [Path(parent, n) for n in sorted(names) if not n.startswith(".")]
    return found


def _is_text(file: Path) -> bool:
    with file.open("rb") as stream:
        return b"\0" not in stream.read(8192)


def _stream(files: list[Path], corpus: str, part: Part) -> IterableDataset:
    sizes = {file: file.stat().st_size for file in files}
    longest = sum(sizes.values()) // _FEWEST_SECTIONS
    longest = min(max(longest, _SHORTEST_CUT), LONGEST_DOCUMENT)
    sections = [section for file in files for section in _sections(file, sizes[file], longest)]
    if not sections:
        raise RefusalError(
            f"no text in {corpus!r}: it needs a non-empty text, .jsonl or .parquet file, "
            "neither hidden nor binary"
        )
    # Training must not meet the files in the order of their names. Epochs after the first are
    # shuffled by `datasets`, which takes the epoch's number as the seed.
    random.Random(0).shuffle(sections)
    every_nth = slice(_HELD_OUT_EVERY - 1, None, _HELD_OUT_EVERY)
    if part == "training":
        del sections[every_nth]
    elif not (sections := sections[every_nth]):
        raise RefusalError(
            f"{corpus!r} is too small to hold a part of it out for validation; set "
            "validation.dataset to 'local' and validation.dataset_path to other text"
        )
    return IterableDataset(ExamplesIterable(_documents, {"sections": sections}))


def _sections(file: Path, size: int, longest: int) -> list[Section]:
    if file.suffix == ".parquet":
        return _row_groups(file)
    count = -(-size // longest)
    edges = [size * i // count for i in range(count + 1)] if count else []
    return [Section(str(file), *edge) for edge in pairwise(edges)]


def _row_groups(file: Path) -> list[Section]:
    try:
        parquet = pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise RefusalError(f"{file} is no parquet file: {error}") from error
    columns = {field.name: str(field.type) for field in parquet.schema_arrow}
    if columns.get("text") not in ("string", "large_string"):
        raise RefusalError(f"{file} needs a column 'text' of strings, and has {columns}")
    return [
        Section(str(file), group, group + 1)
        for group in range(parquet.num_row_groups)
        if parquet.metadata.row_group(group).num_rows
    ]


def _documents(sections: list[Section]) -> Iterator[tuple[str, dict[str, Callable[[], str]]]]:
    """Yield the documents unread: a rank steps over those of other ranks without parsing them."""
    readers = {".jsonl": _jsonl_documents, ".parquet": _parquet_documents}
    for section in sections:
        reader = readers.get(Path(section.path).suffix, _text_documents)
        for document in reader(section):
            yield section.path, {"read": document}


def _text_documents(section: Section) -> Iterator[Callable[[], str]]:
    yield partial(_read_text, section)


def _read_text(section: Section) -> str:
    with open(section.path, "rb") as stream:
        start = _line_start(stream, section.start, _LINE_END_SEARCH)
        stop = _line_start(stream, section.stop, _LINE_END_SEARCH)
        stream.seek(start)
        return stream.read(stop - start).decode("utf-8", "surrogateescape")


def _jsonl_documents(section: Section) -> Iterator[Callable[[], str]]:
    with open(section.path, "rb") as stream:
        position = _line_start(stream, section.start)
        stream.seek(position)
        while position < section.stop and (line := stream.readline()):
            if line.strip():
                yield partial(_read_row, line, section.path, position)
            position += len(line)


def _read_row(line: bytes, path: str, position: int) -> str:
    where = f"{path}, the line at byte {position}"
    try:
        row = json.loads(line.decode("utf-8", "replace"))
    except json.JSONDecodeError as error:
        raise RefusalError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise RefusalError(f"{where}: needs an object with a string under 'text', and has {found}")
    # JSON can spell lone surrogates, which are no text.
    return row["text"].encode("utf-8", "replace").decode()


def _parquet_documents(section: Section) -> Iterator[Callable[[], str]]:
    groups = range(section.start, section.stop)
    for batch in pq.ParquetFile(section.path).iter_batches(row_groups=groups, columns=["text"]):
        for row in batch.column(0):
            if row.is_valid:
                yield row.as_py


def _line_start(stream: BinaryIO, position: int, search: int = -1) -> int:
    """The first line start at or after ``position``, or the end of the search for one.

    Args:
        search: bytes to search; -1 for as many as it takes.
    """
    if position == 0:
        return 0
    stream.seek(position - 1)
    return position - 1 + len(stream.readline(search))
