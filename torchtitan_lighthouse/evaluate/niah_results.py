"""What a retrieval test leaves: its records, a table and a heat map."""

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # there may be no display

import matplotlib.pyplot as plt
import numpy as np

from torchtitan_lighthouse.evaluate.prompts import DEPTHS
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.markdown import markdown
from torchtitan_lighthouse.runs.whole_file import write_whole

Rates = dict[int, dict[int, float]]  # by length and depth


class Results:
    """The records of a niah.json: what was asked, the rate at each depth, and their mean.

    Raises:
        RefusalError: the file holds something else.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._records = _read(file) if file.exists() else []

    def find(self, asked: dict[str, Any]) -> dict[int, float]:
        """Return the rates by depth; none if this was not asked before."""
        for record in self._records:
            if asked.items() <= record.items():
                return {int(depth): rate for depth, rate in record["rates"].items()}
        return {}

    def add(self, asked: dict[str, Any], rates: dict[int, float]) -> None:
        """Save one more record. A kill leaves the old file or the new one."""
        rates_by_name = {str(depth): rate for depth, rate in rates.items()}
        mean = statistics.fmean(rates.values())
        self._records.append({**asked, "rates": rates_by_name, "mean": mean})
        write_whole(self._file, json.dumps(self._records, indent=1) + "\n")


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(file.read_text())
    except ValueError as error:
        raise RefusalError(f"{file} is damaged ({error}): mend or delete it") from error
    if not isinstance(records, list):
        raise RefusalError(f"{file} has no list of records: choose another --out")
    return records


def table(title: str, rates: Rates) -> str:
    """Tabulate rates: a line for each depth, a column for each length."""
    rows = [("depth", *(f"{length:,}" for length in rates))]
    rows += [(f"{depth}%", *(f"{rates[n][depth]:.2f}" for n in rates)) for depth in DEPTHS]
    return f"{title}\n\n{markdown(rows)}"


def draw(panels: list[tuple[str, Rates]], out: Path) -> None:
    """Write a heat map for each title and its rates, side by side in one PNG."""
    widths = [max(2.4, 0.85 * len(rates)) for _, rates in panels]
    figure, row = plt.subplots(
        1,
        len(panels),
        figsize=(2 + sum(widths), 4),
        width_ratios=widths,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (title, rates) in zip(row[0], panels, strict=True):
        cells = [[column[depth] for column in rates.values()] for depth in DEPTHS]
        image = axes.imshow(cells, vmin=0, vmax=1, aspect="auto")
        for (y, x), rate in np.ndenumerate(cells):
            colour = "black" if rate > 0.5 else "white"
            axes.text(x, y, f"{rate:.2f}", ha="center", va="center", color=colour)
        axes.set_title(title.replace(", ", "\n"), fontsize=9)
        axes.set_xticks(range(len(rates)), [f"{length:,}" for length in rates])
        axes.set_xlabel("context (tokens)")
    row[0][0].set_yticks(range(len(DEPTHS)), [f"{depth}%" for depth in DEPTHS])
    row[0][0].set_ylabel("depth of the passkey")
    figure.colorbar(image, ax=row, label="retrieval rate")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)
