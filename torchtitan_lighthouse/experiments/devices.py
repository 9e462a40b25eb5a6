"""The GPUs that an experiment may use, or as many runs at once on a machine that has none."""

import os

import torch

from torchtitan_lighthouse.refusal import RefusalError

CPU = "cpu"

_SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
SHUTDOWN_SECONDS = int(os.environ.get(_SHUTDOWN, "80"))
"""After which torchrun kills ranks that it has asked to end: time for a step that compiles, and a
checkpoint. Its own 30 are too few for both."""


def find_devices(asked: str | None = None) -> list[str]:
    """Name each GPU as ``CUDA_VISIBLE_DEVICES`` does; without one, ``CPU`` for each run at once.

    Args:
        asked: how many of them, or which: "2", "0,3", "3,"; by default all, and one run at a time
            on CPUs.

    Raises:
        RefusalError: there are not so many.
    """
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    found = visible.split(",")[:count]
    if asked is None:
        return found or [CPU]
    if "," in asked:
        chosen = [name.strip() for name in asked.split(",") if name.strip()]
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(found):
            raise RefusalError(f"--gpus {asked} must name some of this machine's: {_listed(found)}")
        return chosen
    if not asked.isdecimal() or int(asked) < 1 or (found and int(asked) > len(found)):
        raise RefusalError(
            f"--gpus {asked} must be how many of this machine's, or which: {_listed(found)}"
        )
    return found[: int(asked)] or [CPU] * int(asked)


def environment(devices: list[str], at_once: int) -> dict[str, str]:
    """Make the environment of a process that uses these devices alone, one of ``at_once``."""
    inherited = {**os.environ, _SHUTDOWN: str(SHUTDOWN_SECONDS)}
    if CPU not in devices:
        return {**inherited, "CUDA_VISIBLE_DEVICES": ",".join(devices)}
    threads = max(1, (os.cpu_count() or 1) // at_once)
    return {"OMP_NUM_THREADS": str(threads), **inherited, "CUDA_VISIBLE_DEVICES": ""}


def _listed(found: list[str]) -> str:
    return ",".join(found) or "there is no GPU, so a number of runs at once"
