"""The paper's configurations, from the shipped configs, as short runs on one node."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from torchtitan_lighthouse import configs
from torchtitan_lighthouse.experiments.benchmark import (
    Benchmark,
    benchmark_run,
    check_is_timed,
)

# Text that every machine has.
_COMMON = ["--training.dataset", "python_stdlib"]
_DENSE = ["--lighthouse.no-enable"]
_SWITCH = 4  # steps
_PAPER = "lighthouse_530m_98k"


def paper_benchmarks(gpus: int, out: Path, overrides: Sequence[str] = ()) -> Iterator[Benchmark]:
    """Plan the runs of the paper's configurations, in an order in which they can be made.

    Args:
        overrides: more options of the trainer, in every run.
    """
    plan = _Plan(gpus, out, overrides)
    yield from plan.side_by_side()
    yield from plan.context_parallel()
    yield from plan.resumed()


class _Plan:
    def __init__(self, gpus: int, out: Path, overrides: Sequence[str]) -> None:
        self._gpus, self._out, self._overrides = gpus, out, overrides

    def side_by_side(self) -> Iterator[Benchmark]:
        """Plan dense attention and both settings of the scorer, all on the same tokens."""
        dilated = ["--lighthouse.scorer", "dilated", "--lighthouse.pooling_factor", "2"]
        yield self._benchmark("dense-98k", "dense_530m_98k", [])
        yield self._benchmark("norm-98k", _PAPER, [], "dense-98k")
        yield self._benchmark("dilated-98k", _PAPER, dilated, "dense-98k")

    def context_parallel(self) -> Iterator[Benchmark]:
        """Plan sequences that GPUs share, under dense and under Lighthouse attention."""
        # Steps of one sequence, for accumulating more would only repeat the same work. A dense step
        # of a million tokens takes more than a minute.
        one_sequence = ["--training.global_batch_size", "1"]
        for config, degree, batch, dense_steps in (
            (f"{_PAPER}_cp2", 2, [], (12, 4)),
            ("lighthouse_530m_262k_cp8", self._gpus, one_sequence, (12, 4)),
            ("lighthouse_530m_1m_cp8", self._gpus, one_sequence, (5, 1)),
        ):
            name = f"{config.split('_')[2]}-cp{degree}"
            options = [*batch, *_parallelism(degree)]
            dense = f"dense-{name}"
            yield self._benchmark(dense, config, [*options, *_DENSE], steps=dense_steps)
            yield self._benchmark(f"norm-{name}", config, options, dense)

    def resumed(self) -> Iterator[Benchmark]:
        """Plan a first stage up to a checkpoint, and from it the dense stage in two layouts."""
        # Data resumes only on as many data-parallel ranks as have saved their position in it.
        groups = self._gpus // 2
        both = ["--training.global_batch_size", str(groups), "--lighthouse.steps", str(_SWITCH)]
        both += ["--checkpoint.enable", "--checkpoint.interval", str(_SWITCH)]
        first = "stage1-98k-cp2"
        options = [*both, *_parallelism(2)]
        yield self._benchmark(first, f"{_PAPER}_stage1", options, steps=(_SWITCH, 1))
        both += ["--checkpoint.load_only", "--checkpoint.initial_load_path"]
        both += [f"{self._out / first}/checkpoint/step-{_SWITCH}"]
        for degree in (2, 1):
            yield self._benchmark(
                f"stage2-98k-cp{degree}",
                f"{_PAPER}_stage2",
                [*both, *_parallelism(degree)],
                steps=(2 * _SWITCH, 1),
                gpus=groups * degree,
                source=first,
            )

    def _benchmark(
        self,
        name: str,
        config: str,
        options: list[str],
        baseline: str | None = None,
        *,
        steps: tuple[int, int] = (12, 4),
        gpus: int | None = None,
        source: str | None = None,
    ) -> Benchmark:
        """Make a run; ``steps`` are its last step and its leading ones that are not timed."""
        last, skip = steps
        run = benchmark_run(
            configs.path(config),
            self._out / name,
            steps=last,
            options=[*_COMMON, *options, *self._overrides],
            gpus=gpus or self._gpus,
            source=source,
        )
        check_is_timed(run, skip)
        return Benchmark(run, skip, baseline)


def _parallelism(degree: int) -> list[str]:
    return ["--parallelism.context_parallel_degree", str(degree)]
