"""Layouts of the ranks that cannot train are refused, whatever torchrun has started."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from tests.support.jobs import parse
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.checks import check_job
from torchtitan_lighthouse.titan.checks.stock_trainer import check_stock_trainer
from torchtitan_lighthouse.titan.models.flavors import FLAVORS

DEGREES = {
    "replicate": "data_parallel_replicate_degree",
    "shard": "data_parallel_shard_degree",
    "context": "context_parallel_degree",
    "tensor": "tensor_parallel_degree",
    "pipeline": "pipeline_parallel_degree",
}


def layout(batch=8, **parallelism):
    fields = {DEGREES.get(name, name): value for name, value in parallelism.items()}
    return {
        "training__local_batch_size": batch,
        **{f"parallelism__{name}": value for name, value in fields.items()},
    }


def pipeline(batch=8, name="1F1B", **parallelism):
    return layout(batch, pipeline=2, pipeline_parallel_schedule=name, **parallelism)


@pytest.mark.parametrize(
    ("ranks", "fields"),
    [
        (8, layout(replicate=2, tensor=2)),
        (4, pipeline()),
        (2, pipeline(1, "GPipe")),
        (2, pipeline(3, "Interleaved1F1B")),
        (2, pipeline(pipeline_parallel_layers_per_stage=3)),
    ],
)
def test_layout_is_accepted(tmp_path, monkeypatch, ranks, fields):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    check_job(parse(tmp_path, **fields))


CSV = {"pipeline_parallel_schedule_csv": "s.csv"}
VALIDATION = {"validation__enable": True, "validation__seq_len": 256, "validation__steps": 1}
REFUSED = {
    "too-many": (2, layout(tensor=2, pipeline=2), "must be the number of ranks, 2"),
    "left-over": (4, layout(shard=2), "must be the number of ranks, 4"),
    "replicated-tensor": (4, layout(replicate=2, shard=1, tensor=2), "shard_degree 2 or more"),
    "experts": (2, layout(expert_parallel_degree=2), "no experts"),
    "tensor-heads": (4, layout(tensor=4), "2 key and value heads .* use 1 or 2"),
    "tensor-width": (
        2,
        {**layout(tensor=2), "model__flavor": "odd-width"},
        "=2 must divide the 89 FFN columns of model.flavor; use 1$",
    ),
    "tensor-length": (
        2,
        {**layout(tensor=2), "training__seq_len": 250, "lighthouse__enable": False},
        "multiple of 4 .* use 248 or 252",
    ),
    "async-tensor": (2, layout(tensor=2, enable_async_tensor_parallel=True), "compile.enable"),
    "few-microbatches": (2, pipeline(1), "microbatch .* use 2"),
    "microbatch": (2, pipeline(3, pipeline_parallel_microbatch_size=2), "use 2 or 4"),
    "rounds": (2, pipeline(5, "Interleaved1F1B"), "use 4 or 6"),
    "schedule": (2, pipeline(name="DualPipeV"), "use 1F1B or GPipe"),
    "csv": (2, pipeline(**CSV), "pipeline_parallel_schedule_csv"),
    "zero-bubble-compiled": (
        2,
        {**pipeline(name="InterleavedZeroBubble"), "compile__enable": True},
        "needs compile.enable = false .* use 1F1B",
    ),
    "zero-bubble-checkpointed": (
        2,
        {**pipeline(name="InterleavedZeroBubble"), "activation_checkpoint__mode": "full"},
        'activation_checkpoint.mode = "none"',
    ),
    "zero-bubble-validation": (
        2,
        {**pipeline(name="ZBVZeroBubble"), **VALIDATION},
        "needs validation.enable = false",
    ),
    "validation-batch": (
        2,
        {**pipeline(), **VALIDATION, "validation__local_batch_size": 12},
        "validation.local_batch_size=12 .* use 8 or 16",
    ),
    "stages": (4, layout(pipeline=4, pipeline_parallel_schedule="Interleaved1F1B"), "8 > 6|stages"),
    "layers-per-stage": (2, pipeline(pipeline_parallel_layers_per_stage=1), "makes 6 stages"),
    "validation-to-the-end": (
        2,
        {**layout(), **VALIDATION, "validation__steps": -1},
        "validation.steps = -1 .* set a number",
    ),
}


@pytest.mark.parametrize(("ranks", "fields", "words"), REFUSED.values(), ids=REFUSED)
def test_layout_is_refused(tmp_path, monkeypatch, ranks, fields, words):
    odd = replace(FLAVORS["tiny_byte"], multiple_of=89, ffn_dim_multiplier=0.1)
    monkeypatch.setitem(FLAVORS, "odd-width", odd)
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    with pytest.raises(RefusalError, match=words):
        check_job(parse(tmp_path, **fields))


@pytest.mark.parametrize("fields", [layout(pipeline=2), layout(replicate=2, shard=1)])
def test_stock_trainer_is_refused_layouts_that_it_scales(tmp_path, fields):
    with pytest.raises(RefusalError, match=r"-m torchtitan_lighthouse\.train"):
        check_stock_trainer(parse(tmp_path, **fields))


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.12.0"])
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"validation__local_batch_size": 16},
            r"local_batch_size=16 .* before torch 2\.12; use 8$",
        ),
        ({"validation__seq_len": 128}, r"seq_len=128 must be training\.seq_len .* use 256$"),
    ],
    ids=["batch", "seq_len"],
)
def test_a_pipeline_of_torch_2_11_validates_batches_of_one_shape(
    tmp_path, monkeypatch, version, fields, words
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch, "__version__", version)
    same = {**pipeline(), **VALIDATION, "training__seq_len": 256, "validation__local_batch_size": 8}
    check_job(parse(tmp_path, **same))
    expected = nullcontext()
    if version.startswith("2.11"):
        expected = pytest.raises(RefusalError, match=words)
    with expected:
        check_job(parse(tmp_path, **same | fields))


@pytest.mark.parametrize(("version", "ranks"), [("2.11.0", 2), ("2.11.0", 4), ("2.12.0", 2)])
def test_stock_trainer_is_refused_a_layout_that_torch_2_11_does_not_clip(
    tmp_path, monkeypatch, version, ranks
):
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    expected = nullcontext()
    if (version, ranks) == ("2.11.0", 2):
        expected = pytest.raises(RefusalError, match="does not clip the gradients of norms")
    with expected:
        check_stock_trainer(parse(tmp_path, **layout(tensor=2)))
