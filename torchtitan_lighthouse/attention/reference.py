"""The ops of Lighthouse attention in plain PyTorch: what the fused kernels must equal.

Shapes: B batch, H selection heads (one per key/value head), Hx a multiple of H, N tokens,
S gathered entries, D head dim; L levels, pooling factor p. ``selection.py`` describes ``nodes``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_scores(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of the rows, the query's as the maximum over the heads that share a key head.

    Args:
        q: [B, Hq, N, D], k: [B, H, N, D].

    Returns:
        Query and key scores, float32 [B, H, N].
    """
    query_norms = q.float().norm(dim=-1)
    return query_norms.unflatten(1, (k.shape[1], -1)).amax(2), k.float().norm(dim=-1)


def select(
    query_scores: Tensor,
    key_scores: Tensor,
    levels: int,
    pooling_factor: int,
    topk: int,
    tile: int,
    pin_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Stratified top-k from the coarsest level down, and the post-order of what it gathers.

    Args:
        query_scores, key_scores: float [B, H, N].

    Returns:
        level, index: int32 [B, H, S], in gathered order.
        nodes: int32 [B, H, Σ_{ℓ≥1} N/p^ℓ].
    """
    expanded = _expand_best(query_scores, key_scores, levels, pooling_factor, topk, tile, pin_first)
    nodes = _post_order(expanded, levels, pooling_factor)
    seq_len = query_scores.shape[-1]
    slots = seq_len // pooling_factor ** (levels - 1) + (levels - 1) * pooling_factor * topk
    level, index = _in_order(nodes, seq_len, slots, levels, pooling_factor)
    return level, index, nodes


def _expand_best(
    query_scores: Tensor,
    key_scores: Tensor,
    levels: int,
    pooling_factor: int,
    topk: int,
    tile: int,
    pin_first: bool,
) -> list[Tensor]:
    """Which entries are expanded: bool [B, H, N/p^ℓ] for ℓ = 0..L, all of a root level L above."""
    # Ties must not depend on the sign of a zero.
    query_scores, key_scores = query_scores + 0.0, key_scores + 0.0
    if pin_first:
        query_scores[..., 0] = math.inf
    pooled = [(query_scores, key_scores)]
    for _ in range(1, levels):
        finer = pooled[-1]
        pooled.append(tuple(s.unflatten(-1, (-1, pooling_factor)).amax(-1) for s in finer))

    expanded = [torch.zeros_like(q, dtype=torch.bool) for q, _ in pooled]
    expanded.append(torch.ones_like(expanded[-1][..., ::pooling_factor]))
    if levels == 1:
        return expanded
    coarsest = torch.arange(expanded[levels - 1].shape[-1], device=query_scores.device)
    candidates = coarsest.view(topk // tile, -1).expand(*query_scores.shape[:2], -1, -1)
    children = torch.arange(pooling_factor, device=query_scores.device)
    for level in range(levels - 1, 0, -1):
        query, key = (
            s.gather(-1, candidates.flatten(2)).view_as(candidates) for s in pooled[level]
        )
        chosen = torch.zeros_like(candidates, dtype=torch.bool)
        for scores in (query, key):
            chosen.scatter_(-1, _best_of_rest(scores, chosen)[..., : tile // 2], True)
        expanded[level].scatter_(-1, candidates.flatten(2), chosen.flatten(2))
        chosen_first = chosen.sort(dim=-1, descending=True, stable=True).indices
        parents = candidates.gather(-1, chosen_first[..., :tile])
        candidates = (parents.unsqueeze(-1) * pooling_factor + children).flatten(3)
    return expanded


def _best_of_rest(scores: Tensor, taken: Tensor) -> Tensor:
    """Places by falling score, lower index first among equals; those already taken come last."""
    by_score = scores.sort(dim=-1, descending=True, stable=True).indices
    free_first = taken.gather(-1, by_score).sort(dim=-1, stable=True).indices
    return by_score.gather(-1, free_first)


def _post_order(expanded: list[Tensor], levels: int, pooling_factor: int) -> Tensor:
    """The nodes table: each entry's slot is the number of gathered entries that end before it.

    At level ℓ the gathered entries inside the first T tokens are p for each entry expanded at
    level ℓ+1 there, and the finished children of the one that T cuts. Of entries that end together
    the coarser comes later, hence T - 1 for the levels above.
    """
    before = [F.pad(e.cumsum(-1), (1, 0)) for e in expanded]
    cut = [F.pad(e, (0, 1)) for e in expanded]

    def gathered_within(level: int, tokens: Tensor) -> Tensor:
        parent = tokens // pooling_factor ** (level + 1)
        children = tokens // pooling_factor**level % pooling_factor
        return (
            before[level + 1][..., parent] * pooling_factor + cut[level + 1][..., parent] * children
        )

    nodes = [expanded[0].new_empty((*expanded[0].shape[:2], 0), dtype=torch.int32)]
    for level in range(1, levels):
        window = pooling_factor**level
        entries = expanded[level].shape[-1]
        end = torch.arange(1, entries + 1, device=expanded[0].device) * window
        slot = sum(gathered_within(n, end if n <= level else end - 1) for n in range(levels)) - 1
        present = expanded[level + 1].repeat_interleave(pooling_factor, -1)[..., :entries]
        nodes.append(torch.where(present, 2 * slot + expanded[level], -1).to(torch.int32))
    return torch.cat(nodes, -1)


def _entry_slots(
    nodes: Tensor, level: int, seq_len: int, levels: int, pooling_factor: int
) -> Tensor:
    """The slot of every entry of one level, -1 if it is not gathered: int64 [B, H, N/p^level]."""
    if levels == 1:
        return torch.arange(seq_len, device=nodes.device).expand(*nodes.shape[:2], -1)
    if level == 0:
        parents = nodes[..., : seq_len // pooling_factor].long()
        first_child = torch.where(parents & 1 == 1, parents // 2 - pooling_factor, -seq_len)
        children = torch.arange(pooling_factor, device=nodes.device)
        return (first_child.unsqueeze(-1) + children).flatten(-2).clamp(min=-1)
    widths = [seq_len // pooling_factor**n for n in range(1, levels)]
    return nodes.split(widths, -1)[level - 1].long() >> 1


def _in_order(
    nodes: Tensor, seq_len: int, slots: int, levels: int, pooling_factor: int
) -> tuple[Tensor, Tensor]:
    """Level and index of the entry in each slot: int32 [B, H, S] each."""
    # One slot more than there are takes the entries that are not gathered.
    level, index = (nodes.new_empty(*nodes.shape[:2], slots + 1) for _ in range(2))
    for n in range(levels):
        slot = _entry_slots(nodes, n, seq_len, levels, pooling_factor) % (slots + 1)
        level.scatter_(-1, slot, n)
        entries = torch.arange(slot.shape[-1], device=nodes.device, dtype=torch.int32)
        index.scatter_(-1, slot, entries.expand_as(slot))
    return level[..., :slots].contiguous(), index[..., :slots].contiguous()


def windows_to_slots(
    x: Tensor,
    nodes: Tensor,
    slots: int,
    levels: int,
    pooling_factor: int,
    pieces: int = 1,
    *,
    mean: bool,
    shifted: bool,
) -> Tensor:
    """Each gathered entry's sum (or mean) over its window of rows.

    ``shifted`` windows are those of the scatter: [(i+1)·p^ℓ - 1, (i+2)·p^ℓ - 2], clipped to the
    entry's piece of the sequence.

    Args:
        x: [B, Hx, N, D].

    Returns:
        [B, Hx, S, D] of x's dtype; sums are taken in float32, or float64 for float64 inputs.
    """
    batch, heads, seq_len, dim = x.shape
    nodes = nodes.repeat_interleave(heads // nodes.shape[1], 1)
    rows = _upcast(x).unflatten(2, (pieces, -1))
    out = rows.new_empty(batch, heads, slots + 1, dim)
    for level in range(levels):
        window = pooling_factor**level
        shift = window - 1 if shifted else 0
        sums = F.pad(rows[..., shift:, :], (0, 0, 0, shift)).unflatten(3, (-1, window)).sum(4)
        if mean:
            sums = sums / window
        slot = _entry_slots(nodes, level, seq_len, levels, pooling_factor) % (slots + 1)
        out.scatter_(2, slot.unsqueeze(-1).expand(-1, -1, -1, dim), sums.flatten(2, 3))
    return out[:, :, :slots].to(x.dtype).contiguous()


def slots_to_windows(
    y: Tensor,
    nodes: Tensor,
    seq_len: int,
    levels: int,
    pooling_factor: int,
    pieces: int = 1,
    *,
    mean: bool,
    shifted: bool,
) -> Tensor:
    """The transpose of ``windows_to_slots``: each row sums the entries whose window holds it.

    Args:
        y: [B, Hx, S, D].

    Returns:
        [B, Hx, N, D] of y's dtype, laid out in memory as [B, N, Hx, D].
    """
    batch, heads, _, dim = y.shape
    nodes = nodes.repeat_interleave(heads // nodes.shape[1], 1)
    entries = _upcast(y)
    out = entries.new_zeros(batch, heads, pieces, seq_len // pieces, dim)
    for level in range(levels):
        window = pooling_factor**level
        shift = window - 1 if shifted else 0
        slot = _entry_slots(nodes, level, seq_len, levels, pooling_factor).unsqueeze(-1)
        rows = entries.gather(2, slot.clamp(min=0).expand(-1, -1, -1, dim))
        rows = torch.where(slot >= 0, rows, 0.0).unflatten(2, (pieces, -1))
        if mean:
            rows = rows / window
        rows = rows.repeat_interleave(window, 3)
        out[..., shift:, :] += rows[..., : rows.shape[3] - shift, :]
    return out.flatten(2, 3).to(y.dtype).transpose(1, 2).contiguous().transpose(1, 2)


def simple_gla(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
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


def _upcast(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
