"""What a checkpoint keeps of its model: ``model.json``, and the small files of its source.

With them evaluation and export need neither the folder that the weights once came from nor the
module that a user's flavor is in.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path

from torchtitan.config import JobConfig
from torchtitan.models.llama3 import TransformerModelArgs
from torchtitan.models.llama3.model.args import RoPEScalingArgs

from torchtitan_lighthouse.hf.assets import CONFIG_FILES, TOKENIZER_FILES, copy_files
from torchtitan_lighthouse.hf.config import read_config
from torchtitan_lighthouse.hf.files import read_object
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.config.job_config import HF_FLAVOR
from torchtitan_lighthouse.titan.models.args import LighthouseModelArgs
from torchtitan_lighthouse.titan.models.of_job import model_args_of

MODEL_FILE = "model.json"
ASSETS = "hf_assets"


def write_model(checkpoint: Path, job_config: JobConfig, args: LighthouseModelArgs) -> None:
    """Write the arguments of a checkpoint's model, and copy what the source has beside weights."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    saved = {name: asdict(args)[name] for name in _saved_fields()}
    (checkpoint / MODEL_FILE).write_text(json.dumps(saved, indent=2) + "\n")
    copy_assets(job_config, args, checkpoint / ASSETS)


def read_model(checkpoint: Path, job_config: JobConfig) -> LighthouseModelArgs:
    """Read the arguments of a checkpoint's model; from its job where it has no ``model.json``.

    Raises:
        RefusalError: ``model.json`` is damaged or of another version, or there is no model of the
            job's.
    """
    file = checkpoint / MODEL_FILE
    if not file.is_file():
        return model_args_of(job_config)
    saved = read_object(file)
    if unknown := saved.keys() ^ set(_saved_fields()):
        raise RefusalError(f"{file} is of another version of torchtitan: {', '.join(unknown)}")
    scaling = RoPEScalingArgs(**saved.pop("rope_scaling_args"))
    return LighthouseModelArgs(**saved, rope_scaling_args=scaling)


def copy_assets(job_config: JobConfig, args: LighthouseModelArgs, out: Path) -> None:
    """Copy the configs of the model's source, and its tokenizer if the job trains with it."""
    folder = Path(job_config.model.hf_assets_path)
    if (source := _config_folder(job_config, args)) is not None:
        copy_files(source, CONFIG_FILES, out)
    if job_config.tokenizer.name == "huggingface":
        copy_files(folder, TOKENIZER_FILES, out)


def _config_folder(job_config: JobConfig, args: LighthouseModelArgs) -> Path | None:
    """Return the folder whose config.json is of this model, if the job names one."""
    checkpoint, model = job_config.checkpoint, job_config.model
    folders = []
    if checkpoint.initial_load_path:
        path = Path(checkpoint.initial_load_path)
        folders.append(path if checkpoint.initial_load_in_hf else path / ASSETS)
    if checkpoint.initial_load_in_hf or model.flavor == HF_FLAVOR:
        folders.append(model.hf_assets_path)
    if job_config.tokenizer.name == "huggingface":
        folders.append(model.hf_assets_path)
    return next((Path(f) for f in folders if _is_of(Path(f), args)), None)


def _is_of(folder: Path, args: LighthouseModelArgs) -> bool:
    """Whether a folder describes a model of these sizes, whatever its RoPE and its length are."""
    try:
        theirs = LighthouseModelArgs.of_hf(read_config(folder))
    except RefusalError:
        return False
    return theirs.sizes == args.sizes


def _saved_fields() -> list[str]:
    return [field.name for field in fields(TransformerModelArgs)]
