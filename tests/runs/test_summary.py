"""The figures that runs are compared by, on runs whose figures are known."""

import math

import pytest

from tests.support.runs import write_metrics, write_run
from torchtitan_lighthouse.runs import summary
from torchtitan_lighthouse.runs.metrics import (
    HELD_OUT_LOSS,
    LOSS,
    TOKENS,
    TOKENS_PER_SECOND,
    read_metrics,
)


@pytest.fixture
def run(tmp_path):
    """A function that writes a run and reads it back."""

    def read(*args, **kwargs):
        return read_metrics(write_run(tmp_path / "run", *args, **kwargs))

    return read


def test_final_loss_is_the_mean_of_the_last_tenth(run):
    assert summary.final_loss(run(range(1, 101), 0, loss=float)) == 95.5


def test_held_out_loss_is_the_last_one(run, tmp_path):
    assert summary.held_out_loss(run(range(1, 9), 0)) is None
    write_metrics(tmp_path / "run", (8, {HELD_OUT_LOSS: 2.0}), (9, {HELD_OUT_LOSS: 1.5}))
    assert summary.held_out_loss(read_metrics(tmp_path / "run")) == 1.5


def test_held_out_losses_are_compared_at_equal_tokens(tmp_path):
    """Not the last of each: one may be in progress, or of other batches."""
    validated = {"a": {100: 3.0, 200: 2.0, 300: 1.0}, "b": {100: 2.5, 200: 2.25}, "c": {250: 1.0}}
    a, b, c = (
        read_metrics(write_held_out(tmp_path / name, losses)) for name, losses in validated.items()
    )
    twice = read_metrics(
        write_held_out(tmp_path / "twice", {50: 4.0, 100: 3.5, 110: 9.0}, batch=200)
    )
    assert summary.held_out_over(b, a) == 0.25
    assert summary.held_out_over(twice, a) == 1.5
    assert summary.held_out_over(c, a) is None


def write_held_out(folder, losses, batch=100):
    """A run of ``batch`` tokens a step that logs each tenth and is validated when losses say."""
    steps = {
        step: {"stage": "dense", LOSS: 1.0, TOKENS: batch * step} for step in range(10, 301, 10)
    }
    for step, loss in losses.items():
        steps[step] = steps.get(step, {}) | {HELD_OUT_LOSS: loss}
    write_metrics(folder, *sorted(steps.items()))
    return folder


def test_throughput_is_the_median(run):
    assert summary.throughput(run(range(1, 9), 0, pace=0.5)) == 200.0


def test_throughput_leaves_out_each_launch_s_first_step(tmp_path):
    """A short stage, resumed: half of its steps compile."""
    speeds = {1: 1.0, 2: 8.0, 3: 1.0, 4: 9.0}
    for step, speed in speeds.items():
        write_metrics(tmp_path, (step, {TOKENS_PER_SECOND: speed, "started": step // 3}))
    records = read_metrics(tmp_path)
    assert summary.throughput(records) == 8.5
    assert summary.throughput(records[:1]) == 1.0


def test_a_run_without_a_switch_has_none(run):
    assert summary.switch(run(range(1, 50), 50)) is None


def after_the_switch(step):
    """1 up to step 100; then a jump to 3 that falls by 0.02 a step."""
    return 1.0 if step <= 100 else 3.0 - 0.02 * (step - 101)


def test_spike_and_recovery_at_the_switch(run):
    # The mean of the 20 steps up to step n is 1 when that of the middle one, n - 9.5, is.
    assert summary.switch(run(range(1, 301), 100, loss=after_the_switch)) == pytest.approx(
        summary.Switch(spike=2.0, steps_to_recover=201 + 10 - 100)
    )


def test_a_loss_that_never_recovers_has_no_steps(run):
    records = run(range(1, 181), 100, loss=after_the_switch)
    assert summary.switch(records) == pytest.approx(summary.Switch(2.0, None))


def test_a_nan_after_the_switch_is_in_the_spike(run):
    losses = {101: 2.0, 103: math.nan}
    assert math.isnan(
        summary.switch(run(range(1, 181), 100, loss=lambda n: losses.get(n, 1))).spike
    )


def test_a_stage_shorter_than_the_running_mean_is_averaged_whole(run):
    records = run(range(1, 106), 100, loss=lambda step: 1.0 if step <= 100 else 0.5)
    assert summary.switch(records) == summary.Switch(-0.5, 5)


def test_seconds_to_a_loss_are_to_its_running_mean(run):
    records = run(range(1, 101), 0, loss=lambda step: float(100 - step), pace=2.0)
    assert summary.seconds_to_loss(records, 50.5) == 2.0 * 59
    assert summary.seconds_to_loss(records, -1.0) is None


def test_seconds_to_tokens_are_between_logged_steps(run):
    records = run(range(1, 102, 10), 0, pace=2.0)
    assert summary.seconds_to_tokens(records, 1600) == 32.0
    assert summary.seconds_to_tokens(records, 10_101) is None


def test_metrics_that_begin_later_give_no_seconds_to_tokens(run):
    assert summary.seconds_to_tokens(run(range(50, 101), 0), 6000) is None
