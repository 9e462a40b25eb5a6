"""What is evaluated: a checkpoint of a run, or a Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed import checkpoint as dcp
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import TORCH_DTYPE_MAP, JobConfig
from torchtitan.models.llama3 import Transformer

from torchtitan_lighthouse.evaluate.checkpoint import empty_model, job_of, load_trained
from torchtitan_lighthouse.hf.config import HFLlama, read_config
from torchtitan_lighthouse.hf.files import read_object
from torchtitan_lighthouse.hf.weights import check_weights
from torchtitan_lighthouse.refusal import refusal
from torchtitan_lighthouse.titan.components.hf_tokenizer import DocumentTokenizer
from torchtitan_lighthouse.titan.components.tokenizer import build_tokenizer
from torchtitan_lighthouse.titan.models.args import LighthouseModelArgs
from torchtitan_lighthouse.titan.models.hf_adapter import LighthouseStateDictAdapter


@dataclass(frozen=True)
class TrainedRun:
    """A run's checkpoint, of either stage."""

    path: Path
    job_config: JobConfig

    @property
    def name(self) -> str:
        """The run and the step, for titles."""
        return f"{self.path.parents[1].name}, {self.path.name}"

    @property
    def saved(self) -> float:
        """When it was saved, in Unix seconds, so that a retrained checkpoint is another one."""
        return (self.path / ".metadata").stat().st_mtime

    @property
    def seq_len(self) -> int:
        """The length, in tokens, that it was trained at."""
        return self.job_config.training.seq_len

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its forward pass in training."""
        return TORCH_DTYPE_MAP[self.job_config.training.mixed_precision_param]

    def tokenizer(self) -> BaseTokenizer:
        """Build the tokenizer that it was trained with."""
        return build_tokenizer(self.job_config)

    def load(self, seq_len: int, device: torch.device) -> Transformer:
        """Load the model, under dense SDPA and in float32, for up to ``seq_len`` tokens."""
        return load_trained(self.path, self.job_config, seq_len=seq_len, device=device)


@dataclass(frozen=True)
class TrainedFolder:
    """A Hugging Face folder, of this package's or another's making."""

    path: Path
    model: HFLlama

    dtype: torch.dtype
    """The dtype of the weights, by config.json."""

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}, {self.path.name}"

    @property
    def saved(self) -> float:
        return max(file.stat().st_mtime for file in self.path.glob("*.safetensors"))

    @property
    def seq_len(self) -> int:
        return self.model.max_position_embeddings

    def tokenizer(self) -> BaseTokenizer:
        return DocumentTokenizer(str(self.path))

    def load(self, seq_len: int, device: torch.device) -> Transformer:
        args = LighthouseModelArgs.of_hf(self.model)
        args.max_seq_len = seq_len
        model = empty_model(args, device)
        adapter = LighthouseStateDictAdapter(args, None)
        state = adapter.to_hf(model.state_dict())
        dcp.load(state, storage_reader=adapter.get_hf_storage_reader(str(self.path)), no_dist=True)
        model.load_state_dict(adapter.from_hf(state))
        return model.eval()


Trained = TrainedRun | TrainedFolder

_DTYPES = ("float32", "bfloat16", "float16")


def open_trained(path: Path, job_file: Path | None = None) -> Trained:
    """Open what is at ``path``, reading no more of its weights than their headers.

    Args:
        job_file: see ``job_of``.

    Raises:
        FileNotFoundError: there is neither a checkpoint nor a Hugging Face folder.
        RefusalError: a folder whose files do not fit each other.
    """
    if (path / "config.json").is_file():
        model = read_config(path)
        check_weights(path, model)
        return TrainedFolder(path, model, _dtype(path / "config.json"))
    return TrainedRun(path, job_of(path, job_file))


def _dtype(file: Path) -> torch.dtype:
    config = read_object(file)
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if name not in _DTYPES:
        raise refusal(f"{file}: dtype", repr(name), "is none that is computed in", *_DTYPES)
    return getattr(torch, name)
