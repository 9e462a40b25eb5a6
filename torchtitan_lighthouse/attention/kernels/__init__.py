"""Triton kernels for the ops. Each file holds a kernel and its launcher.

A launcher has the signature of its twin in ``reference``, and its answers.
"""

from torchtitan_lighthouse.attention.kernels.gla_scores import gla_scores
from torchtitan_lighthouse.attention.kernels.norm_scores import norm_scores
from torchtitan_lighthouse.attention.kernels.select import select
from torchtitan_lighthouse.attention.kernels.slots_to_windows import slots_to_windows
from torchtitan_lighthouse.attention.kernels.windows_to_slots import windows_to_slots

__all__ = ["gla_scores", "norm_scores", "select", "slots_to_windows", "windows_to_slots"]
