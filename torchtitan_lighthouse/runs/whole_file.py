"""Files that are whole whenever someone reads them."""

import os
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write a file and make its folder: readers and kills meanwhile find the old one or the new."""
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f".{file.name}.{os.getpid()}")
    half.write_text(text)
    half.replace(file)
