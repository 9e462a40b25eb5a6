"""Short runs that are compared by tokens/s, memory and loss."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torchtitan_lighthouse.experiments.launch import train
from torchtitan_lighthouse.runs.markdown import markdown
from torchtitan_lighthouse.runs.metrics import LOSS, PEAK_MEMORY, TOKENS_PER_SECOND
from torchtitan_lighthouse.titan.config import LighthouseConfigManager

_MFU = "mfu(%)"
_OPTIONS = [
    *("--lighthouse.steps", "-1", "--checkpoint.no-enable", "--validation.no-enable"),
    *("--metrics.log_freq", "1", "--metrics.no-enable_wandb"),
]


class Result(NamedTuple):
    """What a run is compared by.

    Attributes:
        tokens_per_second: per GPU, the median of the timed steps.
        mfu: percent, the same.
        reserved_gib: per GPU, what the allocator reserved at most in the timed steps.
        losses: of each step, without those of a run that it continues.
    """

    name: str
    tokens_per_second: float
    mfu: float
    reserved_gib: float
    losses: list[float]


def benchmark(
    config: Path,
    folder: Path,
    *,
    steps: int,
    skip: int,
    options: Sequence[str] = (),
    processes: int = 1,
    timeout: float | None = None,
) -> Result:
    """Train a job up to step ``steps``, all in its first stage, and print its losses.

    Checkpoints, validation and wandb are off unless ``options`` turn them on. The learning rates
    are those of the whole job: in a job of a few steps the warm-up would be as short, and the loss
    would jump. See ``launch.train`` for the rest.

    Args:
        skip: leading steps that are not timed, fewer than are trained; the first ones compile.
    """
    job = LighthouseConfigManager().parse_args(["--job.config_file", str(config), *options])
    whole = str(job.lr_scheduler.total_steps or job.training.steps)
    records = train(
        config,
        folder,
        steps=steps,
        options=[*_OPTIONS, "--lr_scheduler.total_steps", whole, *options],
        processes=processes,
        timeout=timeout,
    )
    trained = [record for record in records if record["started"] == records[-1]["started"]]
    timed = trained[skip:]
    losses = [record[LOSS] for record in trained]
    print(f"{folder.name}: losses {', '.join(f'{loss:.4f}' for loss in losses)}", flush=True)
    return Result(
        folder.name,
        statistics.median(record[TOKENS_PER_SECOND] for record in timed),
        statistics.median(record[_MFU] for record in timed),
        max(record[PEAK_MEMORY] for record in timed),
        losses,
    )


def table(results: Iterable[tuple[Result, Result | None]]) -> str:
    """A line for each result, with its speed-up over the other of its pair."""
    rows = [("run", "tokens/s/GPU", "speed-up", "MFU %", "reserved GiB", "first loss", "last loss")]
    for result, baseline in results:
        rows.append(
            (
                result.name,
                f"{result.tokens_per_second:,.0f}",
                f"{result.tokens_per_second / baseline.tokens_per_second:.2f}×"
                if baseline
                else "-",
                f"{result.mfu:.1f}",
                f"{result.reserved_gib:.1f}",
                f"{result.losses[0]:.4f}",
                f"{result.losses[-1]:.4f}",
            )
        )
    return markdown(rows)
