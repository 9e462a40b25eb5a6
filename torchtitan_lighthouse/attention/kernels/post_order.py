"""The nodes of one tile: the slot of each of its candidates in the post-order.

``_select_kernel`` says what the tables hold that are read here.
"""

import triton
import triton.language as tl

from torchtitan_lighthouse.attention.kernels.nodes import table_offset


@triton.jit
def fill_table(
    nodes,
    N,
    tile,
    COARSE: tl.constexpr,
    LEVELS: tl.constexpr,
    LOG_P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Mark the tile's entries as not gathered, but for the coarsest level's, which all are."""
    for level in tl.static_range(1, LEVELS - 1):
        entries = COARSE << (LOG_P * (LEVELS - 1 - level))
        p_nodes = nodes + table_offset(N, level, LOG_P) + tile * entries
        for start in range(0, entries, BLOCK):
            entry = start + tl.arange(0, BLOCK)
            tl.store(p_nodes + entry, -1, mask=entry < entries)


@triton.jit
def place_tile(
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
