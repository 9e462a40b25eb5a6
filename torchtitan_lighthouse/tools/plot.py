"""Draw the loss of runs against steps and against time: ``torchtitan_lighthouse plot RUN...``.

A RUN is a dump folder with a metrics.jsonl, or the path of a wandb run, entity/project/id. Needs
``pip install .[plot]``, and ``wandb`` for its runs.
"""

from torchtitan_lighthouse.tools.run_options import build_parser, draw, read


def main(args: list[str] | None = None) -> None:
    """Parse the command line, write the PNG and print its path."""
    options = build_parser(__doc__).parse_args(args)
    print(draw(options, read(options)))


if __name__ == "__main__":
    main()
