"""The figures that runs are compared by, from their metrics (see ``metrics.read_metrics``)."""

import statistics
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from torchtitan_lighthouse.runs.metrics import (
    HELD_OUT_LOSS,
    LOSS,
    TOKENS,
    TOKENS_PER_SECOND,
    training_seconds,
)

Records = list[dict[str, Any]]

RUNNING_MEAN = 20  # logged steps


class Switch(NamedTuple):
    """What the switch to dense attention does to the training loss.

    Attributes:
        spike: nats per token; the highest loss within ``RUNNING_MEAN`` logged steps after the
            switch, over the mean of as many before it.
        steps_to_recover: until a running mean of the dense stage is at most the mean before the
            switch; None if it never is. The first mean there is comes ``RUNNING_MEAN`` logged steps
            after the switch, so there are no fewer, but in a shorter stage.
    """

    spike: float
    steps_to_recover: int | None


def training_records(records: Records) -> Records:
    """Return the records with a training loss."""
    return [record for record in records if LOSS in record]


def final_steps(records: Records) -> int:
    """Return how many logged steps a final loss is the mean of: a tenth of the run's.

    Not of the stage's, so that runs of one length are compared over as many steps, whenever they
    switch.
    """
    return max(1, len(training_records(records)) // 10)


def final_loss(records: Records, steps: int | None = None) -> float:
    """Average the training loss of the last stage's last ``steps``; by default ``final_steps``."""
    trained = training_records(records)
    last_stage = [record[LOSS] for record in trained if record["stage"] == trained[-1]["stage"]]
    return statistics.fmean(last_stage[-(steps or final_steps(records)) :])


def held_out_loss(records: Records) -> float | None:
    """Return the last loss on held-out text under dense SDPA; None without validation."""
    losses = [record[HELD_OUT_LOSS] for record in records if HELD_OUT_LOSS in record]
    return losses[-1] if losses else None


def held_out_step(records: Records) -> int | None:
    """Return the step of that loss."""
    return max((record["step"] for record in records if HELD_OUT_LOSS in record), default=None)


def held_out_over(records: Records, reference: Records) -> float | None:
    """Return by how much a run's loss on held-out text is above another's, at equal tokens.

    At the last number of tokens after which both were validated; None without one.
    """
    ours, theirs = _held_out_by_tokens(records), _held_out_by_tokens(reference)
    both = ours.keys() & theirs.keys()
    return ours[max(both)] - theirs[max(both)] if both else None


def _held_out_by_tokens(records: Records) -> dict[int, float]:
    last = training_records(records)[-1]
    per_step = last[TOKENS] / last["step"]
    return {round(r["step"] * per_step): r[HELD_OUT_LOSS] for r in records if HELD_OUT_LOSS in r}


def throughput(records: Records) -> float:
    """Return the median of tokens per second and device of the records of one stage.

    Without each launch's first, which compiles, unless there are no others.
    """
    logged = [record for record in records if TOKENS_PER_SECOND in record]
    later = [record for before, record in pairwise(logged) if _are_of_one_launch(before, record)]
    return statistics.median(record[TOKENS_PER_SECOND] for record in later or logged)


def _are_of_one_launch(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one["started"] == other["started"]


def seconds_to_loss(records: Records, loss: float) -> float | None:
    """Count the seconds of training until a running mean of the loss is at most ``loss``."""
    records = training_records(records)
    reached = _first_mean_below(records, loss)
    return None if reached is None else training_seconds(records)[reached]


def seconds_to_tokens(records: Records, tokens: float) -> float | None:
    """Count the seconds of training until ``tokens`` were seen, interpolating logged steps.

    None if the run has not come so far, or its metrics do not begin at its first step.
    """
    records = [record for record in records if TOKENS in record]
    if records[0]["step"] != 1 or records[-1][TOKENS] < tokens:
        return None
    seen = [record[TOKENS] for record in records]
    return float(np.interp(tokens, seen, training_seconds(records)))


def switch(records: Records) -> Switch | None:
    """Describe the first switch from Lighthouse to dense attention; None if there is none."""
    records = training_records(records)
    stages = [record["stage"] for record in records]
    for at, change in enumerate(pairwise(stages), start=1):
        if change == ("lighthouse", "dense"):
            before = statistics.fmean(r[LOSS] for r in records[max(0, at - RUNNING_MEAN) : at])
            dense = records[at:]
            # A NaN among them is the highest.
            spike = float(np.max([r[LOSS] for r in dense[:RUNNING_MEAN]])) - before
            recovered = _first_mean_below(dense, before)
            last = records[at - 1]["step"]
            steps = None if recovered is None else dense[recovered]["step"] - last
            return Switch(spike, steps)
    return None


def _first_mean_below(records: Records, loss: float) -> int | None:
    """Find the first record at which the running mean of the loss is at most ``loss``."""
    losses = np.array([record[LOSS] for record in records])
    window = min(RUNNING_MEAN, len(losses))
    means = np.convolve(losses, np.full(window, 1 / window), "valid")
    below = np.flatnonzero(means <= loss)
    return int(below[0]) + window - 1 if len(below) else None
