"""The documents of sections. A document, which the tokenizer puts between bos and eos, is

- a section of a text file: the whole file, or part of a long one, cut where a line ends. Long is
  a thousandth of the corpus, but 16 KiB at least and ``LONGEST_DOCUMENT`` at most;
- the ``text`` of one row of a file of JSON lines or parquet, whatever its length.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import BinaryIO, NamedTuple

import pyarrow.parquet as pq

from torchtitan_lighthouse.data.kinds import Reader, read_row
from torchtitan_lighthouse.data.sections import LINE_END_SEARCH, Section, line_start
from torchtitan_lighthouse.refusal import RefusalError

Unread = Callable[[], str]
"""A document whose text is what the call returns."""


def documents(sections: list[Section]) -> Iterator[tuple[str, dict[str, Unread]]]:
    """Yield the documents unread: a rank steps over those of other ranks without parsing them."""
    readers = {
        Reader.TEXT: _text_documents,
        Reader.JSON_LINES: _json_documents,
        Reader.PARQUET: _parquet_documents,
    }
    for section in sections:
        for document in readers[section.reader](section):
            yield section.path, {"read": document}


class Share(NamedTuple):
    """The part of the data that one worker of a data-parallel rank reads."""

    rank: int
    ranks: int
    worker: int
    workers: int

    def documents(self, sections: list[Section]) -> Iterator[Unread]:
        """Yield the documents of the first epoch, as ``datasets`` shares out the sections."""
        first, step = 0, 1
        if len(sections) % self.ranks == 0:
            sections = sections[self.rank :: self.ranks]
        else:
            first, step = self.rank, self.ranks
        unread = documents(sections[self.worker :: self.workers])
        return (sample["read"] for _, sample in islice(unread, first, None, step))


def read_document(sample: dict[str, Unread]) -> str:
    """Read the text of one sample of ``documents``.

    Bytes of text files that are no UTF-8 become surrogate escapes; those of rows become U+FFFD.

    Raises:
        RefusalError: a JSON line is no object with a string under ``text``.
    """
    return sample["read"]()


def _text_documents(section: Section) -> Iterator[Unread]:
    yield partial(_read_text, section)


def _read_text(section: Section) -> str:
    with _open(section) as stream:
        start = line_start(stream, section.start, LINE_END_SEARCH)
        stop = line_start(stream, section.stop, LINE_END_SEARCH)
        stream.seek(start)
        return stream.read(stop - start).decode("utf-8", "surrogateescape")


def _json_documents(section: Section) -> Iterator[Unread]:
    with _open(section) as stream:
        position = line_start(stream, section.start)
        stream.seek(position)
        while position < section.stop and (line := stream.readline()):
            if line.strip():
                yield partial(read_row, line, section.path, position)
            position += len(line)


def _open(section: Section) -> BinaryIO:
    """Open the file of a section of bytes.

    Raises:
        RefusalError: it is not what was looked at when the corpus was cut.
    """
    try:
        stream = open(section.path, "rb")  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        raise RefusalError(f"{section.path} is gone since the launch: {error}") from error
    if (size := os.fstat(stream.fileno()).st_size) < section.stop:
        stream.close()
        raise RefusalError(
            f"{section.path} has been cut short since the launch, from {section.stop} bytes or "
            f"more to {size}: leave a corpus as it is while a run reads it"
        )
    return stream


def _parquet_documents(section: Section) -> Iterator[Unread]:
    parquet = pq.ParquetFile(section.path)
    group_start = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        first, last = section.start - group_start, section.stop - group_start
        if rows and first < rows and last > 0:
            yield from _rows(parquet, group, first, last)
        group_start += rows


def _rows(parquet: pq.ParquetFile, group: int, first: int, last: int) -> Iterator[Unread]:
    """Yield the rows ``first`` to ``last`` of a row group, without those that have no text."""
    position = 0
    for batch in parquet.iter_batches(row_groups=[group], columns=["text"]):
        if position >= last:
            break
        for row in batch.column(0)[max(first - position, 0) : max(last - position, 0)]:
            if row.is_valid:
                yield row.as_py
        position += len(batch)
