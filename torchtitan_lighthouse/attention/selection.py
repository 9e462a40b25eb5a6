"""Which pyramid entries a layer attends to, in which order, and where each of them sits."""

from typing import NamedTuple

import torch
from torch import Tensor

from torchtitan_lighthouse.attention import ops
from torchtitan_lighthouse.attention.config import LighthouseConfig
from torchtitan_lighthouse.attention.reference.nodes import entry_slots
from torchtitan_lighthouse.refusal import RefusalError


class Selection(NamedTuple):
    """The gathered entries of each selection head (paper, section 3.2).

    Entry (ℓ, i) is the mean of the tokens [i·p^ℓ, (i+1)·p^ℓ - 1]. The sub-sequence is the
    post-order walk of the forest that the expanded entries span: children before their parent.

    Attributes:
        nodes: int32 [B, H, Σ_{ℓ≥1} N/p^ℓ], the slot in the sub-sequence of each entry of level 1,
            then level 2, …: -1 if it is not gathered, else 2·slot + (1 if it is expanded else 0).
            The leaves need no table: the p children of an expanded entry of level 1 are the p slots
            before it.
        slots: S, the gathered entries; the same for every head.
    """

    nodes: Tensor
    slots: int


def entries_in_order(
    selection: Selection, config: LighthouseConfig, seq_len: int
) -> tuple[Tensor, Tensor]:
    """List the entries that a selection of ``seq_len`` tokens gathers, slot by slot.

    Returns:
        The level of each slot's entry and its index within that level: int64 [B, H, S] each.
    """
    nodes, slots = selection
    # One slot more than there are: it takes the entries that are not gathered.
    level, index = (
        nodes.new_empty(*nodes.shape[:2], slots + 1, dtype=torch.int64) for _ in range(2)
    )
    for n in range(config.levels):
        slot = entry_slots(nodes, n, seq_len, config.levels, config.pooling_factor) % (slots + 1)
        level.scatter_(-1, slot, n)
        entries = torch.arange(slot.shape[-1], device=nodes.device)
        index.scatter_(-1, slot, entries.expand_as(slot))
    return level[..., :slots], index[..., :slots]


def select(query_scores: Tensor, key_scores: Tensor, config: LighthouseConfig) -> Selection:
    """Select the entries to expand, coarse to fine and tile by tile (paper, section 3.2).

    An entry's score is the maximum over its window. In each tile and at each level above 0, the
    m/2 candidates with the highest query scores are expanded, then the m/2 of the rest with the
    highest key scores; of equal scores the lower index goes first. With ``config.pin_first`` entry
    0 of every level counts as having the highest query score.

    Args:
        query_scores, key_scores: float [B, H, N], compared in float32, without gradient. NaN counts
            as -infinity, so that any scores give a whole selection.

    Returns:
        The gathered entries of each head, S of them, in post-order.

    Raises:
        RefusalError: the pyramid does not fit N or has one level, or the two shapes differ.
    """
    if config.levels == 1:
        raise RefusalError("levels=1 is dense attention, with nothing to select; use 2 or more")
    if query_scores.shape != key_scores.shape or query_scores.ndim != 3:
        raise RefusalError(
            f"query_scores {list(query_scores.shape)} and key_scores {list(key_scores.shape)} "
            "must have one shape [B, H, N]"
        )
    slots = config.sub_sequence_length(query_scores.shape[-1])
    nodes = ops.select(
        query_scores.detach().float(),
        key_scores.detach().float(),
        config.levels,
        config.pooling_factor,
        config.topk,
        config.tile,
        config.pin_first,
    )
    return Selection(nodes, slots)
