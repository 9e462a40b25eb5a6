"""Which activation checkpointing to choose: the fastest whose estimated peak fits a GPU."""

from dataclasses import replace

from torchtitan.config import JobConfig

from torchtitan_lighthouse.estimate.memory import MemoryModel

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


def peaks(job_config: JobConfig, gpus: int | None = None) -> dict[str, int]:
    """The job's peak, in its largest stage, with each of ``FORMS``: bytes per GPU.

    Raises:
        RefusalError: see ``MemoryModel``.
    """
    return {form: _peak(job_config, gpus, fields) for form, fields in FORMS.items()}


def fastest(of_forms: dict[str, int], limit: float) -> str | None:
    """The first form that fits in ``limit`` bytes with what the allocator reserves; None: none."""
    return next((form for form, peak in of_forms.items() if _RESERVED * peak <= limit), None)


def _peak(job_config: JobConfig, gpus: int | None, fields: dict[str, str]) -> int:
    section = replace(job_config.activation_checkpoint, **fields)
    memory = MemoryModel(replace(job_config, activation_checkpoint=section), gpus)
    seq_len = job_config.training.seq_len
    return max(memory.peak(seq_len, stage).total for stage in memory.stages)
