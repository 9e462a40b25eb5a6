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
from torchtitan_lighthouse.attention.kernels.layout import log2, next_power_of_2
from torchtitan_lighthouse.attention.kernels.nodes import table_offset
from torchtitan_lighthouse.attention.pyramid import number_of_tiles, table_lengths

_MOST_CANDIDATES = 8192  # of twice as many a program's registers spill


@triton.jit
def _ordered_keys(scores):
    """int32 keys in the order of the float32 scores, both zeros alike."""
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _highest(keys, free, want: tl.constexpr):
    """The ``want`` free places with the highest keys, the lower place first among equals."""
    negative = tl.sum((free & (keys >= 0)).to(tl.int32), axis=0) < want
    threshold = tl.where(negative, -0x80000000, 0)  # becomes the lowest key that is chosen
    for bit in range(31):
        trial = threshold | (0x40000000 >> bit)
        enough = tl.sum((free & (keys >= trial)).to(tl.int32), axis=0) >= want
        threshold = tl.where(enough, trial, threshold)
    above = free & (keys > threshold)
    equal = (free & (keys == threshold)).to(tl.int32)
    room = want - tl.sum(above.to(tl.int32), axis=0)
    return above | ((equal == 1) & (tl.cumsum(equal, axis=0) <= room))


@triton.jit
def _pooled_keys(scores, index, free, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """Keys of the highest score in each entry's window of tokens."""
    best = tl.full([index.shape[0], CHUNK], float("-inf"), tl.float32)
    for start in range(0, WINDOW, CHUNK):
        tokens = index[:, None] * WINDOW + start + tl.arange(0, CHUNK)[None, :]
        b_scores = tl.load(scores + tokens, mask=free[:, None], other=float("-inf"))
        b_scores = tl.where(b_scores == b_scores, b_scores, float("-inf"))  # NaN is the lowest
        best = tl.maximum(best, b_scores)
    return _ordered_keys(tl.max(best, axis=1))


@triton.jit
def _expand_best(
    query_scores,
    key_scores,
    index,
    free,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    PIN_FIRST: tl.constexpr,
):
    """Which candidates of one level and tile are expanded."""
    query_keys = _pooled_keys(query_scores, index, free, WINDOW, CHUNK)
    if PIN_FIRST:
        query_keys = tl.where(index == 0, 0x7F800000, query_keys)  # the key of +infinity
    by_query = _highest(query_keys, free, TILE // 2)
    key_keys = _pooled_keys(key_scores, index, free, WINDOW, CHUNK)
    return by_query | _highest(key_keys, free & (by_query == 0), TILE // 2)


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
    chosen = _expand_best(
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
        chosen = _expand_best(
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
def _fill_table(
    nodes,
    N,
    tile,
    COARSE: tl.constexpr,
    LEVELS: tl.constexpr,
    LOG_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mark the tile's entries below the coarsest level, all of which are gathered, as not so."""
    for level in tl.static_range(1, LEVELS - 1):
        entries = COARSE << (LOG_P * (LEVELS - 1 - level))
        p_nodes = nodes + table_offset(N, level, LOG_P) + tile * entries
        for start in range(0, entries, BLOCK):
            entry = start + tl.arange(0, BLOCK)
            tl.store(p_nodes + entry, -1, mask=entry < entries)


@triton.jit
def _place_tile(
    nodes,
    counts,
    expanded_index,
    expanded_before,
    N,
    tile,
    COARSE: tl.constexpr,
    TILE: tl.constexpr,
    LEVELS: tl.constexpr,
    LOG_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the nodes of the tile's candidates: each one's slot in the post-order."""
    fine: tl.constexpr = TILE << LOG_P
    candidates: tl.constexpr = COARSE + (LEVELS - 2) * fine  # the leaves need no table
    for start in range(0, candidates, BLOCK):
        item = start + tl.arange(0, BLOCK)
        inside = item < candidates
        coarsest = item < COARSE
        level = tl.where(coarsest, LEVELS - 1, LEVELS - 2 - (item - COARSE) // fine)
        place = tl.where(coarsest, item, (item - COARSE) % fine)
        parent = level * TILE + (place >> LOG_P)
        has_parent = inside & (item >= COARSE)
        index = tl.load(expanded_index + parent, mask=has_parent, other=0)
        index = (index << LOG_P) + (place & ((1 << LOG_P) - 1))
        index = tl.where(coarsest, tile * COARSE + place, index)
        # The walk has passed the entries of this level and above that stand before this one …
        before = tl.load(expanded_before + parent, mask=has_parent, other=0)
        slot = tile * (candidates + fine) + place + before
        # … and, level by level below, the children of what was expanded up to here.
        count = tl.load(counts + item, mask=inside, other=0)
        is_expanded = count & 1
        passed = count >> 1
        for below in tl.static_range(1, LEVELS):
            slot += passed << LOG_P
            last = item - place + tl.where(item < COARSE, COARSE, fine) + (below - 1) * fine
            last += (passed << LOG_P) - 1
            m_level = inside & (level - below > 0) & (passed > 0)
            passed = tl.load(counts + last, mask=m_level, other=0) >> 1

        offset = index
        for finer in tl.static_range(1, LEVELS - 1):
            offset += tl.where(level > finer, N >> (LOG_P * finer), 0)
        tl.store(nodes + offset, (2 * slot + is_expanded).to(tl.int32), mask=inside)


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

    _fill_table(nodes, N, tile, COARSE, LEVELS, LOG_P, BLOCK_PLACES)
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
    _place_tile(
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
    """See ``reference.select``, which also serves what one program cannot hold."""
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
