"""The metrics of runs that were logged to a wandb server."""

from typing import Any


def read_wandb(path: str) -> list[dict[str, Any]]:
    """The logged steps of the run ``entity/project/id``, as ``read_metrics`` gives a folder's.

    A launch that resumes another is a run of its own, and begins where that one ended.

    Raises:
        ValueError: wandb knows no such run.
    """
    import wandb

    records: list[dict[str, Any]] = []
    for row in wandb.Api().run(path).scan_history():
        metrics = {name: value for name, value in row.items() if value is not None}
        if "lighthouse/stage" not in metrics:
            continue
        started = records[0]["started"] if records else metrics["_timestamp"] - metrics["_runtime"]
        records.append(
            {
                "step": metrics["_step"],
                "time": started + metrics["_runtime"],
                "started": started,
                "stage": "lighthouse" if metrics["lighthouse/stage"] else "dense",
                **metrics,
            }
        )
    return records
