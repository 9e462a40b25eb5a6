"""Which reader a file of a corpus is for: told by its name, and checked against how it begins.

A file whose name and beginning leave the reader open, or name one that is not here, is refused:
training on quotes and keys, or on the commas of a table, looks like training on text.
"""

import json
import re
from enum import StrEnum
from pathlib import Path

from torchtitan_lighthouse.refusal import RefusalError

BEGINNING = 8192  # bytes; git looks for a NUL in as many


class Reader(StrEnum):
    """How the text of a file is read."""

    TEXT = "text"
    JSON_LINES = "JSON lines"
    PARQUET = "parquet"


_JSON_LINES = {".jsonl", ".ndjson", ".jsonlines", ".json"}
_COMPRESSED = {".gz", ".zst", ".bz2", ".xz", ".lz4", ".br", ".zip", ".tar", ".tgz", ".tbz", ".7z"}
_OTHER_FORMATS = {
    *(".csv", ".tsv", ".psv", ".xls", ".xlsx", ".ods"),
    *(".html", ".htm", ".xhtml", ".xml", ".warc", ".wet", ".wat", ".rtf"),
    *(".pdf", ".doc", ".docx", ".odt", ".epub", ".mobi"),
    *(".arrow", ".feather", ".orc", ".avro", ".tfrecord", ".mds"),
}
_SIGNATURES = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"version https://git-lfs": "a pointer of Git LFS to text that is not here (git lfs pull)",
    b"{\\rtf": "RTF",
}
_MARKUP = re.compile(rb"\s*<(\?xml|!doctype|html|svg)\b", re.IGNORECASE)
_JSON_OBJECT = re.compile(rb'\s*\[?\s*\{\s*"(?:[^"\\]|\\.)*"\s*:')
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST_ROW = 1 << 26  # bytes

_WAYS_ON = (
    "convert it to text, JSON lines or parquet, move it out of the corpus, or set the dataset to "
    "'local_text' (or 'local_text_validation'), which reads every file as the text it is"
)


def reader_of(file: Path) -> Reader | None:
    """Choose the reader of a regular file that is not empty; None for an unknown binary file.

    Raises:
        RefusalError: it holds what may be meant as text in a form that is not read here.
        OSError: it cannot be opened.
    """
    suffix = file.suffix.lower()
    with file.open("rb") as stream:
        beginning = stream.read(BEGINNING)
    if suffix == ".parquet" or beginning.startswith(b"PAR1"):
        return Reader.PARQUET
    if suffix in _COMPRESSED:
        raise _refusal(file, "is compressed or an archive")
    if suffix in _OTHER_FORMATS:
        raise _refusal(file, f"is, by its name, in a format ({suffix}) that is not read here")
    for signature, name in _SIGNATURES.items():
        if beginning.startswith(signature):
            raise _refusal(file, f"is, by its first bytes, {name}")
    if b"\0" in beginning:
        if suffix in _JSON_LINES:
            raise _refusal(file, "is binary, and by its name JSON lines")
        return None
    if suffix in _JSON_LINES:
        _check_json_lines(file, beginning)
        return Reader.JSON_LINES
    if _JSON_OBJECT.match(beginning.removeprefix(_BYTE_ORDER_MARK)):
        raise _refusal(
            file, "begins as JSON does, which its name does not say (name JSON lines .jsonl)"
        )
    if _MARKUP.match(beginning.removeprefix(_BYTE_ORDER_MARK)):
        raise _refusal(file, "begins as XML or HTML does")
    return Reader.TEXT


def is_binary(file: Path) -> bool:
    """Whether a file has a NUL byte among its first 8,192, which is git's rule."""
    with file.open("rb") as stream:
        return b"\0" in stream.read(BEGINNING)


def read_row(line: bytes, path: str, position: int) -> str:
    """Return the text of one JSON line.

    Raises:
        RefusalError: it is no JSON object with a string under ``text``.
    """
    where = f"{path}, the line at byte {position}"
    try:
        row = json.loads(line.decode("utf-8-sig", "replace"))
    except json.JSONDecodeError as error:
        raise RefusalError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise RefusalError(f"{where}: needs an object with a string under 'text', and has {found}")
    # JSON can spell lone surrogates, which are no text.
    return row["text"].encode("utf-8", "replace").decode()


def _check_json_lines(file: Path, beginning: bytes) -> None:
    """Refuse what is one JSON value over many lines or an array, and rows without a text."""
    position = len(beginning) - len(beginning.removeprefix(_BYTE_ORDER_MARK).lstrip())
    with file.open("rb") as stream:
        stream.seek(position)
        first = stream.readline(_LONGEST_ROW)
    is_one_value = first.startswith(b"[") or first.strip() in (b"{", b"")
    if file.suffix.lower() == ".json" and is_one_value:
        raise _refusal(file, "is one JSON value, not one object with a 'text' on each line")
    try:
        read_row(first, str(file), position)
    except RefusalError as error:
        raise RefusalError(f"{error}; {_WAYS_ON}") from error


def _refusal(file: Path, what: str) -> RefusalError:
    return RefusalError(f"{file} {what}: {_WAYS_ON}")
