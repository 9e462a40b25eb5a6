"""Runs on the devices of a machine: several at once, each when what it begins from is there."""

import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torchtitan_lighthouse.experiments.devices import SHUTDOWN_SECONDS
from torchtitan_lighthouse.experiments.folder import (
    check_trained,
    is_finished,
    latest_records,
    remove_unneeded,
)
from torchtitan_lighthouse.experiments.process import RunProcess, is_done, output_of
from torchtitan_lighthouse.experiments.run import Run, choose
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.folder.lock import holder_of
from torchtitan_lighthouse.titan.folder.steps import step_of

FAILED, TIME_OVER = 1, 3
"""Exit statuses of an experiment with runs that are not there."""

_POLL_SECONDS = 0.5
_SHOW_SECONDS = 30.0
_GRACE_SECONDS = SHUTDOWN_SECONDS + 10.0  # killed before its ranks are, torchrun would leave them
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Outcome:
    """What has become of the runs that were asked for.

    Attributes:
        unfinished: why a run is unfinished, by its name.
        stopped: what has stopped the trainers early; None where nothing has.
        signal: the number of the signal that has stopped them; 0 without one.
    """

    unfinished: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    signal: int = 0

    @property
    def status(self) -> int:
        """The exit status of the process."""
        if self.signal:
            return 128 + self.signal
        if not self.unfinished:
            return 0
        return TIME_OVER if self.stopped else FAILED

    def summary(self) -> str:
        """Say what is unfinished and why, and what to do."""
        lines = [f"{name}: {why}" for name, why in self.unfinished.items()]
        reason = f"Stopped, as {self.stopped}: repeat" if self.stopped else "Repeat"
        return "\n".join([*lines, f"{reason} the command to continue"]) + "\n"


def train_all(
    runs: Sequence[Run],
    devices: Sequence[str],
    minutes: float | None = None,
    only: Sequence[str] | None = None,
) -> Outcome:
    """Train the runs that are not finished, in their order, as many at once as there are devices.

    One that was interrupted goes on from its last checkpoint; the others go on where one fails.
    SIGINT, SIGTERM and SIGHUP end all of them, each after a last checkpoint.

    Args:
        minutes: after them the runs are stopped in the same way.
        only: names of runs or variants, as ``run.choose`` takes them.

    Raises:
        RefusalError: a run takes more devices than there are, its folder is in use, or it or that
            of a finished run, which will be shown beside it, is of another job.
    """
    chosen = choose(runs, only)
    for run in runs:
        if run in chosen or is_finished(run):
            check_trained(run)
    for run in chosen:
        if run.gpus > len(devices):
            raise RefusalError(f"{run.name} takes {run.gpus} GPUs, and there are {len(devices)}")
        if (holder := holder_of(run.folder)) and not is_done(run):
            raise RefusalError(f"{run.folder} is in use by {holder}: wait for its end")
    schedule = _Schedule(chosen, devices)
    with _noting_signals() as received:
        try:
            deadline = None if minutes is None else time.monotonic() + 60 * minutes
            while schedule.is_busy() and not received:
                if deadline is not None and time.monotonic() >= deadline:
                    schedule.outcome.stopped = f"--minutes {minutes:g} were over"
                    break
                schedule.advance()
                time.sleep(_POLL_SECONDS)
        finally:
            schedule.terminate()
    # A second signal ends this process at once; the trainers still save and end.
    if received:
        schedule.outcome.signal = received[0]
        schedule.outcome.stopped = signal.Signals(received[0]).name
    schedule.wait()
    return schedule.outcome


class _Schedule:
    def __init__(self, runs: Iterable[Run], devices: Sequence[str]) -> None:
        self.outcome = Outcome()
        self._waiting = [run for run in runs if not is_done(run)]
        self._free = list(devices)
        self._at_once = len(devices)
        self._running: list[RunProcess] = []
        self._shown = time.monotonic()

    def is_busy(self) -> bool:
        """Whether runs are waiting or in progress."""
        return bool(self._waiting or self._running)

    def advance(self) -> None:
        """Take note of what has ended, and start what can be."""
        for process in list(self._running):
            remove_unneeded(process.run)
            if process.has_ended():
                self._end(process)
        for run in list(self._waiting):
            if not self._source_is_there(run):
                if not self._is_coming(run):
                    self._give_up(run, f"not begun, for {run.source} did not come so far")
                continue
            if run.gpus > len(self._free):
                break  # those behind it would keep it waiting
            self._waiting.remove(run)
            devices, self._free = self._free[: run.gpus], self._free[run.gpus :]
            self._start(run, devices)
        if time.monotonic() - self._shown >= _SHOW_SECONDS:
            self.show()

    def terminate(self) -> None:
        """Ask all processes to end."""
        for process in self._running:
            process.terminate()

    def wait(self) -> None:
        """Wait until all that run have ended; what is not done by then is unfinished."""
        deadline = time.monotonic() + _GRACE_SECONDS
        for process in self._running:
            process.wait(deadline)
            if not is_done(process.run):
                self.outcome.unfinished[process.run.name] = f"stopped, {process.progress()}"
        for run in self._waiting:
            self.outcome.unfinished[run.name] = "not begun"

    def show(self) -> None:
        """Print a line for each run in progress."""
        self._shown = time.monotonic()
        for process in self._running:
            _say(process.run, process.progress())

    def _start(self, run: Run, devices: list[str]) -> None:
        process = RunProcess(run, devices, self._at_once)
        self._running.append(process)
        what = "passkey retrieval" if is_finished(run) else f"{run.steps:,} steps"
        _say(run, f"{what}, on {'GPU ' * (devices[0] != 'cpu')}{', '.join(devices)}")

    def _end(self, process: RunProcess) -> None:
        self._running.remove(process)
        run = process.run
        if not process.succeeded:
            print(process.last_lines())
            self._give_up(run, f"failed, see {output_of(run)}")
        elif is_done(run):
            _say(run, "finished")
        elif process.trains:
            self._start(run, process.devices)
            return
        else:
            self._give_up(run, f"has not all rates, see {output_of(run)}")
        self._free += process.devices

    def _give_up(self, run: Run, why: str) -> None:
        if run in self._waiting:
            self._waiting.remove(run)
        self.outcome.unfinished[run.name] = why
        _say(run, why)

    def _source_is_there(self, run: Run) -> bool:
        """Whether the checkpoint that this run begins from is there, and the metrics up to it.

        The source validates its step after it has saved it.
        """
        if run.source is None or is_finished(run):
            return True
        checkpoint = Path(run.job.checkpoint.initial_load_path)
        if not (checkpoint / ".metadata").exists():
            return False
        sources = (p.run for p in self._running if p.run.name == run.source)
        at = step_of(checkpoint)
        return all(any(r["step"] > at for r in latest_records(s.folder)) for s in sources)

    def _is_coming(self, run: Run) -> bool:
        """Whether a run that waits or trains will make what this one begins from."""
        others = [*self._waiting, *(process.run for process in self._running)]
        return any(run.source == other.name for other in others)


def _say(run: Run, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {run.name}: {text}", flush=True)


@contextmanager
def _noting_signals() -> Iterator[list[int]]:
    """The signals received meanwhile, which do nothing else."""
    received: list[int] = []
    before = {s: signal.signal(s, lambda number, _: received.append(number)) for s in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
