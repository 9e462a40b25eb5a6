"""Experiments that really train: two at once on CPUs, interrupted and continued."""

import os
import signal
import threading
import time

import pytest

from tests.support.jobs import TOML, parse
from torchtitan_lighthouse.experiments.experiment import read_experiment
from torchtitan_lighthouse.experiments.folder import FINISHED_FILE, is_finished, latest_records
from torchtitan_lighthouse.experiments.plan import plan
from torchtitan_lighthouse.experiments.report import write_report
from torchtitan_lighthouse.experiments.schedule import train_all
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.metrics import read_metrics

pytestmark = pytest.mark.trainer

EXPERIMENT = """
config = "job.toml"
options = [
    "--training.dataset_path", "{text}", "--training.steps", "60",
    "--lr_scheduler.total_steps", "60", "--checkpoint.enable",
    "--checkpoint.no-last_save_model_only",
]

[[variants]]
name = "dense"
options = ["--lighthouse.no-enable"]

[[variants]]
name = "lighthouse"
options = ["--lighthouse.steps", "40"]
"""
CPUS = ["cpu", "cpu"]


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A function that plans the experiment, with some text in its file replaced."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    parse(tmp_path, TOML)  # writes the files

    def planned(old="", new=""):
        toml = EXPERIMENT.format(text=tmp_path / "corpus.txt")
        (file := tmp_path / "experiment.toml").write_text(toml.replace(old, new))
        return plan(read_experiment(file), tmp_path / "out")

    return planned


def stop_when_all_train(runs):
    """Send this process SIGTERM when each run has logged a step."""

    def watch():
        while not all(any(latest_records(run.folder)) for run in runs):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def test_two_at_once_go_on_where_they_were_interrupted(planned, tmp_path):
    experiment = planned()
    stop_when_all_train(experiment.runs)
    outcome = train_all(experiment.runs, CPUS)
    assert (outcome.signal, list(outcome.unfinished)) == (
        signal.SIGTERM,
        ["dense-seed0", "lighthouse-seed0"],
    )
    assert not train_all(experiment.runs, CPUS).unfinished
    stages = {}
    for run in experiment.runs:
        records = read_metrics(run.folder)
        assert [record["step"] for record in records] == list(range(1, 61))
        assert len({record["started"] for record in records}) == 2
        stages[run.variant] = [record["stage"] for record in records]
    assert stages["dense"] == ["dense"] * 60
    assert stages["lighthouse"] == ["lighthouse"] * 40 + ["dense"] * 20
    table = write_report(experiment, tmp_path / "out", {})
    assert "lighthouse-seed0" in table

    # As if it had been killed between the trainer's end and the note of it.
    (run, *_) = experiment.runs
    (run.folder / FINISHED_FILE).unlink()
    assert not train_all([run], CPUS).unfinished
    assert is_finished(run)
    assert len(read_metrics(run.folder)) == 60
    with pytest.raises(RefusalError, match=r"trained with lighthouse\.topk = 16, and"):
        train_all(
            planned('"--lighthouse.steps"', '"--lighthouse.topk", "8", "--lighthouse.steps"').runs,
            CPUS,
        )
