"""Fewer records of a run, from which its curves can still be drawn."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from torchtitan_lighthouse.runs.metrics import (
    HELD_OUT_LIGHTHOUSE_LOSS,
    HELD_OUT_LOSS,
    LOSS,
    PEAK_MEMORY,
    TOKENS,
    TOKENS_PER_SECOND,
)

GRADIENT_NORM = "grad_norm"
_OVER_ALL: dict[str, Callable[[Sequence[float]], float]]
_OVER_ALL = {LOSS: statistics.fmean, GRADIENT_NORM: statistics.fmean, PEAK_MEMORY: max}
_KEPT = ("step", "time", "started", "stage", TOKENS, TOKENS_PER_SECOND)
_HELD_OUT = (HELD_OUT_LOSS, HELD_OUT_LIGHTHOUSE_LOSS)
_WHOLE_AFTER_SWITCH = 50  # records: the spike, and the first of the way back
_DIGITS = 6


def thin(records: list[dict[str, Any]], count: int = 300) -> list[dict[str, Any]]:
    """Thin records to about ``count``: each has some neighbours' last figures and their mean loss.

    Losses on held-out text and the first records of a later stage are kept as they are; neighbours
    are of one stage and one launch.
    """
    width = max(1, round(len(records) / count))
    return [_merged(group) for group in _neighbours(records, width)]


def _neighbours(records: list[dict[str, Any]], width: int) -> Iterator[list[dict[str, Any]]]:
    stage_before = None
    for (stage, _), part in groupby(records, key=lambda r: (r["stage"], r["started"])):
        group: list[dict[str, Any]] = []
        whole = _WHOLE_AFTER_SWITCH if stage_before not in (None, stage) else 0
        stage_before = stage
        for number, record in enumerate(part):
            group.append(record)
            validates = any(name in record for name in _HELD_OUT)
            if number < whole or len(group) >= width or validates:
                yield group
                group = []
        if group:
            yield group


def _merged(group: list[dict[str, Any]]) -> dict[str, Any]:
    # The last may be a validation between two logged steps, without figures of training.
    merged = {n: record[n] for record in group for n in (*_KEPT, *_HELD_OUT) if n in record}
    for name, over in _OVER_ALL.items():
        if values := [record[name] for record in group if name in record]:
            merged[name] = over(values)
    return {k: round(v, _DIGITS) if isinstance(v, float) else v for k, v in merged.items()}
