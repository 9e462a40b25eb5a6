"""RoPE in transformers' names: what a config.json has, and what a job changes of it.

A RoPE is a dict of the form that transformers 5 calls ``rope_parameters``: ``rope_theta``,
``rope_type``, and what that type needs.
"""

from collections.abc import Mapping
from math import inf
from typing import Any

from torchtitan_lighthouse.refusal import RefusalError, refusal

Rope = dict[str, Any]

_SCALING = {
    "default": (),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
"""What each type needs beside ``rope_theta``. torchtitan 0.2.2's RoPE computes no other type: YaRN,
for one, also scales the attention."""


_DEFAULT_THETA = 10_000.0  # transformers' own, for a config.json without one


def read_rope(config: Mapping[str, Any], file: object) -> Rope:
    """Read the RoPE of a config.json, as transformers 5 or 4 writes it.

    Args:
        config: the content of ``file``.

    Raises:
        RefusalError: a type that torchtitan does not compute, or numbers that its type does not
            take; the message names the file.
    """
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    for name, value in {"rope_parameters": new, "rope_scaling": old}.items():
        if value is not None and not isinstance(value, Mapping):
            raise refusal(f"{file}: {name}", repr(value), "must be an object or null")
    if new and old and new != old:
        raise RefusalError(f"{file} has rope_parameters {new} and rope_scaling {old}: leave one")
    given = dict(new or old or {})
    if "type" in given:
        given.setdefault("rope_type", given.pop("type"))
    for name in ("rope_theta", "partial_rotary_factor"):
        outside = config.get(name)
        if outside is not None and given.setdefault(name, outside) != outside:
            raise RefusalError(f"{file} has {name} {outside} and {given[name]}: leave one")
    rope = {"rope_type": "default", "rope_theta": _DEFAULT_THETA, **given}
    return checked_rope(rope, f"{file}: ")


def extended_rope(rope: Rope, given: Mapping[str, Any]) -> Rope:
    """Replace fields of a RoPE by those that a job's ``[rope]`` gives.

    Raises:
        RefusalError: the two make no RoPE that torchtitan computes.
    """
    kept = rope
    if given.get("rope_type", rope["rope_type"]) != rope["rope_type"]:
        kept = {"rope_theta": rope["rope_theta"]}
    return checked_rope({**kept, **given}, "rope.")


def checked_rope(rope: Mapping[str, Any], prefix: str) -> Rope:
    """Complete and check a RoPE, so that equal ones compare equal; a factor of 1 is no scaling.

    Args:
        prefix: goes before the name of a field that is wrong.

    Raises:
        RefusalError: see ``read_rope``.
    """
    rope_type = rope["rope_type"]
    if not isinstance(rope_type, str) or rope_type not in _SCALING:
        rule = "is a RoPE that torchtitan 0.2.2 does not compute"
        raise refusal(f"{prefix}rope_type", rope_type, rule, *_SCALING)
    needed = ("rope_theta", *_SCALING[rope_type])
    for name in needed:
        if name not in rope:
            raise RefusalError(f"{prefix}{name} is missing: rope_type {rope_type} needs it")
    for name, value in rope.items():
        if name in needed:
            _check_number(f"{prefix}{name}", value)
        elif name != "rope_type" and not _says_nothing(name, value):
            rule = f"has no meaning for rope_type {rope_type}"
            raise refusal(f"{prefix}{name}", value, rule, *_types_with(name))
    if rope_type == "default" or rope["factor"] == 1:
        return {"rope_type": "default", "rope_theta": float(rope["rope_theta"])}
    _check_llama3(rope, prefix)
    original = "original_max_position_embeddings"
    numbers = {name: float(rope[name]) for name in needed if name != original}
    return {"rope_type": rope_type, **numbers, original: int(rope[original])}


def rope_in_words(rope: Rope) -> str:
    """Write a RoPE in one line, for a log."""
    return ", ".join(f"{name} {value}" for name, value in rope.items())


def _check_number(field: str, value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < inf:  # type: ignore[operator]
        raise refusal(field, repr(value), "must be a positive number")


def _check_llama3(rope: Mapping[str, Any], prefix: str) -> None:
    if rope["factor"] < 1:
        raise refusal(f"{prefix}factor", rope["factor"], "must be at least 1")
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    if not low < high:
        raise refusal(f"{prefix}low_freq_factor", low, f"must be below high_freq_factor={high}")
    original = rope["original_max_position_embeddings"]
    if original != int(original):
        raise refusal(f"{prefix}original_max_position_embeddings", original, "must be an integer")


def _says_nothing(name: str, value: object) -> bool:
    return value is None or (name == "partial_rotary_factor" and value == 1)


def _types_with(name: str) -> list[str]:
    return [f"rope_type {t}" for t, names in _SCALING.items() if name in names]
