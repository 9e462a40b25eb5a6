"""The ops of Lighthouse attention in plain PyTorch: what the fused kernels must equal.

Shapes: B batch, H selection heads (one per key/value head), Hx a multiple of H, N tokens,
S gathered entries, D head dim; L levels, pooling factor p. ``selection.py`` describes ``nodes``.
"""

from torchtitan_lighthouse.attention.reference.merge import merge
from torchtitan_lighthouse.attention.reference.scores import (
    dilated_scores,
    gla_scores,
    norm_scores,
)
from torchtitan_lighthouse.attention.reference.select import select
from torchtitan_lighthouse.attention.reference.windows import (
    empty_rows,
    gather,
    gather_backward,
    scatter,
    scatter_backward,
)

__all__ = [
    "dilated_scores",
    "empty_rows",
    "gather",
    "gather_backward",
    "gla_scores",
    "merge",
    "norm_scores",
    "scatter",
    "scatter_backward",
    "select",
]
