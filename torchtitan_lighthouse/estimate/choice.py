"""Which activation checkpointing to choose: the fastest whose estimated peak fits a GPU."""

from collections.abc import Iterable
from dataclasses import replace

from torchtitan_lighthouse.estimate.layout import Layout, checkpointing_of
from torchtitan_lighthouse.estimate.memory import peak

FORMS = {
    "none": {"mode": "none"},
    "op": {"mode": "selective", "selective_ac_option": "op"},
    "attention": {"mode": "selective", "selective_ac_option": "attention"},
    "every second layer": {"mode": "selective", "selective_ac_option": "2"},
    "full": {"mode": "full"},
}
"""Fields of ``activation_checkpoint``, the fastest first: by what each recomputes of a block.

Nothing; what is neither attention nor every second matrix product; all but attention; every second
block; every block.
"""

_RESERVED = 9 / 8
"""What PyTorch's allocator reserves at most of what is live, in what was measured."""


def peaks(stages: Iterable[Layout], seq_len: int) -> dict[str, int]:
    """Estimate a job's peak, in its largest stage, with each of ``FORMS``: bytes per GPU."""
    layouts = list(stages)
    return {form: max(_peak(layout, seq_len, form) for layout in layouts) for form in FORMS}


def fastest(of_forms: dict[str, int], limit: float) -> str | None:
    """Return the first form that fits in ``limit`` bytes, what the allocator reserves included.

    None if none does.
    """
    return next((form for form, size in of_forms.items() if size <= live(limit)), None)


def live(limit: float) -> int:
    """Return how many bytes can be live where the allocator may reserve ``limit``."""
    return int(limit / _RESERVED)


def _peak(layout: Layout, seq_len: int, form: str) -> int:
    mode, option = FORMS[form]["mode"], FORMS[form].get("selective_ac_option", "")
    layers = range(len(layout.checkpointing))
    of_form = replace(
        layout, checkpointing=tuple(checkpointing_of(n, mode, option) for n in layers)
    )
    return peak(of_form, seq_len).total
