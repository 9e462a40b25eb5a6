"""Draw the training loss of runs, against steps and against time: ``plot_loss.py RUN...``.

A RUN is a dump folder with a metrics.jsonl. Faint lines are the loss of every logged step, strong
ones its moving mean within a stage; dots are the loss on held-out text, where the run validated;
dashed lines mark the switch to dense attention.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # there may be no display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from torchtitan_lighthouse.metrics_log import read_metrics, training_seconds

LOSS = "loss_metrics/global_avg_loss"
HELD_OUT_LOSS = "validation_metrics/loss"
_TIME_UNITS = (("seconds", 1), ("minutes", 60), ("hours", 3600))
_SETTLED = 0.05  # share of a run after which its loss sets the scale: the first steps dwarf it


class Curve(NamedTuple):
    """One run: float arrays with an entry per logged step, and the first index of each stage.

    ``held_out`` is NaN where the run did not validate.
    """

    label: str
    steps: np.ndarray
    seconds: np.ndarray
    loss: np.ndarray
    mean: np.ndarray
    held_out: np.ndarray
    switches: list[int]


def main(args: list[str] | None = None) -> None:
    """Parse the command line, write the PNG and print its path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a dump folder")
    parser.add_argument(
        "--labels", nargs="+", metavar="LABEL", help="names for the legend [those of the folders]"
    )
    parser.add_argument("--out", type=Path, metavar="PNG", help="[loss.png in the first RUN]")
    parser.add_argument(
        "--smooth", type=int, metavar="N", help="logged steps in a mean [1/25 of the longest run]"
    )
    options = parser.parse_args(args)
    labels = options.labels or [run.resolve().name for run in options.runs]
    if len(labels) != len(options.runs):
        parser.error(f"--labels has {len(labels)} names for {len(options.runs)} runs")
    runs = [[r for r in read_metrics(run) if LOSS in r] for run in options.runs]
    window = options.smooth or max(1, max(map(len, runs)) // 25)
    curves = [curve(label, records, window) for label, records in zip(labels, runs, strict=True)]
    out = options.out or options.runs[0] / "loss.png"
    draw(curves, out)
    print(out)


def curve(label: str, records: list[dict[str, Any]], window: int) -> Curve:
    """The curve of a run's records, with means over ``window`` of them."""
    loss = np.array([record[LOSS] for record in records])
    stages = [record["stage"] for record in records]
    switches = [i for i in range(1, len(stages)) if stages[i] != stages[i - 1]]
    # A mean across the switch would hide the jump there.
    parts = [_moving_mean(part, window) for part in np.split(loss, switches)]
    steps = np.array([record["step"] for record in records])
    seconds = np.array(training_seconds(records))
    held_out = np.array([record.get(HELD_OUT_LOSS, np.nan) for record in records])
    return Curve(label, steps, seconds, loss, np.concatenate(parts), held_out, switches)


def draw(curves: list[Curve], out: Path) -> None:
    """Write the chart of one or more curves as a PNG."""
    longest = max(c.seconds[-1] for c in curves)
    unit, length = [u for u in _TIME_UNITS if u[1] == 1 or longest > 3 * u[1]][-1]
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for axes in panels:
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for i, c in enumerate(curves):
        for axes, x in zip(panels, (c.steps, c.seconds / length), strict=True):
            axes.plot(x, c.loss, color=f"C{i}", alpha=0.2, linewidth=0.8)
            axes.plot(x, c.mean, color=f"C{i}", linewidth=1.8)
            validated = np.isfinite(c.held_out)
            axes.plot(x[validated], c.held_out[validated], "ko-", markersize=2.5, linewidth=0.8)
            for switch in c.switches:
                axes.axvline(x[switch], color=f"C{i}", linestyle="--", linewidth=1)
    panels[0].set(xlabel="step", ylabel="loss (nats per token)", ylim=_scale(curves))
    panels[1].set(xlabel=f"training time ({unit})")
    entries = [Line2D([], [], color=f"C{i}", label=c.label) for i, c in enumerate(curves)]
    if any(np.isfinite(c.held_out).any() for c in curves):
        entries.append(Line2D([], [], color="k", marker="o", markersize=2.5, label="held-out text"))
    if any(c.switches for c in curves):
        entries.append(Line2D([], [], color="0.4", linestyle="--", label="switch to dense"))
    panels[1].legend(handles=entries, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Means over ``window`` values around each, over those there are near the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    first = np.maximum(centre - window // 2, 0)
    end = np.minimum(centre + window // 2 + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


def _scale(curves: list[Curve]) -> tuple[float, float]:
    """The limits of the loss axis."""
    settled = np.concatenate([c.loss[int(len(c.loss) * _SETTLED) :] for c in curves])
    margin = 0.04 * np.ptp(settled)
    return settled.min() - margin, settled.max() + margin


if __name__ == "__main__":
    main()
