"""The gradient of a step does not depend on how the ranks are laid out.

All layouts train the same sequences from the same weights, with a third of the labels of the first
one ignored. Compared are the gradients of all parameters, before and after they are clipped, what
the step logs, and the held-out loss.
"""

import os
import zlib
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from unittest import mock

import pytest
import torch
import torchtitan.train
from torch import distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.components.metrics import _get_metrics_rank

from tests.support.jobs import parse
from tests.support.ranks import run_ranks
from torchtitan_lighthouse.titan import spec as titan_spec
from torchtitan_lighthouse.titan.components import validate
from torchtitan_lighthouse.titan.spec import get_train_spec
from torchtitan_lighthouse.titan.torch_version import torch_is_before
from torchtitan_lighthouse.titan.trainer import LighthouseTrainer

pytestmark = pytest.mark.trainer

BATCH, SEQ_LEN = 8, 256
ONE_STEP = {
    # Whole tiles in each piece of two ranks that share a sequence.
    "lighthouse__tile": 4,
    "training__global_batch_size": BATCH,
    # The gradient is longer.
    "training__max_norm": 0.1,
    "training__steps": 1,
    "validation__enable": True,
    "validation__dataset": "python_stdlib_validation",
    "validation__seq_len": SEQ_LEN,
    "validation__local_batch_size": BATCH,
    "validation__steps": 1,
}
DEGREES = {
    "replicate": "data_parallel_replicate_degree",
    "shard": "data_parallel_shard_degree",
    "context": "context_parallel_degree",
    "tensor": "tensor_parallel_degree",
    "pipeline": "pipeline_parallel_degree",
}
COMPILED = {"compile__enable": True, "compile__backend": "aot_eager"}
# Validation is compiled once more: one rank shows that its loss is the same.
TRAINING_COMPILED = COMPILED | {"validation__enable": False}


def layout(local_batch_size, degrees=None, /, **parallelism):
    """A job's fields from the sequences in a rank's batch, degrees and ``[parallelism]``."""
    named = {DEGREES[name]: degree for name, degree in (degrees or {}).items()}
    return {
        "training__local_batch_size": local_batch_size,
        **{f"parallelism__{name}": value for name, value in {**named, **parallelism}.items()},
    }


PIPELINE = {"pipeline": 2}
# Of another shape than those that are trained on, which a pipeline takes since torch 2.12.
OTHER_HELD_OUT_BATCH = {"validation__enable": not torch_is_before(2, 12)}
REPLICATED = {"replicate": 2, "shard": 1}
LAYOUTS = {
    1: {
        "one-rank": layout(8),
        "accumulated": layout(2),
        "compiled": layout(8) | COMPILED,
    },
    2: {
        "fsdp": layout(4),
        "replicated": layout(4, REPLICATED),
        "replicated-accumulated-compiled": layout(2, REPLICATED) | TRAINING_COMPILED,
        "tensor": layout(8, {"tensor": 2}),
        "tensor-accumulated": layout(2, {"tensor": 2}),
        "tensor-whole-logits": layout(8, {"tensor": 2}, disable_loss_parallel=True),
        "context-accumulated": layout(4, {"context": 2}),
        "pipeline": layout(8, PIPELINE),
        "pipeline-accumulated": layout(4, PIPELINE) | OTHER_HELD_OUT_BATCH,
        "pipeline-microbatches-compiled": layout(8, PIPELINE, pipeline_parallel_microbatch_size=4)
        | TRAINING_COMPILED,
        **{
            f"pipeline-{name}": layout(8, PIPELINE, pipeline_parallel_schedule=name)
            for name in ("GPipe", "Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble")
        },
        "pipeline-ZBVZeroBubble": layout(8, PIPELINE, pipeline_parallel_schedule="ZBVZeroBubble")
        | {"validation__enable": False},
    },
    4: {
        "hsdp": layout(2, {"replicate": 2, "shard": 2}),
        "replicated-context": layout(4, {**REPLICATED, "context": 2}),
        "fsdp-tensor": layout(4, {"shard": 2, "tensor": 2}),
        "fsdp-pipeline-accumulated": layout(2, {"shard": 2, **PIPELINE}) | OTHER_HELD_OUT_BATCH,
        "context-tensor": layout(8, {"context": 2, "tensor": 2}),
        "context-pipeline": layout(8, {"context": 2, **PIPELINE}),
        "tensor-pipeline": layout(8, {"tensor": 2, **PIPELINE}),
    },
    8: {
        "hsdp-pipeline": layout(2, {"replicate": 2, "shard": 2, **PIPELINE}),
        "fsdp-tensor-pipeline": layout(4, {"shard": 2, "tensor": 2, **PIPELINE}),
        "fsdp-context-tensor": layout(4, {"shard": 2, "context": 2, "tensor": 2}),
    },
}

