"""Test trained models on passkey retrieval at several depths.

    python -m torchtitan_lighthouse niah outputs/run/checkpoint/step-16000 --lengths 16384

A CHECKPOINT is a ``<dump folder>/<checkpoint folder>/step-N`` of either stage; it runs under dense
SDPA, on the GPU if there is one. Prints a table of retrieval rates for each, adds them to niah.json
and draws them in a PNG that is named after the checkpoints. What niah.json already has is not run
again, so that an interrupted test continues.
The test itself: see ``torchtitan_lighthouse/evaluate/niah.py``. Needs ``pip install .[plot]``.
"""

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # there may be no display

import matplotlib.pyplot as plt
import numpy as np
import torch
from torchtitan.config import TORCH_DTYPE_MAP, JobConfig
from tqdm import tqdm

from torchtitan_lighthouse.evaluate.checkpoint import job_of, load_trained
from torchtitan_lighthouse.evaluate.niah import (
    CUE,
    DEPTHS,
    NEEDLE,
    Haystack,
    last_logits_of,
    retrieval_rates,
)
from torchtitan_lighthouse.runs.markdown import markdown
from torchtitan_lighthouse.runs.names import file_name
from torchtitan_lighthouse.titan.components.tokenizer import build_tokenizer
from torchtitan_lighthouse.tools.job_option import JOB_HELP

TRIALS_HELP = "for each depth and length, a multiple of 10 for the ten digits [50]"

Rates = dict[int, dict[int, float]]  # by length and depth


class Results:
    """The records of a niah.json: what was asked, the rate at each depth, and their mean."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._records: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []

    def find(self, asked: dict[str, Any]) -> dict[int, float]:
        """The rates by depth; none if this was not asked before."""
        for record in self._records:
            if asked.items() <= record.items():
                return {int(depth): rate for depth, rate in record["rates"].items()}
        return {}

    def add(self, asked: dict[str, Any], rates: dict[int, float]) -> None:
        """Save one more record. A kill leaves the old file or the new one."""
        rates_by_name = {str(depth): rate for depth, rate in rates.items()}
        mean = statistics.fmean(rates.values())
        self._records.append({**asked, "rates": rates_by_name, "mean": mean})
        self._file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._file.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self._records, indent=1) + "\n")
        unfinished.replace(self._file)


def main(args: list[str] | None = None) -> None:
    """Parse the command line, run what is missing, print the tables and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument(
        "--lengths", nargs="+", type=int, metavar="TOKENS", help="[the trained seq_len]"
    )
    parser.add_argument("--trials", type=int, default=50, help=TRIALS_HELP)
    parser.add_argument("--seed", type=int, default=0, help="of the filler [0]")
    parser.add_argument(
        "--batch-tokens", type=int, default=2**17, help="given to the model at once [131072]"
    )
    parser.add_argument("--job", type=Path, metavar="FILE", help=JOB_HELP)
    parser.add_argument("--out", type=Path, default=Path("outputs/niah"), help="[outputs/niah]")
    options = parser.parse_args(args)
    checkpoints = [path.absolute() for path in options.checkpoints]
    try:
        jobs = [job_of(checkpoint, options.job) for checkpoint in checkpoints]
        haystacks = [
            [
                Haystack(build_tokenizer(job), length, trials=options.trials, seed=options.seed)
                for length in options.lengths or [job.training.seq_len]
            ]
            for job in jobs
        ]
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))

    results = Results(options.out / "niah.json")
    panels = []
    for checkpoint, job, stacks in zip(checkpoints, jobs, haystacks, strict=True):
        rates = evaluate(checkpoint, job, stacks, results, options.batch_tokens)
        mean = statistics.fmean(r for column in rates.values() for r in column.values())
        title = f"{name(checkpoint)}, mean {mean:.3f}"
        panels.append((title, rates))
        print(table(title, rates))
    png = options.out / file_name("niah", map(name, checkpoints), ".png")
    draw(panels, png)
    print(png)


def evaluate(
    checkpoint: Path,
    job_config: JobConfig,
    haystacks: list[Haystack],
    results: Results,
    batch_tokens: int,
) -> Rates:
    """The rates of one checkpoint; those that ``results`` lacks are measured and added to it."""
    rates = {h.length: results.find(question(checkpoint, h)) for h in haystacks}
    missing = [h for h in haystacks if not rates[h.length]]
    if not missing:
        return rates
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    longest = max(haystack.length for haystack in missing)
    model = load_trained(checkpoint, job_config, seq_len=longest, device=device)
    dtype = TORCH_DTYPE_MAP[job_config.training.mixed_precision_param]
    last_logits = last_logits_of(model, dtype)
    for haystack in missing:
        title = f"{name(checkpoint)}, {haystack.length:,} tokens"
        progress = partial(tqdm, desc=title, unit="trial")
        found = retrieval_rates(last_logits, haystack, batch_tokens=batch_tokens, progress=progress)
        results.add(question(checkpoint, haystack), found)
        rates[haystack.length] = found
    return rates


def question(checkpoint: Path, haystack: Haystack) -> dict[str, Any]:
    """All that the rates depend on. A retrained checkpoint is another one."""
    return {
        "checkpoint": str(checkpoint),
        "saved": (checkpoint / ".metadata").stat().st_mtime,
        "length": haystack.length,
        "trials": haystack.trials,
        "seed": haystack.seed,
        "needle": "{digit}".join(NEEDLE),
        "cue": CUE,
    }


def name(checkpoint: Path) -> str:
    """The run and the step."""
    return f"{checkpoint.parents[1].name}, {checkpoint.name}"


def table(title: str, rates: Rates) -> str:
    """A line for each depth, a column for each length."""
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
    figure.colorbar(image, ax=row, label="retrieval rate (chance: 0.1)")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
