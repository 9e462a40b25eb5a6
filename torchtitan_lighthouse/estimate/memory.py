"""The peak memory of a training job per GPU, from its config alone.

Parameters are counted on the model itself, on the meta device; activations by the shapes of the
tensors that autograd keeps (see ``activations``). The peak is the largest of these moments: the
loss; the backward of each block, with all that the blocks before it keep; the optimizer's step.

What is inexact, and why:

- It counts live tensors. PyTorch's allocator reserves more, up to an eighth in what was measured,
  because freed memory does not fit every later tensor. The CUDA context and NCCL's buffers come on
  top of both.
- Tensor parallel, DDP, and context parallel without compile, with ``alltoall``, by one gather or
  under selective checkpointing are counted from the sources of torch 2.11 to 2.13, and not
  measured.
- Validation is left out. It can be the peak, for ``validation.local_batch_size`` and
  ``validation.seq_len`` are its own.
- Tokens and labels are left out, and what ``activations`` leaves out.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torchtitan.config import TORCH_DTYPE_MAP, JobConfig
from torchtitan.distributed import ParallelDims
from torchtitan.models.llama3 import Transformer

from torchtitan_lighthouse.estimate.activations import Block, Checkpointing, Tensors
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.models.of_job import model_args_of
from torchtitan_lighthouse.titan.stages import Stage, stage_at

_FLOAT32 = 4


class Peak(NamedTuple):
    """The moment when a rank holds most, and the bytes of each part that it then holds."""

    moment: str
    parts: Counter[str]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())


class MemoryModel:
    """What a rank of a job holds, as a function of the sequence length.

    Args:
        job_config: a job of ``llama3_lighthouse``.
        gpus: how many it runs on; by default as few as its parallelism takes.

    Raises:
        ValueError: an unknown flavor, parallelism that does not fit ``gpus``, or something that is
            not modelled.
    """

    def __init__(self, job_config: JobConfig, gpus: int | None = None) -> None:
        _check_modelled(job_config)
        self._job = job_config
        self._dims = dims = parallel_dims_of(job_config, gpus)
        self._args = model_args_of(job_config)
        self._args.update_from_config(job_config)
        with torch.device("meta"):
            model = Transformer(self._args)
        layer = model.layers["0"]

        self._weights = sum(p.numel() for p in model.parameters()) // dims.tp
        self._output_weights = model.output.weight.numel() // dims.tp
        self._block_weights = sum(p.numel() for p in layer.parameters()) // dims.tp
        self._shards = dims.dp_shard * dims.cp
        self._rope_row = model.freqs_cis[0].numel() * model.freqs_cis.itemsize

        training, compiler = job_config.training, job_config.compile
        self._weight_size = TORCH_DTYPE_MAP[training.dtype].itemsize
        # torchtitan has mixed precision by FSDP, else by autocast, which leaves the residual stream
        # as precise as the weights are; beside tensor parallelism alone it has none.
        low_precision = TORCH_DTYPE_MAP[training.mixed_precision_param].itemsize
        autocast = not dims.fsdp_enabled and not dims.tp_enabled
        self._size = low_precision if dims.fsdp_enabled or autocast else self._weight_size
        self._casts = autocast and self._size != self._weight_size
        self._compiles_loss = compiler.enable and "loss" in compiler.components
        self._block = Block(
            dim=self._args.dim,
            query=layer.attention.wq.out_features // dims.tp,
            key=layer.attention.wk.out_features // dims.tp,
            ffn=layer.feed_forward.w1.out_features // dims.tp,
            element=self._size,
            residual_element=self._size if dims.fsdp_enabled else self._weight_size,
            casts=self._casts,
            compiled=compiler.enable and "model" in compiler.components,
            tensor_parallel=dims.tp,
            context_parallel=dims.cp,
            all_gathers=job_config.parallelism.context_parallel_rotate_method == "allgather",
            one_gather=job_config.parallelism.context_parallel_attention == "allgather",
        )

    @property
    def gpus(self) -> int:
        """How many GPUs the job runs on."""
        return self._dims.world_size

    @property
    def stages(self) -> list[Stage]:
        """The stages that the job passes through, in order."""
        ends = (1, self._job.training.steps)
        return list(dict.fromkeys(stage_at(step, self._job.lighthouse) for step in ends))

    def peak(self, seq_len: int, stage: Stage) -> Peak:
        """The peak of one stage.

        Raises:
            ValueError: the pyramid does not fit ``seq_len``.
        """
        return max(self._moments(seq_len, stage), key=lambda peak: peak.total)

    def largest_seq_len(self, limit: int) -> int:
        """The longest sequence that fits in ``limit`` bytes in every stage, all else unchanged.

        0 if not even the shortest that the job's pyramid takes fits.
        """
        unit, least = self._seq_len_unit()

        def fits(units: int) -> bool:
            return all(self.peak(units * unit, stage).total <= limit for stage in self.stages)

        if not fits(least):
            return 0
        fitting, too_long = least, 2 * least
        while fits(too_long):
            fitting, too_long = too_long, 2 * too_long
        while too_long - fitting > 1:
            middle = (fitting + too_long) // 2
            if fits(middle):
                fitting = middle
            else:
                too_long = middle
        return fitting * unit

    def _moments(self, seq_len: int, stage: Stage) -> Iterator[Peak]:
        tokens = self._job.training.local_batch_size * seq_len // self._dims.cp
        rows = self._attention_rows(tokens, seq_len, stage)
        modes = [self._checkpointing(layer) for layer in range(len(rows))]
        blocks = list(zip(rows, modes, strict=True))
        kept = [self._block.kept(tokens, *block) for block in blocks]
        casts = [self._kept_casts(mode) for mode in modes]

        def moment(name: str, layers: int, weights: int, done: int, **parts: int) -> Peak:
            """``layers`` blocks keep tensors, ``weights`` are in use, ``done`` have gradients."""
            held = self._held(seq_len, done)
            held["copies of weights"] = self._in_use(weights) + sum(casts[:layers])
            for part in Tensors._fields:
                size = sum(getattr(tensors, part) for tensors in kept[:layers])
                held[f"kept by blocks: {part.replace('_', '-')}"] = size
            return Peak(name, held + Counter(parts))

        yield moment(
            "the loss",
            len(blocks),
            self._output_weights,
            self._output_weights,
            **{"logits and loss": self._loss(tokens)},
        )
        done = self._output_weights
        for layer in reversed(range(len(blocks))):
            working = self._block.backward(tokens, *blocks[layer])
            name = f"the backward of layer {layer}"
            parts = {"the block in its backward": working}
            yield moment(name, layer + 1, self._block_weights, done, **parts)
            done += self._block_weights
        yield moment("the optimizer's step", 0, 0, self._weights)

    def _held(self, seq_len: int, done: int) -> Counter[str]:
        """Parameters, optimizer and gradients, those of ``done`` weights of the last batch."""
        shard = self._weights // self._shards * self._weight_size
        held = Counter({"parameters and RoPE": shard + seq_len * self._rope_row})
        held["optimizer"] = 2 * shard
        held["gradients"] = shard if self._accumulates else done // self._shards * self._weight_size
        if self._dims.dp_replicate_enabled and not self._dims.fsdp_enabled:
            held["gradients"] += shard  # DDP's buckets
        return held

    @property
    def _accumulates(self) -> bool:
        """Whether a step has several batches, so that all gradients exist after the first."""
        training = self._job.training
        local = training.local_batch_size * self._dims.dp_replicate * self._dims.dp_shard
        return training.global_batch_size > local

    def _in_use(self, weights: int) -> int:
        """Autocast's copies of the weights in use, or what FSDP gathers of them and reduces.

        FSDP gathers the next block too, and reduces in float32.
        """
        if not self._dims.fsdp_enabled:
            return weights * self._size if self._casts else 0
        gathered = weights + self._block_weights
        if self._job.parallelism.fsdp_reshard_after_forward == "never":
            gathered = self._weights
        return gathered * self._size + weights * (self._size + _FLOAT32)

    def _kept_casts(self, mode: Checkpointing) -> int:
        """Autocast's copies of the weights, which a block that is not checkpointed keeps."""
        return self._block_weights * self._size if self._casts and mode == "none" else 0

    def _loss(self, tokens: int) -> int:
        """The logits and their gradient, and the last norm's input and output.

        Compiled, both are of the model's precision. Otherwise the cross entropy's backward has
        three float32 tensors of that size: log-probabilities and two gradients.
        """
        split = 1 if self._job.parallelism.disable_loss_parallel else self._dims.tp
        logits = tokens * self._args.vocab_size // split
        width = tokens * self._args.dim
        norm = width * (self._block.residual_element // self._dims.tp + self._size)
        return logits * (2 * self._size if self._compiles_loss else 3 * _FLOAT32) + norm

    def _attention_rows(self, tokens: int, seq_len: int, stage: Stage) -> list[int]:
        """What attention sees in each layer: the tokens, or the entries that they are pooled to."""
        rows = [tokens] * self._args.n_layers
        config = self._args.lighthouse
        if stage == "lighthouse" and config is not None:
            for layer in self._args.lighthouse_layers:
                rows[layer] = tokens * config.sub_sequence_length(seq_len) // seq_len
        return rows

    def _checkpointing(self, layer: int) -> Checkpointing:
        section = self._job.activation_checkpoint
        if section.mode != "selective":
            return "full" if section.mode == "full" else "none"
        if section.selective_ac_option in ("op", "attention"):
            return section.selective_ac_option
        every = int(section.selective_ac_option)
        return "full" if not every or (layer + 1) % every == 0 else "none"

    def _seq_len_unit(self) -> tuple[int, int]:
        """What a sequence length must be a multiple of, and how many times at least."""
        unit, shortest = self._dims.seq_len_divisor, 1
        config = self._args.lighthouse
        if config is not None:
            unit, shortest = math.lcm(unit, config.seq_len_unit), config.shortest_seq_len
        return unit, math.ceil(shortest / unit)


def _check_modelled(job_config: JobConfig) -> None:
    beyond = {
        "parallelism.pipeline_parallel_degree": job_config.parallelism.pipeline_parallel_degree > 1,
        "training.enable_cpu_offload": job_config.training.enable_cpu_offload,
        "model.converters": bool(job_config.model.converters),
        "activation_checkpoint.mode": job_config.activation_checkpoint.mode == "memory_budget",
    }
    if used := [name for name, is_used in beyond.items() if is_used]:
        raise RefusalError(f"the memory of {' and '.join(used)} is not modelled: leave the default")


def parallel_dims_of(job_config: JobConfig, gpus: int | None) -> ParallelDims:
    """The degrees of a job on ``gpus``; None: on as few as they take.

    Raises:
        ValueError: they do not multiply to ``gpus``.
    """
    section = job_config.parallelism
    replicate = section.data_parallel_replicate_degree
    shard = section.data_parallel_shard_degree
    cp, tp = section.context_parallel_degree, section.tensor_parallel_degree
    fixed = replicate * cp * tp * max(shard, 1)
    if gpus is None:
        gpus = fixed
    if gpus % fixed or (shard != -1 and gpus != fixed):
        raise RefusalError(
            f"the [parallelism] degrees multiply to {fixed}, which is not {gpus} GPUs"
        )
    return ParallelDims(
        dp_replicate=replicate, dp_shard=shard, cp=cp, tp=tp, pp=1, ep=1, etp=1, world_size=gpus
    )
