"""Short runs that are compared by tokens/s, memory and loss."""

import statistics
from collections.abc import Iterable, Sequence
from itertools import compress, groupby
from pathlib import Path
from typing import NamedTuple

from torchtitan_lighthouse.experiments.folder import is_finished
from torchtitan_lighthouse.experiments.run import Run
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.markdown import markdown
from torchtitan_lighthouse.runs.metrics import LOSS, PEAK_MEMORY, TOKENS_PER_SECOND, read_metrics
from torchtitan_lighthouse.runs.summary import Records, training_records
from torchtitan_lighthouse.titan.checks.values import check_values
from torchtitan_lighthouse.titan.config import LighthouseConfigManager
from torchtitan_lighthouse.titan.folder.steps import initial_step
from torchtitan_lighthouse.titan.stages import stage_at

_MFU = "mfu(%)"
_OPTIONS = [
    *("--lighthouse.steps", "-1", "--checkpoint.no-enable", "--validation.no-enable"),
    *("--checkpoint.no-initial_load_in_hf", "--checkpoint.no-last_save_in_hf"),
    *("--metrics.log_freq", "1", "--metrics.no-enable_wandb"),
]


class Benchmark(NamedTuple):
    """A run that is measured.

    Attributes:
        skip: the leading steps of a launch that are not timed; the first ones compile.
        baseline: the name of the run of whose tokens/s it has a multiple.
    """

    run: Run
    skip: int
    baseline: str | None = None


class Result(NamedTuple):
    """What a run is compared by.

    Attributes:
        tokens_per_second: per GPU, the median of the timed steps, or of the intervals of them that
            ``metrics.log_freq`` makes.
        mfu: percent, the same.
        reserved_gib: per GPU, what the allocator reserved at most in the timed steps.
        losses: of each logged step, without those of a run that it continues.
    """

    tokens_per_second: float
    mfu: float
    reserved_gib: float
    losses: list[float]


def benchmark_run(
    config: Path,
    folder: Path,
    *,
    steps: int,
    options: Sequence[str] = (),
    gpus: int = 1,
    source: str | None = None,
) -> Run:
    """Make the run of a job up to step ``steps``, all in its first stage.

    Checkpoints, a model's weights, validation and wandb are off unless ``options`` turn them on.
    The learning rates are those of the whole job: in a job of a few steps the warm-up would be as
    short, and the loss would jump.
    """
    job = LighthouseConfigManager().parse_args(["--job.config_file", str(config), *options])
    whole = str(job.lr_scheduler.total_steps or job.training.steps)
    return Run(
        name=folder.name,
        variant=folder.name,
        seed=job.debug.seed or 0,
        config=config,
        folder=folder,
        steps=steps,
        options=(*_OPTIONS, "--lr_scheduler.total_steps", whole, *options),
        gpus=gpus,
        source=source,
    )


def compared(
    config: Path,
    out: Path,
    named_options: Iterable[Sequence[str]],
    *,
    steps: int,
    skip: int,
    common: Sequence[str] = (),
    gpus: int = 1,
) -> list[Benchmark]:
    """Make the runs of variants of one job, each compared to the first.

    Args:
        named_options: of each the name, and its own options.
        common: options of all.

    Raises:
        RefusalError: a variant without a name, two of one name, a job that cannot be read, or one
            that logs none of the steps to be timed.
    """
    variants = [list(variant) for variant in named_options]
    names = [variant[0] if variant else "" for variant in variants]
    for name in names:
        if not name or name.startswith("-") or names.count(name) > 1 or Path(name).name != name:
            raise RefusalError(
                f"--run {name!r}: each needs a name of its own, without a slash, before its options"
            )
    benchmarks: list[Benchmark] = []
    for name, *own in variants:
        options = [*common, *own]
        run = benchmark_run(config, out / name, steps=steps, options=options, gpus=gpus)
        check_is_timed(run, skip)
        first = benchmarks[0].run.name if benchmarks else name
        benchmarks.append(Benchmark(run, skip, baseline=first))
    return benchmarks


def check_is_timed(run: Run, skip: int) -> None:
    """Refuse a run that logs nothing of the steps after its first ``skip``, or of both stages.

    Raises:
        RefusalError: names ``metrics.log_freq`` or ``lighthouse.steps``, or a value out of range.
    """
    check_values(run.job)
    section, first = run.job.lighthouse, initial_step(run.job) + 1
    if stage_at(first, section) != stage_at(run.steps, section):
        raise RefusalError(
            f"{run.name}: lighthouse.steps = {section.steps} ends the Lighthouse stage among the "
            f"{run.steps} steps, whose speeds would be taken for one: leave it out"
        )
    freq = run.job.metrics.log_freq
    logged = [step for step in range(1, run.steps + 1) if step == 1 or step % freq == 0]
    if not any(_are_timed(logged, 0, skip)):
        raise RefusalError(
            f"{run.name}: metrics.log_freq = {freq} logs no interval of steps that begins after "
            f"the {skip} that are not timed and ends by step {run.steps}: use more --steps"
        )


def measure(benchmark: Benchmark) -> Result:
    """Read the figures of a finished run from its metrics.

    Raises:
        RefusalError: no launch of it has logged more than the steps that are not timed.
    """
    begun = initial_step(benchmark.run.job)
    records = training_records(read_metrics(benchmark.run.folder))
    trained = [record for record in records if record["step"] > begun]
    timed: Records = []
    for _, of_launch in groupby(trained, key=lambda record: record["started"]):
        launch = list(of_launch)
        ends = [record["step"] for record in launch]
        timed += compress(launch, _are_timed(ends, ends[0] - 1, benchmark.skip))
    if not timed:
        raise RefusalError(
            f"{benchmark.run.folder} was trained in launches too short to time: remove the folder"
        )
    return Result(
        statistics.median(record[TOKENS_PER_SECOND] for record in timed),
        statistics.median(record[_MFU] for record in timed),
        max(record[PEAK_MEMORY] for record in timed),
        [record[LOSS] for record in trained],
    )


def _are_timed(ends: Sequence[int], start: int, skip: int) -> list[bool]:
    """Tell of the intervals between logged steps which begin ``skip`` steps after ``start``."""
    return [begin - start >= skip for begin in (start, *ends[:-1])]


def write_table(benchmarks: Iterable[Benchmark], out: Path) -> str:
    """Write the table of the finished runs into the folder ``out``, and return it."""
    text = table(benchmarks)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text)
    return text


def table(benchmarks: Iterable[Benchmark]) -> str:
    """Tabulate the finished runs, each with its speed-up over its baseline."""
    finished = [benchmark for benchmark in benchmarks if is_finished(benchmark.run)]
    results = {benchmark.run.name: measure(benchmark) for benchmark in finished}
    rows = [("run", "tokens/s/GPU", "speed-up", "MFU %", "reserved GiB", "first loss", "last loss")]
    for benchmark in finished:
        result = results[benchmark.run.name]
        baseline = results.get(benchmark.baseline or "")
        speed = result.tokens_per_second
        rows.append(
            (
                benchmark.run.name,
                f"{speed:,.0f}",
                f"{speed / baseline.tokens_per_second:.2f}×" if baseline else "-",
                f"{result.mfu:.1f}",
                f"{result.reserved_gib:.1f}",
                f"{result.losses[0]:.4f}",
                f"{result.losses[-1]:.4f}",
            )
        )
    return markdown(rows)
