"""The types of a job's fields, which torchtitan checks on the command line and not in TOML."""

from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from torchtitan_lighthouse.refusal import RefusalError


def refuse_wrong_types(config_class: type, sections: dict[str, Any], prefix: str = "") -> None:
    """Refuse values that are not of the types that a job's fields are annotated with.

    Raises:
        RefusalError: names the field, its value and the type.
    """
    types: dict[str, Any] = {f.name: f.type for f in fields(config_class)}
    for name, value in sections.items():
        expected = types[name]
        if is_dataclass(expected):
            refuse_wrong_types(expected, value, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif not _is_of_type(value, expected):
            raise RefusalError(f"{prefix}{name} = {value!r} must be {_in_words(expected)}")


def _is_of_type(value: Any, expected: Any) -> bool:
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is Literal:
        return any(value == a and type(value) is type(a) for a in arguments)
    if origin in (Union, UnionType):
        return any(_is_of_type(value, argument) for argument in arguments)
    if origin is list:
        return isinstance(value, list) and all(_is_of_type(v, arguments[0]) for v in value)
    if expected is float:
        return type(value) in (int, float)
    # A bool is an int to Python, but `steps = true` is a mistake.
    return type(value) is (type(None) if expected is None else expected)


def _in_words(expected: Any) -> str:
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (Union, UnionType):
        given = [a for a in arguments if a is not type(None)]
        return " or ".join(_in_words(argument) for argument in given)
    return f"of type {expected if origin else expected.__name__}"
