"""A checkpoint as a Hugging Face model: torchtitan's Llama-3 is a ``LlamaForCausalLM``."""

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from torchtitan.models.llama3.model.state_dict_adapter import Llama3StateDictAdapter

from torchtitan_lighthouse.evaluate.checkpoint import job_of, load_trained
from torchtitan_lighthouse.hf.files import read_object
from torchtitan_lighthouse.hf.weights import EMBEDDING, OUTPUT
from torchtitan_lighthouse.titan.folder.hf import describe_model
from torchtitan_lighthouse.titan.folder.model import ASSETS


def export_hf(
    checkpoint: Path, out: Path, dtype: str | None = None, job_file: Path | None = None
) -> dict[str, Any]:
    """Write a checkpoint as a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load.

    It has the config.json, generation_config.json and tokenizer of the model that training started
    from, with the RoPE, type, tie and length of the trained one. Attention is dense there. A
    checkpoint of the Lighthouse stage loses at that, as it does at the switch of the stages: export
    one of the dense stage.

    Args:
        checkpoint: ``<dump folder>/<checkpoint folder>/step-N``, full or weights only.
        out: made if there is none.
        dtype: of the weights; by default ``training.mixed_precision_param``, to which the job's
            forward pass has rounded them.
        job_file: see ``job_of``.

    Returns:
        What config.json has in place of the source's; nothing where there is no source.

    Raises:
        FileNotFoundError: there is no checkpoint or no tokenizer.
        FileExistsError: ``out`` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: give a new folder")
    job_config = job_of(checkpoint, job_file)
    dtype = dtype or job_config.training.mixed_precision_param
    model = load_trained(
        checkpoint,
        job_config,
        seq_len=job_config.training.seq_len,
        device=torch.device("cpu"),
    )
    weights = Llama3StateDictAdapter(model.model_args, None).to_hf(model.state_dict())
    weights = {name: weight.to(getattr(torch, dtype)) for name, weight in weights.items()}
    assets = checkpoint / ASSETS
    if tied := _is_tied(assets / "config.json", weights):
        del weights[OUTPUT]
    changed = describe_model(
        out,
        job_config,
        model.model_args,
        dtype=dtype,
        tied=tied,
        assets=assets if assets.is_dir() else None,
    )
    save_torch_state_dict(weights, out)
    _share(out)
    return changed


def _share(folder: Path) -> None:
    """Give the files the mode of other new files: safetensors makes its own for the user alone."""
    os.umask(umask := os.umask(0))
    for file in folder.iterdir():
        file.chmod(0o666 & ~umask)


def _is_tied(config: Path, weights: dict[str, Tensor]) -> bool:
    """Whether the source ties its output to its embedding, and training has left them equal."""
    if not config.is_file() or not read_object(config).get("tie_word_embeddings"):
        return False
    return torch.equal(weights[OUTPUT], weights[EMBEDDING])
