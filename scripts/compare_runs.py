"""Compare runs, stage by stage: loss, tokens/s and time, and the loss either side of a switch.

    python scripts/compare_runs.py outputs/lighthouse outputs/dense --to-loss 0.75

A RUN is a dump folder with a metrics.jsonl. Losses are means over the last tenth of a stage. With
--to-loss also the hours and tokens that each run took until its running mean first reached it.
"""

import argparse
import statistics
from itertools import groupby
from pathlib import Path
from typing import Any

from torchtitan_lighthouse.metrics_log import read_metrics, training_seconds

LOSS = "loss_metrics/global_avg_loss"
TOKENS = "n_tokens_seen"
RUNNING_MEAN = 20  # logged steps


def main(args: list[str] | None = None) -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a dump folder")
    parser.add_argument("--to-loss", type=float, metavar="LOSS")
    options = parser.parse_args(args)
    runs = {
        path.resolve().name: [r for r in read_metrics(path) if LOSS in r] for path in options.runs
    }
    print(stage_table(runs))
    print(total_table(runs, options.to_loss))


def stage_table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """One line per stage of each run."""
    rows = [("run", "stage", "steps", "first loss", "last loss", "tokens/s/GPU", "peak GiB")]
    for name, records in runs.items():
        for stage, group in groupby(records, key=lambda r: r["stage"]):
            part = list(group)
            rows.append(
                (
                    name,
                    stage,
                    f"{part[0]['step']}-{part[-1]['step']}",
                    f"{part[0][LOSS]:.4f}",
                    f"{final_loss(part):.4f}",
                    f"{statistics.median(r['throughput(tps)'] for r in part):,.0f}",
                    f"{max(r['memory/max_reserved(GiB)'] for r in part):.2f}",
                )
            )
    return aligned(rows)


def total_table(runs: dict[str, list[dict[str, Any]]], to_loss: float | None) -> str:
    """One line per run; speed-ups are in time over the last run, at as many tokens."""
    baseline = seconds_per_token(list(runs.values())[-1])
    rows = [("run", "final loss", "tokens", "minutes", "speed-up", "minutes to loss")]
    for name, records in runs.items():
        seconds = training_seconds(records)
        reached = first_below(records, to_loss) if to_loss is not None else None
        rows.append(
            (
                name,
                f"{final_loss(records):.4f}",
                f"{records[-1][TOKENS]:,.0f}",
                f"{seconds[-1] / 60:.1f}",
                f"{baseline / seconds_per_token(records):.2f}",
                "-" if reached is None else f"{seconds[reached] / 60:.1f}",
            )
        )
    return aligned(rows)


def final_loss(records: list[dict[str, Any]]) -> float:
    """Mean loss of the last tenth."""
    return statistics.fmean(r[LOSS] for r in records[-max(1, len(records) // 10) :])


def seconds_per_token(records: list[dict[str, Any]]) -> float:
    """Wall-clock seconds of training for each token, all stages and pauses for saving included."""
    return training_seconds(records)[-1] / float(records[-1][TOKENS])


def first_below(records: list[dict[str, Any]], loss: float) -> int | None:
    """The first record at which the running mean is at most ``loss``; None if it never is."""
    for i in range(RUNNING_MEAN, len(records) + 1):
        if statistics.fmean(r[LOSS] for r in records[i - RUNNING_MEAN : i]) <= loss:
            return i - 1
    return None


def aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines) + "\n"


if __name__ == "__main__":
    main()
