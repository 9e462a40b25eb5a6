"""The bytes of a Llama-3 block's tensors on one rank: kept for its backward, and needed in it.

T tokens of a rank, of which attention sees R rows (S gathered entries in a Lighthouse layer);
widths d (residual stream), q and kv (heads), f (feed-forward); r bytes an element of the residual
stream, c of the others. Without checkpointing a compiled dense block keeps::

    input           r·T·d
    attention       normed input c·T·d; q, k, v and output c·R·(2·q + 2·kv); projection c·T·d
    feed-forward    normed input c·T·d; two branches and their product 3·c·T·f

A Lighthouse block has R = S and keeps its scattered output, c·T·q, too. With context parallel a
block keeps the k and v of all W ranks, 2·W·c·R·kv, if the ring gathers them; attention by one
gather keeps nothing of other ranks. Without compile the residual stream, r·T·d, takes the
projection's place, silu's result is kept, the ring gathers again in the backward, and autocast
keeps a normed input once for each matrix that it meets.

The backward recomputes what was not kept, and holds gradients. Most are alive either in the
feed-forward, three of width f, or in attention, when what the feed-forward kept is free again:
those of q, k and v, with what RoPE works in, float32 without compile, or what ranks send and
receive: in torch's ring the float32 gradients of k and v, which compile sums where they are sent
from; by one gather k, v and, twice, their gradients, of all ranks.

The kept tensors are those of torch 2.11 to 2.13. The gradients are an upper bound, by less than one
tensor of width f: when each is freed is up to torch.compile. Left out are tables of less than 3% of
c·T·d: log-sum-exps, reciprocal norms, the selection.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Checkpointing = Literal["none", "op", "attention", "full"]

_FLOAT32 = 4


class Tensors(NamedTuple):
    """The bytes of a block's tensors, by the part of the block that they belong to."""

    input: int
    attention: int
    feed_forward: int


@dataclass(frozen=True)
class Block:
    """Widths, element sizes and parallelism of a block on one rank.

    Attributes:
        dim: d, never divided.
        query, key, ffn: q, kv and f, divided among the tensor-parallel ranks.
        element: c, bytes.
        residual_element: r, bytes.
        casts: whether autocast makes the elements of c bytes.
        compiled: whether the block is under ``torch.compile``.
        tensor_parallel: the ranks that divide the residual stream between them.
        context_parallel: W, the ranks that share a sequence.
        all_gathers: whether the ring gathers k and v of all ranks, or passes them on one by one.
        one_gather: whether there is no ring (see ``attention.all_gather``).
    """

    dim: int
    query: int
    key: int
    ffn: int
    element: int
    residual_element: int
    casts: bool
    compiled: bool
    tensor_parallel: int = 1
    context_parallel: int = 1
    all_gathers: bool = True
    one_gather: bool = False

    def tensors(self, tokens: int, rows: int) -> Tensors:
        """Count the bytes that the block keeps without checkpointing.

        Args:
            tokens: T.
            rows: R; other than T it is S, of a Lighthouse layer.
        """
        residual = self._residual(tokens)
        normed = tokens * self.dim * self.element
        into_attention, into_ffn = (3, 2) if self.casts and not self.compiled else (1, 1)
        projection = tokens * self.dim * self.element // self.tensor_parallel
        heads = self._gathered(rows) + self._width(self.query, rows)
        scattered = self._width(self.query, tokens) if rows != tokens else 0
        return Tensors(
            input=residual,
            attention=into_attention * normed
            + heads
            + scattered
            + (self._of_all_ranks(rows) if self.compiled else 0)
            + (projection if self.compiled else residual),
            feed_forward=into_ffn * normed
            + (3 if self.compiled else 4) * self._width(self.ffn, tokens),
        )

    def kept(self, tokens: int, rows: int, checkpointing: Checkpointing) -> Tensors:
        """Count the bytes that the block keeps from its forward to its backward.

        "attention" saves SDPA's output; a compiled ring all that its backward reads. "op" saves the
        gathered rows too, and every second matrix product: those of wq, wv, w1 and w2.
        torch.compile drops the ones that the backward does not need.
        """
        everything = self.tensors(tokens, rows)
        if checkpointing == "none":
            return everything
        if checkpointing == "full":
            return Tensors(everything.input, 0, 0)
        attention = self._width(self.query, rows)
        if self.compiled:
            attention += self._of_all_ranks(rows)
        if checkpointing == "attention":
            own = self._width(2 * self.key, rows) if self.compiled and self._has_ring else 0
            return Tensors(everything.input, attention + own, 0)
        feed_forward = self._width(self.ffn, tokens)
        lighthouse = rows != tokens
        if lighthouse:
            attention += self._gathered(rows)
        if not (lighthouse and self.compiled):
            attention += self._width(self.query + self.key, tokens)
        if not self.compiled:
            feed_forward += tokens * self.dim * self.element // self.tensor_parallel
        return Tensors(everything.input, attention, feed_forward)

    def backward(self, tokens: int, rows: int, checkpointing: Checkpointing) -> int:
        """Count the bytes that the backward needs at its peak, beside what the block kept."""
        tensors = self.tensors(tokens, rows)
        recomputed = sum(tensors) - sum(self.kept(tokens, rows, checkpointing))
        of_output = self._residual(tokens)
        if self.casts:
            of_output += tokens * self.dim * self.element
        in_ffn = 3 * self._width(self.ffn, tokens)
        in_attention = self._attention_gradients(tokens, rows) - tensors.feed_forward
        return recomputed + of_output + max(in_ffn, in_attention)

    def _attention_gradients(self, tokens: int, rows: int) -> int:
        """Count the gradients of q, k, v and the output, and what RoPE or the ring works in."""
        gradients = self._width(2 * self.query + 2 * self.key, tokens)
        rope = (
            self._width(self.query, tokens) if self.compiled else 4 * _FLOAT32 * tokens * self.query
        )
        return gradients + max(rope, self._across_ranks(rows))

    def _across_ranks(self, rows: int) -> int:
        """Count what attention across ranks holds beside the gradients of one rank's q, k, v."""
        if self.context_parallel == 1:
            return 0
        keys_and_values = 2 * rows * self.key
        if self.one_gather:
            sums = _FLOAT32 * (rows * self.query + keys_and_values)
            return sums + 3 * self.context_parallel * keys_and_values * self.element
        sent_and_received = 2 * _FLOAT32 * keys_and_values
        if self.compiled:
            return sent_and_received
        sums = _FLOAT32 * (rows * self.query + keys_and_values)
        around = self._of_all_ranks(rows) or 2 * keys_and_values * self.element
        return sums + self._gathered(rows) + sent_and_received + around

    def _of_all_ranks(self, rows: int) -> int:
        """Count k and v of the ranks that share a sequence, where the ring gathers them."""
        if not self._has_ring or not self.all_gathers:
            return 0
        return self.context_parallel * self._width(2 * self.key, rows)

    @property
    def _has_ring(self) -> bool:
        return self.context_parallel > 1 and not self.one_gather

    def _residual(self, tokens: int) -> int:
        return tokens * self.dim * self.residual_element // self.tensor_parallel

    def _gathered(self, rows: int) -> int:
        """Count the rows of q, k and v that attention reads."""
        return self._width(self.query + 2 * self.key, rows)

    def _width(self, width: int, rows: int) -> int:
        return rows * width * self.element
