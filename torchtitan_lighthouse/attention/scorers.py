"""Scorers: how much each position matters as a query and as a key, from q, k and v alone.

A scorer takes q [B, Hq, N, D], k and v [B, Hkv, N, D] and the config, and returns the query and the
key scores, float32 [B, Hkv, N] each. It runs without gradient. To add one, write the function and
register it in ``SCORERS`` under the name that ``LighthouseConfig.scorer`` selects it by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchtitan_lighthouse.attention import ops

if TYPE_CHECKING:
    from torchtitan_lighthouse.attention.config import LighthouseConfig

Scorer = Callable[[Tensor, Tensor, Tensor, "LighthouseConfig"], tuple[Tensor, Tensor]]


def norm(q: Tensor, k: Tensor, v: Tensor, config: LighthouseConfig) -> tuple[Tensor, Tensor]:
    """‖q_j‖₂ and ‖k_j‖₂: no parameters, no mixing of positions, one pass over q and k."""
    query_scores, key_scores = ops.norm_scores(q, k)
    return query_scores, key_scores


def dilated(q: Tensor, k: Tensor, v: Tensor, config: LighthouseConfig) -> tuple[Tensor, Tensor]:
    """‖Attn(q, k, v)‖₂ and ‖Attn(k, q, v)‖₂, causally, among positions congruent modulo δ."""
    query_scores, key_scores = ops.dilated_scores(q, k, v, config.dilation)
    return query_scores, key_scores


def gla(q: Tensor, k: Tensor, v: Tensor, config: LighthouseConfig) -> tuple[Tensor, Tensor]:
    """‖GLA(q, k, v)‖₂ and ‖GLA(k, q, v)‖₂ of simple gated linear attention with fixed decays."""
    log_decay = gla_log_decay(q.shape[1], q.device)
    query_scores, key_scores = ops.gla_scores(q, k, v, log_decay)
    return query_scores, key_scores


def gla_log_decay(heads: int, device: torch.device) -> Tensor:
    """log(1 - 2^(-e)), with e from 5 to 12 evenly over the heads: float32 [heads].

    RetNet's decays for its 8 heads; half-lives of 22 to 2,839 tokens for any number of them.
    """
    return torch.log1p(-torch.exp2(-torch.linspace(5.0, 12.0, heads, device=device)))


SCORERS: dict[str, Scorer] = {"norm": norm, "dilated": dilated, "gla": gla}
