"""The gradient of a step does not depend on how the ranks are laid out.

All layouts train the same sequences from the same weights, with a third of the labels of the first
one ignored. Compared are the gradients of all parameters, before and after they are clipped, what
the step logs, and the held-out loss.
"""

import os
import zlib
from contextlib import ExitStack
from dataclasses import replace
from unittest import mock

import pytest
import torch
import torchtitan.train
from torch import distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor
from torchtitan.components.loss import IGNORE_INDEX

from tests.support.jobs import parse
from tests.support.ranks import run_ranks
from torchtitan_lighthouse.titan.components import validate
from torchtitan_lighthouse.titan.spec import get_train_spec
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


def layout(local_batch_size, degrees=None, /, **parallelism):
    """A job's fields from the sequences in a rank's batch, degrees and ``[parallelism]``."""
    named = {DEGREES[name]: degree for name, degree in (degrees or {}).items()}
    return {
        "training__local_batch_size": local_batch_size,
        "validation__local_batch_size": local_batch_size,
        **{f"parallelism__{name}": value for name, value in {**named, **parallelism}.items()},
    }


PIPELINE = {"pipeline": 2}
REPLICATED = {"replicate": 2, "shard": 1}
SCHEDULES = ("GPipe", "Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble")
LAYOUTS = {
    1: {
        "one-rank": layout(8),
        "accumulated": layout(2),
        "compiled": layout(8) | COMPILED,
    },
    2: {
        "fsdp": layout(4),
        "replicated": layout(4, REPLICATED),
        "replicated-accumulated": layout(2, REPLICATED),
        "replicated-compiled": layout(4, REPLICATED) | COMPILED,
        "tensor": layout(8, {"tensor": 2}),
        "tensor-whole-logits": layout(8, {"tensor": 2}, disable_loss_parallel=True),
        "context": layout(8, {"context": 2}),
        "context-accumulated-compiled": layout(4, {"context": 2}) | COMPILED,
        "pipeline": layout(8, PIPELINE),
        "pipeline-accumulated": layout(4, PIPELINE),
        "pipeline-microbatches": layout(8, PIPELINE, pipeline_parallel_microbatch_size=2),
        "pipeline-compiled": layout(8, PIPELINE) | COMPILED,
        **{
            f"pipeline-{name}": layout(8, PIPELINE, pipeline_parallel_schedule=name)| dict(validation__enable=name!="ZBVZeroBubble")
            for name in SCHEDULES
        },
        **{
            f"pipeline-{name}-compiled": layout(8, PIPELINE, pipeline_parallel_schedule=name) | COMPILED | dict(validation__enable=name!="ZBVZeroBubble")
            for name in SCHEDULES
        },
        **{
            f"pipeline-{name}-full": layout(8, PIPELINE, pipeline_parallel_schedule=name) | dict(activation_checkpoint__mode="full",validation__enable=name!="ZBVZeroBubble")
            for name in SCHEDULES
        },
        "pipeline-otherval": layout(8, PIPELINE) | dict(validation__local_batch_size=4),
        "pipeline-otherval2": layout(8, PIPELINE) | dict(validation__local_batch_size=16),
        "pipeline-otherlen": layout(8, PIPELINE) | dict(validation__seq_len=128),
    },
    4: {
        "hsdp": layout(2, {"replicate": 2, "shard": 2}),
        "replicated-context": layout(4, {**REPLICATED, "context": 2}),
        "fsdp-tensor": layout(4, {"shard": 2, "tensor": 2}),
        "fsdp-context": layout(4, {"shard": 2, "context": 2}),
        "fsdp-pipeline": layout(4, {"shard": 2, **PIPELINE}),
        "fsdp-pipeline-accumulated-compiled": layout(2, {"shard": 2, **PIPELINE}) | COMPILED,
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


def given_batches(dp_world_size, dp_rank, job_config, **_):
    """This rank's rows of the text, in as many batches as it accumulates."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(256, (BATCH, SEQ_LEN + 1), generator=generator)
    inputs, labels = text[:, :-1], text[:, 1:].clone()
    labels[0, ::3] = IGNORE_INDEX
    rows = slice(dp_rank * BATCH // dp_world_size, (dp_rank + 1) * BATCH // dp_world_size)
    size = job_config.training.local_batch_size
    batches = zip(inputs[rows].split(size), labels[rows].split(size), strict=True)
    return [({"input": batch.contiguous()}, labels.contiguous()) for batch, labels in batches]

def given_val_batches(dp_world_size, dp_rank, job_config, **_):
    v = job_config.validation
    b = given_batches(dp_world_size, dp_rank, job_config)
    x = torch.cat([i["input"] for i, _ in b]*2)[:v.local_batch_size,:v.seq_len]
    y = torch.cat([y for _, y in b]*2)[:v.local_batch_size,:v.seq_len]
    return [({"input": x.contiguous()}, y.contiguous())]


def set_weights(module):
    """From the parameters' names, wherever they are."""
    for name, p in module.named_parameters():
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
            (torchtitan.train.train_spec_module, "get_train_spec", lambda _: spec),
            (torchtitan.train.dist_utils, "clip_grad_norm_", clip_and_look),
            (validate, "build_validation_dataloader", given_val_batches),
        ):
            patches.enter_context(mock.patch.object(place, name, new))
        trainer = LighthouseTrainer(job_config)
        for part in trainer.model_parts:
            set_weights(part)
        trainer.step = 1
        metrics = trainer.metrics_processor
        metrics.logger.log = lambda metrics, step: record.update(metrics)
        if job_config.validation.enable: trainer.validator.validate(trainer.model_parts, 1)
        else: record.update({"validation_metrics/loss":0,"validation_metrics/lighthouse_loss":0})
        trainer.train_step(trainer.batch_generator(trainer.dataloader))
        trainer.close()
    return record


def steps_of_every_layout(rank, ranks, folder):
    os.environ.update(RANK=f"{rank}", LOCAL_RANK=f"{rank}", WORLD_SIZE=f"{ranks}")
    # torchtitan takes a process group that is there.
    store = f"file://{folder}/store-{ranks}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    import time
    for name, fields in LAYOUTS[ranks].items():
        if (only := os.environ.get("ONLY")) and not any(o in name for o in only.split(",")): continue
        print("BEGIN", name, time.time(), flush=True)
        own = folder / f"{rank}"
        job = parse(own, **{**ONE_STEP, **fields})
        try:
            step = step_of(job)
        except Exception as e:
            import traceback
            traceback.print_exc()
            step = repr(e)
        torch.save(step, folder / f"{name}-{rank}.pt")
        dist.barrier()
        torch._dynamo.reset()
    dist.destroy_process_group()
