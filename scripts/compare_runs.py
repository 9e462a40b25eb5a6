"""Compare runs: losses, the switch between the stages, tokens/s and time.

    python scripts/compare_runs.py outputs/dense outputs/lighthouse --to-loss 0.75

A RUN is a dump folder with a metrics.jsonl, or the path of a wandb run, entity/project/id. The
others are compared to the first. Writes the chart of scripts/plot_loss.py, too.
"""

import argparse
from pathlib import Path

from torchtitan_lighthouse.runs.compare import stage_table, total_table
from torchtitan_lighthouse.runs.plot import plot
from torchtitan_lighthouse.runs.read import read_runs


def main(args: list[str] | None = None) -> None:
    """Parse the command line, print the tables and write the chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="[the last of each path]")
    parser.add_argument("--to-loss", type=float, metavar="LOSS", help="also the time to this loss")
    parser.add_argument("--out", type=Path, default=Path("comparison.png"), metavar="PNG")
    options = parser.parse_args(args)
    try:
        runs = read_runs(options.runs, options.labels)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(stage_table(runs))
    print(total_table(runs, options.to_loss))
    plot(runs, options.out)
    print(f"Loss curves: {options.out}")


if __name__ == "__main__":
    main()
