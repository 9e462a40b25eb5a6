"""Lighthouse attention for long-context pretraining with torchtitan (arXiv 2605.06554)."""

from torchtitan_lighthouse.attention.config import LighthouseConfig
from torchtitan_lighthouse.attention.functional import lighthouse_attention
from torchtitan_lighthouse.attention.module import LighthouseAttention
from torchtitan_lighthouse.attention.scorers import SCORERS
from torchtitan_lighthouse.attention.selection import Selection, select

__all__ = [
    "SCORERS",
    "LighthouseAttention",
    "LighthouseConfig",
    "Selection",
    "lighthouse_attention",
    "select",
]
