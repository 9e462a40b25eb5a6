"""Causal attention over a sequence that several ranks share, where torch has no ring attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtitan_lighthouse.attention.context_parallel import ContextParallel, gather_pieces


class AllGatherAttention(nn.Module):
    """SDPA of a rank's queries with the keys and values of all ranks.

    Plain and quadratic in memory: for the CPU, whose SDPA torch cannot run as a ring.

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
        """q [B, Hq, n, D], k and v [B, Hkv, n, D], all of the rank's two pieces, to q's shape."""
        k, v = self._of_all_ranks(torch.stack([k, v]))
        mask = self._causal_mask(q.shape[2], q.device) if is_causal else None
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa
        )

    def _of_all_ranks(self, x: Tensor) -> Tensor:
        """[..., n, D] to [..., W·n, D], in the order of the sequence."""
        pieces = x.unflatten(-2, (2, -1)).movedim(-3, 0)
        return gather_pieces(pieces, self.context_parallel).movedim(0, -3).flatten(-3, -2)

    def _causal_mask(self, seq_len: int, device: torch.device) -> Tensor:
        """Which keys of the sequence each of the rank's queries sees: bool [n, W·n]."""
        position = torch.arange(seq_len * self.context_parallel.size, device=device)
        by_piece = position.view(2 * self.context_parallel.size, -1)
        queries = torch.cat([by_piece[piece] for piece in self.context_parallel.pieces])
        return queries.unsqueeze(-1) >= position
