"""The tests' model, built and parallelised as torchtitan's trainer does it."""

import torch
from torch import Tensor, nn
from torchtitan.config import JobConfig
from torchtitan.distributed import ParallelDims
from torchtitan.models.llama3 import Transformer

from torchtitan_lighthouse.titan.cpu.device import runs_on_cpu
from torchtitan_lighthouse.titan.models.of_job import model_args_of
from torchtitan_lighthouse.titan.models.parallelize import parallelize_lighthouse

DEVICE = "cpu" if runs_on_cpu() else "cuda"

CHECKPOINTING = {
    "none": {"activation_checkpoint__mode": "none"},
    "every-2nd-layer": {"activation_checkpoint__mode": "selective"},
    "selective": {
        "activation_checkpoint__mode": "selective",
        "activation_checkpoint__selective_ac_option": "op",
    },
    "attention": {
        "activation_checkpoint__mode": "selective",
        "activation_checkpoint__selective_ac_option": "attention",
    },
    "full": {"activation_checkpoint__mode": "full"},
}


def build_meta_model(job_config: JobConfig, dims: ParallelDims) -> Transformer:
    """The job's model in the Lighthouse stage, on the meta device."""
    args = model_args_of(job_config)
    args.update_from_config(job_config)
    with torch.device("meta"):
        model = Transformer(args)
    return parallelize_lighthouse(model, dims, job_config)


def build_model(job_config: JobConfig, dims: ParallelDims | None = None) -> Transformer:
    """The same with weights from a fixed seed."""
    model = build_meta_model(job_config, dims or parallel_dims())
    model.to_empty(device=DEVICE)
    torch.manual_seed(0)
    with torch.no_grad():
        model.init_weights()
    return model


def parallel_dims(dp_shard: int = 1, cp: int = 1, tp: int = 1) -> ParallelDims:
    """Ranks that share the parameters: ``dp_shard`` groups of ``cp`` that share a sequence, each
    of which is ``tp`` that share the columns."""
    degrees = {"dp_replicate": 1, "dp_shard": dp_shard, "cp": cp, "tp": tp, "pp": 1}
    return ParallelDims(**degrees, ep=1, etp=1, world_size=dp_shard * cp * tp)


def tokens(rank: int = 0) -> Tensor:
    """A batch of random bytes: int64 [2, 257]."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randint(256, (2, 257), generator=generator).to(DEVICE)


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean cross-entropy of the next token."""
    logits = model(batch[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
