"""The chart of runs' losses, against steps and against time.

Lines are the moving mean of the training loss within a stage; the chart of one run has every logged
step behind it, faintly. Runs that differ in their seeds alone share a colour. Marks are the loss on
held-out text under dense attention, of a shape for each colour, and hollow ones that under
Lighthouse attention. Dashed lines mark the switch to dense attention. The axis shows what is left
after the first steps' fall; marks above it are carets at its edge.
"""

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # there may be no display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import CARETUP
from matplotlib.ticker import MaxNLocator

from torchtitan_lighthouse.runs.metrics import (
    HELD_OUT_LIGHTHOUSE_LOSS,
    HELD_OUT_LOSS,
    LOSS,
    training_seconds,
)
from torchtitan_lighthouse.runs.names import without_seed
from torchtitan_lighthouse.runs.summary import training_records

_TIME_UNITS = (("seconds", 1), ("minutes", 60), ("hours", 3600))
_SETTLED = 0.2  # share of a run after which its losses set the axis; earlier ones would dwarf them
_MARKERS = "osD^vP*X"
# Held-out losses by their metrics' names: their label, and the inside of their marks.
_HELD_OUT: dict[str, tuple[str, str | None]] = {
    HELD_OUT_LOSS: ("held-out text", None),
    HELD_OUT_LIGHTHOUSE_LOSS: ("the same under Lighthouse attention", "white"),
}


class Curve(NamedTuple):
    """One run: float arrays with an entry per logged step, and the first index of each stage.

    Attributes:
        held_out: the two held-out losses by their metrics' names, NaN where the run did not
            validate.
        switches: the first index of each stage but the first.
        dense: whether the step is of a dense stage.
    """

    label: str
    steps: np.ndarray
    seconds: np.ndarray
    loss: np.ndarray
    mean: np.ndarray
    held_out: dict[str, np.ndarray]
    switches: list[int]
    dense: np.ndarray


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
        dense=np.array([stage == "dense" for stage in stages]),
    )


def _draw(curves: list[Curve], out: Path) -> None:
    longest = max(c.seconds[-1] for c in curves)
    unit, length = [u for u in _TIME_UNITS if u[1] == 1 or longest > 3 * u[1]][-1]
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    panels[0].set(xlabel="step", ylabel="loss (nats per token)", ylim=_scale(curves))
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[1].set(xlabel=f"training time ({unit})")
    for axes in panels:
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    order = list(_by_variant(curves))
    for curve in curves:
        i = order.index(without_seed(curve.label))
        style: dict[str, Any] = {"color": f"C{i}", "marker": _MARKERS[i % len(_MARKERS)]}
        _draw_curve(panels[0], curve, curve.steps, alone=len(curves) == 1, **style)
        _draw_curve(panels[1], curve, curve.seconds / length, alone=len(curves) == 1, **style)
    _add_legend(figure, _legend(curves))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _draw_curve(
    axes: Axes, curve: Curve, x: np.ndarray, *, alone: bool, color: str, marker: str
) -> None:
    if alone:
        axes.plot(x, curve.loss, color=color, alpha=0.15, linewidth=0.6)
    axes.plot(x, curve.mean, color=color, linewidth=1.8)
    top = axes.get_ylim()[1]
    ink = "black" if alone else color
    for name, (_, fill) in _HELD_OUT.items():
        loss = curve.held_out[name]
        there, above = np.isfinite(loss), loss > top
        marks: dict[str, Any] = {"color": ink, "linestyle": "none", "markersize": 4.5, "zorder": 3}
        axes.plot(x[there], loss[there], marker=marker, mfc=fill, **marks)
        axes.plot(x[above], np.full(above.sum(), top), marker=CARETUP, mfc=fill, **marks)
    for switch in curve.switches:
        axes.axvline(x[switch], color=color, linestyle="--", linewidth=1)


def _add_legend(figure: Figure, handles: list[Line2D]) -> None:
    """Put the legend on top, in as many columns as the figure is wide enough for."""
    for columns in range(min(len(handles), 4), 0, -1):
        place: dict[str, Any] = {"loc": "outside upper center", "ncols": columns, "frameon": False}
        legend = figure.legend(handles=handles, **place)
        width = legend.get_window_extent().width / figure.bbox.width
        if width <= 1:
            return
        legend.remove()
    # One label alone is too long for the usual size of letters.
    figure.legend(handles=handles, **place, fontsize=0.98 * plt.rcParams["font.size"] / width)


def _legend(curves: list[Curve]) -> list[Line2D]:
    entries = []
    for i, (variant, of) in enumerate(_by_variant(curves).items()):
        has_marks = any(np.isfinite(c.held_out[HELD_OUT_LOSS]).any() for c in of)
        marker = _MARKERS[i % len(_MARKERS)] if has_marks and len(curves) > 1 else None
        style: dict[str, Any] = {"color": f"C{i}", "marker": marker, "markersize": 4.5}
        label = of[0].label if len(of) == 1 else f"{variant} ({len(of)} seeds)"
        entries.append(Line2D([], [], label=label, **style))
    for name, (label, fill) in _HELD_OUT.items():
        if any(np.isfinite(c.held_out[name]).any() for c in curves):
            marks: dict[str, Any] = {"color": "black", "marker": "o", "mfc": fill}
            entries.append(Line2D([], [], label=label, linestyle="none", markersize=4.5, **marks))
    if any(c.switches for c in curves):
        entries.append(Line2D([], [], color="0.4", linestyle="--", label="switch to dense"))
    return entries


def _by_variant(curves: list[Curve]) -> dict[str, list[Curve]]:
    variants: dict[str, list[Curve]] = {}
    for curve in curves:
        variants.setdefault(without_seed(curve.label), []).append(curve)
    return variants


def _moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Average ``window`` values around each, and near the ends those that there are."""
    half = window // 2
    # Each by itself: in running sums a NaN would reach all after it.
    return np.array([values[max(i - half, 0) : i + half + 1].mean() for i in range(len(values))])


def _scale(curves: list[Curve]) -> tuple[float, float]:
    """Choose the limits of the loss axis; a diverged run sets them by its finite losses.

    A model of the Lighthouse stage is worse under dense attention by more than runs differ, so its
    held-out losses there set no limit.
    """
    settled = np.concatenate([_settled(curve) for curve in curves])
    settled = settled[np.isfinite(settled)]
    if not settled.size:
        return 0.0, 1.0
    margin = 0.04 * (np.ptp(settled) or 1.0)
    return settled.min() - margin, settled.max() + margin


def _settled(curve: Curve) -> np.ndarray:
    begun = int(len(curve.loss) * _SETTLED)
    held_out = np.where(curve.dense, curve.held_out[HELD_OUT_LOSS], np.nan)
    kinds = (curve.mean, held_out, curve.held_out[HELD_OUT_LIGHTHOUSE_LOSS])
    return np.concatenate([values[begun:] for values in kinds])
