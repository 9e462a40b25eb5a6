"""A resume under other settings than those that the checkpoint was saved under."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torchtitan.components.lr_scheduler import build_lr_schedulers
from torchtitan.components.optimizer import build_optimizers
from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims

from tests.support.jobs import parse
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.checks.resume import check_resume
from torchtitan_lighthouse.titan.checks.schedule import check_schedule
from torchtitan_lighthouse.titan.folder.job import write_job
from torchtitan_lighthouse.titan.folder.steps import (
    finished_step,
    saved_steps,
    set_later_steps_aside,
)

# The schedule of the jobs' TOML is of 24 steps, the last 12 of which decay.
DECAY = {"lr_scheduler__decay_ratio": 0.5, "checkpoint__enable": True}


def job(folder, **fields):
    return parse(folder, **{**DECAY, **fields})


def save(job_config, *steps: int) -> Path:
    """Checkpoints as these checks see them: whole, with their job."""
    for step in steps:
        folder = Path(job_config.job.dump_folder, "checkpoint", f"step-{step}")
        write_job(folder / "job.json", job_config)
        (folder / ".metadata").touch()
    return folder


def refusal(job_config) -> str:
    with pytest.raises(RefusalError) as raised:
        check_resume(job_config)
    return str(raised.value)


def test_the_same_settings_are_resumed_without_a_word(tmp_path, caplog):
    save(job(tmp_path), 6)
    with caplog.at_level(logging.INFO):
        check_resume(job(tmp_path, metrics__log_freq=5, checkpoint__interval=2))
    assert "other settings" not in caplog.text


def test_harmless_changes_are_named(tmp_path, caplog):
    save(job(tmp_path), 6)
    with caplog.at_level(logging.INFO):
        check_resume(
            job(
                tmp_path,
                training__seq_len=128,
                lighthouse__topk=24,
                lighthouse__dense_layers=[0],
                debug__seed=3,
            )
        )
    for change in (
        "training.seq_len 256 → 128",
        "lighthouse.topk 16 → 24",
        "lighthouse.dense_layers [0, -1] → [0]",
        "debug.seed 0 → 3",
    ):
        assert change in caplog.text


def test_the_job_is_that_of_the_checkpoint_and_not_of_a_later_launch(tmp_path, caplog):
    save(job(tmp_path), 6)
    write_job(tmp_path / "job.json", job(tmp_path, lighthouse__topk=24))
    with caplog.at_level(logging.INFO):
        check_resume(job(tmp_path))
    assert "other settings" not in caplog.text


@pytest.mark.parametrize("asked", [{"lighthouse__steps": 12}, {}], ids=["later-switch", "always"])
@pytest.mark.parametrize(
    "was", [{"lighthouse__steps": 4}, {"lighthouse__enable": False}], ids=["switched", "dense"]
)
def test_a_dense_run_does_not_go_back_to_lighthouse(tmp_path, was, asked):
    save(job(tmp_path, **was), 6)
    message = refusal(job(tmp_path, **asked))
    assert "step 6 was trained with dense SDPA" in message
    assert "lighthouse.steps" in message


def test_a_job_of_torchtitan_s_own_llama3_is_a_dense_one(tmp_path, caplog):
    folder = save(job(tmp_path), 6)
    stock = json.loads((folder / "job.json").read_text())
    del stock["lighthouse"], stock["tokenizer"], stock["rope"]
    (folder / "job.json").write_text(json.dumps({**stock, "model": {"name": "llama3"}}))
    assert "step 6 was trained with dense SDPA" in refusal(job(tmp_path))
    with caplog.at_level(logging.INFO):
        check_resume(job(tmp_path, lighthouse__enable=False))
    assert "model.name 'llama3' → 'llama3_lighthouse'" in caplog.text


def test_what_the_message_says_works(tmp_path):
    save(job(tmp_path, lighthouse__steps=4), 2, 6)
    check_resume(job(tmp_path, lighthouse__steps=12, checkpoint__load_step=2))
    check_resume(job(tmp_path, lighthouse__steps=4))
    initial = tmp_path / "checkpoint" / "step-6"
    check_resume(job(tmp_path / "other", checkpoint__initial_load_path=initial))


def test_a_second_stage_may_be_dense(tmp_path):
    stage1 = save(job(tmp_path / "stage1", training__steps=12), 12)
    loading = {
        "checkpoint__initial_load_path": stage1,
        "checkpoint__initial_load_model_only": False,
    }
    check_resume(job(tmp_path / "stage2", lighthouse__enable=False, **loading))
    with pytest.raises(RefusalError, match=r"would jump at step 13, from 1 to .*total_steps = 24"):
        # Without the schedule of both stages.
        check_resume(
            job(tmp_path / "stage2", **loading, training__steps=16, lr_scheduler__total_steps=16)
        )


def test_a_second_stage_has_something_to_train(tmp_path):
    stage1 = save(job(tmp_path / "stage1", training__steps=12), 12)
    loading = {
        "checkpoint__initial_load_path": stage1,
        "checkpoint__initial_load_model_only": False,
    }
    message = refusal(job(tmp_path / "stage2", training__steps=12, **loading))
    assert "training.steps = 12 leaves nothing to train after" in message


def test_a_finished_decay_is_not_lengthened(tmp_path):
    schedule = {"lr_scheduler__total_steps": 6, "lr_scheduler__warmup_steps": 2}
    save(job(tmp_path, training__steps=6, **schedule), 6)
    longer = {**schedule, "training__steps": 12, "lr_scheduler__total_steps": 12}
    message = refusal(job(tmp_path, **longer))
    assert "jump at step 7, from 0 to 1 of optimizer.lr" in message
    assert "lr_scheduler.total_steps" in message


def test_a_constant_learning_rate_may_go_on(tmp_path):
    schedule = {"lr_scheduler__decay_ratio": 0.0}
    save(job(tmp_path, **schedule), 24)
    check_resume(job(tmp_path, training__steps=48, lr_scheduler__total_steps=48, **schedule))


def test_a_schedule_that_was_shortened_names_what_it_was(tmp_path):
    save(job(tmp_path), 18)
    message = refusal(job(tmp_path, training__steps=20, lr_scheduler__total_steps=20))
    assert "set lr_scheduler.total_steps = 24" in message
    check_resume(job(tmp_path, training__steps=20))


def test_no_schedule_ends_before_the_training(tmp_path):
    with pytest.raises(RefusalError, match=r"total_steps = 12 must be at least .*steps = 24"):
        check_schedule(job(tmp_path, lr_scheduler__total_steps=12))
    check_schedule(job(tmp_path))


@pytest.mark.parametrize(
    ("fields", "state"),
    [({"optimizer__lr": 1e-4}, "lr_scheduler"), ({"optimizer__weight_decay": 0.3}, "optimizer")],
)
def test_settings_that_torchtitan_restores_are_not_asked_for_in_vain(tmp_path, fields, state):
    save(job(tmp_path), 6)
    message = refusal(job(tmp_path, **fields))
    assert "would be ignored" in message
    assert "as saved" in message
    check_resume(job(tmp_path, checkpoint__exclude_from_loading=state, **fields))


def test_steps_do_not_count_from_one_beside_those_that_are_there(tmp_path):
    saved = save(job(tmp_path), 6)
    anew = {"checkpoint__exclude_from_loading": "train_state,lr_scheduler"}
    assert f"steps would count from 1, and those of {saved.parent}" in refusal(
        job(tmp_path, **anew)
    )
    loading = {
        "checkpoint__initial_load_path": saved,
        "checkpoint__initial_load_model_only": False,
    }
    check_resume(job(tmp_path / "other", **loading, **anew))
    anew["checkpoint__exclude_from_loading"] = "train_state"
    assert "and the schedule goes on" in refusal(job(tmp_path / "other", **loading, **anew))


def test_torchtitan_restores_them(tmp_path):
    """If not, the refusals above can go."""

    def parts(**fields):
        dims = ParallelDims(1, 1, 1, 1, 1, 1, 1, world_size=1)
        config: JobConfig = job(tmp_path, **fields)
        optimizers = build_optimizers([torch.nn.Linear(2, 2)], config.optimizer, dims)
        return optimizers, build_lr_schedulers(optimizers, config.lr_scheduler, 24)

    saved = parts(optimizer__lr=0.5, optimizer__weight_decay=0.25)
    resumed = parts(optimizer__lr=0.125, optimizer__weight_decay=0.5)
    for old, new in zip(saved, resumed, strict=True):
        new.load_state_dict(old.state_dict())
    optimizers, schedulers = resumed
    schedulers.step()
    (group,) = next(iter(optimizers)).param_groups
    assert group["weight_decay"] == 0.25
    assert group["lr"] == 0.5 * 2 / 4  # the second of four steps of warm-up


def test_checkpoints_behind_which_a_run_has_gone_are_set_aside(tmp_path):
    save(job(tmp_path), 2, 4, 6)
    aside = set_later_steps_aside(job(tmp_path, checkpoint__load_step=2))
    assert saved_steps(tmp_path / "checkpoint") == [2]
    assert saved_steps(aside) == [4, 6]
    assert aside.parent == tmp_path


@pytest.mark.parametrize("load_step", [-1, 6])
def test_the_last_checkpoint_is_where_a_run_goes_on(tmp_path, load_step):
    save(job(tmp_path), 2, 6)
    assert set_later_steps_aside(job(tmp_path, checkpoint__load_step=load_step)) is None
    assert saved_steps(tmp_path / "checkpoint") == [2, 6]


@pytest.mark.parametrize(
    ("fields", "finished"),
    [
        ({}, None),
        ({"training__steps": 6}, 6),
        ({"training__steps": 4}, 6),
        ({"training__steps": 6, "checkpoint__load_step": 2}, None),
        ({"training__steps": 2, "checkpoint__load_step": 2}, 2),
        ({"training__steps": 6, "checkpoint__enable": False}, None),
    ],
    ids=["unfinished", "finished", "shortened", "back", "back-to-the-end", "no-checkpoints"],
)
def test_a_run_is_finished_when_its_checkpoint_leaves_nothing_to_train(tmp_path, fields, finished):
    save(job(tmp_path), 2, 6)
    (tmp_path / "checkpoint" / "step-24").mkdir()  # half of one
    assert finished_step(job(tmp_path, **fields)) == finished
