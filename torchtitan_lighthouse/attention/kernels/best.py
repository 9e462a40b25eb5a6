"""Which candidates of one level and tile have the best scores: exact, without sorting.

``index`` is a candidate's index within its level; ``free`` marks the candidates that are there and
not chosen yet.
"""

import triton
import triton.language as tl


@triton.jit
def _ordered_keys(scores):
    """int32 keys in the order of the float32 scores, both zeros alike."""
    bits = tl.where(scores == 0.0, 0.0, scores).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _highest(keys, free, want: tl.constexpr):
    """The ``want`` free candidates with the highest keys, the lower place first among equals.

    The lowest key among them is found bit by bit, the highest bit first.
    """
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
def expand_best(
    query_scores,
    key_scores,
    index,
    free,
    TILE: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    PIN_FIRST: tl.constexpr,
):
    """Half of TILE by query score, then half of it, of the rest, by key score."""
    query_keys = _pooled_keys(query_scores, index, free, WINDOW, CHUNK)
    if PIN_FIRST:
        query_keys = tl.where(index == 0, 0x7F800000, query_keys)  # the key of +infinity
    by_query = _highest(query_keys, free, TILE // 2)
    key_keys = _pooled_keys(key_scores, index, free, WINDOW, CHUNK)
    return by_query | _highest(key_keys, free & (by_query == 0), TILE // 2)
