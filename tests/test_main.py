"""The entry of the tools: what they are, and one line for what a user can mend."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from torchtitan_lighthouse import __main__ as entry
from torchtitan_lighthouse.refusal import RefusalError


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["python -m torchtitan_lighthouse", *args])
    entry.main()


@pytest.mark.parametrize("args", [(), ("--help",)], ids=["bare", "help"])
def test_the_tools_are_listed_with_a_line_each(monkeypatch, capsys, args):
    run(monkeypatch, *args)
    lines = {
        line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[3:-2]
    }
    assert tuple(lines) == entry.TOOLS
    assert all(lines.values())


@pytest.mark.parametrize("unbuffered", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_output_that_is_not_read_to_its_end_is_no_error(unbuffered):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, *unbuffered, "-m", "torchtitan_lighthouse", "configs"]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RefusalError("--gpus 0 must be at least 1"), "--gpus 0 must be at least 1"),
        (FileNotFoundError(2, "No such file or directory", "x.toml"), "No such file or directory"),
        (FileExistsError(17, "File exists", "out"), "out: File exists"),
        (FileExistsError("hf is not empty"), "hf is not empty"),
        (NotADirectoryError(20, "Not a directory", "run.txt/x"), "run.txt/x: Not a directory"),
        (IsADirectoryError(21, "Is a directory", "out"), "out: Is a directory"),
        (PermissionError(13, "Permission denied", "locked/x"), "locked/x: Permission denied"),
        (OSError(28, "No space left on device"), "the disk is full"),
        (Exception("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (ModuleNotFoundError("no", name="matplotlib.pyplot"), "torchtitan-lighthouse[plot]"),
        (ModuleNotFoundError("no", name="transformers"), "torchtitan-lighthouse[hf]"),
    ],
    ids=[
        "refusal",
        "file",
        "there",
        "full",
        "no-folder",
        "folder",
        "forbidden",
        "no-space",
        "safetensors",
        "plot",
        "hf",
    ],
)
def test_what_a_user_can_mend_is_one_line(monkeypatch, capsys, error, line):
    def fail(args):
        raise error

    monkeypatch.setattr(entry.importlib, "import_module", lambda name: SimpleNamespace(main=fail))
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "plot")
    assert end.value.code == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith("torchtitan_lighthouse plot: ")
    assert line in printed


@pytest.mark.parametrize("error", [ValueError("torn"), ModuleNotFoundError("no", name="torsh")])
def test_what_is_no_one_s_to_mend_keeps_its_traceback(monkeypatch, error):
    def fail(args):
        raise error

    monkeypatch.setattr(entry.importlib, "import_module", lambda name: SimpleNamespace(main=fail))
    with pytest.raises(type(error)):
        run(monkeypatch, "plot")


def test_a_tool_that_is_not_there_is_refused_with_those_that_are(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "plott")
    assert end.value.code == 2
    assert "'plott': use one of configs, plot" in capsys.readouterr().err
