"""A job may name a scorer that a module of the user's own registers."""

import sys

import pytest

from tests.support.jobs import parse
from torchtitan_lighthouse import SCORERS
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.checks import check_job

MODULE = """
from torchtitan_lighthouse import SCORERS, Scorer

def first_channel(q, k, v):
    return q[..., 0].float(), k[..., 0].float()

SCORERS["first"] = Scorer(first_channel, local=True)
SCORERS["summed"] = Scorer(lambda q, k, v: tuple(s.cumsum(-1) for s in first_channel(q, k, v)))
"""
CP2 = {"parallelism__context_parallel_degree": 2, "lighthouse__tile": 4}


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_scorers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    known = dict(SCORERS)
    yield {"experimental__custom_import": "my_scorers"}
    sys.modules.pop("my_scorers")
    SCORERS.clear()
    SCORERS.update(known)


@pytest.mark.parametrize(
    ("scorer", "layout"), [("first", {}), ("summed", {}), ("first", CP2)], ids=str
)
def test_a_job_takes_a_scorer_of_a_custom_import(tmp_path, own, scorer, layout):
    check_job(parse(tmp_path, lighthouse__scorer=scorer, **own, **layout))


def test_ranks_that_share_a_sequence_take_a_local_one_alone(tmp_path, own):
    with pytest.raises(RefusalError, match=r"scorer=summed reads .* use norm or first$"):
        check_job(parse(tmp_path, lighthouse__scorer="summed", **own, **CP2))
