"""All of a Hugging Face folder but the weights: what says to transformers which model they are."""

import json
from pathlib import Path
from typing import Any

from torchtitan.config import JobConfig

from torchtitan_lighthouse.hf.assets import CONFIG_FILES, TOKENIZER_FILES, copy_files
from torchtitan_lighthouse.hf.byte_tokenizer import write_byte_tokenizer
from torchtitan_lighthouse.hf.files import read_object
from torchtitan_lighthouse.hf.write_config import new_config, trained_config
from torchtitan_lighthouse.titan.components.tokenizer import build_tokenizer
from torchtitan_lighthouse.titan.folder.model import copy_assets
from torchtitan_lighthouse.titan.models.args import LighthouseModelArgs


def describe_model(
    out: Path,
    job_config: JobConfig,
    args: LighthouseModelArgs,
    *,
    dtype: str,
    tied: bool,
    assets: Path | None = None,
) -> dict[str, Any]:
    """Write config.json, generation_config.json and the tokenizer of a trained model.

    Args:
        args: of the model; ``max_seq_len`` is the length it was trained at.
        dtype: torch's name of the weights' type.
        tied: whether the files have no ``lm_head``.
        assets: what a checkpoint keeps of the source; by default from the job's own folders.

    Returns:
        What config.json has in place of the source's; nothing where there is no source.
    """
    out.mkdir(parents=True, exist_ok=True)
    if assets is None:
        copy_assets(job_config, args, out)
    else:
        copy_files(assets, (*CONFIG_FILES, *TOKENIZER_FILES), out)
    if job_config.tokenizer.name == "byte":
        write_byte_tokenizer(out)
    model, file = args.to_hf(tied=tied), out / "config.json"
    source = read_object(file) if file.is_file() else None
    if source is None:
        tokenizer = build_tokenizer(job_config)
        config = new_config(model, dtype, tokenizer.bos_id, tokenizer.eos_id)
    else:
        config = trained_config(source, model, dtype)
    file.write_text(json.dumps(config, indent=2) + "\n")
    before = config if source is None else source
    return {name: value for name, value in config.items() if before.get(name) != value}
