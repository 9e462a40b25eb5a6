"""A corpus cut into sections, each a part of one file small enough to read at once.

Sections are what data-parallel ranks share out, what each epoch shuffles and what the held-out part
is made of.
"""

import random
from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from torchtitan_lighthouse.data.files import CorpusFile
from torchtitan_lighthouse.data.kinds import Reader
from torchtitan_lighthouse.refusal import RefusalError

LONGEST_DOCUMENT = 1 << 20  # bytes
SHORTEST_CUT = 1 << 14  # bytes
LINE_END_SEARCH = 1 << 12  # bytes; below half of SHORTEST_CUT, so that no section is empty
# Small corpora are cut finer: ranks, shuffling and the held-out part need many sections.
_FEWEST_SECTIONS = 1000
_HELD_OUT_EVERY = 50  # sections
FEWEST_TO_HOLD_OUT = 10  # sections, so that a tenth is held out at most

Part = Literal["training", "held-out"]


class Section(NamedTuple):
    """``start`` to ``stop`` of one file: bytes of text or JSON lines, rows of parquet."""

    path: str
    reader: Reader
    start: int
    stop: int


def cut(files: Iterable[CorpusFile]) -> list[Section]:
    """Cut a corpus into sections, in the order of the first epoch.

    Raises:
        RefusalError: a parquet file cannot be read, or has no text.
    """
    total = sum(file.size for file in files)
    longest = min(max(total // _FEWEST_SECTIONS, SHORTEST_CUT), LONGEST_DOCUMENT)
    sections = [section for file in files for section in _cut_file(file, longest)]
    if 0 < len(sections) < FEWEST_TO_HOLD_OUT:
        parts = ceil(FEWEST_TO_HOLD_OUT / len(sections))
        sections = [piece for section in sections for piece in _split_rows(section, parts)]
    # Training must not meet the files in the order of their names. Epochs after the first are
    # shuffled by `datasets`, which takes the epoch's number as the seed.
    random.Random(0).shuffle(sections)
    return sections


def part_of(sections: list[Section], part: Part) -> list[Section]:
    """Return the sections to train on, or those held out: none of a very small corpus."""
    if len(sections) < FEWEST_TO_HOLD_OUT:
        return sections if part == "training" else []
    every = min(_HELD_OUT_EVERY, len(sections))
    held_out = slice(every - 1, None, every)
    if part == "held-out":
        return sections[held_out]
    training = list(sections)
    del training[held_out]
    return training


def line_start(stream: BinaryIO, position: int, search: int = -1) -> int:
    """Find the first line start at or after ``position``, or the end of the search for one.

    Args:
        search: bytes to search; -1 for as many as it takes.
    """
    if position == 0:
        return 0
    stream.seek(position - 1)
    return position - 1 + len(stream.readline(search))


def _cut_file(file: CorpusFile, longest: int) -> list[Section]:
    if file.reader is Reader.PARQUET:
        return _row_groups(file.path)
    count = ceil(file.size / longest)
    edges = [file.size * i // count for i in range(count + 1)]
    return [Section(str(file.path), file.reader, *edge) for edge in pairwise(edges)]


def _row_groups(file: Path) -> list[Section]:
    try:
        parquet = pq.ParquetFile(file)
    # A name that is no UTF-8 is a ValueError.
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RefusalError(f"{file} is no parquet file: {error}") from error
    columns = {field.name: str(field.type) for field in parquet.schema_arrow}
    if columns.get("text") not in ("string", "large_string"):
        raise RefusalError(f"{file} needs a column 'text' of strings, and has {columns}")
    edges = [0]
    for group in range(parquet.num_row_groups):
        edges.append(edges[-1] + parquet.metadata.row_group(group).num_rows)
    return [Section(str(file), Reader.PARQUET, *edge) for edge in pairwise(edges) if len(set(edge))]


def _split_rows(section: Section, parts: int) -> Iterator[Section]:
    """The rows of a section in about ``parts`` sections; text is not cut below its shortest."""
    path, reader, start, stop = section
    edges = {start, stop}
    if reader is not Reader.TEXT:
        edges |= {start + (stop - start) * i // parts for i in range(1, parts)}
    if reader is Reader.JSON_LINES:
        with open(path, "rb") as stream:
            edges = {min(line_start(stream, edge), stop) for edge in edges}
    for edge in pairwise(sorted(edges)):
        yield Section(path, reader, *edge)
