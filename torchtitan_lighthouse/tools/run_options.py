"""The options that the tools ``plot`` and ``compare`` share."""

import argparse
from pathlib import Path

from torchtitan_lighthouse.runs.names import file_name
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
        "--out", type=Path, metavar="PNG", help="[RUN/loss_OTHERS.png of the first]"
    )
    parser.add_argument(
        "--smooth", type=int, metavar="N", help="logged steps in a mean [1/25 of the longest run]"
    )
    return parser


def read(options: argparse.Namespace) -> dict[str, Records]:
    """Read the runs that the command line names, by their labels."""
    return read_runs(options.runs, options.labels)


def draw(options: argparse.Namespace, runs: dict[str, Records]) -> Path:
    """Write the chart and return its path."""
    from torchtitan_lighthouse.runs.plot import plot  # and matplotlib

    first = Path(options.runs[0])
    others = list(runs)[1:]
    name = file_name("loss", others, ".png")
    out: Path = options.out or (first if first.is_dir() else Path()) / name
    plot(runs, out, options.smooth)
    return out
