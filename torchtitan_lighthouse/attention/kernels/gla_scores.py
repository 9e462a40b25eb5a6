"""Scores of the gla scorer by flash-linear-attention's kernel, where that is installed."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

from torch import Tensor

from torchtitan_lighthouse.attention import reference
from torchtitan_lighthouse.attention.reference.scores import norms_of_both_streams


@cache
def _chunk_simple_gla() -> Callable | None:
    # Importing the package takes many seconds, so only once a layer asks for it.
    if find_spec("fla") is None:
        return None
    from fla.ops.simple_gla import chunk_simple_gla

    return chunk_simple_gla


def gla_scores(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """See ``reference.gla_scores``, which is used where flash-linear-attention is missing."""
    kernel = _chunk_simple_gla()
    if kernel is None:
        return reference.gla_scores(q, k, v, log_decay)

    # The kernel reads [B, N, H, D], as torchtitan's tensors lie in memory.
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))

    def attend(*streams: Tensor) -> Tensor:
        out, _ = kernel(*(x.transpose(1, 2) for x in streams), g_gamma=log_decay)
        return out.transpose(1, 2)

    return norms_of_both_streams(attend, q, k, v)
