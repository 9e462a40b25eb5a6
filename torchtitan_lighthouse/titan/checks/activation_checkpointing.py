"""Checks which activations a job keeps."""

from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import refusal
from torchtitan_lighthouse.titan.checks.compiled import require_compiled_model

_MODES = ("none", "selective", "full", "memory_budget")
_OPTIONS = ("op", "attention")


def check_activation_checkpointing(job_config: JobConfig) -> None:
    """Refuse a form that neither torchtitan nor this package knows."""
    section = job_config.activation_checkpoint
    if section.mode not in _MODES:
        rule = "is no form of activation checkpointing"
        raise refusal("activation_checkpoint.mode", repr(section.mode), rule, *_MODES)
    if section.mode == "memory_budget":
        _check_memory_budget(job_config)
    option = section.selective_ac_option
    every_nth_layer = isinstance(option, str) and option.isdigit()
    if section.mode == "selective" and not every_nth_layer and option not in _OPTIONS:
        rule = 'must be a string: a number n for every nth layer, "op" or "attention"'
        raise refusal("activation_checkpoint.selective_ac_option", repr(option), rule)


def _check_memory_budget(job_config: JobConfig) -> None:
    """Refuse to leave the choice to the compiler, which ignores what must be kept."""
    if job_config.lighthouse.enable:
        rule = (
            "selects anew in the backward, where Lighthouse attention must not: set "
            "lighthouse.enable = false"
        )
        working = [f'"{mode}"' for mode in _MODES if mode != "memory_budget"]
        raise refusal("activation_checkpoint.mode", '"memory_budget"', rule, *working)
    require_compiled_model(job_config, "activation_checkpoint.mode", '"memory_budget"')
