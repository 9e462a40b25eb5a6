"""A trained model from its checkpoint, under dense SDPA: what evaluation and export start from."""

from pathlib import Path

import torch
from torch.distributed import checkpoint as dcp
from torchtitan.config import JobConfig
from torchtitan.models.llama3 import Transformer

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.config import read_job
from torchtitan_lighthouse.titan.folder.job import job_file_of
from torchtitan_lighthouse.titan.folder.model import ASSETS, read_model
from torchtitan_lighthouse.titan.folder.steps import step_of
from torchtitan_lighthouse.titan.models.args import LighthouseModelArgs
from torchtitan_lighthouse.titan.stages import Stage, stage_at


def job_of(checkpoint: Path, job_file: Path | None = None) -> JobConfig:
    """Read the job that saved ``<dump folder>/<checkpoint folder>/step-N``.

    ``model.hf_assets_path`` is what the checkpoint itself keeps of that folder, if it does.

    Args:
        job_file: where its ``job.json`` is, if that is neither in it nor in its dump folder.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        RefusalError: a Hugging Face folder; or there is no ``job.json``, which torchtitan's own
            trainer writes if ``job.save_config_file`` names it.
    """
    if (checkpoint / "config.json").is_file():
        raise RefusalError(f"{checkpoint} is a Hugging Face folder already")
    if not (checkpoint / ".metadata").is_file():
        raise FileNotFoundError(
            f"{checkpoint} is no checkpoint: give a folder such as outputs/run/checkpoint/step-1000"
        )
    file = job_file or job_file_of(checkpoint)
    if not file.is_file():
        raise RefusalError(f"there is no {file}: name the job.json of {checkpoint} with --job")
    job_config = read_job(file)
    if (checkpoint / ASSETS).is_dir():
        job_config.model.hf_assets_path = str(checkpoint / ASSETS)
    return job_config


def stage_of(checkpoint: Path, job_config: JobConfig) -> Stage:
    """Return the stage of the last step that a checkpoint has trained."""
    return stage_at(step_of(checkpoint) or job_config.training.steps, job_config.lighthouse)


def load_trained(
    checkpoint: Path, job_config: JobConfig, *, seq_len: int, device: torch.device
) -> Transformer:
    """Load a checkpoint of either stage into torchtitan's own model, in float32.

    Args:
        job_config: the job that saved it (see ``job_of``).
        seq_len: the most tokens that the model will be called with.
    """
    args = read_model(checkpoint, job_config)
    args.max_seq_len = seq_len
    model = empty_model(args, device)
    state = model.state_dict()
    dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    return model.eval()


def empty_model(args: LighthouseModelArgs, device: torch.device) -> Transformer:
    """Build torchtitan's model, with its RoPE table, which no checkpoint has."""
    with torch.device("meta"):
        model = Transformer(args)
    model.to_empty(device=device)
    with torch.no_grad():
        model.init_weights()
    return model
