"""The log of a launch on several ranks: each line once."""

import logging
import os

from torchtitan.tools.logging import init_logger, logger

from torchtitan_lighthouse.titan.launch.ranks import this_rank

_ASKED = "LOG_RANK"
"""As in torchtitan: the numbers of the ranks to show, separated by commas."""


def init_rank_logger() -> None:
    """Set up torchtitan's logger to show one rank's lines, and what goes wrong on the others.

    Rank 0 is shown until ``show_rank`` names another, or those that ``LOG_RANK`` asks for.
    """
    init_logger()
    logging.captureWarnings(True)
    asked = os.environ.get(_ASKED) or "0"
    for handler in logger.handlers:
        handler.addFilter(RankFilter(this_rank(), asked.split(",")))


def show_rank(rank: int) -> None:
    """Show this rank from here on, where ``LOG_RANK`` asks for none."""
    if not os.environ.get(_ASKED) and (filters := _filters()):
        os.environ[_ASKED] = str(rank)  # torchtitan warns where it misses the loss's rank there
        for rank_filter in filters:
            rank_filter.shown = [str(rank)]


def show_warnings_of_all_ranks() -> None:
    """Show all ranks' warnings from here on; until here they are about the job, and the same."""
    for rank_filter in _filters():
        rank_filter.same_everywhere = False


class RankFilter(logging.Filter):
    """Passes all lines of a shown rank, and others' errors and warnings with their rank."""

    def __init__(self, rank: int, shown: list[str]) -> None:
        super().__init__()
        self.rank = str(rank)
        self.shown = shown
        self.same_everywhere = True

    def filter(self, record: logging.LogRecord) -> bool:
        if self.rank in self.shown:
            return True
        same = self.same_everywhere or record.name == "py.warnings"
        if record.levelno < (logging.ERROR if same else logging.WARNING):
            return False
        record.msg = f"rank {self.rank}: {record.msg}"
        return True


def _filters() -> list[RankFilter]:
    of_handlers = (f for handler in logger.handlers for f in handler.filters)
    return [f for f in of_handlers if isinstance(f, RankFilter)]
