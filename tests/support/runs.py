"""Dump folders of runs that never were."""

import json
from collections.abc import Callable
from pathlib import Path

from torchtitan_lighthouse.runs.metrics import (
    LOSS,
    METRICS_FILE,
    PEAK_MEMORY,
    TOKENS,
    TOKENS_PER_SECOND,
)


def write_metrics(
    folder: Path, *records: tuple[int, dict], started: float = 0.0, pace: float = 1.0
) -> None:
    """Append (step, metrics) pairs, of steps that take ``pace`` seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / METRICS_FILE).open("a") as file:
        for step, values in records:
            record = {"step": step, "time": started + pace * step, "started": started, **values}
            file.write(json.dumps(record) + "\n")


def write_run(
    folder: Path,
    steps: range,
    switch: int,
    *,
    loss: Callable[[int], float] = lambda step: 1 / step,
    pace: float = 1.0,
    **metrics: float,
) -> str:
    """A run of 100 tokens a step, with Lighthouse attention up to step ``switch``."""

    def values(step: int) -> dict:
        return {
            "stage": "lighthouse" if step <= switch else "dense",
            LOSS: loss(step),
            TOKENS: 100 * step,
            TOKENS_PER_SECOND: 100 / pace,
            PEAK_MEMORY: 1.0,
            **metrics,
        }

    write_metrics(folder, *((step, values(step)) for step in steps), pace=pace)
    return str(folder)
