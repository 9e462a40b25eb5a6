"""Checks weights in Hugging Face's format: that they are loaded, and into their own model."""

from pathlib import Path

from torchtitan.config import JobConfig
from torchtitan.tools.logging import logger

from torchtitan_lighthouse.hf.byte_tokenizer import is_byte_tokenizer
from torchtitan_lighthouse.hf.config import HFLlama, read_config
from torchtitan_lighthouse.hf.files import read_object
from torchtitan_lighthouse.hf.rope import extended_rope, rope_in_words
from torchtitan_lighthouse.hf.weights import check_weights
from torchtitan_lighthouse.refusal import RefusalError, refusal
from torchtitan_lighthouse.titan.config.job_config import HF_FLAVOR
from torchtitan_lighthouse.titan.folder.steps import checkpoint_folder
from torchtitan_lighthouse.titan.models.args import LighthouseModelArgs
from torchtitan_lighthouse.titan.models.of_job import model_args_of


def check_hf_weights(job_config: JobConfig) -> None:
    """Refuse a folder whose model is not the job's, before anything is built; log what changes.

    Raises:
        RefusalError: names the file, and the key or tensor in it.
    """
    checkpoint = job_config.checkpoint
    if not checkpoint.initial_load_in_hf:
        _warn_of_random_weights(job_config)
        return
    if not checkpoint.enable:
        raise RefusalError(
            "checkpoint.initial_load_in_hf = true loads nothing with checkpoint.enable = false"
        )
    if checkpoint.initial_load_in_hf_quantized:
        raise RefusalError(
            "checkpoint.initial_load_in_hf_quantized = true: torchtitan's Llama-3 has no quantized "
            "form; set it to false and give weights of a float type"
        )
    if checkpoint_folder(job_config).exists():
        return  # torchtitan resumes the run, and does not load the folder again
    field = "checkpoint.initial_load_path"
    if not (name := checkpoint.initial_load_path):
        field, name = "model.hf_assets_path", job_config.model.hf_assets_path
    folder = Path(name)
    if not folder.is_dir():
        rule = "is no folder, of which checkpoint.initial_load_in_hf = true loads the weights"
        raise refusal(field, repr(name), rule)
    model, args = read_config(folder), model_args_of(job_config)
    if (generation := folder / "generation_config.json").is_file():
        read_object(generation)  # the trained model's begins with it
    check_weights(folder, model)
    _check_sizes(job_config, folder, model, args)
    _check_rope(job_config, folder, model, args)
    _warn_of_another_tokenizer(job_config, folder)
    _log_changes(folder, model, args)


def _warn_of_random_weights(job_config: JobConfig) -> None:
    checkpoint = job_config.checkpoint
    loads = checkpoint.enable and (
        checkpoint.initial_load_path or checkpoint_folder(job_config).exists()
    )
    if job_config.model.flavor == HF_FLAVOR and not loads:
        logger.warning(
            f"model.flavor = {HF_FLAVOR!r} takes the sizes of {job_config.model.hf_assets_path}, "
            "and training starts from random weights: set checkpoint.initial_load_in_hf = true, "
            "with checkpoint.enable = true, to start from its own"
        )


def _warn_of_another_tokenizer(job_config: JobConfig, folder: Path) -> None:
    own = folder / "tokenizer.json"
    if job_config.tokenizer.name == "byte" and own.is_file() and not is_byte_tokenizer(own):
        logger.warning(
            f'tokenizer.name = "byte", and the weights of {folder} know the ids of its own '
            'tokenizer.json: set tokenizer.name = "huggingface" to train on those'
        )


def _check_sizes(
    job_config: JobConfig, folder: Path, model: HFLlama, args: LighthouseModelArgs
) -> None:
    for key, size in args.sizes.items():
        if (theirs := getattr(model, key)) != size:
            raise RefusalError(
                f"{folder / 'config.json'}: {key}={theirs}, and model.flavor = "
                f"{job_config.model.flavor!r} has {size}: use model.flavor = {HF_FLAVOR!r} with "
                "this folder as model.hf_assets_path"
            )


def _check_rope(
    job_config: JobConfig, folder: Path, model: HFLlama, args: LighthouseModelArgs
) -> None:
    """Refuse a RoPE that differs from the folder's in more than what ``[rope]`` sets."""
    if extended_rope(model.rope, job_config.rope.given()) != args.rope:
        raise RefusalError(
            f"{folder / 'config.json'} has the RoPE {rope_in_words(model.rope)}, and model.flavor "
            f"= {job_config.model.flavor!r} {rope_in_words(args.rope)}: use model.flavor = "
            f"{HF_FLAVOR!r}, or say in [rope] all of the RoPE that is meant"
        )


def _log_changes(folder: Path, model: HFLlama, args: LighthouseModelArgs) -> None:
    if model.rope != args.rope:
        logger.info(
            f"RoPE of {folder}: from {rope_in_words(model.rope)} to {rope_in_words(args.rope)}"
        )
    if model.tie_word_embeddings:
        logger.info(
            f"{folder} ties lm_head to the embedding; torchtitan 0.2.2's Llama-3 has two weights, "
            "which start equal and are trained apart"
        )
