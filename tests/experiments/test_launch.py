"""Launching the trainer from scripts, with a stand-in for the process."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest

from tests.support.runs import write_metrics, write_run
from torchtitan_lighthouse.experiments import launch
from torchtitan_lighthouse.runs.metrics import LOSS, METRICS_FILE
from torchtitan_lighthouse.titan.config import JOB_FILE, LighthouseConfigManager


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text("[training]\nseq_len = 256\n")
    return path


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """A function that puts lines of Python in torchrun's place; they have ``args`` and ``log``."""
    python = sys.executable

    def install(body):
        script = tmp_path / "trainer"
        script.write_text(
            f"#!{python}\n"
            + textwrap.dedent(
                """
                import json, os, signal, sys, time
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


def test_the_metrics_of_a_run_and_its_command(trainer, config, tmp_path):
    trainer("log(1); log(2); print(args)")
    options = ["--debug.seed", "3"]
    records = launch.train(config, tmp_path / "run", steps=2, options=options, processes=4)
    assert [r["step"] for r in records] == [1, 2]
    command = (tmp_path / "run" / "output.txt").read_text()
    for expected in ("--nproc-per-node', '4'", "job.toml", "--training.steps', '2'", "seed', '3'"):
        assert expected in command


def test_a_finished_run_is_not_run_again(trainer, config, tmp_path):
    trainer("log(8)")
    launch.train(config, tmp_path / "run", steps=8)
    trainer("raise SystemExit(1)")
    assert len(launch.train(config, tmp_path / "run", steps=8)) == 1


def test_a_run_whose_steps_are_too_few_to_be_logged_is_finished(trainer, config, tmp_path):
    trainer("log(1)")  # as with metrics.log_freq = 10
    launch.train(config, tmp_path / "run", steps=8)
    trainer("raise SystemExit(1)")
    assert len(launch.train(config, tmp_path / "run", steps=8)) == 1


def test_a_run_that_failed_after_its_last_step_is_not_finished(trainer, config, tmp_path):
    trainer("log(8); raise SystemExit(1)")
    with pytest.raises(subprocess.CalledProcessError):
        launch.train(config, tmp_path / "run", steps=8)
    trainer("(folder / 'again').touch()")
    launch.train(config, tmp_path / "run", steps=8)
    assert (tmp_path / "run" / "again").exists()


@pytest.fixture
def trained(trainer, config, tmp_path):
    """A run with a step, whose folder has the job that the trainer was asked for."""
    trainer("log(1)")
    arguments = ["--job.config_file", str(config), "--job.dump_folder", "elsewhere"]
    options = ["--debug.seed", "3", "--training.steps", "8"]
    job = LighthouseConfigManager().parse_args([*arguments, *options])
    write_run(tmp_path / "run", range(1, 2), 0)
    (tmp_path / "run" / JOB_FILE).write_text(json.dumps(job.to_dict()))
    return tmp_path / "run"


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_a_run_with_other_options_is_refused_and_the_options_named(trained, config, finished):
    if finished:
        (trained / launch.FINISHED_FILE).touch()
    config.write_text("[training]\nseq_len = 512\n")
    options = ["--debug.seed", "4", "--metrics.log_freq", "1"]
    with pytest.raises(ValueError, match="choose another --out") as raised:
        launch.train(config, trained, steps=9, options=options)
    was, now = str(raised.value).partition(": ")[0].split(", and ")
    assert was.split(" with ")[1].split(", ") == [
        "training.seq_len = 256",
        "training.steps = 8",
        "debug.seed = 3",
    ]
    assert now.startswith("training.seq_len = 512, training.steps = 9, debug.seed = 4 is asked")


def test_where_and_on_how_many_processes_a_run_was_trained_is_no_difference(trained, config):
    launch.train(config, trained, steps=8, options=["--debug.seed", "3"], processes=2)
    options = ["--debug.seed=3", "--metrics.log_freq", "5", "--job.description", "the same"]
    config.rename(moved := config.with_name("moved.toml"))
    launch.train(moved, trained, steps=8, options=options)


def test_a_folder_in_which_no_step_was_made_takes_any_job(trained, config):
    (trained / METRICS_FILE).write_text("")
    launch.train(config, trained, steps=9)


def test_an_unfinished_run_goes_on(trainer, config, tmp_path):
    trainer("log(9)")
    write_run(tmp_path / "run", range(1, 9), 0)
    assert launch.train(config, tmp_path / "run", steps=9)[-1]["step"] == 9


def test_a_failure_shows_the_end_of_the_output(trainer, config, tmp_path, capsys):
    trainer("raise SystemExit('no such flavor')")
    with pytest.raises(subprocess.CalledProcessError):
        launch.train(config, tmp_path / "run", steps=9)
    assert "no such flavor" in capsys.readouterr().out


@pytest.fixture
def sigterms():
    """Those that reach this process, which end it outside of tests."""
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    yield received
    signal.signal(signal.SIGTERM, before)


def test_sigterm_ends_the_trainer_too(trainer, config, tmp_path, sigterms):
    trainer(
        "(folder / 'pid').write_text(str(os.getpid())); os.kill(os.getppid(), 15); log(1)\n"
        "time.sleep(60)"
    )
    with pytest.raises(SystemExit) as raised:
        launch.train(config, tmp_path / "run", steps=9, timeout=20)
    assert raised.value.code == 128 + signal.SIGTERM
    assert not sigterms
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "run" / "pid").read_text()), 0)
    os.kill(os.getpid(), signal.SIGTERM)
    assert sigterms


def test_a_trainer_that_ignores_its_end_is_killed(trainer, config, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "_GRACE_SECONDS", 0.2)
    trainer(
        "signal.signal(15, signal.SIG_IGN); (folder / 'pid').write_text(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    with pytest.raises(subprocess.TimeoutExpired):
        launch.train(config, tmp_path / "run", steps=9, timeout=3)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "run" / "pid").read_text()), 0)


def shown(folder):
    """The step and the text that the bar shows."""
    texts = []
    bar = SimpleNamespace(n=0, set_postfix_str=texts.append)
    launch._update(bar, folder)
    return bar.n, texts


def test_the_bar_shows_the_last_step_and_the_last_training_loss(tmp_path):
    assert shown(tmp_path) == (0, [])
    write_metrics(tmp_path, (7, {"stage": "dense", LOSS: 2.5}), (8, {"stage": "dense"}))
    assert shown(tmp_path) == (8, ["dense, loss 2.500"])


def test_lines_that_kills_have_cut_are_stepped_over(trainer, config, tmp_path):
    write_run(tmp_path, range(1, 9), 0)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 9, "sta\n{"step": 9')
    assert shown(tmp_path) == (8, ["dense, loss 0.125"])
    trainer("log(9)")
    write_metrics(tmp_path, (9, {"stage": "dense"}))  # on the cut line
    assert launch.train(config, tmp_path, steps=9)[-1]["step"] == 9


def test_only_the_end_of_long_metrics_is_read(tmp_path, monkeypatch):
    write_run(tmp_path, range(1, 9), 0)
    monkeypatch.setattr(launch, "_TAIL_BYTES", 500)
    steps = [record["step"] for record in launch._latest_records(tmp_path)]
    assert steps == list(range(8, 8 - len(steps), -1))
    assert 0 < len(steps) < 8


def test_a_trainer_that_hangs_is_ended(trainer, config, tmp_path):
    trainer("(folder / 'pid').write_text(''); time.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        launch.train(config, tmp_path / "run", steps=9, timeout=0.5)
    assert (tmp_path / "run" / "pid").exists()
