"""The scorers' scores: [B, Hq, N, D] and [B, H, N, D] to float32 [B, H, N], once per stream."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_scores(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the norms of q's and k's rows, q's as the maximum over each group of heads.

    Args:
        q: [B, Hq, N, D], k: [B, H, N, D].

    Returns:
        Query and key scores, float32 [B, H, N].
    """
    query_norms = q.float().norm(dim=-1)
    return query_norms.unflatten(1, (k.shape[1], -1)).amax(2), k.float().norm(dim=-1)


def dilated_scores(q: Tensor, k: Tensor, v: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    """Compute ‖Attn(q, k, v)‖₂ and ‖Attn(k, q, v)‖₂, causally, within each residue modulo δ."""
    q, k, v = (x.unflatten(2, (-1, dilation)).movedim(3, 1).flatten(0, 1) for x in (q, k, v))
    attend = partial(F.scaled_dot_product_attention, is_causal=True)
    query_scores, key_scores = (
        scores.unflatten(0, (-1, dilation)).movedim(1, 3).flatten(2)
        for scores in norms_of_both_streams(attend, q, k, v)
    )
    return query_scores, key_scores


def gla_scores(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ‖GLA(q, k, v)‖₂ and ‖GLA(k, q, v)‖₂ of simple gated linear attention.

    Args:
        log_decay: log γ of each query head, float32 [Hq].
    """
    return norms_of_both_streams(partial(_simple_gla, log_decay=log_decay), q, k, v)


def norms_of_both_streams(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the row norms of attend(q, k, v) and attend(k, q, v), each group's maximum.

    What lies in memory as [B, N, H, D] comes to ``attend`` that way.
    """
    kv_heads = k.shape[1]
    if (group := q.shape[1] // kv_heads) > 1:
        k, v = (x.transpose(1, 2).repeat_interleave(group, 2).transpose(1, 2) for x in (k, v))
    query_scores, key_scores = (
        attend(*streams, v).float().norm(dim=-1).unflatten(1, (kv_heads, -1)).amax(2)
        for streams in ((q, k), (k, q))
    )
    return query_scores, key_scores


def _simple_gla(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """Linear attention with one fixed decay per head: o_t = q_t·S_t/√D, S_t = γ·S_{t-1} + k_tᵀ·v_t.

    Within a chunk it is a masked product; across chunks the states are summed by doubling.

    Args:
        q, k, v: [B, H, N, D]; log_decay: log γ, float [H].

    Returns:
        float32 [B, H, N, D].
    """
    seq_len, dim = q.shape[-2:]
    chunk = min(128, seq_len)
    q, k, v = (
        F.pad(x.float(), (0, 0, 0, -seq_len % chunk)).unflatten(2, (-1, chunk)) for x in (q, k, v)
    )
    age = torch.arange(chunk, device=q.device)
    decay = log_decay.float().view(-1, 1, 1, 1)
    lag = age.unsqueeze(-1) - age
    within = torch.where(lag >= 0, torch.exp(decay * lag.clamp(min=0)), 0.0)
    out = (q @ k.transpose(-1, -2) * within) @ v

    to_end = torch.exp(decay * (chunk - 1 - age).unsqueeze(-1))
    states = (k * to_end).transpose(-1, -2) @ v
    reach = 1
    while reach < states.shape[2]:
        carried = states[:, :, :-reach] * torch.exp(decay * chunk * reach)
        states = torch.cat([states[:, :, :reach], states[:, :, reach:] + carried], 2)
        reach *= 2
    earlier = F.pad(states, (0, 0, 0, 0, 1, -1))
    out = out + (q * torch.exp(decay * (age + 1).unsqueeze(-1))) @ earlier
    return out.flatten(2, 3)[:, :, :seq_len] / math.sqrt(dim)
