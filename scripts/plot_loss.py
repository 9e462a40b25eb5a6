"""Draw the loss of runs against steps and against time: ``plot_loss.py RUN...``.

A RUN is a dump folder with a metrics.jsonl, or the path of a wandb run, entity/project/id.
"""

import argparse
from pathlib import Path

from torchtitan_lighthouse.runs.plot import plot
from torchtitan_lighthouse.runs.read import read_runs


def main(args: list[str] | None = None) -> None:
    """Parse the command line, write the PNG and print its path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument(
        "--labels", nargs="+", metavar="LABEL", help="names for the legend [the last of each path]"
    )
    parser.add_argument("--out", type=Path, metavar="PNG", help="[RUN/loss.png of the first]")
    parser.add_argument(
        "--smooth", type=int, metavar="N", help="logged steps in a mean [1/25 of the longest run]"
    )
    options = parser.parse_args(args)
    try:
        runs = read_runs(options.runs, options.labels)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    first = Path(options.runs[0])
    out = options.out or (first if first.is_dir() else Path()) / "loss.png"
    plot(runs, out, options.smooth)
    print(out)


if __name__ == "__main__":
    main()
