"""Geometries, inputs and conversions that the tests of the method share."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.support.slow_loop import Entry
from torchtitan_lighthouse import LighthouseConfig, Selection, select
from torchtitan_lighthouse.attention.context_parallel import ContextParallel
from torchtitan_lighthouse.attention.selection import entries_in_order

Case = tuple[LighthouseConfig, int]  # the numbers and the sequence length


def case(levels: int, p: int, tile: int, tiles: int, tile_length: int, **fields: object) -> Case:
    """A geometry by the length of the coarsest level's tiles; ``fields`` go to the config."""
    config = LighthouseConfig(
        levels=levels, pooling_factor=p, topk=tiles * tile, tile=tile, **fields
    )
    return config, p ** (levels - 1) * tiles * tile_length


def case_id(value: Case) -> str:
    config, length = value
    unpinned = "" if config.pin_first else "-unpinned"
    aligned = "-rope" if config.rope_aligned else ""
    return (
        f"L{config.levels}-p{config.pooling_factor}-m{config.tile}-k{config.topk}-N{length}"
        f"{unpinned}{aligned}"
    )


ONE_LEVEL = case(1, 2, 2, 1, 24)
CASES = [
    case(2, 2, 2, 2, 6),
    case(2, 4, 8, 2, 12),
    case(3, 2, 4, 2, 7),
    case(3, 2, 4, 2, 4),  # the whole coarsest level is expanded
    case(3, 4, 8, 2, 12),
    case(3, 4, 16, 1, 20),
    case(4, 2, 2, 3, 4),
    case(4, 2, 8, 1, 9),
    case(4, 4, 2, 2, 3),
    case(3, 2, 4, 2, 7, pin_first=False),
    case(4, 4, 2, 2, 3, pin_first=False),
]
PINNED = [c for c in CASES if c[0].pin_first]
SMALL = case(3, 2, 4, 2, 7)

HEADS = [(1, 1, 1), (2, 2, 2), (2, 4, 2), (1, 4, 1)]  # B, Hq, Hkv


def heads_id(value: tuple[int, int, int]) -> str:
    batch, query_heads, kv_heads = value
    return f"B{batch}-H{query_heads}:{kv_heads}"


def random_qkv(
    length: int,
    *,
    batch: int = 1,
    heads: tuple[int, int] = (2, 2),
    dim: int = 8,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(batch, heads[0], length, dim, dtype=dtype)
    k, v = torch.randn(2, batch, heads[1], length, dim, dtype=dtype)
    return q, k, v


def random_selection(
    config: LighthouseConfig, length: int, batch: int = 1, heads: int = 2
) -> Selection:
    return select(*torch.rand(2, batch, heads, length), config)


def entries_of(
    selection: Selection, config: LighthouseConfig, length: int
) -> list[list[list[Entry]]]:
    """The selection in the slow loop's form: (level, index) by batch element, head and slot."""
    pairs = torch.stack(entries_in_order(selection, config, length), dim=-1).tolist()
    return [[[tuple(e) for e in head] for head in element] for element in pairs]


def ones_attention(q: Tensor, k: Tensor, v: Tensor, **kwargs: object) -> Tensor:
    """Stands in for SDPA; scattered, it counts the entries that reach each position."""
    return torch.ones_like(q)


def values_attention(q: Tensor, k: Tensor, v: Tensor, **kwargs: object) -> Tensor:
    """Stands in for SDPA, rounds nothing and saves nothing."""
    return v


def requires_grad(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.detach().clone().requires_grad_() for t in tensors)


def output_and_gradients(
    attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, upstream: Tensor
) -> list[Tensor]:
    """The output and the gradients of q, k and v."""
    leaves = requires_grad(q, k, v)
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def rows_of(x: Tensor, context_parallel: ContextParallel, dim: int) -> Tensor:
    """What a rank holds of ``x``."""
    pieces = x.chunk(2 * context_parallel.size, dim)
    return torch.cat([pieces[piece] for piece in context_parallel.pieces], dim)
