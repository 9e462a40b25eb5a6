"""The peak memory of a training job per GPU, from its numbers alone.

Parameters are counted; activations follow from the shapes of the tensors that autograd keeps (see
``activations``). The peak is the largest of these moments: the loss; the backward of each block,
with all that the blocks before it keep; the optimizer's step.

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

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torchtitan_lighthouse.estimate.activations import Checkpointing, Tensors
from torchtitan_lighthouse.estimate.layout import Layout

_FLOAT32 = 4


class Peak(NamedTuple):
    """The moment when a rank holds most, and the bytes of each part that it then holds."""

    moment: str
    parts: Counter[str]

    @property
    def total(self) -> int:
        """All parts together, in bytes."""
        return sum(self.parts.values())


def peak(layout: Layout, seq_len: int) -> Peak:
    """Estimate the peak of one stage of a job, on one GPU.

    Raises:
        RefusalError: the pyramid does not fit ``seq_len``.
    """
    return max(_moments(layout, seq_len), key=lambda moment: moment.total)


def largest_seq_len(stages: Iterable[Layout], limit: int) -> int:
    """Find the longest sequence that fits in ``limit`` bytes in every stage, all else unchanged.

    In tokens; 0 if not even the shortest that the pyramid takes fits.

    Args:
        stages: the layouts of one job.
    """
    layouts = list(stages)
    unit, least = layouts[0].seq_len_unit()

    def fits(units: int) -> bool:
        return all(peak(layout, units * unit).total <= limit for layout in layouts)

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


def _moments(layout: Layout, seq_len: int) -> Iterator[Peak]:
    tokens, rows, modes = (
        layout.tokens(seq_len),
        layout.attention_rows(seq_len),
        layout.checkpointing,
    )
    blocks = list(zip(rows, modes, strict=True))
    kept = [layout.block.kept(tokens, *block) for block in blocks]
    casts = [_kept_casts(layout, mode) for mode in modes]

    def moment(name: str, layers: int, weights: int, done: int, **parts: int) -> Peak:
        """When ``layers`` blocks keep tensors, ``weights`` are in use, ``done`` have gradients."""
        held = _held(layout, seq_len, done)
        held["copies of weights"] = _in_use(layout, weights) + sum(casts[:layers])
        for part in Tensors._fields:
            size = sum(getattr(tensors, part) for tensors in kept[:layers])
            held[f"kept by blocks: {part.replace('_', '-')}"] = size
        return Peak(name, held + Counter(parts))

    done = layout.output_weights
    loss = {"logits and loss": _loss(layout, tokens)}
    yield moment("the loss", len(blocks), layout.output_weights, done, **loss)
    for layer in reversed(range(len(blocks))):
        working = {"the block in its backward": layout.block.backward(tokens, *blocks[layer])}
        name = f"the backward of layer {layer}"
        yield moment(name, layer + 1, layout.block_weights, done, **working)
        done += layout.block_weights
    yield moment("the optimizer's step", 0, 0, layout.weights)


def _held(layout: Layout, seq_len: int, done: int) -> Counter[str]:
    """Count parameters, optimizer and gradients, of which the last batch has made ``done``."""
    shard = layout.weights // layout.weight_shards * layout.weight_size
    held = Counter({"parameters and RoPE": shard + seq_len * layout.rope_row})
    held["optimizer"] = 2 * shard
    of_done = done // layout.weight_shards * layout.weight_size
    held["gradients"] = shard if layout.accumulates else of_done
    if layout.uses_ddp:
        held["gradients"] += shard  # DDP's buckets
    return held


def _in_use(layout: Layout, weights: int) -> int:
    """Count autocast's copies of the weights in use, or what FSDP gathers of them and reduces.

    FSDP gathers the next block too, and reduces in float32.
    """
    if not layout.uses_fsdp:
        return weights * layout.element if layout.casts else 0
    gathered = weights + layout.block_weights if layout.reshards else layout.weights
    return gathered * layout.element + weights * (layout.element + _FLOAT32)


def _kept_casts(layout: Layout, mode: Checkpointing) -> int:
    """Count autocast's copies of the weights, which a block without checkpointing keeps."""
    return layout.block_weights * layout.element if layout.casts and mode == "none" else 0


def _loss(layout: Layout, tokens: int) -> int:
    """Count the logits and their gradient, and the last norm's input and output.

    Compiled, both are of the model's precision. Otherwise the cross entropy's backward has three
    float32 tensors of that size: log-probabilities and two gradients.
    """
    split = layout.tensor_parallel if layout.splits_loss else 1
    logits = tokens * layout.vocab // split
    residual = layout.residual_element // layout.tensor_parallel
    norm = tokens * layout.dim * (residual + layout.element)
    return logits * (2 * layout.element if layout.compiled_loss else 3 * _FLOAT32) + norm
