"""One training of an experiment: what it is called, its command line, and what it waits for."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.config import LighthouseConfigManager
from torchtitan_lighthouse.titan.config.command_line import named_field


@dataclass(frozen=True)
class Passkeys:
    """The passkey retrieval that follows a training: at which lengths, and the trials of each."""

    lengths: tuple[int, ...]
    trials: int = 50


@dataclass(frozen=True)
class Run:
    """One training of an experiment.

    Attributes:
        name: the name of its folder, by which other runs refer to it.
        variant: the variant that it trains, with ``seed``.
        folder: its dump folder.
        steps: the last step, whatever ``options`` say of it.
        gpus: how many it takes, with a process on each.
        source: the run of the experiment from whose checkpoint it begins, as its options say.
        kept: the steps whose checkpoints others begin from; none: the job says what is kept.
        is_first_stage: whether it is only there for others to begin from.
    """

    name: str
    variant: str
    seed: int
    config: Path
    folder: Path
    steps: int
    options: tuple[str, ...] = ()
    gpus: int = 1
    source: str | None = None
    kept: frozenset[int] = frozenset()
    is_first_stage: bool = False
    passkeys: Passkeys | None = None

    def __post_init__(self) -> None:
        """Refuse options that would lead elsewhere than the run is looked for.

        Raises:
            RefusalError: names the option.
        """
        for option in self.options:
            if named_field(option) in ("job.config_file", "job.dump_folder"):
                raise RefusalError(f"{option.partition('=')[0]} is given by the tool: leave it out")

    @property
    def arguments(self) -> list[str]:
        """The trainer's command-line arguments."""
        files = ["--job.config_file", str(self.config), "--job.dump_folder", str(self.folder)]
        return [*files, *self.options, "--training.steps", str(self.steps)]

    @property
    def command(self) -> list[str]:
        """The command line that trains it, on ``gpus`` processes."""
        return [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(self.gpus), "-m", "torchtitan_lighthouse.train"),
            *self.arguments,
        ]

    @cached_property
    def job(self) -> JobConfig:
        """The job as the trainer will read it.

        Raises:
            RefusalError: an unknown field, or a wrong type in ``[lighthouse]``.
        """
        return LighthouseConfigManager().parse_args(self.arguments)

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.folder / self.job.checkpoint.folder


def choose(runs: Sequence[Run], names: Sequence[str] | None) -> list[Run]:
    """Choose the runs of these names or variants, and those they begin from; without names all.

    Raises:
        RefusalError: there is none of a name.
    """
    if names is None:
        return list(runs)
    known = {name: None for run in runs for name in (run.variant, run.name)}
    if unknown := [name for name in names if name not in known]:
        raise RefusalError(f"--only {' '.join(unknown)}: must be of {' '.join(known)}")
    needed = {run.name for run in runs if {run.name, run.variant} & set(names)}
    for run in reversed(runs):  # one begins from a run before it, which may begin from another
        if run.source and run.name in needed:
            needed.add(run.source)
    return [run for run in runs if run.name in needed]
