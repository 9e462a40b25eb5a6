"""The options that the tools ``plot`` and ``compare`` share."""

import argparse
from pathlib import Path

from torchtitan_lighthouse.runs.names import file_name, path_name
from torchtitan_lighthouse.runs.read import read_runs
from torchtitan_lighthouse.runs.summary import Records


def build_parser(description: str) -> argparse.ArgumentParser:
    """A parser of runs and of their chart's options."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument(
        "--labels", nargs="+", metavar="LABEL", help="names of the runs [the last of each path]"
    )
    parser.add_argument(
        "--out", type=_png, metavar="PNG", help="[loss_OTHERS.png in the first's folder]"
    )
    parser.add_argument(
        "--smooth",
        type=_positive,
        metavar="N",
        help="logged steps in a mean [1/25 of the longest run]",
    )
    return parser


def read(options: argparse.Namespace) -> dict[str, Records]:
    """Read the runs that the command line names, by their labels."""
    return read_runs(options.runs, options.labels)


def draw(options: argparse.Namespace, runs: dict[str, Records]) -> Path:
    """Write the chart and return its path."""
    from torchtitan_lighthouse.runs.plot import plot  # and matplotlib

    first = Path(options.runs[0])
    folder = first if first.is_dir() else None
    names = options.labels or [path_name(run) for run in options.runs]
    name = file_name("loss", names[1:] if folder else names, ".png")
    out: Path = options.out or (folder or Path()) / name
    plot(runs, out, options.smooth)
    return out


def _png(text: str) -> Path:
    if Path(text).suffix != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} must end with .png")
    return Path(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least 1")
    return int(text)
