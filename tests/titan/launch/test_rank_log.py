"""Each line of the log once, however many ranks there are."""

import logging
import warnings

import pytest

from torchtitan_lighthouse.titan.launch.rank_log import (
    init_rank_logger,
    show_rank,
    show_warnings_of_all_ranks,
)


@pytest.fixture
def log(monkeypatch, capsys):
    """What a rank prints of one line of each kind, before and after its first step."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def of_rank(rank: int, *, asked: str = "", metrics_rank: int = 0) -> list[str]:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOG_RANK", asked)
        init_rank_logger()
        show_rank(metrics_rank)
        root.info("building")
        root.warning("of the job")
        with warnings.catch_warnings(action="always"):
            warnings.warn("of torch", stacklevel=1)
        show_warnings_of_all_ranks()
        root.info("step: 1")
        logging.getLogger("library").info("of a library")
        root.warning("of this rank")
        root.error("failed")
        lines = capsys.readouterr().out.splitlines()
        return [line.split(" - ")[-1] for line in lines if line.startswith("[titan]")]

    yield of_rank
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_the_first_rank_prints_everything(log):
    assert len(log(0)) == 7


def test_another_rank_prints_what_goes_wrong_there(log):
    assert log(1) == ["rank 1: of this rank", "rank 1: failed"]


def test_ranks_are_shown_on_request(log):
    assert len(log(1, asked="0,1")) == 7
    assert len(log(0, asked="1")) == 2


def test_the_rank_with_the_loss_is_shown_where_that_is_another(log):
    """As with pipeline parallel."""
    assert len(log(1, metrics_rank=1)) == 7
    assert len(log(0, metrics_rank=1)) == 2
