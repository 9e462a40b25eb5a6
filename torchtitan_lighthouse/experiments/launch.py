"""Launching the trainer, with progress to watch, for scripts that need several runs."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.metrics import LOSS, METRICS_FILE, read_metrics
from torchtitan_lighthouse.titan.config import JOB_FILE, LighthouseConfigManager

OUTPUT_FILE = "output.txt"
FINISHED_FILE = "finished"
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 60.0  # torchrun gives its workers 30
_TAIL_BYTES = 1 << 16
# What a finished run may differ in from what is asked: none of it changes a loss.
_FREE_SECTIONS = {"job", "comm", "metrics", "profiling"}


def train(
    config: Path,
    folder: Path,
    *,
    steps: int,
    options: Sequence[str] = (),
    processes: int = 1,
    timeout: float | None = None,
) -> list[dict[str, Any]]:
    """Train to the last step, or not at all if the run in ``folder`` is finished.

    A run that was interrupted goes on from its last checkpoint. The trainer's output is added to
    output.txt in the folder; a bar shows the steps, as its metrics have them. ``finished`` in the
    folder says that the trainer has ended well, which the last step's metrics do not: its
    checkpoint and validation come after them.

    Args:
        folder: the dump folder.
        options: more options of the trainer.
        processes: one per GPU.
        timeout: seconds, after which the trainer is killed.

    Returns:
        The metrics of each logged step.

    Raises:
        ValueError: the run in ``folder`` was trained with other options.
        subprocess.CalledProcessError: the trainer failed; its last lines are printed.
        subprocess.TimeoutExpired: it was killed.
        SystemExit: this process got SIGTERM; the trainer has ended, too.
    """
    arguments = trainer_arguments(config, folder, steps=steps, options=options)
    _check_trained(folder, LighthouseConfigManager().parse_args(arguments).to_dict())
    finished = folder / FINISHED_FILE
    if not finished.exists():
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), "-m", "torchtitan_lighthouse.train"),
            *arguments,
        ]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / OUTPUT_FILE).open("a") as output, _exit_on_sigterm():
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            _watch(process, folder, steps, timeout)
        if process.returncode:
            print("".join((folder / OUTPUT_FILE).read_text().splitlines(True)[-30:]))
            raise subprocess.CalledProcessError(process.returncode, command)
        finished.touch()
    return read_metrics(folder)


def trainer_arguments(
    config: Path, folder: Path, *, steps: int, options: Sequence[str]
) -> list[str]:
    """The trainer's command line; ``steps`` is meant whatever ``options`` say of it."""
    files = ["--job.config_file", str(config), "--job.dump_folder", str(folder)]
    return [*files, *options, "--training.steps", str(steps)]


def _check_trained(folder: Path, asked: dict[str, Any]) -> None:
    """Refuse a folder with a step of another job than the one asked for.

    The trainer's own record of its job decides; a folder without one is taken as it is.
    """
    file = folder / (asked["job"]["save_config_file"] or JOB_FILE)
    if not file.exists() or not any(_latest_records(folder)):
        return
    wanted = _fields(asked)
    trained = _fields(json.loads(file.read_text()))
    # A field that one of them lacks is of another version of the package.
    other = [name for name in wanted if name in trained and trained[name] != wanted[name]]
    if other:
        was, now = (", ".join(f"{n} = {job[n]!r}" for n in other) for job in (trained, wanted))
        raise RefusalError(
            f"{folder} was trained with {was}, and {now} is asked for: choose another --out, or "
            "remove the folder"
        )


def _fields(job: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves by their dotted names, as JSON has them; without the free sections."""
    leaves: dict[str, Any] = {}
    for name, value in job.items():
        if isinstance(value, dict):
            if prefix or name not in _FREE_SECTIONS:
                leaves |= _fields(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = list(value) if isinstance(value, tuple) else value
    return leaves


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind this process, which ends the trainer, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _watch(process: subprocess.Popen, folder: Path, steps: int, timeout: float | None) -> None:
    """Show the progress until the trainer ends; end it with whatever ends this."""
    try:
        with tqdm(total=steps, desc=folder.name, unit="step", dynamic_ncols=True) as bar:
            deadline = None if timeout is None else time.monotonic() + timeout
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                _update(bar, folder)
                if deadline and time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired(process.args, timeout or 0)
            _update(bar, folder)
    finally:
        if process.poll() is None:
            process.terminate()  # torchrun passes it on to its workers
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _update(bar: tqdm, folder: Path) -> None:
    records = _latest_records(folder)
    if last := next(records, None):
        # A record of validation alone has no training loss.
        with_loss = (record for record in (last, *records) if LOSS in record)
        loss = next(with_loss, {LOSS: math.nan})[LOSS]
        bar.n = last["step"]
        bar.set_postfix_str(f"{last['stage']}, loss {loss:.3f}")


def _latest_records(folder: Path) -> Iterator[dict[str, Any]]:
    """The records in the metrics' last ``_TAIL_BYTES``, the last one first."""
    path = folder / METRICS_FILE
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            yield json.loads(line)
        except ValueError:  # cut short by a kill, or by the start of the tail
            continue
