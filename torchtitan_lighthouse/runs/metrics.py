"""``metrics.jsonl`` in a run's dump folder: one JSON object per line, for every logged step.

Each has ``step``; ``time`` and ``started``, Unix seconds of now and of the launch; ``stage``,
"lighthouse" or "dense"; and the metrics under torchtitan's names. A launch that continues a run
appends to its file, so after a crash some steps are there twice: ``read_metrics`` sorts that out.
"""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.whole_file import write_whole

METRICS_FILE = "metrics.jsonl"

# Names of metrics: torchtitan's, and the second of the held-out losses.
LOSS = "loss_metrics/global_avg_loss"  # nats per token
HELD_OUT_LOSS = "validation_metrics/loss"  # under dense SDPA
HELD_OUT_LIGHTHOUSE_LOSS = "validation_metrics/lighthouse_loss"
TOKENS = "n_tokens_seen"
TOKENS_PER_SECOND = "throughput(tps)"  # per device
PEAK_MEMORY = "memory/max_reserved(GiB)"


class MetricsLog:
    """Appends to the metrics of a dump folder, made where it is missing."""

    def __init__(self, dump_folder: str | Path) -> None:
        path = Path(dump_folder, METRICS_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._started = time.time()
        self._file = path.open("a+b", buffering=0)
        size = self._file.seek(0, 2)
        self._file.seek(max(size - 1, 0))
        if self._file.read() not in (b"", b"\n"):
            # The last launch was killed while it wrote a line.
            self._file.write(b"\n")

    def append(self, step: int, stage: str, metrics: dict[str, Any]) -> None:
        """Write one line, in one call: a kill leaves whole lines.

        Raises:
            OSError: the disk is full.
        """
        times = {"time": time.time(), "started": self._started}
        record = {"step": step, **times, "stage": stage, **metrics}
        line = json.dumps(record).encode() + b"\n"
        while line:  # a disk that fills takes a part, and says so only when asked for the rest
            line = line[self._file.write(line) :]

    def close(self) -> None:
        self._file.close()


def read_metrics(dump_folder: str | Path) -> list[dict[str, Any]]:
    """Read the metrics of a run: one dict per logged step, in step order.

    A step that was repeated after a crash is the repeated one, and steps that the run has gone
    back behind and not reached again are left out.

    Raises:
        FileNotFoundError: the folder has no metrics.
        RefusalError: the file of that name is another's.
    """
    with Path(dump_folder, METRICS_FILE).open(errors="replace") as file:
        return in_step_order(_parsed(file))


def in_step_order(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort records as they were logged into one dict per step, as ``read_metrics`` returns them."""
    steps: dict[int, dict[str, Any]] = {}
    for record in records:
        while steps and next(reversed(steps)) > record["step"]:
            steps.popitem()
        steps.setdefault(record["step"], {}).update(record)
    return list(steps.values())


def _parsed(file: TextIO) -> Iterator[dict[str, Any]]:
    for line in file:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # cut short by a kill
            continue
        if not isinstance(record, dict) or not {"step", "started"} <= record.keys():
            raise RefusalError(f"{file.name} is of no run of this package: {line.strip()[:80]}")
        yield record


def training_seconds(records: list[dict[str, Any]]) -> list[float]:
    """Count the seconds of running up to each record of ``read_metrics``.

    The time between launches and what a crash has lost are not counted.
    """
    seconds: list[float] = []
    before = 0.0
    for i, record in enumerate(records):
        if i and record["started"] != records[i - 1]["started"]:
            before = seconds[-1]
        seconds.append(before + record["time"] - record["started"])
    return seconds


def continue_metrics(dump_folder: str | Path, checkpoint: str | Path) -> None:
    """Begin a new run's metrics with those of the run whose ``checkpoint`` it continues.

    Args:
        checkpoint: the ``<dump folder>/<checkpoint folder>/step-N`` that is loaded. The metrics up
            to step N are taken; there are none where a checkpoint was moved elsewhere.
    """
    step = Path(checkpoint).name.removeprefix("step-")
    source = Path(checkpoint).absolute().parents[1]
    target = Path(dump_folder, METRICS_FILE)
    if target.exists() or not step.isdecimal() or not Path(source, METRICS_FILE).exists():
        return
    history = [record for record in read_metrics(source) if record["step"] <= int(step)]
    # Cut short by a kill or a full disk, it would be taken for the whole in the next launch.
    write_whole(target, "".join(json.dumps(record) + "\n" for record in history))
