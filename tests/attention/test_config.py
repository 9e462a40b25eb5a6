"""The rules of the geometry: what is refused, and that what a refusal suggests is accepted."""

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtitan_lighthouse import LighthouseConfig

FAR = 10_000


def _accepts(**fields) -> bool:
    try:
        LighthouseConfig(**fields)
    except ValueError:
        return False
    return True


def _suggested(message: str) -> list[str]:
    return re.search(r"use (.+)$", message)[1].split(" or ")


def _nearest(value: int, works) -> set[int]:
    """The nearest values on either side that work, found by trying."""
    below = next((n for n in range(value - 1, 0, -1) if works(n)), None)
    above = next((n for n in range(max(value, 0) + 1, value + FAR) if works(n)), None)
    return {n for n in (below, above) if n is not None}


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("levels", 0, "at least 1"),
        ("levels", -2, "at least 1"),
        ("pooling_factor", 1, "power of two"),
        ("pooling_factor", 0, "power of two"),
        ("pooling_factor", 6, "power of two"),
        ("topk", 100, "multiple of tile=128"),
        ("topk", 0, "multiple of tile=128"),
        ("topk", -1, "multiple of tile=128"),
        ("topk", 1537, "multiple of tile=128"),
        ("tile", 0, "even"),
        ("tile", 7, "even"),
        ("tile", 11, "even"),  # 10 is even, but does not divide topk
        ("dilation", 0, "at least 1"),
    ],
    ids=lambda v: str(v).replace(" ", "-"),
)
def test_a_refusal_names_field_value_rule_and_the_nearest_values_that_work(field, value, rule):
    with pytest.raises(ValueError, match=f"{field}={value} .*{rule}") as refusal:
        LighthouseConfig(**{field: value})
    suggested = {int(v) for v in _suggested(str(refusal.value))}
    assert suggested == _nearest(value, lambda n: _accepts(**{field: n}))


def test_an_unknown_scorer_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="scorer=norms ") as refusal:
        LighthouseConfig(scorer="norms")
    assert _suggested(str(refusal.value)) == ["dilated", "gla", "norm"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("levels", 3.0),
        ("levels", True),
        ("topk", "1536"),
        ("tile", None),
        ("scorer", 1),
        ("pin_first", 1),
        ("pin_first", "false"),
    ],
    ids=repr,
)
def test_a_value_of_another_type_is_refused(field, value):
    with pytest.raises(ValueError, match=re.escape(f"{field}={value!r} must be of type")):
        LighthouseConfig(**{field: value})


@settings(max_examples=200, deadline=None)
@given(
    levels=st.integers(1, 4),
    p=st.sampled_from([2, 4]),
    tile=st.sampled_from([2, 4, 8]),
    tiles=st.integers(1, 4),
    length=st.integers(-2, 3000),
)
def test_lengths_are_those_that_the_rules_admit(levels, p, tile, tiles, length):
    config = LighthouseConfig(levels=levels, pooling_factor=p, topk=tile * tiles, tile=tile)

    def admitted(n: int) -> bool:
        if levels == 1:
            return n >= 1
        coarsest, rest = divmod(n, p ** (levels - 1))
        return rest == 0 and coarsest % tiles == 0 and coarsest >= config.topk

    if admitted(length):
        config.validate_seq_len(length)
        return
    with pytest.raises(ValueError, match=f"seq_len={length} ") as refusal:
        config.validate_seq_len(length)
    suggested = {int(v) for v in _suggested(str(refusal.value))}
    assert suggested == _nearest(length, admitted)
    for works in suggested:
        config.validate_seq_len(works)


def test_sub_sequence_length_refuses_what_validate_seq_len_refuses():
    with pytest.raises(ValueError, match=r"seq_len=98305 .*use "):
        LighthouseConfig().sub_sequence_length(98_305)


def test_a_length_that_the_dilation_does_not_divide_is_refused():
    numbers = {"topk": 2, "tile": 2, "pooling_factor": 2, "scorer": "dilated", "dilation": 6}
    config = LighthouseConfig(levels=2, **numbers)
    with pytest.raises(ValueError, match=r"seq_len=20 .*dilation=6, .*; use 18 or 24"):
        config.validate_seq_len(20)
    config.validate_seq_len(24)
    LighthouseConfig(levels=1, **numbers).validate_seq_len(20)


def test_defaults_are_the_papers():
    assert dataclasses.astuple(LighthouseConfig()) == (3, 4, 1536, 128, "norm", 4, True, False)


def test_config_is_frozen_and_hashable():
    config = LighthouseConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.topk = 128
    assert hash(config) == hash(LighthouseConfig())


@pytest.mark.parametrize("tile", [8, 16, 32])
def test_small_tiles_are_taken(tile):
    assert LighthouseConfig(topk=4 * tile, tile=tile).tiles == 4
