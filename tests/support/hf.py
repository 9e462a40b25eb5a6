"""Llama folders as transformers writes them."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 2.0,
    "high_freq_factor": 6.0,
    "original_max_position_embeddings": 96,
}
"""A scaling that bites within 256 tokens: of eight frequencies two are kept, one is in between."""


def write_llama(folder: Path, *, max_shard_size: str = "5GB", **config: Any) -> LlamaForCausalLM:
    """Write a small Llama of random weights, grouped heads and a width that no flavor has.

    The weights are large enough that attention is sharp: a wrong rotation changes every logit.

    Args:
        config: in place of the fields below.
    """
    fields = {
        "hidden_size": 64,
        "intermediate_size": 89,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
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
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model
