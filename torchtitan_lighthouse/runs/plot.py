"""The chart of runs' losses, against steps and against time.

Faint lines are the training loss of every logged step, strong ones its moving mean within a stage.
Dots are the loss on held-out text under dense attention, rings that under Lighthouse attention.
Dashed lines mark the switch to dense attention.
"""

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # there may be no display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from torchtitan_lighthouse.runs.metrics import (
    HELD_OUT_LIGHTHOUSE_LOSS,
    HELD_OUT_LOSS,
    LOSS,
    training_seconds,
)
from torchtitan_lighthouse.runs.summary import training_records

_TIME_UNITS = (("seconds", 1), ("minutes", 60), ("hours", 3600))
_SETTLED = 0.05  # share of a run after which its loss sets the scale: the first steps dwarf it
# Held-out losses by their metrics' names: their label, and the inside of their dots.
_HELD_OUT: dict[str, tuple[str, str | None]] = {
    HELD_OUT_LOSS: ("held-out text", None),
    HELD_OUT_LIGHTHOUSE_LOSS: ("the same under Lighthouse attention", "none"),
}


class Curve(NamedTuple):
    """One run: float arrays with an entry per logged step, and the first index of each stage.

    ``held_out`` has the two held-out losses by their metrics' names, NaN where the run did not
    validate.
    """

    label: str
    steps: np.ndarray
    seconds: np.ndarray
    loss: np.ndarray
    mean: np.ndarray
    held_out: dict[str, np.ndarray]
    switches: list[int]


def plot(runs: dict[str, list[dict[str, Any]]], out: Path, smooth: int | None = None) -> None:
    """Write the chart of one or more runs, given by label and metrics, as a PNG.

    Args:
        smooth: logged steps in a moving mean; by default 1/25 of those of the longest run.
    """
    logged = {label: training_records(records) for label, records in runs.items()}
    window = smooth or max(1, max(map(len, logged.values())) // 25)
    _draw([_curve(label, records, window) for label, records in logged.items()], out)


def _curve(label: str, records: list[dict[str, Any]], window: int) -> Curve:
    loss = np.array([record[LOSS] for record in records])
    stages = [record["stage"] for record in records]
    switches = [i for i in range(1, len(stages)) if stages[i] != stages[i - 1]]
    # A mean across the switch would hide the jump there.
    parts = [_moving_mean(part, window) for part in np.split(loss, switches)]
    return Curve(
        label,
        steps=np.array([record["step"] for record in records]),
        seconds=np.array(training_seconds(records)),
        loss=loss,
        mean=np.concatenate(parts),
        held_out={name: np.array([r.get(name, np.nan) for r in records]) for name in _HELD_OUT},
        switches=switches,
    )


def _draw(curves: list[Curve], out: Path) -> None:
    longest = max(c.seconds[-1] for c in curves)
    unit, length = [u for u in _TIME_UNITS if u[1] == 1 or longest > 3 * u[1]][-1]
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for axes in panels:
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for i, curve in enumerate(curves):
        _draw_curve(panels[0], curve, curve.steps, f"C{i}", alone=len(curves) == 1)
        _draw_curve(panels[1], curve, curve.seconds / length, f"C{i}", alone=len(curves) == 1)
    panels[0].set(xlabel="step", ylabel="loss (nats per token)", ylim=_scale(curves))
    panels[1].set(xlabel=f"training time ({unit})")
    panels[1].legend(handles=_legend(curves), frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _draw_curve(axes: Axes, curve: Curve, x: np.ndarray, colour: str, *, alone: bool) -> None:
    axes.plot(x, curve.loss, color=colour, alpha=0.2, linewidth=0.8)
    axes.plot(x, curve.mean, color=colour, linewidth=1.8)
    ink = "black" if alone else colour
    for name, (_, fill) in _HELD_OUT.items():
        loss = curve.held_out[name]
        x_there, loss_there = x[np.isfinite(loss)], loss[np.isfinite(loss)]
        axes.plot(x_there, loss_there, "o-", color=ink, mfc=fill, markersize=3, linewidth=0.6)
    for switch in curve.switches:
        axes.axvline(x[switch], color=colour, linestyle="--", linewidth=1)


def _legend(curves: list[Curve]) -> list[Line2D]:
    entries = [Line2D([], [], color=f"C{i}", label=c.label) for i, c in enumerate(curves)]
    for name, (label, fill) in _HELD_OUT.items():
        if any(np.isfinite(c.held_out[name]).any() for c in curves):
            marks = Line2D([], [], color="black", marker="o", mfc=fill, markersize=3, label=label)
            entries.append(marks)
    if any(c.switches for c in curves):
        entries.append(Line2D([], [], color="0.4", linestyle="--", label="switch to dense"))
    return entries


def _moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Means over ``window`` values around each, over those there are near the ends."""
    half = window // 2
    # Each by itself: in running sums a NaN would reach all after it.
    return np.array([values[max(i - half, 0) : i + half + 1].mean() for i in range(len(values))])


def _scale(curves: list[Curve]) -> tuple[float, float]:
    """The limits of the loss axis; a diverged run sets them by its finite losses."""
    settled = np.concatenate([c.loss[int(len(c.loss) * _SETTLED) :] for c in curves])
    settled = settled[np.isfinite(settled)]
    if not settled.size:
        return 0.0, 1.0
    margin = 0.04 * (np.ptp(settled) or 1.0)
    return settled.min() - margin, settled.max() + margin
