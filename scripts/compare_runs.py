"""Compare runs: losses, the switch between the stages, tokens/s and time.

    python scripts/compare_runs.py outputs/dense outputs/lighthouse --to-loss 0.75

A RUN is a dump folder with a metrics.jsonl, or the path of a wandb run, entity/project/id. The
others are compared to the first. Writes the chart of scripts/plot_loss.py, too. Needs
``pip install .[plot]``, and ``wandb`` for its runs.
"""

from torchtitan_lighthouse.runs.command_line import build_parser, draw, parse_and_read
from torchtitan_lighthouse.runs.compare import stage_table, total_table


def main(args: list[str] | None = None) -> None:
    """Parse the command line, print the tables and write the chart."""
    parser = build_parser(__doc__.splitlines()[0])
    parser.add_argument("--to-loss", type=float, metavar="LOSS", help="also the time to this loss")
    options, runs = parse_and_read(parser, args)
    print(stage_table(runs))
    print(total_table(runs, options.to_loss))
    print(f"Loss curves: {draw(options, runs)}")


if __name__ == "__main__":
    main()
