"""The figures of a finished run, by the names of the table's columns, and those of a variant."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torchtitan_lighthouse.experiments.retrieval import retrieval_means
from torchtitan_lighthouse.experiments.run import Run
from torchtitan_lighthouse.runs import summary
from torchtitan_lighthouse.runs.metrics import (
    HELD_OUT_LIGHTHOUSE_LOSS,
    HELD_OUT_LOSS,
    training_seconds,
)
from torchtitan_lighthouse.runs.summary import Records
from torchtitan_lighthouse.titan.config import Lighthouse

Figures = dict[str, float | None]


class Column(NamedTuple):
    """A figure, and the format in which it is shown."""

    name: str
    form: str


COLUMNS = (
    Column("S", ",.0f"),
    Column("held-out", ".4f"),
    Column("stage 1: held-out", ".4f"),
    Column("the same, Lighthouse", ".4f"),
    Column("final loss", ".4f"),
    Column("spike", "+.3f"),
    Column("steps to recover", ",.0f"),
    Column("tokens/s, Lighthouse", ",.0f"),
    Column("tokens/s, dense", ",.0f"),
    Column("minutes", ".1f"),
)


def retrieval_columns(lengths: Iterable[int]) -> list[Column]:
    """Return the columns of the passkey test, one for each length in tokens."""
    return [Column(f"passkeys, {length:,}", ".2f") for length in lengths]


def figures(run: Run, records: Records) -> Figures:
    """Collect a run's figures by the columns' names; None for what the run does not have."""
    switch = summary.switch(records)
    stage_1 = [record for record in records if record["stage"] == "lighthouse"]
    rates = retrieval_means(run)
    found: Figures = {
        "S": sub_sequence_length(run.job.lighthouse, run.job.training.seq_len),
        "held-out": summary.held_out_loss(records),
        "stage 1: held-out": _last(stage_1, HELD_OUT_LOSS),
        "the same, Lighthouse": _last(stage_1, HELD_OUT_LIGHTHOUSE_LOSS),
        "final loss": summary.final_loss(records),
        "spike": switch and switch.spike,
        "steps to recover": switch and switch.steps_to_recover,
        "tokens/s, Lighthouse": _throughput(records, "lighthouse"),
        "tokens/s, dense": _throughput(records, "dense"),
        "minutes": training_seconds(records)[-1] / 60,
    }
    lengths = run.passkeys.lengths if run.passkeys else ()
    columns = retrieval_columns(lengths)
    return found | {c.name: rates.get(n) for c, n in zip(columns, lengths, strict=True)}


def sub_sequence_length(section: Lighthouse, seq_len: int) -> int | None:
    """Return S, the gathered entries; None without a Lighthouse stage.

    Raises:
        RefusalError: the geometry does not fit the sequence.
    """
    if not section.enable or section.steps == 0:
        return None
    return section.attention_config().sub_sequence_length(seq_len)


def shown(values: Sequence[float | None], form: str) -> str:
    """Write a value; of several the mean, the least and the greatest; "-" if there is none."""
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    text = format(statistics.fmean(there), form)
    least, greatest = (format(end(there), form) for end in (min, max))
    if least != greatest:
        text += f" ({least} to {greatest})"
    if len(there) < len(values):
        text += f", {len(there)} of {len(values)}"
    return text


def _last(records: Records, name: str) -> float | None:
    return next((record[name] for record in reversed(records) if name in record), None)


def _throughput(records: Records, stage: str) -> float | None:
    part: list[dict[str, Any]] = [
        r for r in summary.training_records(records) if r["stage"] == stage
    ]
    return summary.throughput(part) if part else None
