"""Train a grid of Lighthouse settings and tabulate S, tokens/s and loss.

    python -m torchtitan_lighthouse ablate train_configs/grids/ablation_25m.toml

The GRID file names a config, options of every run, and lists of values for fields of [lighthouse]:

    config = "train_configs/recoverability_25m_16k.toml"
    options = ["--training.steps", "400"]

    [grid]
    topk = [256, 512]
    pooling_factor = [2, 4]

Every combination is a run; one that the geometry does not allow, or that fails, is a line that says
so. A run that was interrupted goes on from its last checkpoint, if the config has checkpoints, and
finished ones are not run again: repeat the command. Writes table.md and every run's dump folder to
--out. Exits with 1 if a run failed.
"""

import argparse
import itertools
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchtitan.config import JobConfig

from torchtitan_lighthouse.experiments.launch import OUTPUT_FILE, train
from torchtitan_lighthouse.runs import summary
from torchtitan_lighthouse.runs.markdown import markdown
from torchtitan_lighthouse.runs.summary import Records
from torchtitan_lighthouse.titan.config import LighthouseConfigManager
from torchtitan_lighthouse.titan.stages import stage_at


def main(args: list[str] | None = None) -> None:
    """Parse the command line, train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", type=Path, metavar="GRID", help="a TOML file")
    parser.add_argument("--nproc", type=int, default=1, help="processes, one per GPU")
    parser.add_argument("--out", type=Path, default=Path("outputs/ablation"))
    options = parser.parse_args(args)
    grid = tomllib.loads(options.grid.read_text())
    runs = list(combinations(grid["grid"]))
    table = [(*grid["grid"], "S", "tokens/s, stage 1", "final loss", "held-out")]
    options.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for number, values in enumerate(runs, start=1):
        name = "_".join(f"{field}-{shown(value)}" for field, value in values.items())
        print(f"Run {number} of {len(runs)}: {name}", flush=True)
        job_options = [*grid.get("options", []), *as_options(values)]
        config_file = ["--job.config_file", grid["config"]]
        job = LighthouseConfigManager().parse_args([*config_file, *job_options])
        try:
            length = sub_sequence_length(job)
        except ValueError as error:
            figures: tuple[str, ...] = ("-", "-", "-", str(error))
        else:
            folder = options.out / name
            try:
                records = train(
                    Path(grid["config"]),
                    folder,
                    steps=job.training.steps,
                    options=job_options,
                    processes=options.nproc,
                )
            except subprocess.CalledProcessError:
                failed = True
                outcome: tuple[str, ...] = ("-", "-", f"failed, see {folder / OUTPUT_FILE}")
            except ValueError as error:
                parser.error(str(error))
            else:
                outcome = results(records)
            figures = ("-" if length is None else f"{length:,}", *outcome)
        table.append((*map(shown, values.values()), *figures))
        (options.out / "table.md").write_text(markdown(table))
    print(markdown(table))
    if failed:
        sys.exit(1)


def combinations(grid: dict[str, list]) -> Iterator[dict[str, Any]]:
    """Every choice of one value for each field."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def as_options(values: dict[str, Any]) -> list[str]:
    """The trainer's options for fields of ``[lighthouse]``."""
    options = []
    for field, value in values.items():
        if isinstance(value, bool):
            options.append(f"--lighthouse.{field}" if value else f"--lighthouse.no-{field}")
        else:
            items = value if isinstance(value, list) else [value]
            options += [f"--lighthouse.{field}", *map(str, items)]
    return options


def sub_sequence_length(job: JobConfig) -> int | None:
    """S; None without a Lighthouse stage.

    Raises:
        ValueError: the geometry does not fit the sequence.
    """
    if stage_at(1, job.lighthouse) == "dense":
        return None
    return job.lighthouse.attention_config().sub_sequence_length(job.training.seq_len)


def results(records: Records) -> tuple[str, ...]:
    """Tokens/s, "-" without a Lighthouse stage, and the losses."""
    first_stage = [r for r in summary.training_records(records) if r["stage"] == "lighthouse"]
    held_out = summary.held_out_loss(records)
    return (
        f"{summary.throughput(first_stage):,.0f}" if first_stage else "-",
        f"{summary.final_loss(records):.4f}",
        "-" if held_out is None else f"{held_out:.4f}",
    )


def shown(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


if __name__ == "__main__":
    main()
