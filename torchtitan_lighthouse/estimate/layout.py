"""The numbers of a training job that its memory follows from, in one of its stages."""

import math
from dataclasses import dataclass
from functools import cached_property

from torchtitan_lighthouse.attention.config import LighthouseConfig
from torchtitan_lighthouse.attention.pyramid import number_of_pieces
from torchtitan_lighthouse.estimate.activations import Block, Checkpointing

_COMPLEX64 = 8  # bytes


@dataclass(frozen=True)
class Layout:
    """The sizes of a Llama-3 and of its training, and the ranks that it is divided among.

    Attributes:
        dim, heads, kv_heads, head_dim, ffn, vocab: widths of the model.
        checkpointing: of each layer, what is kept of it; as many as there are layers.
        lighthouse_layers: the numbers, from 0, of those that attend to S gathered entries.
        attention: the method's numbers, which a sequence length must fit in the dense stage too.
        local_batch_size: sequences that a rank has at once.
        global_batch_size: sequences of a step; -1: one local batch of every data-parallel rank.
        replicas, shards, context_parallel, tensor_parallel: degrees of parallelism, whose product
            is the number of ranks.
        ring_gathers: whether torch's ring gathers the k and v of all ranks.
        one_gather: whether context parallel has no ring (see ``attention.all_gather``).
        reshards: whether FSDP frees gathered weights after a block's forward.
        splits_loss: whether tensor-parallel ranks divide the logits among themselves.
        weight_size: bytes per element of the parameters, the optimizer and the gradients.
        low_precision_size: bytes per element under mixed precision.
        compiled, compiled_loss: whether the blocks and the loss are under ``torch.compile``.
    """

    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    checkpointing: tuple[Checkpointing, ...]
    lighthouse_layers: tuple[int, ...] = ()
    attention: LighthouseConfig | None = None
    local_batch_size: int = 1
    global_batch_size: int = -1
    replicas: int = 1
    shards: int = 1
    context_parallel: int = 1
    tensor_parallel: int = 1
    ring_gathers: bool = True
    one_gather: bool = False
    reshards: bool = True
    splits_loss: bool = True
    weight_size: int = 4
    low_precision_size: int = 2
    compiled: bool = True
    compiled_loss: bool = True

    @property
    def ranks(self) -> int:
        """The ranks of the job, one to a GPU."""
        return self.replicas * self.weight_shards * self.tensor_parallel

    @property
    def weight_shards(self) -> int:
        """The ranks that FSDP divides the weights among, those that share a sequence included."""
        return self.shards * self.context_parallel

    @property
    def uses_fsdp(self) -> bool:
        """Whether FSDP divides the weights."""
        return self.weight_shards > 1

    @property
    def uses_ddp(self) -> bool:
        """Whether DDP replicates the model."""
        return self.replicas > 1 and not self.uses_fsdp

    @property
    def accumulates(self) -> bool:
        """Whether a step has several batches, so that all gradients exist after the first."""
        return self.global_batch_size > self.local_batch_size * self.replicas * self.shards

    @property
    def element(self) -> int:
        """Bytes per element of what blocks compute.

        torchtitan has mixed precision by FSDP, else by autocast, which leaves the residual stream
        as precise as the weights are; beside tensor parallelism alone it has none.
        """
        mixed = self.uses_fsdp or self.tensor_parallel == 1
        return self.low_precision_size if mixed else self.weight_size

    @property
    def residual_element(self) -> int:
        """Bytes per element of the residual stream."""
        return self.element if self.uses_fsdp else self.weight_size

    @property
    def casts(self) -> bool:
        """Whether autocast makes copies of the weights."""
        return not self.uses_fsdp and self.element != self.weight_size

    @property
    def block_weights(self) -> int:
        """Parameters of one layer on one tensor-parallel rank, before FSDP divides them."""
        projections = 2 * self.dim * (self.heads + self.kv_heads) * self.head_dim
        feed_forward = 3 * self.dim * self.ffn
        return (projections + feed_forward + 2 * self.dim) // self.tensor_parallel

    @property
    def output_weights(self) -> int:
        """Parameters of the output on one tensor-parallel rank; the embedding has as many."""
        return self.vocab * self.dim // self.tensor_parallel

    @property
    def weights(self) -> int:
        """All parameters on one tensor-parallel rank, before FSDP divides them."""
        layers = len(self.checkpointing) * self.block_weights
        return layers + 2 * self.output_weights + self.dim // self.tensor_parallel

    @property
    def rope_row(self) -> int:
        """Bytes of RoPE's table for one position: a complex number for two columns of a head."""
        return self.head_dim // 2 * _COMPLEX64

    @cached_property
    def block(self) -> Block:
        """The widths of a block on one rank."""
        return Block(
            dim=self.dim,
            query=self.heads * self.head_dim // self.tensor_parallel,
            key=self.kv_heads * self.head_dim // self.tensor_parallel,
            ffn=self.ffn // self.tensor_parallel,
            element=self.element,
            residual_element=self.residual_element,
            casts=self.casts,
            compiled=self.compiled,
            tensor_parallel=self.tensor_parallel,
            context_parallel=self.context_parallel,
            all_gathers=self.ring_gathers,
            one_gather=self.one_gather,
        )

    def tokens(self, seq_len: int) -> int:
        """The tokens of a batch that one rank has."""
        return self.local_batch_size * seq_len // self.context_parallel

    def attention_rows(self, seq_len: int) -> list[int]:
        """The rows that attention sees in each layer: tokens, or the entries they are pooled to.

        Raises:
            RefusalError: the pyramid does not fit ``seq_len``.
        """
        tokens = self.tokens(seq_len)
        rows = [tokens] * len(self.checkpointing)
        if self.attention is not None and self.lighthouse_layers:
            slots = self.attention.sub_sequence_length(seq_len)
            gathered = self.local_batch_size * slots // self.context_parallel
            for layer in self.lighthouse_layers:
                rows[layer] = gathered
        return rows

    def seq_len_unit(self) -> tuple[int, int]:
        """What a sequence length must be a multiple of, and how many times at least."""
        # Tensor parallelism divides each piece of a sequence once more.
        unit, shortest = number_of_pieces(self.context_parallel) * self.tensor_parallel, 1
        if self.attention is not None:
            unit = math.lcm(unit, self.attention.seq_len_unit)
            shortest = self.attention.shortest_seq_len
        return unit, math.ceil(shortest / unit)


def checkpointing_of(layer: int, mode: str, option: str) -> Checkpointing:
    """Return what a layer keeps, reading ``activation_checkpoint`` as torchtitan does.

    Args:
        layer: its number, from 0.
        mode: "none", "selective" or "full".
        option: of "selective": a form, or the n of every n-th layer.
    """
    if mode != "selective":
        return "full" if mode == "full" else "none"
    if option == "op":
        return "op"
    if option == "attention":
        return "attention"
    every = int(option)
    return "full" if not every or (layer + 1) % every == 0 else "none"
