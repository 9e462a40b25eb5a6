"""Reading the nodes table (see ``selection.Selection``) inside kernels."""

import triton
import triton.language as tl


@triton.jit
def table_offset(N, level: tl.constexpr, LOG_P: tl.constexpr):
    """Return where a level of at least 1 begins in the table; for level L the table's length."""
    offset = 0
    for finer in tl.static_range(1, level):
        offset += N >> (LOG_P * finer)
    return offset


@triton.jit
def load_nodes(p_level, index, entries, piece):
    """Load the nodes of one level at indices within a piece; -1, not gathered, outside of it."""
    inside = (index >= 0) & (index < entries)
    return tl.load(p_level + piece * entries + index, mask=inside, other=-1)


@triton.jit
def leaf_slots(parents, child, LOG_P: tl.constexpr):
    """Return the slots of given children of level-1 nodes; -1 where they are not gathered."""
    expanded = (parents >= 0) & ((parents & 1) == 1)
    return tl.where(expanded, (parents >> 1) - (1 << LOG_P) + child, -1)
