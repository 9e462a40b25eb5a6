"""How the entry ends."""

import json
import logging
import os
import sys

import pytest

from torchtitan_lighthouse import train
from torchtitan_lighthouse.titan.launch import error_file


@pytest.fixture(autouse=True)
def entry(monkeypatch):
    """A command line that is refused; the log is put back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(sys, "argv", ["train", "--job.config_file", "nowhere.toml"])
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    # pytest has a handler of faults, too.
    monkeypatch.setattr(train.RefusalHandler, "initialize", lambda self: None)
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


REASON = (
    "job.config_file = 'nowhere.toml' cannot be read: No such file or directory"
    f" (looked in {os.getcwd()})"
)


def test_a_refusal_is_one_line_and_a_status_of_its_own(capsys):
    with pytest.raises(SystemExit) as end:
        train.main()
    assert end.value.code == 2
    output = capsys.readouterr()
    assert output.err == f"torchtitan_lighthouse.train: {REASON}\n"
    assert "Traceback" not in output.out


def test_torchrun_shows_the_refusal_and_no_traceback(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit) as end:
        train.main()
    assert end.value.code == 2
    assert not capsys.readouterr().err
    told = json.loads((tmp_path / "error.json").read_text())["message"]
    # What torchrun shows of it, where there is such a thing.
    assert told["extraInfo"]["py_callstack"] == REASON


def test_another_rank_of_the_host_waits_to_be_ended_and_tells_nothing(monkeypatch, tmp_path):
    told = tmp_path / "error.json"
    told.write_text("a traceback")
    seen = []
    monkeypatch.setattr(error_file.time, "sleep", lambda _: seen.append(told.exists()))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(told))
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit):
        train.main()
    assert seen == [False]
    assert REASON in told.read_text()  # the first rank may not have been refused


def test_other_errors_keep_their_traceback(monkeypatch, tmp_path):
    def fail(_):
        raise RuntimeError("of the program")

    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr(train.torchtitan.train, "main", fail)
    with pytest.raises(RuntimeError, match="of the program"):
        train.main()
    assert "Traceback" in (tmp_path / "error.json").read_text()
