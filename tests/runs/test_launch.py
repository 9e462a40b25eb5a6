"""Launching the trainer from scripts, with a stand-in for the process."""

import subprocess
import sys
import textwrap

import pytest

from tests.runs.runs import write_run
from torchtitan_lighthouse.runs import launch


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """A function that puts lines of Python in torchrun's place; they have ``args`` and ``log``."""

    def install(body):
        script = tmp_path / "trainer"
        script.write_text(
            f"#!{sys.executable}\n"
            + textwrap.dedent(
                """
                import json, sys, time
                from pathlib import Path
                args = sys.argv[1:]
                folder = Path(args[args.index("--job.dump_folder") + 1])
                def log(step):
                    with (folder / "metrics.jsonl").open("a") as file:
                        record = {"step": step, "stage": "dense", "time": 1, "started": 0}
                        file.write(json.dumps(record) + "\\n")
                """
            )
            + body
        )
        script.chmod(0o755)
        monkeypatch.setattr(launch.sys, "executable", str(script))

    return install


def test_the_metrics_of_a_run_and_its_command(trainer, tmp_path):
    trainer("log(1); log(2); print(args)")
    options = ["--debug.seed", "3"]
    records = launch.train("job.toml", tmp_path / "run", steps=2, options=options, processes=4)
    assert [r["step"] for r in records] == [1, 2]
    command = (tmp_path / "run" / "output.txt").read_text()
    for expected in ("--nproc-per-node', '4'", "job.toml", "--training.steps', '2'", "seed', '3'"):
        assert expected in command


def test_a_finished_run_is_not_run_again(trainer, tmp_path):
    trainer("raise SystemExit(1)")
    write_run(tmp_path / "run", range(1, 9), 0)
    assert len(launch.train("job.toml", tmp_path / "run", steps=8)) == 8


def test_an_unfinished_run_goes_on(trainer, tmp_path):
    trainer("log(9)")
    write_run(tmp_path / "run", range(1, 9), 0)
    assert launch.train("job.toml", tmp_path / "run", steps=9)[-1]["step"] == 9


def test_a_failure_shows_the_end_of_the_output(trainer, tmp_path, capsys):
    trainer("raise SystemExit('no such flavor')")
    with pytest.raises(subprocess.CalledProcessError):
        launch.train("job.toml", tmp_path / "run", steps=9)
    assert "no such flavor" in capsys.readouterr().out


def test_a_trainer_that_hangs_is_ended(trainer, tmp_path):
    trainer("(folder / 'pid').write_text(''); time.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        launch.train("job.toml", tmp_path / "run", steps=9, timeout=0.5)
    assert (tmp_path / "run" / "pid").exists()
