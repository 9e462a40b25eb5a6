"""Simple gated linear attention by flash-linear-attention's kernel, where that is installed."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

from torch import Tensor

from torchtitan_lighthouse.attention import reference


@cache
def _chunk_simple_gla() -> Callable | None:
    # Importing the package takes many seconds, so only once a layer asks for it.
    if find_spec("fla") is None:
        return None
    from fla.ops.simple_gla import chunk_simple_gla

    return chunk_simple_gla


def simple_gla(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """See ``reference.simple_gla``."""
    kernel = _chunk_simple_gla()
    if kernel is None:
        return reference.simple_gla(q, k, v, log_decay)
    by_time = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    out, _ = kernel(*by_time, g_gamma=log_decay)
    return out.transpose(1, 2).float().contiguous()
