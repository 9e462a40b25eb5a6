"""Keys and values of ranks that share a sequence, and their gradients, as one buffer each.

It is [W, 2, n, 2, B, Hkv, D]: by rank, piece and token, k before v, so that the tokens of
neighbouring pieces are neighbours. Parts of it are packed and unpacked without a copy more.
"""

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import _resolve_process_group

from torchtitan_lighthouse.attention.exchange import all_gather


def start_gather(
    k: Tensor, v: Tensor, group_name: str, size: int
) -> tuple[Tensor, distributed.Work]:
    """Gather the keys and values of W ranks, [B, Hkv, 2·n, D] of each. A collective.

    The buffer is complete once the returned work has been waited for.
    """
    batch, heads, rows, dim = k.shape
    received = k.new_empty(size, 2, rows // 2, 2, batch, heads, dim)
    sent = torch.empty_like(received[0])
    pack(k, v, sent)
    group = _resolve_process_group(group_name)
    work = all_gather(received.flatten(0, 1), sent, group=group, async_op=True)
    return received, work


def sum_over_ranks(sent: Tensor, group_name: str, out: Tensor) -> None:
    """Sum what all ranks send for this one's keys and values, in float32 or wider. A collective.

    Args:
        sent: the buffer with what this rank has for each rank.
        out: [2, B, 2·n, Hkv, D], of the keys and of the values.
    """
    received = torch.empty_like(sent)
    distributed.all_to_all_single(received, sent, group=_resolve_process_group(group_name))
    torch.sum(received.flatten(1, 2), 0, out=out.permute(2, 0, 1, 3, 4))


def pack(k: Tensor, v: Tensor, into: Tensor) -> None:
    """Copy k and v, [B, Hkv, m, D] each, to a part of a buffer, [..., 2, B, Hkv, D]."""
    by_tokens = (*into.shape[:-4], *into.shape[-3:])
    torch.stack([x.permute(2, 0, 1, 3).view(by_tokens) for x in (k, v)], -4, out=into)


def unpacked(part: Tensor) -> tuple[Tensor, Tensor]:
    """Split a part of a buffer, [..., 2, B, Hkv, D], into k and v."""
    k, v = part.reshape(-1, *part.shape[-4:]).permute(1, 2, 3, 0, 4).unbind()
    return k, v
