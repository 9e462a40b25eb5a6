"""RoPE from a config.json, and what a job makes of it."""

import pytest

from torchtitan_lighthouse.hf.rope import extended_rope, read_rope
from torchtitan_lighthouse.refusal import RefusalError

NUMBERS = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PLAIN = {"rope_type": "default", "rope_theta": 500_000.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500_000.0, **NUMBERS}


@pytest.mark.parametrize(
    ("config", "rope"),
    [
        ({"rope_parameters": LLAMA3}, LLAMA3),
        ({"rope_theta": 500_000, "rope_scaling": {"rope_type": "llama3", **NUMBERS}}, LLAMA3),
        ({"rope_theta": 500_000, "rope_scaling": {"type": "llama3", **NUMBERS}}, LLAMA3),
        ({"rope_theta": 500_000.0, "rope_scaling": None}, PLAIN),
        ({"rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default"}}, PLAIN),
        ({}, {"rope_type": "default", "rope_theta": 10_000.0}),
        ({"rope_parameters": {**LLAMA3, "factor": 1}}, PLAIN),
    ],
    ids=["v5", "v4", "v4-old-name", "v4-plain", "v5-plain", "none", "factor-1"],
)
def test_config_of_each_version_is_read(config, rope):
    assert read_rope(config, "config.json") == rope


@pytest.mark.parametrize(
    ("rope", "given", "expected"),
    [
        (LLAMA3, {}, LLAMA3),
        (LLAMA3, {"factor": 32}, {**LLAMA3, "factor": 32.0}),
        (PLAIN, {"rope_theta": 8e6}, {**PLAIN, "rope_theta": 8e6}),
        (PLAIN, {"rope_type": "llama3", **NUMBERS}, LLAMA3),
        (LLAMA3, {"rope_type": "default"}, PLAIN),
    ],
    ids=["nothing", "factor", "theta", "scaling-added", "scaling-taken"],
)
def test_what_a_job_gives_replaces_what_the_model_has(rope, given, expected):
    assert extended_rope(rope, given) == expected


@pytest.mark.parametrize(
    ("rope", "given", "words"),
    [
        (PLAIN, {"factor": 8.0}, ["rope.factor=8.0", "use rope_type llama3"]),
        (PLAIN, {"rope_type": "llama3", "factor": 8.0}, ["rope.low_freq_factor is missing"]),
        (LLAMA3, {"rope_type": "yarn"}, ["rope.rope_type=yarn", "use default or llama3"]),
        (LLAMA3, {"factor": 0.5}, ["rope.factor=0.5", "at least 1"]),
        (LLAMA3, {"high_freq_factor": 1.0}, ["rope.low_freq_factor=1.0", "high_freq_factor=1.0"]),
        (LLAMA3, {"factor": "8"}, ["rope.factor='8'", "positive number"]),
        (LLAMA3, {"rope_theta": True}, ["rope.rope_theta=True"]),
        (LLAMA3, {"original_max_position_embeddings": 0.5}, ["an integer"]),
    ],
    ids=["factor-alone", "half", "yarn", "below-1", "factors", "string", "bool", "fraction"],
)
def test_what_makes_no_rope_is_refused(rope, given, words):
    with pytest.raises(RefusalError) as raised:
        extended_rope(rope, given)
    assert all(word in str(raised.value) for word in words), raised.value
