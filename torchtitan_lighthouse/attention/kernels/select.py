"""Stratified selection and its post-order, a program to each tile.

The tiles are independent: each expands m entries per level, fills its own S/(k/m) slots and writes
its own part of each level of the nodes table. In a tile, the candidates of a level lie next to each
other, ordered by index: all entries of the coarsest level, and p·m children of expanded entries at
each level below. ``place`` is where a candidate stands among those of its level and tile.
"""

import warnings
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchtitan_lighthouse.attention import reference
from torchtitan_lighthouse.attention.kernels.best import expand_best
from torchtitan_lighthouse.attention.kernels.layout import log2, next_power_of_2
from torchtitan_lighthouse.attention.kernels.nodes import table_offset
from torchtitan_lighthouse.attention.kernels.post_order import fill_table, place_tile
from torchtitan_lighthouse.attention.pyramid import number_of_tiles, table_lengths

_MOST_CANDIDATES = 8192  # of twice as many a program's registers spill


@triton.jit
def _expand_tile(
    query_scores,
    key_scores,
    counts,
    expanded_index,
    expanded_before,
    tile,
    COARSE: tl.constexpr,
    TILE: tl.constexpr,
    LEVELS: tl.constexpr,
    LOG_P: tl.constexpr,
    PIN_FIRST: tl.constexpr,
    BLOCK_COARSE: tl.constexpr,
    CHUNK_COARSE: tl.constexpr,
    BLOCK_FINE: tl.constexpr,
    CHUNK_FINE: tl.constexpr,
):
    """Select level by level, the coarsest first; see ``_select_kernel`` for what is stored."""
    fine: tl.constexpr = TILE << LOG_P
    place = tl.arange(0, BLOCK_COARSE)
    free = place < COARSE
    index = (tile * COARSE + place).to(tl.int32)
    window: tl.constexpr = 1 << (LOG_P * (LEVELS - 1))
    chosen = expand_best(
        query_scores, key_scores, index, free, TILE, window, CHUNK_COARSE, PIN_FIRST
    )
    count = tl.cumsum(chosen.to(tl.int32), axis=0)
    tl.store(counts + place, 2 * count + chosen.to(tl.int32), mask=free)
    rank = (LEVELS - 2) * TILE + count - 1
    tl.store(expanded_index + rank, index, mask=chosen)
    tl.store(expanded_before + rank, place, mask=chosen)
    counts += COARSE

    place = tl.arange(0, BLOCK_FINE)
    free = place < fine
    for depth in tl.static_range(1, LEVELS - 1):
        tl.debug_barrier()  # other threads of the program have stored what this level reads
        parent = (LEVELS - 1 - depth) * TILE + (place >> LOG_P)
        index = tl.load(expanded_index + parent, mask=free, other=0)
        index = (index << LOG_P) + (place & ((1 << LOG_P) - 1))
        before = tl.load(expanded_before + parent, mask=free, other=0)
        chosen = expand_best(
            query_scores,
            key_scores,
            index,
            free,
            TILE,
            1 << (LOG_P * (LEVELS - 1 - depth)),
            CHUNK_FINE,
            PIN_FIRST,
        )
        count = tl.cumsum(chosen.to(tl.int32), axis=0)
        tl.store(counts + place, 2 * count + chosen.to(tl.int32), mask=free)
        rank = (LEVELS - 2 - depth) * TILE + count - 1
        tl.store(expanded_index + rank, index, mask=chosen)
        tl.store(expanded_before + rank, before + place, mask=chosen)
        counts += fine


