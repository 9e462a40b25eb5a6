"""Causal attention over a sequence that several ranks share, by one gather of keys and values.

Rank r of W attends to its own two pieces, causally, while the keys and values of the others are on
their way; then its two pieces attend to the first ones of ranks 0 to r-1, which lie before both;
then its second to both of each rank after it, which lie between its two. That is all that a causal
mask lets it see, in three calls of SDPA or fewer, merged by their log-sum-exps. Torch's ring
attention makes W calls, and passes gradients of keys and values around the ring in float32.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import _resolve_process_group

from torchtitan_lighthouse.attention import ops
from torchtitan_lighthouse.attention.context_parallel import ContextParallel
from torchtitan_lighthouse.attention.exchange import all_gather
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


@torch.library.custom_op("lighthouse::attend_across_ranks", mutates_args=())
def attend_across_ranks(
    q: Tensor, k: Tensor, v: Tensor, group_name: str, rank: int, size: int, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Return the output, in memory as [B, 2·n, Hq, D], and its log-sum-exp [B, Hq, 2·n].

    A collective: every rank of the group must call it.
    """
    received, work = _start_gather(k, v, group_name, size)
    own = attend(q, k, v, Numbers(True, scale))
    work.wait()
    earlier, later = (
        attend(q[:, :, beyond.rows], *_unpacked(received[beyond.pieces]), Numbers(False, scale))
        if beyond
        else (None, None)
        for beyond in _beyond_own_pieces(q, rank, size)
    )
    return ops.merge(*own, *earlier, *later, q.dtype)


@torch.library.custom_op("lighthouse::attend_across_ranks_backward", mutates_args=())
def attend_across_ranks_backward(
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
    """Return the gradients of q, laid out as q is, and of k and v together: [2, B, 2·n, Hkv, D].

    A collective, as ``attend_across_ranks`` is.
    """
    received, work = _start_gather(k, v, group_name, size)
    sent = torch.empty_like(received)
    dq, dk, dv = attend_backward(grad, q, k, v, out, lse, Numbers(True, scale))
    _pack(dk, dv, sent[rank])
    others = [beyond for beyond in _beyond_own_pieces(q, rank, size) if beyond]
    if len(others) > 1:  # one more addition may round to q's dtype, two may not
        dq = dq.to(_wide(q))
    work.wait()
    for rows, pieces in others:
        keys, values = _unpacked(received[pieces])
        grad_, q_, out_, lse_ = (x[:, :, rows] for x in (grad, q, out, lse))
        part, dk, dv = attend_backward(grad_, q_, keys, values, out_, lse_, Numbers(False, scale))
        dq[:, :, rows].add_(part)
        _pack(dk, dv, sent[pieces])
    if rank > 0:  # the second pieces of those before it lie after both of its own
        sent[:rank, 1].zero_()
    of_ranks = torch.empty_like(sent)
    distributed.all_to_all_single(of_ranks, sent, group=_resolve_process_group(group_name))
    dkv = _empty_dkv(k)
    torch.sum(of_ranks.flatten(1, 2), 0, out=dkv.permute(2, 0, 1, 3, 4))  # in float32 or wider
    return _laid_out_as(q, dq), dkv


def _start_gather(
    k: Tensor, v: Tensor, group_name: str, size: int
) -> tuple[Tensor, distributed.Work]:
    """Gather keys and values by rank, piece and token: [W, 2, n, 2, B, Hkv, D].

    They are complete once the returned work has been waited for.

    Packed so that the tokens of neighbouring pieces are neighbours, without a copy.
    """
    batch, heads, rows, dim = k.shape
    sent = k.new_empty(rows, 2, batch, heads, dim)
    _pack(k, v, sent)
    received = sent.new_empty(size * rows, *sent.shape[1:])
    work = all_gather(received, sent, group=_resolve_process_group(group_name), async_op=True)
    return received.unflatten(0, (size, 2, -1)), work


def _pack(k: Tensor, v: Tensor, into: Tensor) -> None:
    """Copy k and v, [B, Hkv, m, D] each, to ``into``, [..., 2, B, Hkv, D], by tokens."""
    for x, part in zip((k, v), into.unbind(-4), strict=True):
        part.copy_(x.permute(2, 0, 1, 3).view(part.shape))


def _unpacked(kv: Tensor) -> tuple[Tensor, Tensor]:
    """Split what ``_pack`` has packed."""
    k, v = kv.reshape(-1, *kv.shape[-4:]).permute(1, 2, 3, 0, 4).unbind()
    return k, v


class _Beyond(NamedTuple):
    """Rows of q, and the pieces of other ranks that these see all of, as indices of [W, 2, ...]."""

    rows: slice
    pieces: Any


def _beyond_own_pieces(q: Tensor, rank: int, size: int) -> tuple[_Beyond | None, _Beyond | None]:
    """What lies before both of the rank's pieces, and what between them."""
    earlier = _Beyond(slice(None), (slice(rank), 0)) if rank > 0 else None
    later = (
        _Beyond(slice(q.shape[2] // 2, None), slice(rank + 1, None)) if rank < size - 1 else None
    )
    return earlier, later


def _laid_out_as(q: Tensor, dq: Tensor) -> Tensor:
    out = torch.empty_like(q)
    return dq if (dq.dtype, dq.stride()) == (out.dtype, out.stride()) else out.copy_(dq)


def _empty_dkv(k: Tensor) -> Tensor:
    batch, heads, rows, dim = k.shape
    return k.new_empty(2, batch, rows, heads, dim)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@attend_across_ranks.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return empty_rows(q, q.shape[2]), q.new_empty(q.shape[:-1], dtype=_wide(q))


@attend_across_ranks_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), _empty_dkv(k)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.numbers = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    dq, dkv = attend_across_ranks_backward(grad, *ctx.saved_tensors, *ctx.numbers)
    dk, dv = dkv.transpose(2, 3).unbind()
    return dq, dk, dv, *[None] * len(ctx.numbers)


attend_across_ranks.register_autograd(_backward, setup_context=_keep)

ATTEND = torch.ops.lighthouse.attend_across_ranks.default
"""What activation checkpointing should keep of it: output and log-sum-exp, as of SDPA."""
