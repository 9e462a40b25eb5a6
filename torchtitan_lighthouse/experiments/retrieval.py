"""Passkey retrieval after a training, by the tool of that name, in a process of its own."""

import json
import sys
from pathlib import Path

from torchtitan_lighthouse.experiments.run import Run

FOLDER = "niah"


def retrieval_command(run: Run) -> list[str]:
    """Return the command line that measures a finished run's retrieval."""
    assert run.passkeys is not None
    return [
        *(sys.executable, "-m", "torchtitan_lighthouse", "niah"),
        str(run.checkpoints / f"step-{run.steps}"),
        *("--lengths", *map(str, run.passkeys.lengths)),
        *("--trials", str(run.passkeys.trials), "--out", str(run.folder / FOLDER)),
    ]


def is_measured(run: Run) -> bool:
    """Whether no retrieval is left to measure for this run."""
    return run.passkeys is None or not set(run.passkeys.lengths) - set(retrieval_means(run))


def retrieval_means(run: Run) -> dict[int, float]:
    """Read the share of passkeys that were found, over all depths, for each measured length."""
    file = Path(run.folder, FOLDER, "niah.json")
    if run.passkeys is None or not file.exists():
        return {}
    records = json.loads(file.read_text())
    return {r["length"]: r["mean"] for r in records if r["trials"] == run.passkeys.trials}
