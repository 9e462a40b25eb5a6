"""A process of a run: the trainer, or the retrieval test after it."""

import math
import subprocess
import time
from pathlib import Path

from torchtitan_lighthouse.experiments.devices import environment
from torchtitan_lighthouse.experiments.folder import (
    FINISHED_FILE,
    OUTPUT_FILE,
    is_finished,
    latest_records,
    remove_unfinished,
)
from torchtitan_lighthouse.experiments.retrieval import is_measured, retrieval_command
from torchtitan_lighthouse.experiments.run import Run
from torchtitan_lighthouse.runs.metrics import LOSS
from torchtitan_lighthouse.titan.folder.lock import holder_of

_SHOWN_LINES = 30


class RunProcess:
    """The next process of a run on some devices. Its output is added to output.txt in the folder.

    It has a session of its own, so Ctrl-C does not reach it: ``terminate`` does.
    """

    def __init__(self, run: Run, devices: list[str], at_once: int) -> None:
        """Start the process."""
        self.run, self.devices = run, devices
        self.trains = not is_finished(run)
        run.folder.mkdir(parents=True, exist_ok=True)
        if self.trains and not holder_of(run.folder):
            remove_unfinished(run.checkpoints)
        with (run.folder / OUTPUT_FILE).open("a") as output:
            self._process = subprocess.Popen(
                run.command if self.trains else retrieval_command(run),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(devices, at_once),
                start_new_session=True,
            )

    def has_ended(self) -> bool:
        """Whether it has ended; a trainer that has ended well makes its run a finished one."""
        if self._process.poll() is None:
            return False
        if self.trains and self.succeeded:
            (self.run.folder / FINISHED_FILE).touch()
        return True

    @property
    def succeeded(self) -> bool:
        """Whether it has ended with status 0."""
        return self._process.returncode == 0

    def terminate(self) -> None:
        """Ask it to end: torchrun passes this on, and the trainer saves a checkpoint first."""
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self, deadline: float) -> None:
        """Wait for its end until ``deadline``, of the monotonic clock, and kill it then."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.has_ended()

    def last_lines(self) -> str:
        """Return the last lines of the run's output."""
        return "".join(
            output_of(self.run).read_text(errors="replace").splitlines(True)[-_SHOWN_LINES:]
        )

    def progress(self) -> str:
        """Say how far the run is: the step, the stage and the loss."""
        if not self.trains:
            return "passkey retrieval"
        return training_progress(self.run.folder, self.run.steps)


def output_of(run: Run) -> Path:
    """Return the file that the run's output goes to."""
    return run.folder / OUTPUT_FILE


def is_done(run: Run) -> bool:
    """Whether no process is left to run."""
    return is_finished(run) and is_measured(run)


def training_progress(folder: Path, steps: int) -> str:
    """Say how far a training of ``steps`` steps is, by the metrics in its folder."""
    records = latest_records(folder)
    last = next(records, None)
    if last is None:
        return "starting"
    # A record of validation alone has no training loss.
    with_loss = (record for record in (last, *records) if LOSS in record)
    loss = next(with_loss, {LOSS: math.nan})[LOSS]
    return f"step {last['step']:,} of {steps:,}, {last['stage']}, loss {loss:.3f}"
