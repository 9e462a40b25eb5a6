"""Causal attention over a sequence that several ranks share, by one gather of keys and values.

Rank r of W attends to its own two pieces, causally, while the keys and values of the others are on
their way; then its two pieces attend to the first ones of ranks 0 to r-1, which lie before both;
then its second to both of each rank after it, which lie between its two. That is all that a causal
mask lets it see, in three calls of SDPA or fewer, merged by their log-sum-exps. Torch's ring
attention makes W calls, and passes gradients of keys and values around the ring in float32.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchtitan_lighthouse.attention import ops
from torchtitan_lighthouse.attention.context_parallel import ContextParallel
from torchtitan_lighthouse.attention.define import define, differentiate
from torchtitan_lighthouse.attention.packed import pack, start_gather, sum_over_ranks, unpacked
from torchtitan_lighthouse.attention.reference import empty_rows
from torchtitan_lighthouse.attention.sdpa import Numbers, attend, attend_backward
from torchtitan_lighthouse.refusal import RefusalError


class AllGatherAttention(nn.Module):
    """SDPA of a rank's queries with the keys and values of all ranks.

    Args:
        context_parallel: the ranks, whose pieces of the sequence have one length.
    """

    def __init__(self, context_parallel: ContextParallel) -> None:
        super().__init__()
        self.context_parallel = context_parallel

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
        is_causal: bool = True,
    ) -> Tensor:
        """Attend from this rank's two pieces of n tokens to the pieces of all ranks.

        Args:
            q: [B, Hq, 2·n, D].
            k, v: [B, Hkv, 2·n, D].
            scale: of the logits; by default 1/√D.
            enable_gqa: taken for SDPA's sake; groups of heads need no asking for.
            is_causal: must be true.

        Returns:
            [B, Hq, 2·n, D] of q's dtype.

        Raises:
            RefusalError: ``is_causal`` is false.
        """
        if not is_causal:
            raise RefusalError("attention across ranks is causal: its pieces are balanced for that")
        out, _ = attend_across_ranks(q, k, v, *self.context_parallel, scale)
        return out


def _across_ranks(
    q: Tensor, k: Tensor, v: Tensor, group_name: str, rank: int, size: int, scale: float | None
) -> tuple[Tensor, Tensor]:
    received, work = start_gather(k, v, group_name, size)
    own = attend(q, k, v, Numbers(True, scale))
    work.wait()
    earlier, later = (
        attend(q[:, :, beyond.rows], *unpacked(received[beyond.pieces]), Numbers(False, scale))
        if beyond
        else (None, None)
        for beyond in _beyond_own_pieces(q, rank, size)
    )
    return ops.merge(*own, *earlier, *later, q.dtype)


def _across_ranks_fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return empty_rows(q, q.shape[2]), q.new_empty(q.shape[:-1], dtype=_wide(q))


def _backward_across_ranks(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    group_name: str,
    rank: int,
    size: int,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    received, work = start_gather(k, v, group_name, size)
    sent = torch.empty_like(received)
    dq, dk, dv = attend_backward(grad, q, k, v, out, lse, Numbers(True, scale))
    pack(dk, dv, sent[rank])
    others = [beyond for beyond in _beyond_own_pieces(q, rank, size) if beyond]
    if len(others) > 1:  # one more addition may round to q's dtype, two may not
        dq = dq.to(_wide(q))
    work.wait()
    for rows, pieces in others:
        keys, values = unpacked(received[pieces])
        grad_, q_, out_, lse_ = (x[:, :, rows] for x in (grad, q, out, lse))
        part, dk, dv = attend_backward(grad_, q_, keys, values, out_, lse_, Numbers(False, scale))
        dq[:, :, rows].add_(part)
        pack(dk, dv, sent[pieces])
    if rank > 0:  # the second pieces of those before it lie after both of its own
        sent[:rank, 1].zero_()
    as_q, dkv = _backward_across_ranks_fake(grad, q, k)
    sum_over_ranks(sent, group_name, dkv)
    if (dq.dtype, dq.stride()) != (as_q.dtype, as_q.stride()):
        dq = as_q.copy_(dq)
    return dq, dkv


def _backward_across_ranks_fake(
    grad: Tensor, q: Tensor, k: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    batch, heads, rows, dim = k.shape
    return torch.empty_like(q), k.new_empty(2, batch, rows, heads, dim)


class _Beyond(NamedTuple):
    """Rows of q, and the pieces of other ranks that these see all of, as indices of the buffer."""

    rows: slice
    pieces: Any


def _beyond_own_pieces(q: Tensor, rank: int, size: int) -> tuple[_Beyond | None, _Beyond | None]:
    """What lies before both of the rank's pieces, and what between them."""
    earlier = _Beyond(slice(None), (slice(rank), 0)) if rank > 0 else None
    later = (
        _Beyond(slice(q.shape[2] // 2, None), slice(rank + 1, None)) if rank < size - 1 else None
    )
    return earlier, later


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


_PLACE = "str group_name, int rank, int size, float? scale"
attend_across_ranks = define(
    "attend_across_ranks",
    f"(Tensor q, Tensor k, Tensor v, {_PLACE}) -> (Tensor out, Tensor lse)",
    _across_ranks_fake,
    _across_ranks,
)
"""Return the output, in memory as [B, 2·n, Hq, D], and its log-sum-exp [B, Hq, 2·n].

A collective: every rank of the group must call it. Activation checkpointing should keep both, as of
SDPA.
"""

_attend_across_ranks_backward = define(
    "attend_across_ranks_backward",
    f"(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_PLACE})"
    " -> (Tensor dq, Tensor dkv)",
    _backward_across_ranks_fake,
    _backward_across_ranks,
)
"""Return the gradients of q, laid out as q is, and of k and v together: [2, B, 2·n, Hkv, D].

A collective, too.
"""


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.numbers = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    dq, dkv = _attend_across_ranks_backward(grad, *ctx.saved_tensors, *ctx.numbers)
    dk, dv = dkv.transpose(2, 3).unbind()
    return dq, dk, dv, *[None] * len(ctx.numbers)


differentiate("attend_across_ranks", _backward, _keep)
