"""What an experiment leaves: table.md, curves.png, and metrics_thin.jsonl to draw them again."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from torchtitan_lighthouse.experiments.figures import (
    COLUMNS,
    Column,
    Figures,
    figures,
    retrieval_columns,
    shown,
)
from torchtitan_lighthouse.experiments.folder import is_finished
from torchtitan_lighthouse.experiments.plan import Plan
from torchtitan_lighthouse.experiments.run import Run
from torchtitan_lighthouse.runs.markdown import markdown
from torchtitan_lighthouse.runs.metrics import read_metrics
from torchtitan_lighthouse.runs.plot import plot
from torchtitan_lighthouse.runs.summary import Records, held_out_over
from torchtitan_lighthouse.runs.thin import thin

THIN_FILE = "metrics_thin.jsonl"

_EXPLAINED = """
Of several seeds: the mean (the least to the greatest). Losses are in nats per token. Held-out ones
are of text that is not trained on, under dense attention: at the end, and at the last validation in
the Lighthouse stage, there under Lighthouse attention too; "over" is how far it is above that of
the first variant with the same seed, when both had last seen as many tokens. The final loss is the
mean training loss of the last tenth of the steps. Tokens/s are per GPU, the median of a stage
without a launch's first logged step, which compiles. Minutes count all that a run does, a first
stage that others share too. S is the length of the sub-sequence. Passkeys are the share that was
found, at a context of so many tokens.
"""


def write_report(plan: Plan, out: Path, unfinished: Mapping[str, str]) -> str:
    """Write the files for all finished runs of the plan, and return the table.

    Args:
        unfinished: why runs are not there yet, by name.
    """
    there = [run for run in plan.runs if is_finished(run)]
    records = {run.name: read_metrics(run.folder) for run in there}
    whole = [run for run in there if not run.is_first_stage]
    text = _tables(plan, whole, records, unfinished)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text)
    with (out / THIN_FILE).open("w") as file:
        for run in there:
            for record in thin(records[run.name]):
                file.write(json.dumps({"run": run.name, **record}) + "\n")
    if whole:
        plot({run.name: records[run.name] for run in whole}, out / "curves.png")
    return text


def _tables(
    plan: Plan, whole: list[Run], records: Mapping[str, Records], unfinished: Mapping[str, str]
) -> str:
    found = {run.name: figures(run, records[run.name]) for run in whole}
    first = next(run.variant for run in plan.runs if not run.is_first_stage)
    over = Column(f"over {first}", "+.4f")
    _compare(whole, found, records, first, over)
    lengths = sorted({n for run in plan.runs if run.passkeys for n in run.passkeys.lengths})
    columns = [*COLUMNS, over, *retrieval_columns(lengths)]
    columns = [c for c in columns if any(f.get(c.name) is not None for f in found.values())]
    by_variant = {
        variant: list(runs)
        for variant, runs in groupby(sorted(whole, key=_place(plan)), key=lambda run: run.variant)
    }
    parts = []
    if whole:
        rows = [("variant", "seeds", *(c.name for c in columns))]
        for name, runs in by_variant.items():
            seeds = ", ".join(str(run.seed) for run in runs)
            rows.append((name, seeds, *_cells([found[run.name] for run in runs], columns)))
        parts += [markdown(rows)]
        rows = [("run", *(c.name for c in columns))]
        rows += [(name, *_cells([of_run], columns)) for name, of_run in found.items()]
        parts += [markdown(rows), _EXPLAINED.strip() + "\n"]
    missing = {**plan.refused, **unfinished}
    if missing:
        parts.append(markdown([("not there", "why"), *missing.items()]))
    return "\n".join(parts)


def _compare(
    runs: list[Run],
    found: Mapping[str, Figures],
    records: Mapping[str, Records],
    first: str,
    over: Column,
) -> None:
    """Add by how much a held-out loss is above that of the first variant's run of the same seed."""
    references = {run.seed: records[run.name] for run in runs if run.variant == first}
    for run in runs:
        if run.variant != first and run.seed in references:
            found[run.name][over.name] = held_out_over(records[run.name], references[run.seed])


def _cells(of: Sequence[Figures], columns: Sequence[Column]) -> list[str]:
    return [shown([figures.get(c.name) for figures in of], c.form) for c in columns]


def _place(plan: Plan):
    order = {name: i for i, name in enumerate(dict.fromkeys(run.variant for run in plan.runs))}
    return lambda run: order[run.variant]
