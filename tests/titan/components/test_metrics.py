"""The stage in every place that metrics go to, metrics.jsonl among them."""

import logging

import pytest
from torchtitan.components.metrics import TensorBoardLogger

from tests.support.processors import build, job, log
from tests.support.runs import write_metrics
from torchtitan_lighthouse.runs.metrics import (
    HELD_OUT_LIGHTHOUSE_LOSS,
    METRICS_FILE,
    read_metrics,
)
from torchtitan_lighthouse.titan.components import metrics


@pytest.mark.usefixtures("one_rank")
def test_every_logged_step_is_a_line_with_its_stage(tmp_path):
    processor = build(job(tmp_path))
    log(processor, 1, 2.5)
    processor.enter("dense", flops_per_token=1)
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
def test_a_stage_s_throughput_and_mfu_are_its_own(tmp_path):
    processor = build(job(tmp_path))
    processor.ntokens_since_last_log = 10**9
    processor.data_loading_times.append(10**9)
    processor.enter("dense", flops_per_token=10**6)
    log(processor, 1, 2.5)
    processor.close()
    (record,) = read_metrics(tmp_path)
    assert record["throughput(tps)"] < 10**8
    assert record["time_metrics/data_loading(s)"] < 10**6
    assert record["tflops"] == pytest.approx(record["throughput(tps)"] / 10**6)


@pytest.mark.usefixtures("one_rank")
def test_a_step_s_time_is_by_the_steps_that_there_were(tmp_path):
    """Whatever log_freq is: two steps since the switch, each of two batches."""
    batches = ["--training.local_batch_size", "1", "--training.global_batch_size", "2"]
    processor = build(job(tmp_path, "--metrics.log_freq", "10", *batches))
    processor.enter("dense", flops_per_token=1)
    processor.time_last_log -= 8
    processor.data_loading_times += [0.1] * 4
    processor.log(20, 2.5, 2.5, 0.5)
    processor.close()
    (record,) = read_metrics(tmp_path)
    assert record["time_metrics/end_to_end(s)"] == pytest.approx(4, abs=0.5)


@pytest.mark.usefixtures("one_rank")
def test_the_peak_of_memory_is_the_stage_s_own(tmp_path, monkeypatch):
    processor = build(job(tmp_path))
    resets = []
    monkeypatch.setattr(
        processor.device_memory_monitor, "reset_peak_stats", lambda: resets.append(1)
    )
    processor.enter("dense", flops_per_token=1)
    assert resets


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("lost", [{"loss": float("nan")}, {"grad_norm": float("inf")}], ids=str)
def test_lost_weights_are_warned_of_once(tmp_path, caplog, lost):
    processor = build(job(tmp_path))
    loss, grad_norm = lost.get("loss", 2.5), lost.get("grad_norm", 0.5)
    for step in (1, 2):
        processor.data_loading_times.append(0.1)
        processor.log(step, loss, loss, grad_norm)
    processor.close()
    (warning,) = [message for message in caplog.messages if "No weight recovers" in message]
    assert warning.startswith(
        f"Step 1: the loss is {loss} and the norm of the gradient {grad_norm}"
    )


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
        processor.enter("dense", flops_per_token=1)
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
