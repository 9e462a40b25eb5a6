"""The ranks of a launch, as torchrun tells each of them: before there is a process group."""

import os


def this_rank() -> int:
    """Return this process's rank, 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def number_of_ranks() -> int:
    """Return the ranks on all nodes, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))
