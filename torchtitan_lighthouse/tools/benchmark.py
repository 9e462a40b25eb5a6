"""Train variants of one config for some steps each and compare tokens/s, memory and loss.

    python -m torchtitan_lighthouse benchmark train_configs/lighthouse_530m_98k.toml \
        --nproc 8 --steps 12 --run "dense --lighthouse.no-enable" --run "lighthouse" \
        --common "--training.global_batch_size 32"

Each --run is a name and command-line options of its own; --common goes to every run.
Tokens/s is the median over the steps from --skip on; the first steps compile. Prints a table, with
speed-ups over the first run, and writes it to --out beside the runs' dump folders.
"""

import argparse
import shlex
import time
from pathlib import Path

from torchtitan_lighthouse.experiments.benchmark import benchmark, table

OUT = "outputs/bench_train-%Y%m%d-%H%M%S"


def main(args: list[str] | None = None) -> None:
    """Parse the command line, train, and print the table."""
    options = parse_args(args)
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for run in options.run:
        name, *of_run = shlex.split(run)
        results.append(
            benchmark(
                options.config,
                options.out / name,
                steps=options.steps,
                skip=options.skip,
                options=[*options.common, *of_run],
                processes=options.nproc,
                timeout=options.timeout,
            )
        )
    text = table((result, results[0]) for result in results)
    (options.out / "table.md").write_text(text)
    print(text)


def parse_args(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--run", action="append", required=True, help='"NAME [OPTIONS]"')
    parser.add_argument("--nproc", type=int, default=1, help="processes, one per GPU")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--skip", type=int, default=4, help="leading steps not timed")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one run")
    parser.add_argument("--out", type=Path, default=Path(time.strftime(OUT)), help="a new folder")
    parser.add_argument("--common", type=shlex.split, default=[], help="options of every run")
    options = parser.parse_args(args)
    if options.steps <= options.skip:
        parser.error(
            f"--steps {options.steps} must be more than --skip {options.skip}, to time any"
        )
    return options


if __name__ == "__main__":
    main()
