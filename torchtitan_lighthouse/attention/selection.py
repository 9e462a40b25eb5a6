"""Which pyramid entries a layer attends to, in which order, and where each of them sits."""

from typing import NamedTuple

from torch import Tensor

from torchtitan_lighthouse.attention import ops
from torchtitan_lighthouse.attention.config import LighthouseConfig
from torchtitan_lighthouse.refusal import RefusalError


class Selection(NamedTuple):
    """The gathered entries of each selection head (paper, section 3.2).

    Entry (ℓ, i) is the mean of the tokens [i·p^ℓ, (i+1)·p^ℓ - 1]. The sub-sequence is the
    post-order walk of the forest that the expanded entries span: children before their parent.

    Attributes:
        level: int32 [B, H, S], the level of the entry in each slot of the sub-sequence.
        index: int32 [B, H, S], its index within that level.
        nodes: int32 [B, H, Σ_{ℓ≥1} N/p^ℓ], the inverse: the entries of level 1, then level 2, …
            Each is -1 if it is not gathered, else 2·slot + (1 if it is expanded else 0). The leaves
            need no table: the p children of an expanded entry of level 1 are the p slots before it.
    """

    level: Tensor
    index: Tensor
    nodes: Tensor


def select(query_scores: Tensor, key_scores: Tensor, config: LighthouseConfig) -> Selection:
    """Choose the entries to expand, coarse to fine and tile by tile, and put them in post-order.

    An entry's score is the maximum over its window. In each tile and at each level above 0, the
    m/2 candidates with the highest query scores are expanded, then the m/2 of the rest with the
    highest key scores; of equal scores the lower index goes first. With ``config.pin_first`` entry
    0 of every level counts as having the highest query score.

    Args:
        query_scores, key_scores: float [B, H, N], no NaN; compared in float32, without gradient.

    Returns:
        The selection of each head, S entries long.

    Raises:
        ValueError: the pyramid does not fit N or has one level, or the two shapes differ.
    """
    if config.levels == 1:
        raise RefusalError("levels=1 is dense attention, with nothing to select; use 2 or more")
    if query_scores.shape != key_scores.shape or query_scores.ndim != 3:
        raise RefusalError(
            f"query_scores {list(query_scores.shape)} and key_scores {list(key_scores.shape)} "
            "must have one shape [B, H, N]"
        )
    config.validate_seq_len(query_scores.shape[-1])
    return Selection(
        *ops.select(
            query_scores.detach().float(),
            key_scores.detach().float(),
            config.levels,
            config.pooling_factor,
            config.topk,
            config.tile,
            config.pin_first,
        )
    )
