"""Does a dense model come out of Lighthouse training as good as one trained dense all along?

    python scripts/recoverability.py train_configs/recoverability_25m_16k.toml \
        --splits 0.625 0.6875 0.75 --seeds 0 1 --out outputs/recoverability

Trains, of one config and for each seed: dense SDPA from scratch; Lighthouse attention up to the
last split; and from that run's checkpoint at each split, dense SDPA to the same number of steps.
All see the same data in the same order. Writes table.md, curves.png and every run's dump folder to
--out. A run that was interrupted goes on from its last checkpoint, and finished ones are not run
again: repeat the command. Unknown options go to the trainer, in every run.
"""

import argparse
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torchtitan_lighthouse.runs.compare import stage_table, total_table
from torchtitan_lighthouse.runs.launch import train
from torchtitan_lighthouse.runs.plot import plot
from torchtitan_lighthouse.runs.summary import Records
from torchtitan_lighthouse.titan.config import LighthouseConfigManager


class Run(NamedTuple):
    """One launch of the trainer."""

    name: str
    steps: int
    options: list[str]


def main(args: list[str] | None = None) -> None:
    """Parse the command line, train, and print the table."""
    options, overrides = parse_args(args)
    config_file = ["--job.config_file", str(options.config)]
    steps = LighthouseConfigManager().parse_args([*config_file, *overrides]).training.steps
    runs = list(plan(steps, options.splits, options.seeds, options.dense_seeds, options.out))
    finished: dict[str, Records] = {}
    for number, run in enumerate(runs, start=1):
        print(f"Run {number} of {len(runs)}: {run.name}, {run.steps} steps", flush=True)
        remove_unfinished(options.out / run.name / "checkpoint")
        finished[run.name] = train(
            options.config,
            options.out / run.name,
            steps=run.steps,
            options=[*overrides, *run.options],
            processes=options.nproc,
        )
    compared = {run.name: finished[run.name] for run in runs if run.steps == steps}
    table = f"{total_table(compared)}\n{stage_table(compared)}"
    (options.out / "table.md").write_text(table)
    plot(compared, options.out / "curves.png")
    print(table)
    print(f"Loss curves: {options.out / 'curves.png'}")


def parse_args(args: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file")
    parser.add_argument(
        "--splits",
        type=float,
        nargs="+",
        default=[0.625, 0.6875, 0.75],
        help="shares of the steps with Lighthouse attention [the paper's 10k, 11k, 12k of 16k]",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--dense-seeds", type=int, nargs="*", default=[], help="more seeds, of the dense run alone"
    )
    parser.add_argument("--nproc", type=int, default=1, help="processes, one per GPU")
    parser.add_argument("--out", type=Path, default=Path("outputs/recoverability"))
    return parser.parse_known_args(args)


def plan(
    steps: int, splits: list[float], seeds: list[int], dense_seeds: list[int], out: Path
) -> Iterator[Run]:
    """The runs in the order in which they can be made.

    Raises:
        ValueError: a split is no whole number of steps.
    """
    switches = [round(share * steps) for share in splits]
    if any(abs(n - share * steps) > 1e-6 for n, share in zip(switches, splits, strict=True)):
        raise ValueError(f"training.steps = {steps} must make whole numbers of the splits {splits}")
    interval = math.gcd(steps, *switches)
    checkpoints = ["--checkpoint.enable", "--checkpoint.no-last_save_model_only"]
    checkpoints += ["--checkpoint.interval", str(interval), "--checkpoint.keep_latest_k"]
    keep_all, keep_few = [*checkpoints, "0"], [*checkpoints, "2"]
    for seed in [*seeds, *dense_seeds]:
        common = ["--debug.seed", str(seed), "--lr_scheduler.total_steps", str(steps)]
        yield Run(f"dense-seed{seed}", steps, [*common, *keep_few, "--lighthouse.no-enable"])
        if seed not in seeds:
            continue
        first = f"stage1-seed{seed}"
        yield Run(first, max(switches), [*common, *keep_all, "--lighthouse.steps", "-1"])
        for switch in switches:
            resumed = ["--lighthouse.steps", str(switch)]
            resumed += ["--checkpoint.initial_load_path", f"{out / first}/checkpoint/step-{switch}"]
            resumed += ["--checkpoint.no-initial_load_model_only"]
            name = f"lighthouse{switch}-dense{steps - switch}-seed{seed}"
            yield Run(name, steps, [*common, *keep_few, *resumed])


def remove_unfinished(checkpoints: Path) -> None:
    """Remove a folder in which nothing was ever finished: no run starts from or beside that."""
    if checkpoints.exists() and not any(checkpoints.glob("*/.metadata")):
        shutil.rmtree(checkpoints)


if __name__ == "__main__":
    main()
