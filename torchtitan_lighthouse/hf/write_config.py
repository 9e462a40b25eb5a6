"""config.json of a trained model: the source's, but for what training has changed."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torchtitan_lighthouse.hf.config import HFLlama
from torchtitan_lighthouse.hf.rope import Rope, read_rope

_LENGTH = "max_position_embeddings"


def new_config(model: HFLlama, dtype: str, bos: int | None, eos: int | None) -> dict[str, Any]:
    """Make the config.json of a model that comes from no folder, as transformers 5 reads it.

    Transformers 4 would run another RoPE without a word.

    Args:
        dtype: torch's name of the weights' type.
    """
    sizes = asdict(model)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{name: value for name, value in sizes.items() if name != "rope"},
        _LENGTH: _length(model),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": model.rope,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "dtype": dtype,
    }


def trained_config(source: Mapping[str, Any], model: HFLlama, dtype: str) -> dict[str, Any]:
    """Update the source's config.json by the RoPE, dtype, tying and length of the trained model.

    What has not changed keeps its form, and RoPE the source's: transformers 4 and 5 name it
    differently.

    Args:
        model: ``max_position_embeddings`` is the length it was trained at.
    """
    config = dict(source)
    if read_rope(source, "config.json") != model.rope:
        config |= _rope_in_form_of(source, model.rope)
    config[_LENGTH] = max(source[_LENGTH], _length(model))
    if bool(source.get("tie_word_embeddings")) != model.tie_word_embeddings:
        config["tie_word_embeddings"] = model.tie_word_embeddings
    config["torch_dtype" if "torch_dtype" in source else "dtype"] = dtype
    return config


def _length(model: HFLlama) -> int:
    return max(model.max_position_embeddings, model.rope.get("original_" + _LENGTH, 0))


def _rope_in_form_of(source: Mapping[str, Any], rope: Rope) -> dict[str, Any]:
    if source.get("rope_parameters"):
        # transformers 5 writes no others, and takes them from where they are.
        beside = {"rope_theta": rope["rope_theta"], "rope_scaling": None}
        return {"rope_parameters": rope, **{n: v for n, v in beside.items() if n in source}}
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    scaled = rope["rope_type"] != "default"
    return {"rope_theta": rope["rope_theta"], "rope_scaling": scaling if scaled else None}
