"""Scorers: how much each position matters as a query and as a key, from q, k and v alone.

To add one, write its function and register it in ``SCORERS`` under the name that
``LighthouseConfig.scorer`` selects it by: ``SCORERS["mine"] = Scorer(mine, local=True)``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchtitan_lighthouse.attention import ops


@dataclass(frozen=True)
class Scorer:
    """A scoring function, and what the rest of the method must know of it.

    Attributes:
        function: from q [B, Hq, N, D], k and v [B, Hkv, N, D], and its options by name, to the
            query and the key scores, float32 [B, Hkv, N] each: of a head group the maximum. It runs
            without gradient.
        options: the fields of ``LighthouseConfig`` that it takes.
        divisor: the one of them that must divide N, if one must.
        local: whether a position's scores depend on that position alone. Only such a scorer can
            score part of a sequence, as context parallelism does.
    """

    function: Callable[..., tuple[Tensor, Tensor]]
    options: tuple[str, ...] = ()
    divisor: str | None = None
    local: bool = False


def norm(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Score position j by ‖q_j‖₂ and ‖k_j‖₂, in one pass over q and k."""
    query_scores, key_scores = ops.norm_scores(q, k)
    return query_scores, key_scores


def dilated(q: Tensor, k: Tensor, v: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    """Score by ‖Attn(q, k, v)‖₂ and ‖Attn(k, q, v)‖₂, causally, within each residue modulo δ."""
    query_scores, key_scores = ops.dilated_scores(q, k, v, dilation)
    return query_scores, key_scores


def gla(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Score by ‖GLA(q, k, v)‖₂ and ‖GLA(k, q, v)‖₂ of simple gated linear attention."""
    log_decay = gla_log_decay(q.shape[1], q.device)
    query_scores, key_scores = ops.gla_scores(q, k, v, log_decay)
    return query_scores, key_scores


def gla_log_decay(heads: int, device: torch.device) -> Tensor:
    """Return log(1 - 2^(-e)), with e from 5 to 12 evenly over the heads: float32 [heads].

    RetNet's decays for 8 heads; half-lives of 22 to 2,839 tokens for any number of heads.
    """
    return torch.log1p(-torch.exp2(-torch.linspace(5.0, 12.0, heads, device=device)))


SCORERS = {
    "norm": Scorer(norm, local=True),
    "dilated": Scorer(dilated, options=("dilation",), divisor="dilation"),
    "gla": Scorer(gla),
}
