"""The held-out losses: under dense attention always, under Lighthouse attention in its stage."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torchtitan.components.loss import cross_entropy_loss

from tests.support.jobs import parse
from tests.support.models import build_model, parallel_dims
from torchtitan_lighthouse.runs.metrics import HELD_OUT_LIGHTHOUSE_LOSS
from torchtitan_lighthouse.titan.components.tokenizer import ByteTokenizer
from torchtitan_lighthouse.titan.components.validate import build_validator
from torchtitan_lighthouse.titan.stages import AttentionSwitch

HELD_OUT = {
    "validation__dataset": "local_validation",
    "validation__seq_len": 256,
    "validation__local_batch_size": 2,
    "validation__steps": 2,
}


class Processor:
    """What a validator reports to."""

    def __init__(self, stage):
        self.stage = stage
        self.ntokens_since_last_log = 0
        self.logged = []

    def begin_interval(self):
        self.ntokens_since_last_log = 0

    def log_validation(self, loss, step, extra_metrics):
        self.logged.append((loss, step, extra_metrics))


@pytest.fixture
def job(tmp_path):
    config = parse(tmp_path, **HELD_OUT)
    config.validation.dataset_path = config.training.dataset_path
    return config


def validator(job, stage, dims=None):
    return build_validator(
        job_config=job,
        dp_world_size=1,
        dp_rank=0,
        tokenizer=ByteTokenizer(),
        parallel_dims=dims or parallel_dims(),
        loss_fn=cross_entropy_loss,
        validation_context=nullcontext,
        maybe_enable_amp=nullcontext(),
        metrics_processor=Processor(stage),
    )


@torch.no_grad()
def mean_loss(model, job, stage):
    """Of the model in a stage's use, over the held-out batches."""
    AttentionSwitch([model]).use(stage)
    batches = validator(job, stage).validation_dataloader
    losses = [
        cross_entropy_loss(model(inputs["input"]), labels) / labels.numel()
        for (inputs, labels), _ in zip(batches, range(job.validation.steps), strict=False)
    ]
    return torch.stack(losses).mean().item()


def test_both_losses_in_the_lighthouse_stage(job):
    model = build_model(job)
    lighthouse, dense = (mean_loss(build_model(job), job, s) for s in ("lighthouse", "dense"))
    assert lighthouse != dense
    under_test = validator(job, "lighthouse")
    under_test.validate([model], 3)
    ((loss, step, extra),) = under_test.metrics_processor.logged
    assert (loss, step) == (pytest.approx(dense), 3)
    assert extra == {HELD_OUT_LIGHTHOUSE_LOSS: pytest.approx(lighthouse)}
    assert under_test.metrics_processor.ntokens_since_last_log == 2 * 2 * 2 * 256


def test_the_dense_loss_alone_in_the_dense_stage(job):
    model = build_model(job)
    dense = mean_loss(model, job, "dense")
    under_test = validator(job, "dense")
    under_test.validate([model], 3)
    assert under_test.metrics_processor.logged == [(pytest.approx(dense), 3, {})]


def test_the_model_trains_on_as_before(job):
    model = build_model(job)
    validator(job, "lighthouse").validate([model], 1)
    assert model.training
    assert len(AttentionSwitch([model])._layers) == 2


def test_a_validation_repeats_the_last_one(job):
    model, under_test = build_model(job), validator(job, "lighthouse")
    for _ in range(2):
        under_test.validate([model], 1)
    first, second = under_test.metrics_processor.logged
    assert first == second


def test_ranks_that_share_a_sequence_do_not_multiply_the_loss(job):
    model = build_model(job)
    of_one, of_four = validator(job, "dense"), validator(job, "dense")
    dims = parallel_dims()
    # torchtitan adds up what four ranks have, each divided by its own tokens.
    of_four.parallel_dims = SimpleNamespace(
        **{name: getattr(dims, name) for name in ("dp_enabled", "cp_enabled", "pp_enabled")},
        dp_cp_enabled=False,
        cp=4,
    )
    for v in (of_one, of_four):
        v.validate([model], 1)
    assert of_four.metrics_processor.logged[0][0] == of_one.metrics_processor.logged[0][0] / 4
