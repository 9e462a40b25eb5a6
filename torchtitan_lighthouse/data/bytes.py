"""Text as bytes: tokens that need no files."""

from collections.abc import Iterable

BOS_ID = 256
EOS_ID = 257
# The 258 ids rounded up to a multiple of 64: tensor cores and tensor parallelism want even shards.
VOCAB_SIZE = 320


def encode(text: str) -> list[int]:
    """Return the ids of ``text``, 0 to 255: one per byte of UTF-8.

    Bytes of a file that are no UTF-8 reach it as surrogate escapes (Python's ``surrogateescape``)
    and come out as the very bytes of the file.
    """
    return list(text.encode("utf-8", "surrogateescape"))


def decode(tokens: Iterable[int]) -> str:
    """Return the text of any ids; those above 255 are left out, invalid UTF-8 becomes U+FFFD."""
    return bytes(t for t in tokens if 0 <= t < 256).decode("utf-8", "replace")
