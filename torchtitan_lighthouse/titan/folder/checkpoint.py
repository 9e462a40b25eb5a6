"""Reads what a checkpoint's folder holds from torch's own index, without loading any of it.

The index, ``.metadata``, is a pickle, which can run any code: torch unpickles it in the same way
when it loads the checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torchtitan.models.llama3 import Transformer, TransformerModelArgs

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.config import JOB_FILE
from torchtitan_lighthouse.titan.folder.steps import HF_INDEX, INDEX

# What a full checkpoint of torchtitan holds beside the model.
_OTHER_STATES = ("optimizer.", "lr_scheduler.", "dataloader.", "train_state.")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class SavedCheckpoint:
    """A whole checkpoint in torch's format; the shape of what is no tensor is None."""

    path: Path
    shapes: Mapping[str, Shape | None]

    @property
    def is_full(self) -> bool:
        """Whether it holds the trainer's state, and with it all that a resume needs."""
        return "train_state.step" in self.shapes

    @property
    def data_ranks(self) -> int:
        """The number of data-parallel ranks that have saved their position in the data."""
        return sum(name.startswith("dataloader.dp_rank_") for name in self.shapes)

    def difference(self, model_args: TransformerModelArgs) -> str | None:
        """Describe the first difference between its model and that of ``model_args``, if any."""
        with torch.device("meta"):
            model = Transformer(model_args)
        asked = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        saved = {n: s for n, s in self.shapes.items() if not n.startswith(_OTHER_STATES)}
        for name, shape in asked.items():
            if name not in saved:
                return f"it has no {name}"
            if saved[name] != shape:
                return f"its {name} is {saved[name]}, not {shape}"
        return next((f"it also has {name}" for name in saved if name not in asked), None)


def read_saved(path: Path, otherwise: str) -> SavedCheckpoint:
    """Read what the checkpoint at ``path`` holds.

    Args:
        otherwise: what to do if it cannot be loaded, for the refusal.

    Raises:
        RefusalError: it is not there, not whole, in another format, or cannot be read.
    """
    if (defect := _missing(path)) is not None:
        raise RefusalError(f"{path} {defect}: {otherwise}")
    try:
        metadata = FileSystemReader(path).read_metadata()
        defect = _defect(path, metadata)
    # A damaged pickle raises whatever its bytes say.
    except Exception as error:
        raise RefusalError(
            f"{path}/{INDEX} cannot be read, so is damaged, or was saved by a later version of "
            f"torch ({type(error).__name__}: {error}): {otherwise}"
        ) from error
    if defect is not None:
        raise RefusalError(f"{path} {defect}: {otherwise}")
    shapes = {
        name: tuple(entry.size) if isinstance(entry, TensorStorageMetadata) else None
        for name, entry in metadata.state_dict_metadata.items()
    }
    return SavedCheckpoint(path, shapes)


def _missing(path: Path) -> str | None:
    if not path.exists():
        return "does not exist"
    if (path / INDEX).is_file():
        return None
    if (path / HF_INDEX).is_file() or any(path.glob("*.safetensors")):
        return "holds weights only, in Hugging Face's format, which cannot be resumed"
    if (path / JOB_FILE).is_file() or any(path.glob("*.distcp")):
        return f"was not saved to the end: it has no {INDEX}"
    return f"is no checkpoint: it has no {INDEX}"


def _defect(path: Path, metadata: Metadata) -> str | None:
    if metadata.version is not None and _major(metadata.version) > _major(CURRENT_DCP_VERSION):
        return (
            f"was saved by a later version of torch, in format {metadata.version}; this one's is "
            f"{CURRENT_DCP_VERSION}"
        )
    ends: dict[str, int] = {}
    for stored in (metadata.storage_data or {}).values():
        end = stored.offset + stored.length
        ends[stored.relative_path] = max(end, ends.get(stored.relative_path, 0))
    sizes = {name: _size(path / name) for name in ends}
    if lacking := [name for name, size in sizes.items() if size is None]:
        return f"lacks {len(lacking)} of its {len(ends)} files, such as {lacking[0]}"
    if short := [name for name, size in sizes.items() if size is not None and size < ends[name]]:
        name = short[0]
        return f"has a file that is cut short, {name}: {sizes[name]} of {ends[name]} bytes"
    return None


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _major(version: str) -> int:
    return int(version.partition(".")[0])
