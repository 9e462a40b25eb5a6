"""The paper's configurations side by side on one node: tokens/s, memory, loss, and resuming.

    python -m torchtitan_lighthouse paper --out outputs/bench_paper

Trains, from the shipped configs and on 8 GPUs:

- dense SDPA and Lighthouse attention, with norm and p=4 and with dilated and p=2, at 98,304 tokens
  and a global batch of 32, as in the paper's section 4;
- both with context parallel: W=2 at 98,304 tokens, W=8 at 262,144 and at 1,048,576;
- Lighthouse attention with W=2 up to a checkpoint, and from it the dense stage with W=2 and W=1.

Prints a table of all runs that --out has so far. Finished runs are kept, and one that is not when
--minutes are over starts anew: repeat the command until all are there. Other options go to the
trainer, in every run; fewer GPUs need smaller runs, whose names then tell no length:

    python -m torchtitan_lighthouse paper --gpus 2 --model.flavor 530M_byte \
        --training.seq_len 32768 --lighthouse.topk 512 --lighthouse.tile 64 \
        --training.global_batch_size 2
"""

import argparse
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torchtitan_lighthouse.experiments.benchmark import Result, benchmark, table
from torchtitan_lighthouse.experiments.launch import FINISHED_FILE, OUTPUT_FILE

CONFIGS = Path(__file__).parents[2] / "train_configs"
# Text that every machine has.
COMMON = ["--training.dataset", "python_stdlib"]
DENSE = ["--lighthouse.no-enable"]
SWITCH = 4


class Run(NamedTuple):
    """One launch of the trainer.

    Attributes:
        ranks: how many of the GPUs it takes.
        baseline: the run of whose tokens/s it has a multiple.
        resumes: the run from whose checkpoint it starts.
        steps: the last step, and the leading ones that are not timed.
    """

    name: str
    config: str
    ranks: int
    options: list[str]
    baseline: str | None = None
    resumes: str | None = None
    steps: tuple[int, int] = (12, 4)


def plan(gpus: int, out: Path) -> Iterator[Run]:
    """The runs, in an order in which they can be made."""
    paper = "lighthouse_530m_98k"
    dilated = ["--lighthouse.scorer", "dilated", "--lighthouse.pooling_factor", "2"]
    yield Run("dense-98k", "dense_530m_98k", gpus, [])
    yield Run("norm-98k", paper, gpus, [], "dense-98k")
    yield Run("dilated-98k", paper, gpus, dilated, "dense-98k")

    # A step of one sequence: another would only repeat it. A dense step of a million tokens takes
    # more than a minute.
    one_sequence = ["--training.global_batch_size", "1"]
    for config, degree, batch, dense_steps in (
        ("lighthouse_530m_98k_cp2", 2, [], (12, 4)),
        ("lighthouse_530m_262k_cp8", gpus, one_sequence, (12, 4)),
        ("lighthouse_530m_1m_cp8", gpus, one_sequence, (5, 1)),
    ):
        name = f"{config.split('_')[2]}-cp{degree}"
        options = [*batch, *parallelism(degree)]
        dense = f"dense-{name}"
        yield Run(dense, config, gpus, [*options, *DENSE], steps=dense_steps)
        yield Run(f"norm-{name}", config, gpus, options, dense)

    # The dataloader resumes with as many groups of ranks as have saved it.
    groups = gpus // 2
    both = ["--training.global_batch_size", str(groups), "--lighthouse.steps", str(SWITCH)]
    both += ["--checkpoint.enable", "--checkpoint.interval", str(SWITCH)]
    first = "stage1-98k-cp2"
    options = [*both, *parallelism(2)]
    yield Run(first, f"{paper}_stage1", gpus, options, steps=(SWITCH, 1))
    both += ["--checkpoint.load_only", "--checkpoint.initial_load_path"]
    both += [f"{out / first}/checkpoint/step-{SWITCH}"]
    for degree in (2, 1):
        name, options = f"stage2-98k-cp{degree}", [*both, *parallelism(degree)]
        steps = (2 * SWITCH, 1)
        yield Run(name, f"{paper}_stage2", groups * degree, options, resumes=first, steps=steps)


def parallelism(degree: int) -> list[str]:
    return ["--parallelism.context_parallel_degree", str(degree)]


def main(args: list[str] | None = None) -> None:
    """Parse the command line, train, and print the table."""
    parser = build_parser()
    options, overrides = parser.parse_known_args(args)
    out = options.out / f"{options.gpus}-gpus"
    runs = {run.name: run for run in plan(options.gpus, out)}
    chosen = options.only or list(runs)
    if unknown := set(chosen) - set(runs):
        parser.error(f"--only {' '.join(sorted(unknown))}: must be of {' '.join(runs)}")
    end = time.monotonic() + 60 * options.minutes
    results: dict[str, Result] = {}
    for run in runs.values():
        finished = (out / run.name / FINISHED_FILE).exists()
        if not finished and not (run.name in chosen and time.monotonic() < end):
            continue
        if run.resumes and run.resumes not in results:
            continue
        last, skip = run.steps
        try:
            results[run.name] = benchmark(
                CONFIGS / f"{run.config}.toml",
                out / run.name,
                steps=last,
                skip=skip,
                options=[*COMMON, *run.options, *overrides],
                processes=run.ranks,
                timeout=end - time.monotonic(),
            )
        except subprocess.TimeoutExpired:
            print(f"{run.name}: stopped, as --minutes {options.minutes:g} were over")
        except subprocess.CalledProcessError:
            print(f"{run.name}: failed, see {out / run.name / OUTPUT_FILE}")
        except ValueError as error:
            parser.error(str(error))
    text = table(
        (result, results.get(runs[name].baseline or "")) for name, result in results.items()
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text)
    print(text)
    if missing := [name for name in chosen if name not in results]:
        parser.exit(1, f"Not there yet, repeat the command: {', '.join(missing)}\n")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--gpus", type=int, choices=(2, 4, 8), default=8)
    parser.add_argument(
        "--minutes",
        type=float,
        default=60,
        help="after which the run in progress is stopped [60]",
    )
    parser.add_argument("--only", nargs="+", metavar="RUN", help="of the table's names [all]")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_paper"))
    return parser


if __name__ == "__main__":
    main()
