"""One sequence over several ranks, with the selection and the outputs of one device.

The sequence is cut into 2W equal pieces and rank r of W holds pieces r and 2W-1-r, one after the
other, so that causal attention costs each rank the same. Each piece has whole tiles, so selecting
needs nothing of other ranks, and the gathered pieces of a rank, one after the other, are its part
of a sub-sequence balanced in the same way. Only the scatter crosses an edge: a piece's last entry
of each level above 0 reaches into the next piece.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from torchtitan_lighthouse.attention.config import LighthouseConfig
from torchtitan_lighthouse.attention.exchange import exchange_edges
from torchtitan_lighthouse.attention.pyramid import number_of_pieces, table_lengths
from torchtitan_lighthouse.attention.selection import Selection


class ContextParallel(NamedTuple):
    """A rank's place among the ranks that share a sequence.

    Attributes:
        group_name: the name of their process group.
        rank: r, from 0 to W-1.
        size: W.
    """

    group_name: str
    rank: int
    size: int

    @classmethod
    def of(cls, group: ProcessGroup) -> ContextParallel:
        """This process's place in ``group``."""
        return cls(group.group_name, group.rank(), group.size())

    @property
    def pieces(self) -> tuple[int, int]:
        """The numbers, from 0, of the two pieces that the rank holds."""
        return self.rank, number_of_pieces(self.size) - 1 - self.rank


def local_config(
    config: LighthouseConfig, context_parallel: ContextParallel, seq_len: int
) -> LighthouseConfig:
    """The config that selects on a rank's two pieces what ``config`` selects on the sequence.

    Args:
        seq_len: the tokens of the two pieces.

    Raises:
        RefusalError: see ``LighthouseConfig.validate_context_parallel``.
    """
    size = context_parallel.size
    config.validate_context_parallel(size, seq_len * size)
    if config.levels == 1:
        return config
    return replace(
        config,
        topk=config.topk // size,
        pin_first=config.pin_first and context_parallel.rank == 0,
    )


def exchange_spill(
    y: Tensor,
    selection: Selection,
    config: LighthouseConfig,
    context_parallel: ContextParallel,
    seq_len: int,
) -> Tensor:
    """What the scatter of all ranks' ``y`` spills over the edges of pieces. A collective.

    Args:
        y: [B, Hx, S, D], the rank's entries after attention.
        selection: that of the rank's two pieces, of ``seq_len`` tokens together.
        config: the numbers that selected it (see ``local_config``).

    Returns:
        [2W, B, Hx, L-1, D], for ``add_spill_``.
    """
    rows = _last_rows(y, selection, config, seq_len)
    return exchange_edges(rows, context_parallel.group_name, context_parallel.size)


def add_spill_(
    out: Tensor, rows: Tensor, config: LighthouseConfig, context_parallel: ContextParallel
) -> Tensor:
    """Add, in place, what the pieces before a rank's two scatter into them.

    Args:
        out: [B, Hx, N, D], the scatter with ``pieces=2``.
        rows: what ``exchange_spill`` returned.

    Returns:
        ``out``.
    """
    by_piece = _in_order(rows)
    head, tail = context_parallel.pieces
    before_head = by_piece[head - 1] if head > 0 else torch.zeros_like(by_piece[0])
    rows = torch.stack([before_head, by_piece[tail - 1]], 3)
    rows = rows.to(torch.promote_types(out.dtype, torch.float32))

    reach = [config.pooling_factor**level - 1 for level in range(1, config.levels)]
    position = torch.arange(reach[-1], device=out.device)
    spill = rows.new_zeros(())
    for level_reach, level_rows in zip(reach, rows.unbind(2), strict=True):
        within = (position < level_reach).unsqueeze(-1)
        spill = spill + torch.where(within, level_rows.unsqueeze(3), 0.0)
    starts = torch.cat([position, position + out.shape[2] // 2])
    return out.index_add_(2, starts, spill.flatten(2, 3).to(out.dtype))


def _in_order(by_rank: Tensor) -> Tensor:
    """Put pieces that lie rank by rank, [2W, ...], in the order of the sequence."""
    heads, tails = by_rank.unflatten(0, (-1, 2)).unbind(1)
    return torch.cat([heads, tails.flip(0)])


def _last_rows(y: Tensor, selection: Selection, config: LighthouseConfig, seq_len: int) -> Tensor:
    """Take the rows of each piece's last entry of each level above 0: [2, B, Hx, L-1, D].

    A row is zero where its entry is not gathered.
    """
    lengths = table_lengths(seq_len, config.levels, config.pooling_factor)
    entries = [
        sum(lengths[:n]) + length * piece // 2 - 1
        for piece in (1, 2)
        for n, length in enumerate(lengths)
    ]
    nodes = torch.stack([selection.nodes.select(-1, entry) for entry in entries], -1)
    slot = nodes.repeat_interleave(y.shape[1] // nodes.shape[1], 1).long().unsqueeze(-1) >> 1
    rows = y.gather(2, slot.clamp(min=0).expand(-1, -1, -1, y.shape[-1]))
    return torch.where(slot >= 0, rows, 0.0).unflatten(2, (2, -1)).movedim(2, 0)
