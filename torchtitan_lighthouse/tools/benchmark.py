"""Train variants of one config for some steps each and compare tokens/s, memory and loss.

    python -m torchtitan_lighthouse benchmark train_configs/lighthouse_530m_98k.toml \
        --nproc 8 --steps 12 --run "dense --lighthouse.no-enable" --run "lighthouse" \
        --common "--training.global_batch_size 32"

Each --run is a name and command-line options of its own; --common goes to every run.
Tokens/s is the median over the steps after the first --skip, which compile, or over the intervals
of them that metrics.log_freq makes: each step by default, which has the host wait for the GPU.
Prints a table, with speed-ups over the first run, and writes it to --out beside the runs' dump
folders.
"""

import argparse
import shlex
import time
from pathlib import Path

from torchtitan_lighthouse import configs

OUT = "outputs/bench_train-%Y%m%d-%H%M%S"


def main(args: list[str] | None = None) -> None:
    """Parse the command line, train, and print the table."""
    parser = build_parser()
    options = parser.parse_args(args)
    if not 0 <= options.skip < options.steps:
        parser.error(f"--skip {options.skip} must be from 0 to below --steps {options.steps}")

    from torchtitan_lighthouse.experiments.benchmark import compared, write_table
    from torchtitan_lighthouse.experiments.devices import find_devices
    from torchtitan_lighthouse.experiments.schedule import train_all

    benchmarks = compared(
        configs.find(options.config),
        options.out,
        options.run,
        steps=options.steps,
        skip=options.skip,
        common=options.common,
        gpus=options.nproc,
    )
    runs = [benchmark.run for benchmark in benchmarks]
    outcome = train_all(runs, find_devices(str(options.nproc)), options.minutes)
    print(write_table(benchmarks, options.out))
    if outcome.unfinished:
        parser.exit(outcome.status, outcome.summary())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, metavar="CONFIG", help=configs.HELP)
    parser.add_argument(
        "--run", type=shlex.split, action="append", required=True, help='"NAME [OPTIONS]"'
    )
    parser.add_argument("--nproc", type=int, default=1, help="processes, one per GPU")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--skip", type=int, default=4, help="leading steps not timed")
    parser.add_argument("--minutes", type=float, help="after which the trainer is ended")
    parser.add_argument("--out", type=Path, default=Path(time.strftime(OUT)), help="a new folder")
    parser.add_argument("--common", type=shlex.split, default=[], help="options of every run")
    return parser


if __name__ == "__main__":
    main()
