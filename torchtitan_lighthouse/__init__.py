"""Lighthouse attention for long-context pretraining with torchtitan (arXiv 2605.06554).

The names below are loaded on first use: reading a run's metrics takes no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

__version__ = "0.1.0"

_MODULES = {
    "LighthouseConfig": "config",
    "lighthouse_attention": "functional",
    "score": "functional",
    "LighthouseAttention": "module",
    "SCORERS": "scorers",
    "Scorer": "scorers",
    "Selection": "selection",
    "select": "selection",
}


if not TYPE_CHECKING:  # or type checkers would take any name for one of this package's

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.attention.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