if torch_is_before(2, 12):
    del LAYOUTS[2]["pipeline-ZBVZeroBubble"]  # in which a rank sends to itself, as gloo does not


def text():
    """int64 [BATCH, SEQ_LEN] and labels, a third of the first sequence's ignored."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(256, (BATCH, SEQ_LEN + 1), generator=generator)
    labels = tokens[:, 1:].clone()
    labels[0, ::3] = IGNORE_INDEX
    return tokens[:, :-1].contiguous(), labels


def given_batches(dp_world_size, dp_rank, job_config, **_):
    """This rank's rows of the text, in as many batches as it accumulates."""
    own = [tensor.chunk(dp_world_size)[dp_rank] for tensor in text()]
    batches = zip(*(t.split(job_config.training.local_batch_size) for t in own), strict=True)
    return [({"input": tokens}, labels) for tokens, labels in batches]


def given_held_out_batch(dp_world_size, dp_rank, **_):
    """This rank's rows of the text."""
    tokens, labels = (tensor.chunk(dp_world_size)[dp_rank] for tensor in text())
    return [({"input": tokens}, labels)]


def set_weights(model_parts):
    """From the parameters' names, wherever they are."""
    for name, p in chain.from_iterable(part.named_parameters() for part in model_parts):
        generator = torch.Generator().manual_seed(zlib.crc32(plain(name).encode()))
        full = torch.randn(p.shape, generator=generator) * (0.3 if p.dim() == 1 else 0.05)
        if isinstance(p, DTensor):
            full = distribute_tensor(full, p.device_mesh, p.placements)
        p.data.copy_(full)


def plain(name):
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")


def full_gradients(model_parts):
    gradients = {plain(name): p.grad for part in model_parts for name, p in part.named_parameters()}
    return {
        name: (g.full_tensor() if isinstance(g, DTensor) else g).clone()
        for name, g in gradients.items()
    }


def step_of(job_config):
    """What a rank logs of one step, and the gradients of the parameters that it has."""
    spec = replace(get_train_spec(), build_dataloader_fn=given_batches)
    clip = torchtitan.train.dist_utils.clip_grad_norm_
    record = {}

    def clip_and_look(*args, **how):
        record["gradients"] = full_gradients(trainer.model_parts)
        norm = clip(*args, **how)
        record["clipped"] = full_gradients(trainer.model_parts)
        return norm

    with ExitStack() as patches:
        for place, name, new in (
            (titan_spec, "registered_spec", lambda _: spec),
            (torchtitan.train.dist_utils, "clip_grad_norm_", clip_and_look),
            (validate, "build_validation_dataloader", given_held_out_batch),
        ):
            patches.enter_context(mock.patch.object(place, name, new))
        trainer = LighthouseTrainer(job_config)
        set_weights(trainer.model_parts)
        metrics = trainer.metrics_processor
        metrics.logger.log = lambda metrics, step: record.update(metrics)
        trainer.step = 1
        trainer.train_step(trainer.batch_generator(trainer.dataloader))
        if job_config.validation.enable:
            set_weights(trainer.model_parts)
            trainer.validator.validate(trainer.model_parts, 1)
        trainer.close()
    record["logs"] = dist.get_rank() == _get_metrics_rank(trainer.parallel_dims, job_config)
    return record


