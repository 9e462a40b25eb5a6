"""What a run's folder says of it."""

import json

import pytest

from tests.support.runs import write_metrics, write_run
from torchtitan_lighthouse.experiments import folder
from torchtitan_lighthouse.experiments.folder import check_trained, latest_records
from torchtitan_lighthouse.experiments.process import training_progress
from torchtitan_lighthouse.experiments.run import Run
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.metrics import LOSS, METRICS_FILE
from torchtitan_lighthouse.titan.config import JOB_FILE


def run_of(config, path, steps=8, options=("--debug.seed", "3"), gpus=1):
    return Run("run", "run", 3, config, path, steps, tuple(options), gpus)


@pytest.fixture
def trained(config, tmp_path):
    """A folder with a step, and the job that the trainer was asked for."""
    write_run(tmp_path / "run", range(1, 2), 0)
    job = run_of(config, tmp_path / "elsewhere").job
    (tmp_path / "run" / JOB_FILE).write_text(json.dumps(job.to_dict()))
    return tmp_path / "run"


def test_a_run_with_other_options_is_refused_and_the_options_named(trained, config):
    config.write_text(config.read_text().replace("seq_len = 256", "seq_len = 512"))
    options = ["--debug.seed", "4", "--metrics.log_freq", "1"]
    with pytest.raises(RefusalError, match="choose another --out") as raised:
        check_trained(run_of(config, trained, 9, options))
    was, now = str(raised.value).partition(": ")[0].split(", and ")
    names = ["training.seq_len = 256", "training.steps = 8", "debug.seed = 3"]
    assert sorted(was.split(" with ")[1].split(", ")) == sorted(names)
    for expected in ("training.seq_len = 512", "training.steps = 9", "debug.seed = 4"):
        assert expected in now


def test_where_and_on_how_many_processes_a_run_was_trained_is_no_difference(trained, config):
    options = ["--debug.seed=3", "--metrics.log_freq", "5", "--job.description", "the same"]
    config.rename(moved := config.with_name("moved.toml"))
    check_trained(run_of(moved, trained, options=options, gpus=2))


def test_a_folder_in_which_no_step_was_made_takes_any_job(trained, config):
    (trained / METRICS_FILE).write_text("")
    check_trained(run_of(config, trained, 9))


def test_progress_is_the_last_step_and_the_last_training_loss(tmp_path):
    assert training_progress(tmp_path, 9) == "starting"
    write_metrics(tmp_path, (7, {"stage": "dense", LOSS: 2.5}), (8, {"stage": "dense"}))
    assert training_progress(tmp_path, 9) == "step 8 of 9, dense, loss 2.500"


def test_lines_that_kills_have_cut_are_stepped_over(tmp_path):
    write_run(tmp_path, range(1, 9), 0)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 9, "sta\n{"step": 9')
    assert training_progress(tmp_path, 9) == "step 8 of 9, dense, loss 0.125"


def test_only_the_end_of_long_metrics_is_read(tmp_path, monkeypatch):
    write_run(tmp_path, range(1, 9), 0)
    monkeypatch.setattr(folder, "_TAIL_BYTES", 500)
    steps = [record["step"] for record in latest_records(tmp_path)]
    assert steps == list(range(8, 8 - len(steps), -1))
    assert 0 < len(steps) < 8


def test_what_is_no_checkpoint_is_left_alone(tmp_path):
    (tmp_path / "step-24").mkdir()
    (tmp_path / "notes").touch()
    folder.remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
