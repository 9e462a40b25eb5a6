"""The metrics of runs that were logged to a wandb server."""

from typing import Any

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.metrics import in_step_order
from torchtitan_lighthouse.runs.wandb_server import wandb_has_key, wandb_server


def read_wandb(path: str) -> list[dict[str, Any]]:
    """Read the run ``entity/project/id``, as ``read_metrics`` reads a folder.

    Raises:
        RefusalError: there is no wandb here, no key of its server, or no such run there.
    """
    try:
        import wandb
    except ModuleNotFoundError:
        raise RefusalError(f"{path} is read by wandb: pip install wandb") from None
    if not wandb_has_key():
        raise RefusalError(
            f"{path} is not a folder, and there is no key to read it from {wandb_server()}: run "
            "`wandb login`, or set WANDB_API_KEY"
        )
    try:
        rows = list(wandb.Api().run(path).scan_history())
    except (ValueError, wandb.errors.Error) as error:
        raise RefusalError(f"{path} is not a folder, and {wandb_server()} says: {error}") from error
    except OSError as error:
        raise RefusalError(
            f"{path} is not a folder, and reading it from {wandb_server()} failed: {error}"
        ) from error
    records: list[dict[str, Any]] = []
    for row in rows:
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
    return in_step_order(records)
