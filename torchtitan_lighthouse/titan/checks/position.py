"""Checks that a saved position in the data is resumed in the data that it was saved in."""

from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import JobConfig
from torchtitan.tools.logging import logger

from torchtitan_lighthouse.data.corpora import corpus_of
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.folder.checkpoint import read_saved
from torchtitan_lighthouse.titan.folder.data import DataFacts, data_facts, saved_facts
from torchtitan_lighthouse.titan.folder.steps import resumed_checkpoint

_ANEW = 'or read the data from their start: checkpoint.exclude_from_loading = ["dataloader"]'


def check_position(job_config: JobConfig, tokenizer: BaseTokenizer) -> None:
    """Refuse to resume at a position that means something else in the job's data.

    Raises:
        RefusalError: names the field, the saved and the asked value, and the two ways on.
    """
    checkpoint = resumed_checkpoint(job_config)
    if checkpoint is None:
        return
    if "dataloader" in job_config.checkpoint.exclude_from_loading:
        logger.warning(
            f"The data are read from their start, not from where {checkpoint} left them. Leave out "
            "checkpoint.exclude_from_loading to continue from the next checkpoint"
        )
        return
    saved, asked = saved_facts(checkpoint), data_facts(job_config, tokenizer)
    if saved is None:
        # torchtitan's own trainer saves no facts, nor did earlier versions of this package.
        ranks = read_saved(checkpoint, "choose another").data_ranks
        if ranks != asked.ranks:
            raise RefusalError(f"{checkpoint} {_other_ranks(ranks, asked.ranks)}, {_ANEW}")
        logger.warning(
            f"{checkpoint} does not say what data it was saved in. It continues at the right place "
            "if the files, the tokenizer, training.dataloader.num_workers and the number of "
            "data-parallel ranks are the same"
        )
        return
    if (change := _change(saved, asked, job_config)) is not None:
        raise RefusalError(f"{checkpoint} {change}, {_ANEW}")


def _change(saved: DataFacts, asked: DataFacts, job_config: JobConfig) -> str | None:
    """Describe the first difference, and how to undo it."""
    for name in ("dataset", "dataset_path", "num_workers"):
        old, new = getattr(saved, name), getattr(asked, name)
        if old != new:
            field = "dataloader.num_workers" if name == "num_workers" else name
            return (
                f"was saved with training.{field} = {old!r}, and the job has {new!r}: set "
                f"training.{field} = {old!r}"
            )
    if saved.ranks != asked.ranks:
        return _other_ranks(saved.ranks, asked.ranks)
    if saved.sections != asked.sections:
        training = job_config.training
        corpus = corpus_of(training.dataset, training.dataset_path)
        path = corpus.path if corpus else training.dataset_path
        old, new = (f"{facts.files} files of {facts.size:,} bytes" for facts in (saved, asked))
        others = f", and it has {new} now" if old != new else ", and it has others of that size now"
        return (
            f"was saved when training.dataset = {training.dataset!r} had {old}{others}, in {path}: "
            "use the same files"
        )
    if saved.tokenizer != asked.tokenizer:
        return (
            f"was saved with the tokenizer {saved.tokenizer!r}, and the job has "
            f"{asked.tokenizer!r}: set tokenizer.name and model.hf_assets_path to the same"
        )
    return None


def _other_ranks(saved: int, asked: int) -> str:
    return (
        f"was saved by {saved} data-parallel ranks, and the job has {asked} (all ranks by tensor, "
        f"context and pipeline parallel degrees): use {saved}"
    )
