"""Compare runs: losses, the switch between the stages, tokens/s and time.

    python -m torchtitan_lighthouse compare outputs/dense outputs/lighthouse --to-loss 0.75

A RUN is a dump folder with a metrics.jsonl, or the path of a wandb run, entity/project/id. The
others are compared to the first. Writes the chart of torchtitan_lighthouse plot, too. Needs
``pip install .[plot]``, and ``wandb`` for its runs.
"""

from pathlib import Path

from torchtitan_lighthouse.runs.tables import NOTES, THINNED, stage_table, total_table
from torchtitan_lighthouse.tools.run_options import build_parser, draw, read


def main(args: list[str] | None = None) -> None:
    """Parse the command line, print the tables and write the chart."""
    parser = build_parser(__doc__.splitlines()[0])
    parser.add_argument("--to-loss", type=float, metavar="LOSS", help="also the time to this loss")
    options = parser.parse_args(args)
    runs = read(options)
    print(stage_table(runs))
    print(total_table(runs, options.to_loss))
    print(NOTES)
    if any(Path(run).is_file() for run in options.runs):
        print(THINNED)
    print(f"Loss curves: {draw(options, runs)}")


if __name__ == "__main__":
    main()
