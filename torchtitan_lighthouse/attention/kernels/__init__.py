"""Triton kernels for the ops. Each file holds a kernel and its launcher.

A launcher has the signature of its twin in ``reference``, and its answers.
"""

from torchtitan_lighthouse.attention.kernels.gla_scores import gla_scores
from torchtitan_lighthouse.attention.kernels.merge import merge
from torchtitan_lighthouse.attention.kernels.norm_scores import norm_scores
from torchtitan_lighthouse.attention.kernels.select import select
from torchtitan_lighthouse.attention.kernels.slots_to_windows import gather_backward, scatter
from torchtitan_lighthouse.attention.kernels.windows_to_slots import gather, scatter_backward

__all__ = [
    "gather",
    "gather_backward",
    "gla_scores",
    "merge",
    "norm_scores",
    "scatter",
    "scatter_backward",
    "select",
]
