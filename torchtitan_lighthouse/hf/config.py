"""config.json of a Llama: its sizes, and a refusal of what is no Llama that torchtitan trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchtitan_lighthouse.hf.files import read_object
from torchtitan_lighthouse.hf.rope import Rope, read_rope
from torchtitan_lighthouse.refusal import RefusalError, multiples, refusal


@dataclass(frozen=True)
class HFLlama:
    """The sizes of a ``LlamaForCausalLM``, in transformers' names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope: Rope


_INTEGERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)

# Keys that could make another model of it, each with its value in torchtitan's Llama-3 and why.
# None stands for a key that is absent, null or false.
_MUST_BE: dict[str, tuple[Any, str]] = {
    "hidden_act": ("silu", "the activation of torchtitan's Llama-3"),
    "attention_bias": (None, "torchtitan's Llama-3 has no biases"),
    "mlp_bias": (None, "torchtitan's Llama-3 has no biases"),
    "attention_dropout": (None, "torchtitan's Llama-3 has no dropout"),
    "sliding_window": (None, "torchtitan's Llama-3 attends to all tokens before one"),
    "quantization_config": (None, "quantized weights cannot be trained"),
    "qk_norm": (None, "queries and keys of equal norms leave Lighthouse nothing to select by"),
    "use_qk_norm": (None, "queries and keys of equal norms leave Lighthouse nothing to select by"),
    "qk_layernorm": (None, "queries and keys of equal norms leave Lighthouse nothing to select by"),
}


def read_config(folder: Path) -> HFLlama:
    """Read the sizes of the model in a folder.

    Raises:
        RefusalError: no folder or config.json, or a model that torchtitan's Llama-3 is not; the
            message names the file and the key.
    """
    if not folder.is_dir():
        raise RefusalError(f"{folder} is no folder with a Hugging Face model")
    file = folder / "config.json"
    config = read_object(file)
    if config.get("model_type") != "llama":
        raise refusal(f"{file}: model_type", config.get("model_type"), "must be llama")
    for key, (value, why) in _MUST_BE.items():
        if (config.get(key, value) or None) != value:
            rule = f"must be {'absent' if value is None else value}: {why}"
            raise refusal(f"{file}: {key}", config[key], rule)
    sizes = {key: _positive_integer(config, key, file) for key in _INTEGERS}
    model = HFLlama(
        **sizes,
        num_key_value_heads=_key_value_heads(config, sizes["num_attention_heads"], file),
        rms_norm_eps=_rms_norm_eps(config, file),
        tie_word_embeddings=_ties(config, file),
        rope=read_rope(config, file),
    )
    _check_head_dim(model, config.get("head_dim"), file)
    return model


def _positive_integer(config: Mapping[str, Any], key: str, file: Path) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise refusal(f"{file}: {key}", value, "must be a positive integer")
    return value


def _key_value_heads(config: Mapping[str, Any], heads: int, file: Path) -> int:
    if config.get("num_key_value_heads") is None:
        return heads
    groups = _positive_integer(config, "num_key_value_heads", file)
    if heads % groups:
        raise refusal(f"{file}: num_key_value_heads", groups, f"must divide the {heads} heads")
    return groups


def _ties(config: Mapping[str, Any], file: Path) -> bool:
    value = config.get("tie_word_embeddings")
    if value is not None and not isinstance(value, bool):
        raise refusal(f"{file}: tie_word_embeddings", repr(value), "must be true or false")
    return bool(value)


def _rms_norm_eps(config: Mapping[str, Any], file: Path) -> float:
    value = config.get("rms_norm_eps")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise refusal(f"{file}: rms_norm_eps", value, "must be a number between 0 and 1")
    return float(value)


def _check_head_dim(model: HFLlama, head_dim: object, file: Path) -> None:
    hidden, heads = model.hidden_size, model.num_attention_heads
    if hidden % (2 * heads):
        rule = f"must be an even number of columns for each of the {heads} heads"
        raise refusal(f"{file}: hidden_size", hidden, rule, *multiples(hidden, 2 * heads))
    if head_dim is not None and (type(head_dim) is not int or head_dim != hidden // heads):
        rule = f"must be the integer hidden_size / num_attention_heads = {hidden // heads}"
        raise refusal(f"{file}: head_dim", head_dim, rule)
