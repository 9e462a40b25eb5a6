"""Lighthouse attention for long-context pretraining with torchtitan (arXiv 2605.06554)."""

from torchtitan_lighthouse.attention.config import LighthouseConfig
from torchtitan_lighthouse.attention.functional import lighthouse_attention, score
from torchtitan_lighthouse.attention.module import LighthouseAttention
from torchtitan_lighthouse.attention.scorers import SCORERS, Scorer
from torchtitan_lighthouse.attention.selection import Selection, select

__all__ = [
    "SCORERS",
    "LighthouseAttention",
    "LighthouseConfig",
    "Scorer",
    "Selection",
    "lighthouse_attention",
    "score",
    "select",
]
