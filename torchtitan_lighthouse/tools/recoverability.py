"""Does a dense model come out of Lighthouse training as good as one trained dense all along?

    python -m torchtitan_lighthouse recoverability train_configs/recoverability_25m_16k.toml \
        --splits 0.625 0.6875 0.75 --seeds 0 1 --out outputs/recoverability

Trains, of one config and for each seed: dense SDPA from scratch; Lighthouse attention up to the
last split; and from that run's checkpoint at each split, dense SDPA to the same number of steps.
All see the same data in the same order. Writes table.md, curves.png and every run's dump folder to
--out; there is a table for each seed, whose runs are compared to its own dense one. A run that was
interrupted goes on from its last checkpoint, and finished ones are not run again: repeat the
command. Unknown options go to the trainer, in every run. Needs ``pip install .[plot]``.
"""

import argparse
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torchtitan.config import JobConfig

from torchtitan_lighthouse.experiments.launch import train
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.plot import plot
from torchtitan_lighthouse.runs.summary import Records
from torchtitan_lighthouse.runs.tables import stage_table, total_table
from torchtitan_lighthouse.titan.config import LighthouseConfigManager


class Run(NamedTuple):
    """One launch of the trainer."""

    name: str
    seed: int
    steps: int
    options: list[str]


def main(args: list[str] | None = None) -> None:
    """Parse the command line, train, and print the tables."""
    parser = build_parser()
    options, overrides = parser.parse_known_args(args)
    config_file = ["--job.config_file", str(options.config)]
    job = LighthouseConfigManager().parse_args([*config_file, *overrides])
    finished: dict[str, Records] = {}
    try:
        runs = list(plan(job, options.splits, options.seeds, options.dense_seeds, options.out))
        for number, run in enumerate(runs, start=1):
            print(f"Run {number} of {len(runs)}: {run.name}, {run.steps} steps", flush=True)
            remove_unfinished(options.out / run.name / job.checkpoint.folder)
            finished[run.name] = train(
                options.config,
                options.out / run.name,
                steps=run.steps,
                options=[*overrides, *run.options],
                processes=options.nproc,
            )
    except ValueError as error:
        parser.error(str(error))
    whole = [run for run in runs if run.steps == job.training.steps]
    table = "\n".join(seed_tables(whole, finished, options.seeds))
    (options.out / "table.md").write_text(table)
    plot({run.name: finished[run.name] for run in whole}, options.out / "curves.png")
    print(table)
    print(f"Loss curves: {options.out / 'curves.png'}")


def seed_tables(runs: list[Run], records: dict[str, Records], seeds: list[int]) -> Iterator[str]:
    """Each seed's runs, the dense one first, and the other seeds' dense ones: what a seed does."""
    for seed in seeds:
        own = [run.name for run in runs if run.seed == seed]
        others = [run.name for run in runs if run.seed != seed and run.name.startswith("dense")]
        compared = {name: records[name] for name in own + others}
        yield f"Seed {seed}\n\n{total_table(compared)}\n{stage_table(compared)}"


def build_parser() -> argparse.ArgumentParser:
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
    return parser


def plan(
    job: JobConfig, splits: list[float], seeds: list[int], dense_seeds: list[int], out: Path
) -> Iterator[Run]:
    """The runs in the order in which they can be made.

    Raises:
        ValueError: a split is not between 0 and 1, or no whole number of steps.
    """
    steps, folder = job.training.steps, job.checkpoint.folder
    switches = [round(share * steps) for share in splits]
    if not all(0 < share < 1 for share in splits):
        raise RefusalError(f"the splits {splits} must be above 0 and below 1")
    if any(abs(n - share * steps) > 1e-6 for n, share in zip(switches, splits, strict=True)):
        raise RefusalError(
            f"training.steps = {steps} must make whole numbers of the splits {splits}"
        )
    keep_few = ["--checkpoint.enable", "--checkpoint.no-last_save_model_only"]
    keep_few += ["--checkpoint.keep_latest_k", "2"]
    # As often as the config has it, and at each switch.
    interval = math.gcd(job.checkpoint.interval, *switches)
    keep_all = [*keep_few[:-1], "0", "--checkpoint.interval", str(interval)]
    for seed in dict.fromkeys([*seeds, *dense_seeds]):
        common = ["--debug.seed", str(seed), "--lr_scheduler.total_steps", str(steps)]
        dense = [*common, *keep_few, "--lighthouse.no-enable"]
        yield Run(f"dense-seed{seed}", seed, steps, dense)
        if seed not in seeds:
            continue
        first = f"stage1-seed{seed}"
        throughout = [*common, *keep_all, "--lighthouse.steps", "-1"]
        yield Run(first, seed, max(switches), throughout)
        for switch in dict.fromkeys(switches):
            resumed = ["--lighthouse.steps", str(switch), "--checkpoint.no-initial_load_model_only"]
            resumed += ["--checkpoint.initial_load_path", f"{out / first / folder}/step-{switch}"]
            name = f"lighthouse{switch}-dense{steps - switch}-seed{seed}"
            yield Run(name, seed, steps, [*common, *keep_few, *resumed])


def remove_unfinished(checkpoints: Path) -> None:
    """Remove the steps of a folder in which none was finished: no run starts from or beside it."""
    if checkpoints.exists() and not any(checkpoints.glob("*/.metadata")):
        for step in checkpoints.glob("step-*"):
            shutil.rmtree(step)
        if not any(checkpoints.iterdir()):
            checkpoints.rmdir()


if __name__ == "__main__":
    main()
