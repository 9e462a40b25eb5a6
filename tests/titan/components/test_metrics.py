"""The stage in every place that metrics go to, metrics.jsonl among them."""

import logging
import os
from types import SimpleNamespace

import pytest
import torch
from torchtitan.components.metrics import TensorBoardLogger
from torchtitan.distributed import ParallelDims

from tests.support.runs import write_metrics
from torchtitan_lighthouse.runs.metrics import (
    HELD_OUT_LIGHTHOUSE_LOSS,
    METRICS_FILE,
    read_metrics,
)
from torchtitan_lighthouse.titan.components import metrics
from torchtitan_lighthouse.titan.components.metrics import (
    build_metrics_processor,
    set_wandb_defaults,
)
from torchtitan_lighthouse.titan.config import LighthouseConfigManager


@pytest.fixture
def one_rank():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def no_wandb_settings(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("WANDB_") or n == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    # What the code under test sets is taken back by restoring a copy.
    monkeypatch.setattr(os, "environ", os.environ.copy())


def job(folder, *args):
    return LighthouseConfigManager().parse_args(
        ["--job.dump_folder", str(folder), "--model.flavor", "tiny_byte", *args]
    )


def build(job_config, cp=1):
    degrees = {"dp_replicate": 1, "dp_shard": 1, "cp": cp, "tp": 1, "pp": 1, "ep": 1, "etp": 1}
    dims = ParallelDims(**degrees, world_size=cp)
    processor = build_metrics_processor(job_config, dims)
    processor.num_flops_per_token = 1
    return processor


def log(processor, step, loss=1.0):
    processor.data_loading_times.append(0.1)
    processor.ntokens_since_last_log = 10
    processor.log(step, loss, loss, 0.5, extra_metrics={"lr": 0.25})


@pytest.mark.usefixtures("one_rank")
def test_every_logged_step_is_a_line_with_its_stage(tmp_path):
    processor = build(job(tmp_path))
    log(processor, 1, 2.5)
    processor.set_stage("dense")
    log(processor, 2, 3.5)
    processor.log_validation(4.5, 2)
    processor.close()
    first, second = read_metrics(tmp_path)
    assert (first["step"], first["stage"], first["lighthouse/stage"]) == (1, "lighthouse", 1)
    assert (second["step"], second["stage"], second["lighthouse/stage"]) == (2, "dense", 0)
    assert first["loss_metrics/global_avg_loss"] == 2.5
    assert second["loss_metrics/global_avg_loss"] == 3.5
    assert second["validation_metrics/loss"] == 4.5
    assert first["lr"] == 0.25
    assert first["started"] == second["started"] <= first["time"] <= second["time"]


@pytest.mark.usefixtures("one_rank")
def test_a_sequence_on_several_ranks_counts_once(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_get_metrics_rank", lambda *_: 0)
    processor = build(job(tmp_path), cp=4)
    processor.data_loading_times.append(0.1)
    processor.ntokens_since_last_log = 10
    # As torchtitan has them: 4 ranks with 512 tokens each, and a rank's loss by all of these.
    processor.log(1, 2.5, 0.75, 0.5, extra_metrics={"n_tokens_seen": 2048})
    processor.close()
    (record,) = read_metrics(tmp_path)
    assert record["n_tokens_seen"] == 512
    assert record["loss_metrics/global_avg_loss"] == 2.5
    assert record["loss_metrics/global_max_loss"] == 3.0


@pytest.mark.usefixtures("one_rank")
def test_the_console_line_is_torchtitans_and_the_stage(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        processor = build(job(tmp_path, "--metrics.disable_color_printing"))
        log(processor, 1, 2.5)
        processor.log_validation(3.5, 1, {HELD_OUT_LIGHTHOUSE_LOSS: 2.5})
        processor.set_stage("dense")
        processor.log_validation(4.5, 2)
        processor.close()
    train, both, validation = caplog.messages[-3:]
    assert train.startswith("step:  1  loss:  2.50000  grad_norm:  0.5000")
    assert train.endswith("%  stage: lighthouse")
    assert both.endswith("stage: lighthouse  under Lighthouse: 2.5000")
    assert validation.startswith("validate step:  2  loss:  4.5000")
    assert validation.endswith("stage: dense")


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(
    ("flags", "stage"),
    [([], "lighthouse"), (["--lighthouse.no-enable"], "dense")],
    ids=["lighthouse", "dense baseline"],
)
def test_a_run_starts_in_the_stage_of_its_first_step(flags, stage, tmp_path):
    processor = build(job(tmp_path, *flags))
    log(processor, 1)
    assert read_metrics(tmp_path)[0]["stage"] == stage


@pytest.mark.usefixtures("one_rank")
def test_only_the_rank_that_logs_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_get_metrics_rank", lambda *_: 1)
    processor = build(job(tmp_path))
    log(processor, 1)
    processor.close()
    assert not (tmp_path / METRICS_FILE).exists()


@pytest.mark.usefixtures("one_rank")
def test_tensorboard_gets_the_stage(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(TensorBoardLogger, "log", lambda self, *args: written.append(args))
    processor = build(job(tmp_path, "--metrics.enable_tensorboard"))
    log(processor, 7)
    ((values, step),) = written
    assert step == 7
    assert values["lighthouse/stage"] == 1


@pytest.mark.usefixtures("one_rank")
def test_wandb_runs_offline_without_a_key(tmp_path):
    wandb = pytest.importorskip("wandb")
    processor = build(job(tmp_path, "--metrics.enable_wandb"))
    assert processor.logger._inner.number_of_loggers == 1
    run = wandb.run
    log(processor, 3)
    log(processor, 4)  # wandb closes step 3 only now
    assert run.settings._offline
    assert (run.name, run.group) == (tmp_path.name, "tiny_byte-2048")
    assert run.tags == ("lighthouse", "norm", "L3-p4-k1536")
    assert run.summary["lighthouse/stage"] == 1
    assert run.summary["loss_metrics/global_avg_loss"] == 1.0
    assert run.step == 4
    processor.close()
    assert list(tmp_path.rglob("*.wandb"))


@pytest.mark.parametrize(
    ("flags", "tags"),
    [
        (["--lighthouse.scorer", "dilated"], "lighthouse,dilated,L3-p4-k1536"),
        (["--lighthouse.no-enable"], "dense"),
    ],
    ids=["lighthouse", "dense baseline"],
)
def test_runs_to_compare_share_a_group_and_differ_in_tags(flags, tags, tmp_path):
    set_wandb_defaults(job(tmp_path / "my run", "--training.seq_len", "98304", *flags))
    assert os.environ["WANDB_RUN_GROUP"] == "tiny_byte-98304"
    assert os.environ["WANDB_RUN_NAME"] == "my run"
    assert os.environ["WANDB_TAGS"] == tags


def test_wandb_settings_of_the_user_are_kept(tmp_path):
    os.environ.update(
        WANDB_RUN_NAME="mine", WANDB_RUN_GROUP="ours", WANDB_RUN_TAGS="a,b", WANDB_MODE="online"
    )
    set_wandb_defaults(job(tmp_path))
    assert os.environ["WANDB_RUN_NAME"] == "mine"
    assert os.environ["WANDB_RUN_GROUP"] == "ours"
    assert os.environ["WANDB_MODE"] == "online"
    assert os.environ["WANDB_TAGS"] == "a,b"
    assert "WANDB_RUN_TAGS" not in os.environ


@pytest.mark.parametrize("key", ["environment", "netrc", "NETRC", "unreadable netrc", "none"])
@pytest.mark.parametrize("answer", ["200", "404", "no route"])
def test_wandb_is_online_with_a_key_and_a_server_that_answers(key, answer, tmp_path, monkeypatch):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        if answer == "no route":
            raise OSError
        if answer == "404":
            raise metrics.HTTPError(url, 404, "not found", {}, None)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(metrics, "urlopen", urlopen)
    os.environ["WANDB_BASE_URL"] = "https://wandb.example.org"
    if key == "environment":
        os.environ["WANDB_API_KEY"] = "0" * 40
    if key == "unreadable netrc":
        (tmp_path / ".netrc").mkdir()  # which root cannot read either
    if key in ("netrc", "NETRC"):
        netrc = tmp_path / (".netrc" if key == "netrc" else "keys")
        if key == "NETRC":
            os.environ["NETRC"] = "~/keys"
        netrc.write_text("machine wandb.example.org login user password secret\n")
        netrc.chmod(0o600)
    set_wandb_defaults(job(tmp_path))
    has_key = key in ("environment", "netrc", "NETRC")
    online = has_key and answer != "no route"
    assert os.environ.get("WANDB_MODE") == (None if online else "offline")
    assert asked == (["https://wandb.example.org"] if has_key else [])


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("model_only", [True, False], ids=["weights only", "full resume"])
def test_only_a_full_resume_continues_the_metrics(model_only, tmp_path):
    write_metrics(tmp_path / "one", (20, {}))
    path = str(tmp_path / "one" / "checkpoint" / "step-20")
    flag = "" if model_only else "no-"
    processor = build(
        job(
            tmp_path / "two",
            *("--checkpoint.enable", "--checkpoint.initial_load_path", path),
            f"--checkpoint.{flag}initial_load_model_only",
        )
    )
    log(processor, 30)
    steps = [r["step"] for r in read_metrics(tmp_path / "two")]
    assert steps == ([30] if model_only else [20, 30])
