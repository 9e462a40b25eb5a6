"""Launching the trainer, with progress to watch, for scripts that need several runs."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from torchtitan_lighthouse.runs.metrics_log import LOSS, METRICS_FILE, read_metrics

OUTPUT_FILE = "output.txt"
_POLL_SECONDS = 0.5


def is_finished(folder: Path, steps: int) -> bool:
    """Whether the run in a dump folder has logged step ``steps``."""
    last = _last_record(folder)
    return last is not None and last["step"] >= steps


def train(
    config: Path,
    folder: Path,
    *,
    steps: int,
    options: Sequence[str] = (),
    processes: int = 1,
    timeout: float | None = None,
) -> list[dict[str, Any]]:
    """Train to the last step, or not at all if the run in ``folder`` has logged it.

    A run that was interrupted goes on from its last checkpoint. The trainer's output is added to
    output.txt in the folder; a bar shows the steps, as its metrics have them.

    Args:
        folder: the dump folder.
        options: more options of the trainer.
        processes: one per GPU.
        timeout: seconds, after which the trainer is killed.

    Returns:
        The metrics of each logged step.

    Raises:
        subprocess.CalledProcessError: the trainer failed; its last lines are printed.
        subprocess.TimeoutExpired: it was killed.
    """
    if not is_finished(folder, steps):
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), "-m", "torchtitan_lighthouse.train"),
            *trainer_arguments(config, folder, steps=steps, options=options),
        ]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / OUTPUT_FILE).open("a") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            _watch(process, folder, steps, timeout)
        if process.returncode:
            print("".join((folder / OUTPUT_FILE).read_text().splitlines(True)[-30:]))
            raise subprocess.CalledProcessError(process.returncode, command)
    return read_metrics(folder)


def trainer_arguments(
    config: Path, folder: Path, *, steps: int, options: Sequence[str]
) -> list[str]:
    """The trainer's command line; ``steps`` is meant whatever ``options`` say of it."""
    files = ["--job.config_file", str(config), "--job.dump_folder", str(folder)]
    return [*files, *options, "--training.steps", str(steps)]


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
            process.wait()


def _update(bar: tqdm, folder: Path) -> None:
    if last := _last_record(folder):
        bar.n = last["step"]
        bar.set_postfix_str(f"{last['stage']}, loss {last.get(LOSS, float('nan')):.3f}")


def _last_record(folder: Path) -> dict[str, Any] | None:
    """The last whole line of the metrics, without a look at the others."""
    path = folder / METRICS_FILE
    lines = path.read_bytes().rsplit(b"\n", 2) if path.exists() else []
    return json.loads(lines[-2]) if len(lines) > 1 else None
