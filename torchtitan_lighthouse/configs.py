"""The shipped TOML files by name, without ``.toml``: those of ``train_configs/``."""

import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from torchtitan_lighthouse.refusal import RefusalError

HELP = "a TOML file, or a shipped one's name"
"""The help of an argument that ``find`` reads."""


def names() -> list[str]:
    """List the names of the configs; one in a subfolder is ``FOLDER/NAME``."""
    return sorted(_files(_folder()))


def text(name: str) -> str:
    """Return the text of a config.

    Raises:
        RefusalError: there is none of that name.
    """
    return path(name).read_text()


def find(file: str | Path, *folders: Path) -> Path:
    """Return the path of a file, in the first of the folders that has it, or of a shipped config.

    Args:
        file: a path, or the name of a shipped config, without ``.toml``: a file of one's own that
            is not where it is looked for must not become the shipped one that it was made from.
        folders: by default the working directory.

    Raises:
        RefusalError: there is neither; the message has both.
    """
    places = [folder / file for folder in folders or (Path(),)]
    for place in places:
        if place.is_file():
            return place
    if str(file) in names():
        return path(str(file))
    looked = " nor ".join(dict.fromkeys(str(place.absolute()) for place in places))
    raise RefusalError(
        f"there is no {looked}; a config that is shipped has one of the names {', '.join(names())}"
    )


def path(name: str) -> Path:
    """Return the path of a config.

    Raises:
        RefusalError: there is none of that name.
    """
    shipped = _files(_folder())
    name = name.removesuffix(".toml")
    if name not in shipped:
        raise RefusalError(f"there is no config {name!r}: use one of {', '.join(names())}")
    return Path(str(shipped[name]))


def summary(name: str) -> str:
    """Return the first sentence of a file's first comment."""
    comment: list[str] = []
    for line in text(name).splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return re.split(r"(?<=\?)\s|[.:;](?:\s|$)", " ".join(comment))[0]


def _folder() -> Traversable:
    """Find the folder of configs, inside an installed package or beside it in a clone."""
    installed = files("torchtitan_lighthouse") / "train_configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "train_configs"


def _files(folder: Traversable, prefix: str = "") -> dict[str, Traversable]:
    found: dict[str, Traversable] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            found |= _files(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".toml"):
            found[prefix + entry.name.removesuffix(".toml")] = entry
    return found
