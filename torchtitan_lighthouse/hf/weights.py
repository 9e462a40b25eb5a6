"""The tensors in a folder's safetensors files, by the files' headers alone."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from torchtitan_lighthouse.hf.config import HFLlama
from torchtitan_lighthouse.hf.files import read_object
from torchtitan_lighthouse.refusal import RefusalError, refusal

INDEX = "model.safetensors.index.json"
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"

Shape = tuple[int, ...]

# Llama-2's first exports saved the frequencies of RoPE, which follow from config.json.
_IGNORED = "rotary_emb.inv_freq"
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes an element
_LENGTH = 8  # bytes, little-endian, of what a safetensors file begins with


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is, and what a header says of it; ``dtype`` is safetensors' name for it."""

    file: Path
    shape: Shape
    dtype: str


def check_weights(folder: Path, model: HFLlama) -> None:
    """Refuse files that do not hold the tensors of a Llama of these sizes, and no others.

    Raises:
        RefusalError: names the file and the tensor.
    """
    stored = read_headers(folder)
    expected = llama_shapes(model)
    if model.tie_word_embeddings:
        _check_tied(stored)
        del expected[OUTPUT]
    for name, shape in expected.items():
        if name not in stored:
            raise RefusalError(f"{folder} has no tensor {name}, of shape {shape}, in its files")
        tensor = stored[name]
        if tensor.shape != shape:
            sizes = f"must be {shape} by {folder / 'config.json'}"
            raise refusal(f"{tensor.file}: shape of {name}", tensor.shape, sizes)
        if tensor.dtype not in _FLOATS:
            rule = "is a type that is not trained"
            raise refusal(f"{tensor.file}: dtype of {name}", tensor.dtype, rule, *_FLOATS)
    for name, tensor in stored.items():
        if name not in expected and not name.endswith(_IGNORED):
            raise RefusalError(f"{tensor.file} has a tensor {name}, {_why_unknown(name, model)}")


def llama_shapes(model: HFLlama) -> dict[str, Shape]:
    """List the tensors of a ``LlamaForCausalLM`` with their shapes, ``lm_head`` included."""
    hidden, ffn = model.hidden_size, model.intermediate_size
    keys = hidden // model.num_attention_heads * model.num_key_value_heads
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    shapes: dict[str, Shape] = {EMBEDDING: (model.vocab_size, hidden)}
    for number in range(model.num_hidden_layers):
        shapes |= {f"model.layers.{number}.{part}.weight": size for part, size in layer.items()}
    return {**shapes, "model.norm.weight": (hidden,), OUTPUT: (model.vocab_size, hidden)}


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Read the headers of every ``*.safetensors`` in the folder, which is what torchtitan loads.

    Raises:
        RefusalError: there is no such file, one is damaged or cut short or missing by the index, or
            two have the same tensor.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise RefusalError(f"{folder} has no *.safetensors, the only form of weights that is read")
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in _read_header(file):
            if name in stored:
                raise RefusalError(f"{stored[name].file} and {file} both have a tensor {name}")
            stored[name] = tensor
    if (folder / INDEX).is_file():
        _check_index(folder / INDEX, stored)
    return stored


def _read_header(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    if not file.is_file():
        raise RefusalError(f"{file} is no file")
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(_LENGTH), "little")
        if _LENGTH + length > size:
            raise RefusalError(f"{file} is damaged or cut short: {size} bytes end in its header")
        try:
            header = json.loads(content.read(length))
            header.pop("__metadata__", None)
            tensors = {
                name: StoredTensor(file, tuple(entry["shape"]), entry["dtype"])
                for name, entry in header.items()
            }
            spans = {name: entry["data_offsets"] for name, entry in header.items()}
            sizes = {name: stop - start for name, (start, stop) in spans.items()}
            end = max((stop for _, stop in spans.values()), default=0)
        except (ValueError, AttributeError, LookupError, TypeError) as error:
            raise RefusalError(f"{file} has no header of safetensors: {error}") from error
    if size < _LENGTH + length + end:
        raise RefusalError(f"{file} is cut short: {size} of {_LENGTH + length + end} bytes")
    for name, tensor in tensors.items():
        needed = prod(tensor.shape) * _FLOATS.get(tensor.dtype, 0)
        if needed and sizes[name] != needed:
            raise RefusalError(f"{file} has {sizes[name]} bytes of {name}, not {needed}")
        yield name, tensor


def _check_index(index: Path, stored: Mapping[str, StoredTensor]) -> None:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise RefusalError(f"{index} has no weight_map")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise refusal(f"{index}: weight_map of {name}", file, "must be a file's name")
        if not (index.parent / file).is_file():
            raise RefusalError(f"{index.parent / file} is missing: {index.name} has {name} in it")
        if name not in stored or stored[name].file.name != file:
            raise RefusalError(f"{index.parent / file} has no tensor {name}, which {index} says")


def _check_tied(stored: Mapping[str, StoredTensor]) -> None:
    if OUTPUT in stored:
        raise RefusalError(
            f"{stored[OUTPUT].file} has {OUTPUT}, which config.json ties to the embedding: take it "
            "out of the file, or set tie_word_embeddings to false"
        )


def _why_unknown(name: str, model: HFLlama) -> str:
    parts = name.split(".")
    if name.endswith(".bias"):
        return "and torchtitan's Llama-3 has no biases"
    if "q_norm" in parts or "k_norm" in parts:
        return "and queries and keys of equal norms leave Lighthouse nothing to select by"
    is_layer = parts[:2] == ["model", "layers"] and parts[2:] and parts[2].isdecimal()
    if is_layer and int(parts[2]) >= model.num_hidden_layers:
        return f"and config.json has num_hidden_layers={model.num_hidden_layers}"
    return "which a Llama does not have"
