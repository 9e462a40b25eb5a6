"""Llama folders as transformers writes them."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM

from torchtitan_lighthouse.hf.config import read_config
from torchtitan_lighthouse.hf.weights import llama_shapes
from torchtitan_lighthouse.titan.models.hf_adapter import LighthouseStateDictAdapter

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 2.0,
    "high_freq_factor": 6.0,
    "original_max_position_embeddings": 96,
}
"""A scaling that bites within 256 tokens: of eight frequencies two are kept, one is in between."""

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 90,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
}
"""Those of a small Llama with grouped heads and a width that no flavor has."""


def write_llama(folder: Path, *, max_shard_size: str = "5GB", **config: Any) -> LlamaForCausalLM:
    """Write a Llama of ``SIZES`` with random weights.

    The weights are large enough that attention is sharp: a wrong rotation changes every logit.

    Args:
        config: in place of the fields below.
    """
    fields = {
        **SIZES,
        "rms_norm_eps": 1e-3,
        "max_position_embeddings": 384,
        "rope_parameters": LLAMA3,
        "bos_token_id": 256,
        "eos_token_id": [257, 258],
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**fields, **config}))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=p.shape[-1] ** -0.5) if p.dim() == 2 else p.uniform_(0.5, 1.5)
    if "dtype" in config:
        model = model.to(getattr(torch, config["dtype"]))
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def write_headers(folder: Path, config: dict[str, Any]) -> None:
    """What is read of a Llama before it is loaded: config.json, and a header without its weights.

    The file is as long as it should be, and takes no space.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    header, end = {}, 0
    for name, shape in llama_shapes(read_config(folder)).items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load a folder into a model on any ranks, as torchtitan's checkpointer does."""
    adapter = LighthouseStateDictAdapter(model.model_args, str(folder))
    state = adapter.to_hf(get_model_state_dict(model))
    dcp.load(state, storage_reader=adapter.get_hf_storage_reader(str(folder)))
    set_model_state_dict(model, adapter.from_hf(state))
