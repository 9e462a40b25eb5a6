"""Lighthouse attention in slow loops: the oracle of the tests.

Written from the definition of the method alone and sharing no code with the package, so that it
can be checked by eye. Every function takes plain numbers or one head's rows [N, D] unless it says
otherwise, and computes in the precision of its inputs: the tests pass float64. All tensor
arithmetic is differentiable; scores and selection are Python numbers.

``config`` is anything with the fields ``levels``, ``pooling_factor``, ``topk``, ``tile`` and
``pin_first``.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Entry = tuple[int, int]  # (level, index)
Scores = list[float]  # one per base position
Scorer = Callable[[Tensor, Tensor, Tensor], tuple[Scores, Scores]]


def window(entry: Entry, p: int) -> range:
    """The base positions that an entry summarises."""
    level, index = entry
    return range(index * p**level, (index + 1) * p**level)


def shifted_window(entry: Entry, p: int, length: int) -> range:
    """The base positions that an entry's output is added to: from its window's last onwards."""
    level, index = entry
    first, last = (index + 1) * p**level - 1, (index + 2) * p**level - 2
    return range(first, min(last, length - 1) + 1)


def children(entry: Entry, p: int) -> list[Entry]:
    level, index = entry
    return [(level - 1, index * p + c) for c in range(p)]


def choose(
    candidates: list[Entry],
    query_score: Callable[[Entry], float],
    key_score: Callable[[Entry], float],
    budget: int,
    pinned: Entry | None,
) -> list[Entry]:
    """Half the budget by query score, the other half of the rest by key score."""
    by_query = sorted(candidates, key=lambda e: (e != pinned, -query_score(e), e))
    best, rest = by_query[: budget // 2], by_query[budget // 2 :]
    by_key = sorted(rest, key=lambda e: (-key_score(e), e))
    return sorted(best + by_key[: budget // 2])


def expanded_entries(query_base: Scores, key_base: Scores, config: Any) -> set[Entry]:
    """The selected entries of all levels >= 1, coarse to fine, tile by tile."""
    p, coarsest = config.pooling_factor, config.levels - 1
    tiles = config.topk // config.tile
    tile_length = len(query_base) // p**coarsest // tiles

    def query_score(entry: Entry) -> float:
        return max(query_base[j] for j in window(entry, p))

    def key_score(entry: Entry) -> float:
        return max(key_base[j] for j in window(entry, p))

    expanded: set[Entry] = set()
    for tile in range(tiles):
        candidates = [(coarsest, tile * tile_length + i) for i in range(tile_length)]
        for level in range(coarsest, 0, -1):
            pinned = (level, 0) if config.pin_first else None
            selected = choose(candidates, query_score, key_score, config.tile, pinned)
            expanded.update(selected)
            candidates = [child for entry in selected for child in children(entry, p)]
    return expanded


def post_order(expanded: set[Entry], length: int, config: Any) -> list[Entry]:
    """The forest's entries: children in order, then their parent, trees left to right."""
    p, coarsest = config.pooling_factor, config.levels - 1

    def walk(entry: Entry) -> Iterator[Entry]:
        if entry in expanded:
            for child in children(entry, p):
                yield from walk(child)
        yield entry

    roots = [(coarsest, i) for i in range(length // p**coarsest)]
    return [entry for root in roots for entry in walk(root)]


def select(query_base: Scores, key_base: Scores, config: Any) -> list[Entry]:
    """The sub-sequence that one head's base scores select."""
    expanded = expanded_entries(query_base, key_base, config)
    return post_order(expanded, len(query_base), config)


def rope(row: Tensor, position: int, frequencies: list[float]) -> Tensor:
    """RoPE of one row [D]: channels (2i, 2i + 1) turned by position·frequency i."""
    turned = []
    for i, frequency in enumerate(frequencies):
        x, y, angle = row[2 * i], row[2 * i + 1], position * frequency
        turned.append(x * math.cos(angle) - y * math.sin(angle))
        turned.append(x * math.sin(angle) + y * math.cos(angle))
    return torch.stack(turned)


def gather_before_rope(
    rows: Tensor, entries: list[Entry], p: int, frequencies: list[float]
) -> Tensor:
    """Rows that have not seen RoPE are pooled, then each entry's is turned at its last token."""
    pooled = gather(rows, entries, p).unbind()
    return torch.stack(
        [
            rope(row, window(entry, p)[-1], frequencies)
            for row, entry in zip(pooled, entries, strict=True)
        ]
    )


def gather(rows: Tensor, entries: list[Entry], p: int) -> Tensor:
    """Each entry's row, the mean over its window: [N, D] -> [S, D]."""
    base = rows.unbind()
    pooled = []
    for entry in entries:
        total = torch.zeros_like(base[0])
        for j in window(entry, p):
            total = total + base[j]
        pooled.append(total / p ** entry[0])
    return torch.stack(pooled)


def attend_row(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention of one query [D] over [T, D] keys and values."""
    logits = (keys * query).sum(-1) / math.sqrt(len(query))
    return torch.softmax(logits, dim=-1) @ values


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense causal softmax attention, row by row."""
    return torch.stack([attend_row(q[s], k[: s + 1], v[: s + 1]) for s in range(len(q))])


def scatter(rows: Tensor, entries: list[Entry], p: int, length: int) -> Tensor:
    """Each entry's row added to its shifted window: [S, D] -> [N, D]."""
    out = [torch.zeros_like(rows[0]) for _ in range(length)]
    for entry, row in zip(entries, rows.unbind(), strict=True):
        for t in shifted_window(entry, p, length):
            out[t] = out[t] + row
    return torch.stack(out)


def norms(rows: Tensor) -> Scores:
    return [math.sqrt(sum(x * x for x in row)) for row in rows.tolist()]


def norm_scores(q: Tensor, k: Tensor, v: Tensor) -> tuple[Scores, Scores]:
    return norms(q), norms(k)


def dilated_scores(q: Tensor, k: Tensor, v: Tensor, dilation: int) -> tuple[Scores, Scores]:
    """Norms of attention among the positions congruent modulo ``dilation``."""

    def stream(queries: Tensor, keys: Tensor) -> Scores:
        out = []
        for t in range(len(queries)):
            seen = list(range(t % dilation, t + 1, dilation))
            out.append(attend_row(queries[t], keys[seen], v[seen]))
        return norms(torch.stack(out))

    return stream(q, k), stream(k, q)


def gla_scores(q: Tensor, k: Tensor, v: Tensor, decay: float) -> tuple[Scores, Scores]:
    """Norms of simple gated linear attention with one fixed decay per step."""

    def stream(queries: Tensor, keys: Tensor) -> Scores:
        state = torch.zeros(keys.shape[-1], v.shape[-1], dtype=v.dtype)
        out = []
        for query, key, value in zip(queries, keys, v, strict=True):
            state = decay * state + key[:, None] * value[None, :]
            out.append(query @ state / math.sqrt(len(query)))
        return norms(torch.stack(out))

    return stream(q, k), stream(k, q)


def group_scores(queries: Tensor, k: Tensor, v: Tensor, scorer: Scorer) -> tuple[Scores, Scores]:
    """The maximum of both streams over the query heads [G, N, D] that share ``k`` and ``v``."""
    query_streams, key_streams = zip(*[scorer(q, k, v) for q in queries], strict=True)
    return [max(s) for s in zip(*query_streams, strict=True)], [
        max(s) for s in zip(*key_streams, strict=True)
    ]


def lighthouse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: Any,
    *,
    scorer: Scorer = norm_scores,
    selection: list[list[list[Entry]]] | None = None,
    frequencies: list[float] | None = None,
) -> tuple[Tensor, list[list[list[Entry]]]]:
    """The whole method on q [B, Hq, N, D] and k, v [B, Hkv, N, D].

    Returns the output [B, Hq, N, D] and the selected entries, indexed by batch element and KV
    head. A ``selection`` of that form replaces the scorer's. With RoPE's ``frequencies``, one for
    each pair of channels, q and k have not seen RoPE, and each gathered row is turned at the last
    token that it summarises.
    """
    p, length = config.pooling_factor, q.shape[2]

    def gather_turned(rows: Tensor, entries: list[Entry]) -> Tensor:
        if frequencies is None:
            return gather(rows, entries, p)
        return gather_before_rope(rows, entries, p, frequencies)

    group = q.shape[1] // k.shape[1]
    batches, selected = [], []
    for b in range(q.shape[0]):
        heads, head_entries = [], []
        for h in range(k.shape[1]):
            queries = q[b, h * group : (h + 1) * group]
            keys, values = k[b, h], v[b, h]
            if selection is None:
                scores = group_scores(queries.detach(), keys.detach(), values.detach(), scorer)
                entries = select(*scores, config)
            else:
                entries = selection[b][h]
            k_rows, v_rows = gather_turned(keys, entries), gather(values, entries, p)
            for query in queries:
                y = attend(gather_turned(query, entries), k_rows, v_rows)
                heads.append(scatter(y, entries, p, length))
            head_entries.append(entries)
        batches.append(torch.stack(heads))
        selected.append(head_entries)
    return torch.stack(batches), selected
