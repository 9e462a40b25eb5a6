"""From an experiment to its runs."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torchtitan.config import JobConfig

from torchtitan_lighthouse.experiments.experiment import Experiment, Variant
from torchtitan_lighthouse.experiments.run import Passkeys, Run
from torchtitan_lighthouse.refusal import RefusalError, multiples, neighbours, refusal
from torchtitan_lighthouse.titan.checks.attention import check_attention
from torchtitan_lighthouse.titan.checks.model import check_model
from torchtitan_lighthouse.titan.checks.schedule import check_schedule
from torchtitan_lighthouse.titan.checks.stages import check_stages
from torchtitan_lighthouse.titan.checks.validation import check_validation
from torchtitan_lighthouse.titan.checks.values import check_values
from torchtitan_lighthouse.titan.config import LighthouseConfigManager
from torchtitan_lighthouse.titan.config.command_line import named_field


@dataclass(frozen=True)
class Plan:
    """The runs in the order in which they are begun, and why combinations of a grid cannot be."""

    runs: list[Run]
    refused: dict[str, str]


def plan(experiment: Experiment, out: Path, seeds: Sequence[int] = ()) -> Plan:
    """Plan the runs of an experiment, all variants of a seed before the next seed's.

    Args:
        out: where the runs' folders will be.
        seeds: instead of all that the experiment has.

    Raises:
        RefusalError: a variant cannot be trained, or there is no such step to begin from.
    """
    planner = _Planner(experiment, out)
    by_seed = {v.name: seeds or v.seeds or experiment.seeds for v in planner.variants}
    ordered = dict.fromkeys(seed for of_variant in by_seed.values() for seed in of_variant)
    runs = [
        planner.run(variant, seed)
        for seed in ordered
        for variant in planner.variants
        if seed in by_seed[variant.name]
    ]
    names = {run.name for run in runs}
    if lacking := [run.source for run in runs if run.source and run.source not in names]:
        raise RefusalError(f"{', '.join(lacking)} must be trained, too, for others begin from it")
    if not runs:
        reasons = "; ".join(f"{name}: {why}" for name, why in planner.refused.items())
        raise RefusalError(f"no combination of [grid] can be trained: {reasons}")
    return Plan(runs, planner.refused)


class _Planner:
    """The variants that can be trained, those with splits in their parts."""

    def __init__(self, experiment: Experiment, out: Path) -> None:
        self._experiment, self._out = experiment, out
        self._jobs: dict[str, JobConfig] = {}
        self.variants: list[Variant] = []
        self.refused: dict[str, str] = {}
        for variant in experiment.variants:
            try:
                self._add(variant)
            except RefusalError as error:
                if not variant.of_grid:
                    raise RefusalError(f"variant {variant.name}: {error}") from error
                self.refused[variant.name] = str(error)

    def _add(self, variant: Variant) -> None:
        options = [*self._experiment.options, *variant.options]
        config_file = ["--job.config_file", str(self._experiment.config)]
        job = LighthouseConfigManager().parse_args([*config_file, *options])
        if any(named_field(option) == "debug.seed" for option in options):
            raise RefusalError("--debug.seed is given by the seeds: leave it out, and set seeds")
        for check in _CHECKS:
            check(job)
        if variant.splits and not job.lighthouse.enable:
            raise RefusalError("splits need lighthouse.enable = true: leave one of both out")
        if self._experiment.passkeys:
            _check_passkeys(self._experiment.passkeys, job)
        _check_last_validation(job)
        for part in _parts(variant, job.training.steps):
            if part.name in self._jobs:
                raise RefusalError(f"two are called {part.name}: rename one")
            self._jobs[part.name] = job
            if part.source:
                self._check_source(part)
            self.variants.append(part)

    def _check_source(self, variant: Variant) -> None:
        source = next((v for v in self.variants if v.name == variant.source), None)
        steps = self._jobs[variant.name].training.steps
        if source is not None:
            steps = min(steps, self._jobs[source.name].training.steps)
        if source is None or not 0 < variant.at < steps:
            names = ", ".join(v.name for v in self.variants) or "none"
            raise RefusalError(
                f"it begins from step {variant.at} of {variant.source}, which must be below both "
                f"variants' training.steps, {steps}, and of a variant above it: {names}"
            )

    def run(self, variant: Variant, seed: int) -> Run:
        """Make the run of a variant for one seed.

        Its learning rates are those of all the job's steps, even if it is only a first stage.
        """
        job = self._jobs[variant.name]
        kept = frozenset(v.at for v in self.variants if v.source == variant.name)
        steps = job.training.steps
        options = [*self._experiment.options, *variant.options, "--debug.seed", str(seed)]
        options += ["--lr_scheduler.total_steps", str(job.lr_scheduler.total_steps or steps)]
        if kept:
            # As often as the job has it, and at each step that others begin from.
            interval = _interval(variant.name, job.checkpoint.interval, kept)
            options += ["--checkpoint.enable", "--checkpoint.no-last_save_model_only"]
            options += ["--checkpoint.interval", str(interval), "--checkpoint.keep_latest_k", "0"]
        source = None
        if variant.source:
            source = _name(variant.source, seed)
            folder = self._jobs[variant.source].checkpoint.folder
            path = self._out / source / folder / f"step-{variant.at}"
            options += ["--checkpoint.enable", "--checkpoint.no-initial_load_model_only"]
            options += ["--checkpoint.initial_load_path", str(path)]
        return Run(
            name=_name(variant.name, seed),
            variant=variant.name,
            seed=seed,
            config=self._experiment.config,
            folder=self._out / _name(variant.name, seed),
            steps=max(kept) if variant.is_first_stage else steps,
            options=tuple(options),
            gpus=self._experiment.gpus,
            source=source,
            kept=kept,
            is_first_stage=variant.is_first_stage,
            passkeys=None if variant.is_first_stage else self._experiment.passkeys,
        )


def _name(variant: str, seed: int) -> str:
    return f"{variant}-seed{seed}"


def _interval(name: str, interval: int, kept: Collection[int]) -> int:
    """Return an interval of checkpoints that are at the job's and at the ``kept`` steps.

    Raises:
        RefusalError: there would be so many that the run's speed were that of the disk.
    """
    common, last = math.gcd(interval, *kept), max(kept)
    if last // common > 20 * (last // interval + 1):
        off = next(step for step in sorted(kept) if step % interval)
        others = " or ".join(map(str, multiples(off, interval)))
        raise RefusalError(
            f"variant {name}: others begin from its step {off}, and with checkpoint.interval = "
            f"{interval} that takes a checkpoint at every {common} steps: begin from {others}, or "
            "set an interval that divides the step"
        )
    return common


def _parts(variant: Variant, steps: int) -> Iterator[Variant]:
    """Yield the variant itself; or, where it has splits, its first stage and its dense tails."""
    if not variant.splits:
        yield variant
        return
    switches = [round(share * steps) for share in variant.splits]
    if not all(0 < share < 1 for share in variant.splits):
        raise RefusalError(f"the splits {list(variant.splits)} must be above 0 and below 1")
    if any(abs(n - s * steps) > 1e-6 for n, s in zip(switches, variant.splits, strict=True)):
        raise RefusalError(
            f"training.steps = {steps} must make whole numbers of the splits {list(variant.splits)}"
        )
    first = f"{variant.name}-stage1"
    throughout = (*variant.options, "--lighthouse.steps", "-1")
    yield replace(variant, name=first, options=throughout, splits=(), is_first_stage=True)
    for switch in dict.fromkeys(switches):
        yield replace(
            variant,
            name=f"{variant.name}{switch}-dense{steps - switch}",
            options=(*variant.options, "--lighthouse.steps", str(switch)),
            splits=(),
            source=first,
            at=switch,
        )


def _check_last_validation(job: JobConfig) -> None:
    """Refuse a last held-out loss of a step before the end: torchtitan validates at multiples."""
    steps, freq = job.training.steps, job.validation.freq
    if job.validation.enable and steps % freq:
        rule = f"must divide training.steps={steps}, for runs are compared at their ends"
        divisors = (n for n in range(1, steps + 1) if steps % n == 0)
        raise refusal("validation.freq", freq, rule, *neighbours(freq, divisors))


def _check_passkeys(passkeys: Passkeys, job: JobConfig) -> None:
    """Refuse what would end each retrieval, after its training."""
    if not job.checkpoint.enable:
        raise RefusalError("[passkeys] needs a checkpoint: leave out --checkpoint.no-enable")
    if (longest := max(passkeys.lengths)) > job.training.seq_len:
        rule = "of [passkeys] is beyond the length that is trained at"
        raise refusal("lengths", longest, rule, f"at most {job.training.seq_len}")


def _check_text(job: JobConfig) -> None:
    sections = {"training": job.training}
    if job.validation.enable:
        sections["validation"] = job.validation
    for name, section in sections.items():
        path = section.dataset_path
        if path and section.dataset.startswith("local") and not Path(path).exists():
            raise RefusalError(
                f"{name}.dataset_path = {path!r} is not there: make a text with "
                f"`python scripts/linux_corpus.py {path}`, or name another"
            )


# The checks of a launch that need no checkpoint and read no text.
_CHECKS = (
    *(_check_text, check_model, check_values, check_validation, check_stages, check_schedule),
    check_attention,
)
