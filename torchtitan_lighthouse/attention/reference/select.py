"""Stratified selection and its post-order."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtitan_lighthouse.attention.pyramid import number_of_tiles


def select(
    query_scores: Tensor,
    key_scores: Tensor,
    levels: int,
    pooling_factor: int,
    topk: int,
    tile: int,
    pin_first: bool,
) -> Tensor:
    """Select by stratified top-k from the coarsest level down, and order what is gathered.

    Args:
        query_scores, key_scores: float32 [B, H, N].

    Returns:
        nodes: int32 [B, H, Σ_{ℓ≥1} N/p^ℓ].
    """
    expanded = _expand_best(query_scores, key_scores, levels, pooling_factor, topk, tile, pin_first)
    return _post_order(expanded, levels, pooling_factor)


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
    # Ties must not depend on the sign of a zero, and NaN is the lowest score.
    query_scores, key_scores = (
        torch.where(s.isnan(), -math.inf, s + 0.0) for s in (query_scores, key_scores)
    )
    if pin_first:
        query_scores[..., 0] = math.inf
    pooled = [(query_scores, key_scores)]
    for _ in range(1, levels):
        finer = pooled[-1]
        pooled.append(tuple(s.unflatten(-1, (-1, pooling_factor)).amax(-1) for s in finer))

    expanded = [torch.zeros_like(q, dtype=torch.bool) for q, _ in pooled]
    expanded.append(torch.ones_like(expanded[-1][..., ::pooling_factor]))
    coarsest = torch.arange(expanded[levels - 1].shape[-1], device=query_scores.device)
    by_tile = coarsest.view(number_of_tiles(topk, tile), -1)
    candidates = by_tile.expand(*query_scores.shape[:2], -1, -1)
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
    """Order places by falling score, equals by index; those that are taken come last."""
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
