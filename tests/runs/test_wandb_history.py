"""Runs on a wandb server that cannot be read."""

import sys
from types import SimpleNamespace

import pytest

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.wandb_history import read_wandb
from torchtitan_lighthouse.tools import compare


class UsageError(Exception):
    """As wandb.errors has it."""


@pytest.fixture(autouse=True)
def wandb(monkeypatch, tmp_path):
    """wandb's client, on a server that has no runs, without a key for it."""

    def find(path: str):
        raise ValueError(f"Could not find run {path}")

    client = SimpleNamespace(run=find)
    module = SimpleNamespace(Api=lambda: client, errors=SimpleNamespace(Error=UsageError))
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return client


def test_without_a_key_a_run_is_refused_in_one_line():
    with pytest.raises(RefusalError) as refused:
        compare.main(["team/project/abc"])
    assert "team/project/abc is not a folder" in str(refused.value)
    assert "`wandb login`, or set WANDB_API_KEY" in str(refused.value)


def test_a_run_that_the_server_does_not_know_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with pytest.raises(RefusalError, match=r"api\.wandb\.ai says: Could not find run team"):
        read_wandb("team/project/abc")


@pytest.mark.parametrize("breaks", ["at once", "half way"])
def test_a_server_that_does_not_answer_is_named(monkeypatch, wandb, breaks):
    def rows():
        yield {"_step": 1, "_timestamp": 1e9, "_runtime": 0, "lighthouse/stage": 1}
        raise ConnectionError("Name or service not known")  # as requests' errors, an OSError

    def fail(_: str):
        raise ConnectionError("Name or service not known")

    found = fail if breaks == "at once" else lambda _: SimpleNamespace(scan_history=rows)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb, "run", found)
    with pytest.raises(RefusalError, match=r"from https://api\.wandb\.ai failed: Name or service"):
        read_wandb("team/project/abc")


def test_without_wandb_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RefusalError, match="pip install wandb"):
        read_wandb("team/project/abc")


def test_steps_that_were_logged_again_after_a_kill_count_once(monkeypatch, wandb):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    rows = [
        {"_step": step, "_timestamp": 1e9 + i, "_runtime": i, "lighthouse/stage": 1, "loss": i}
        for i, step in enumerate([1, 2, 3, 4, 3, 4, 5])
    ]
    monkeypatch.setattr(wandb, "run", lambda _: SimpleNamespace(scan_history=lambda: rows))
    records = read_wandb("team/project/abc")
    assert [(r["step"], r["loss"]) for r in records] == [(1, 0), (2, 1), (3, 4), (4, 5), (5, 6)]
