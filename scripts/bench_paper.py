"""The paper's configurations side by side on one node: tokens/s, memory, loss, and resuming.

    python scripts/bench_paper.py --minutes 9.5 --out outputs/bench_paper

Trains, from the shipped configs and with 8 GPUs:

- dense SDPA and Lighthouse attention, with norm and p=4 and with dilated and p=2, at 98,304 tokens
  and a global batch of 32, as in the paper's section 4;
- both with context parallel: W=2 at 98,304 tokens, W=8 at 262,144 and at 1,048,576;
- Lighthouse attention with W=2 up to a checkpoint, and from it the dense stage with W=2 and W=1.

Prints a table of all runs that --out has so far. Finished runs are kept, and one that is not when
--minutes are over starts anew: repeat the command until all are there. Other options go to the
trainer, in every run, and what fits 8 GPUs is scaled down with them and --gpus:

    python scripts/bench_paper.py --gpus 2 --model.flavor 530M_byte --training.seq_len 32768 \
        --lighthouse.topk 512 --lighthouse.tile 64 --training.global_batch_size 2
"""

import argparse
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torchtitan_lighthouse.runs.benchmark import Result, benchmark, table
from torchtitan_lighthouse.runs.launch import FINISHED_FILE

CONFIGS = Path(__file__).parents[1] / "train_configs"
# Text that every machine has.
COMMON = ["--training.dataset", "python_stdlib"]
DENSE = ["--lighthouse.no-enable"]
SWITCH = 4


class Run(NamedTuple):
    """One launch of the trainer, and what it is compared to.

    Attributes:
        ranks: of the GPUs, how many it takes.
        baseline: the run of whose tokens/s it has a multiple.
    """

    name: str
    config: str
    ranks: int
    options: list[str]
    baseline: str | None
    steps: int = 12
    skip: int = 4


def plan(gpus: int, out: Path) -> Iterator[Run]:
    """The runs, in an order in which they can be made; the dense ones first to compare to."""
    paper = "lighthouse_530m_98k"
    dilated = ["--lighthouse.scorer", "dilated", "--lighthouse.pooling_factor", "2"]
    yield Run("dense-98k", "dense_530m_98k", gpus, [], None)
    yield Run("norm-98k", paper, gpus, [], "dense-98k")
    yield Run("dilated-98k", paper, gpus, dilated, "dense-98k")

    for length, degree in (("98k", 2), ("262k", 8), ("1m", 8)):
        # Of one length the throughput depends on one sequence, not on how many make a batch.
        options = parallelism(min(degree, gpus))
        options += [] if degree == 2 else ["--training.global_batch_size", "1"]
        dense, ours = f"dense-{length}-cp{degree}", f"norm-{length}-cp{degree}"
        # A dense step of a million tokens takes more than a minute.
        steps, skip = (5, 1) if length == "1m" else (12, 4)
        config = f"lighthouse_530m_{length}_cp{degree}"
        yield Run(dense, config, gpus, [*options, *DENSE], None, steps, skip)
        yield Run(ours, config, gpus, options, dense)

    # The dataloader resumes with as many groups of ranks as have saved it.
    groups = gpus // 2
    stage = ["--training.global_batch_size", str(groups), "--lighthouse.steps", str(SWITCH)]
    stage += ["--checkpoint.enable", "--checkpoint.interval", str(SWITCH)]
    first = "stage1-98k-cp2"
    yield Run(first, f"{paper}_stage1", gpus, [*stage, *parallelism(2)], None, SWITCH, 1)
    checkpoint = f"{out / first}/checkpoint/step-{SWITCH}"
    stage += ["--checkpoint.initial_load_path", checkpoint]
    for degree in (2, 1):
        yield Run(
            f"stage2-98k-cp{degree}",
            f"{paper}_stage2",
            groups * degree,
            [*stage, *parallelism(degree)],
            None,
            steps=2 * SWITCH,
            skip=SWITCH + 1,
        )


def parallelism(degree: int) -> list[str]:
    return ["--parallelism.context_parallel_degree", str(degree)]


def main(args: list[str] | None = None) -> None:
    """Parse the command line, train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--gpus", type=int, default=8, help="an even number [8]")
    parser.add_argument("--minutes", type=float, default=60, help="for this call [60]")
    parser.add_argument("--only", nargs="+", metavar="RUN", help="some of the runs [all]")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_paper"))
    options, overrides = parser.parse_known_args(args)
    runs = list(plan(options.gpus, options.out))
    names = [run.name for run in runs]
    if unknown := set(options.only or []) - set(names):
        parser.error(f"--only {' '.join(sorted(unknown))}: must be of {' '.join(names)}")
    if options.gpus < 2 or options.gpus % 2:
        parser.error(f"--gpus {options.gpus} must be even: some runs share a sequence between two")
    end = time.monotonic() + 60 * options.minutes
    results: dict[str, Result] = {}
    failed = []
    for run in runs:
        finished = (options.out / run.name / FINISHED_FILE).exists()
        chosen = not options.only or run.name in options.only
        if not finished and not (chosen and time.monotonic() < end):
            continue
        try:
            result = benchmark(
                CONFIGS / f"{run.config}.toml",
                options.out / run.name,
                steps=run.steps,
                skip=run.skip,
                options=[*COMMON, *run.options, *overrides],
                processes=run.ranks,
                timeout=end - time.monotonic(),
            )
        except subprocess.TimeoutExpired:
            continue
        except subprocess.CalledProcessError:
            failed.append(run.name)
            continue
        results[run.name] = result
        print(f"{run.name}: losses {', '.join(f'{x:.4f}' for x in result.losses)}", flush=True)
    baselines = {run.name: results.get(run.baseline or "") for run in runs}
    text = table((result, baselines[name]) for name, result in results.items())
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(text)
    print(text)
    missing = [name for name in options.only or names if name not in results]
    if failed:
        parser.exit(1, f"Failed, see output.txt in their folders: {', '.join(failed)}\n")
    if missing:
        print(f"Not run yet, repeat the command: {', '.join(missing)}")


if __name__ == "__main__":
    main()