# Eight processes on two cores take a minute; those of four are pairs of degrees.
MOST_RANKS = 8 if "LIGHTHOUSE_FULL_SIZE" in os.environ else 4
AT_ONCE = ("compiled", "fsdp", "replicated", "tensor", "tensor-whole-logits", "hsdp", "fsdp-tensor")
"""Where every rank has whole sequences, all of its own in one batch."""
TRIED = {ranks: layouts for ranks, layouts in LAYOUTS.items() if ranks <= MOST_RANKS}


def steps_of_every_layout(rank, ranks, folder):
    os.environ.update(RANK=f"{rank}", LOCAL_RANK=f"{rank}", WORLD_SIZE=f"{ranks}")
    # torchtitan takes a process group that is there.
    store = f"file://{folder}/store-{ranks}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    for name, fields in LAYOUTS[ranks].items():
        job = parse(folder / f"{rank}", **{**ONE_STEP, **fields})
        torch.save(step_of(job), folder / f"{name}-{rank}.pt")
        dist.barrier()
        torch._dynamo.reset()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """What all ranks of a layout record, by the layout's name; one launch for all of a size."""
    folder = tmp_path_factory.mktemp("layouts")
    launched = set()

    def of(name):
        (ranks,) = [size for size, layouts in LAYOUTS.items() if name in layouts]
        if ranks not in launched:
            launched.add(ranks)
            run_ranks(steps_of_every_layout, ranks, ranks, folder)
        return [torch.load(folder / f"{name}-{rank}.pt") for rank in range(ranks)]

    return of


@pytest.mark.parametrize("name", [name for layouts in TRIED.values() for name in layouts])
def test_step_is_that_of_one_rank(steps, name):
    (one,), ranks = steps("one-rank"), steps(name)
    parameters = {parameter for record in ranks for parameter in record["gradients"]}
    assert parameters == set(one["gradients"])
    for record in ranks:
        assert record["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)
        for kind in ("gradients", "clipped"):
            for parameter, gradient in record[kind].items():
                expected = one[kind][parameter]
                difference = (gradient - expected).norm() / expected.norm()
                assert difference < 1e-5, f"{kind} of {parameter}"
    (logged,) = [record for record in ranks if record["logs"]]
    held_out = [n for n in one if n.startswith("validation_metrics/") and n.endswith("loss")]
    assert len(held_out) == 2
    (fields,) = [layouts[name] for layouts in LAYOUTS.values() if name in layouts]
    validated = held_out if fields.get("validation__enable", True) else []
    for metric in ["loss_metrics/global_avg_loss", *validated]:
        assert logged[metric] == pytest.approx(one[metric], rel=2e-6), metric


@pytest.mark.parametrize("name", [name for layouts in TRIED.values() for name in layouts])
def test_norms_that_select_are_measured(steps, name):
    """Of the last batch, and of each rank's share of a sequence."""
    (one,) = steps("one-rank")
    (logged,) = [record for record in steps(name) if record["logs"]]
    for metric in ("lighthouse/norm_spread_q/min", "lighthouse/norm_spread_k/min"):
        rel = 1e-4 if name in AT_ONCE else 0.5
        assert logged[metric] == pytest.approx(one[metric], rel=rel)


def test_gradient_is_clipped(steps):
    (one,) = steps("one-rank")
    assert one["grad_norm"] > 2 * ONE_STEP["training__max_norm"]
    assert full_norm(one["clipped"]) == pytest.approx(ONE_STEP["training__max_norm"], rel=1e-4)
    assert full_norm(one["gradients"]) == pytest.approx(one["grad_norm"], rel=1e-5)


def full_norm(gradients):
    return torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
