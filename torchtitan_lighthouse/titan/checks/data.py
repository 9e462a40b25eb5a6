"""Checks that what the job reads is text, and enough of it, and logs what is read."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import JobConfig
from torchtitan.hf_datasets.text_datasets import DATASETS
from torchtitan.tools.logging import logger

from torchtitan_lighthouse.data.corpora import HELD_OUT, LOCAL, Corpus, corpus_of
from torchtitan_lighthouse.data.documents import Share, Unread, documents
from torchtitan_lighthouse.data.sections import Part, part_of
from torchtitan_lighthouse.refusal import RefusalError, refusal
from torchtitan_lighthouse.titan.folder.data import data_parallel_ranks

_OURS = "torchtitan_lighthouse.titan"


def check_data(job_config: JobConfig, tokenizer: BaseTokenizer) -> None:
    """Refuse text that cannot be read, or of which there is too little, and log what is read.

    Data sets that are not on this machine are not looked at.

    Raises:
        RefusalError: names the field or the file, and what would work.
    """
    sections = {"training": job_config.training}
    if job_config.validation.enable:
        sections["validation"] = job_config.validation
    logged = set()
    for name, section in sections.items():
        _check_name(name, section, job_config)
        if (corpus := _corpus(name, section)) is None:
            continue
        part: Part = "held-out" if section.dataset.lower().endswith(HELD_OUT) else "training"
        _check_amount(name, section, corpus, part, job_config, tokenizer)
        if corpus.path not in logged:
            _log(corpus)
            logged.add(corpus.path)
    _warn_of_text_that_is_trained_on(job_config)


def _check_name(name: str, section: Any, job_config: JobConfig) -> None:
    # A module of the user's, which is imported later, may bring more data sets.
    if (
        job_config.experimental.custom_import in ("", _OURS)
        and section.dataset.lower() not in DATASETS
    ):
        raise refusal(f"{name}.dataset", repr(section.dataset), "is unknown", *sorted(DATASETS))


def _corpus(name: str, section: Any) -> Corpus | None:
    """Return the local corpus that a section of the job names, if it names one."""
    if section.dataset.lower().removesuffix(HELD_OUT) in LOCAL and not section.dataset_path:
        raise RefusalError(
            f'{name}.dataset = "{section.dataset}" needs {name}.dataset_path, a file or folder'
        )
    return corpus_of(section.dataset, section.dataset_path)


def _check_amount(
    name: str,
    section: Any,
    corpus: Corpus,
    part: Part,
    job_config: JobConfig,
    tokenizer: BaseTokenizer,
) -> None:
    corpus.stream(part)  # refuses to hold out of too little
    sections = part_of(corpus.sections, part)
    ranks, rank = data_parallel_ranks(job_config)
    workers = max(section.dataloader.num_workers, 1)
    found = sum(1 for _ in islice(documents(sections), ranks * workers))
    if found < ranks * workers:
        raise RefusalError(
            f"the {part} part of {corpus.path} has {found} documents, and needs one for each of "
            f"{ranks} data-parallel ranks times {workers} "
            f"{name}.dataloader.num_workers; use fewer of them or more text"
        )
    for worker in range(workers):
        share = Share(rank, ranks, worker, workers)
        tokens = _count(share.documents(sections), tokenizer, enough=section.seq_len + 1)
        if tokens <= section.seq_len:
            whose = f"of worker {worker} of {workers} on data-parallel rank {rank} of {ranks}"
            raise RefusalError(
                f"{name}.seq_len = {section.seq_len}: one sequence takes {section.seq_len + 1} "
                f"tokens, and the share {whose} in the {part} part of {corpus.path} has {tokens}; "
                f"use a shorter one, fewer ranks or {name}.dataloader.num_workers, or more text"
            )


def _log(corpus: Corpus) -> None:
    if doubts := corpus.doubts():
        logger.warning(f"Corpus {corpus.summary()}. Mind: {'; '.join(doubts)}")
    else:
        logger.info(f"Corpus {corpus.summary()}")


def _warn_of_text_that_is_trained_on(job_config: JobConfig) -> None:
    training, validation = job_config.training, job_config.validation
    if not validation.enable or corpus_of(training.dataset, training.dataset_path) is None:
        return
    read = [(section.dataset.lower(), section.dataset_path) for section in (training, validation)]
    if read[0] == read[1]:
        logger.warning(
            f"validation.dataset = {validation.dataset!r} is the text that is trained on: "
            f"'{training.dataset}{HELD_OUT}' is the part that is held out"
        )


def _count(unread: Iterable[Unread], tokenizer: BaseTokenizer, *, enough: int) -> int:
    """Count the documents' tokens, stopping where they are enough."""
    tokens = 0
    for read in unread:
        tokens += len(tokenizer.encode(read(), add_bos=True, add_eos=True))
        if tokens >= enough:
            break
    return tokens
