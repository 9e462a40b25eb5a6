"""Train the variants and seeds of an experiment on all GPUs of a host, and tabulate them.

    python -m torchtitan_lighthouse experiment train_configs/experiments/quickstart_cpu.toml

The FILE says what is trained (see experiments/experiment.py). Writes table.md, curves.png,
metrics_thin.jsonl and every run's dump folder to --out. A run that was interrupted goes on from its
last checkpoint, and finished ones are not run again: repeat the command. Exits with 1 if a run has
failed, and with 3 if --minutes were over. Needs ``pip install .[plot]``.
"""

import argparse
from pathlib import Path

from torchtitan_lighthouse import configs


def main(args: list[str] | None = None) -> None:
    """Parse the command line, train, and print the table."""
    parser = build_parser()
    options = parser.parse_args(args)

    from torchtitan_lighthouse.experiments.devices import find_devices
    from torchtitan_lighthouse.experiments.experiment import read_experiment
    from torchtitan_lighthouse.experiments.plan import plan
    from torchtitan_lighthouse.experiments.report import write_report
    from torchtitan_lighthouse.experiments.schedule import train_all

    file = configs.find(options.file)
    out = options.out or Path("outputs", file.stem)
    planned = plan(read_experiment(file), out, options.seeds or ())
    devices = find_devices(options.gpus)
    outcome = train_all(planned.runs, devices, options.minutes, options.only)
    print(write_report(planned, out, outcome.unfinished))
    print(f"Tables, curves and metrics are in {out}")
    if outcome.unfinished:
        parser.exit(outcome.status, outcome.summary())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("file", type=Path, metavar="FILE", help=configs.HELP)
    parser.add_argument("--out", type=Path, help="[outputs/ and the name of FILE]")
    parser.add_argument("--gpus", help="how many, or which: 2, or 0,3 [all; without any: 1 run]")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="variants or runs [all]")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of all that FILE has")
    parser.add_argument(
        "--minutes", type=float, help="after which the trainers save and end [when they are done]"
    )
    return parser


if __name__ == "__main__":
    main()
