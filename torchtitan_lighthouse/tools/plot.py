"""Draw the loss of runs against steps and against time: ``torchtitan_lighthouse plot RUN...``.

A RUN is a dump folder with a metrics.jsonl, or the path of a wandb run, entity/project/id. Needs
``pip install .[plot]``, and ``wandb`` for its runs.
"""

from torchtitan_lighthouse.tools.runs import build_parser, draw, parse_and_read


def main(args: list[str] | None = None) -> None:
    """Parse the command line, write the PNG and print its path."""
    options, runs = parse_and_read(build_parser(__doc__), args)
    print(draw(options, runs))


if __name__ == "__main__":
    main()
