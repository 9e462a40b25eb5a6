"""Checkpoints that no run has saved."""

import pickle
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torchtitan.models.llama3 import Transformer

from torchtitan_lighthouse.titan.models.flavors import FLAVORS


def write_index(path: Path, flavor: str, *, full: bool, data_ranks: int = 1) -> Path:
    """The ``.metadata`` of a checkpoint of a model, without the tensors.

    Args:
        full: with the trainer's state too, or else the weights only.
        data_ranks: how many data-parallel ranks a full one is of.
    """
    with torch.device("meta"):
        model = Transformer(FLAVORS[flavor])
    entries = {
        name: TensorStorageMetadata(TensorProperties(), tensor.size(), [])
        for name, tensor in model.state_dict().items()
    }
    if full:
        ranks = [f"dataloader.dp_rank_{rank}" for rank in range(data_ranks)]
        for name in ["train_state.step", "dataloader.world_size", *ranks]:
            entries[name] = BytesStorageMetadata()
    path.mkdir(parents=True)
    (path / ".metadata").write_bytes(pickle.dumps(Metadata(entries, storage_data={})))
    return path