@triton.jit
def _select_kernel(
    query_scores,
    key_scores,
    nodes,
    scratch,  # int32, for each head and tile the three tables whose addresses follow
    N,
    TILES,
    COARSE: tl.constexpr,  # entries of the coarsest level in a tile
    TILE: tl.constexpr,
    LEVELS: tl.constexpr,
    LOG_P: tl.constexpr,
    PIN_FIRST: tl.constexpr,
    BLOCK_COARSE: tl.constexpr,
    CHUNK_COARSE: tl.constexpr,
    BLOCK_FINE: tl.constexpr,
    CHUNK_FINE: tl.constexpr,
    BLOCK_PLACES: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    tile = pid % TILES
    query_scores += pid // TILES * N
    key_scores += pid // TILES * N
    nodes += pid // TILES * table_offset(N, LEVELS, LOG_P)
    n_counts: tl.constexpr = COARSE + (LEVELS - 2) * (TILE << LOG_P)
    n_expanded: tl.constexpr = (LEVELS - 1) * TILE
    # Of each candidate of the levels L-1 to 1: 2·(expanded up to here) + (expanded itself).
    counts = scratch + pid * (n_counts + 2 * n_expanded)
    # The expanded entries of levels 1, 2, …, m each.
    expanded_index = counts + n_counts
    # The candidates before each of them, and before each of its ancestors.
    expanded_before = expanded_index + n_expanded

    fill_table(nodes, N, tile, COARSE, LEVELS, LOG_P, BLOCK_PLACES)
    _expand_tile(
        query_scores,
        key_scores,
        counts,
        expanded_index,
        expanded_before,
        tile,
        COARSE,
        TILE,
        LEVELS,
        LOG_P,
        PIN_FIRST,
        BLOCK_COARSE,
        CHUNK_COARSE,
        BLOCK_FINE,
        CHUNK_FINE,
    )
    tl.debug_barrier()
    place_tile(
        nodes,
        counts,
        expanded_index,
        expanded_before,
        N,
        tile,
        COARSE,
        TILE,
        LEVELS,
        LOG_P,
        BLOCK_PLACES,
    )


def select(
    query_scores: Tensor,
    key_scores: Tensor,
    levels: int,
    pooling_factor: int,
    topk: int,
    tile: int,
    pin_first: bool,
) -> Tensor:
    """See ``reference.select``, which is used where a tile has too many candidates."""
    batch, heads, seq_len = query_scores.shape
    entries = table_lengths(seq_len, levels, pooling_factor)
    tiles = number_of_tiles(topk, tile)
    coarse = entries[-1] // tiles
    fine = pooling_factor * tile
    if max(coarse, fine) > _MOST_CANDIDATES:
        _warn_of_the_plain_op(coarse, fine)
        return reference.select(
            query_scores, key_scores, levels, pooling_factor, topk, tile, pin_first
        )
    nodes, scratch = (
        query_scores.new_empty(batch, heads, size, dtype=torch.int32)
        for size in (
            sum(entries),
            tiles * (coarse + (levels - 2) * fine + 2 * (levels - 1) * tile),
        )
    )
    block_coarse = next_power_of_2(coarse)
    block_fine = next_power_of_2(fine)
    num_warps = min(16, max(4, max(block_coarse, block_fine) // 256))
    _select_kernel[(batch * heads * tiles,)](
        query_scores.contiguous(),
        key_scores.contiguous(),
        nodes,
        scratch,
        seq_len,
        tiles,
        COARSE=coarse,
        TILE=tile,
        LEVELS=levels,
        LOG_P=log2(pooling_factor),
        PIN_FIRST=pin_first,
        BLOCK_COARSE=block_coarse,
        CHUNK_COARSE=_chunk(block_coarse, pooling_factor ** (levels - 1)),
        BLOCK_FINE=block_fine,
        CHUNK_FINE=_chunk(block_fine, pooling_factor),
        BLOCK_PLACES=32 * num_warps,
        num_warps=num_warps,
    )
    return nodes


def _chunk(block: int, shortest_window: int) -> int:
    """How many tokens of each candidate's window are read at a time."""
    return min(shortest_window, max(1, 8192 // block))


@cache
def _warn_of_the_plain_op(coarse: int, fine: int) -> None:
    warnings.warn(
        f"a tile has {coarse} candidates at the coarsest level and {fine} below it; with more than "
        f"{_MOST_CANDIDATES} of either, selection runs by PyTorch's slower sort, with the same "
        "result. A smaller tile, or more levels, avoids it",
        stacklevel=2,
    )
