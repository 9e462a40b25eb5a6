"""torchtitan's text dataloader over its own data sets and ours, resumable in every epoch.

Names, for ``training.dataset`` and ``validation.dataset`` (a path is the section's
``dataset_path``):

- ``local``, ``local_validation``: the training and the held-out part of the text, JSON lines and
  parquet at the path;
- ``local_text``, ``local_text_validation``: the same of every file there, as the text it is;
- ``python_stdlib``, ``python_stdlib_validation``: of the standard library's sources;
- ``c4`` and every other one that torchtitan knows.
"""

import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

from datasets import Dataset, IterableDataset
from torchtitan.components.dataloader import ParallelAwareDataloader
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import JobConfig
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS, HuggingFaceTextDataset

from torchtitan_lighthouse.data.corpora import CORPORA, Corpus
from torchtitan_lighthouse.data.documents import read_document
from torchtitan_lighthouse.data.sections import Part
from torchtitan_lighthouse.refusal import RefusalError


def _load(corpus: Callable[[str], Corpus], part: Part, path: str) -> IterableDataset:
    return corpus(path).stream(part)


for _name, (_corpus, _path) in CORPORA.items():
    DATASETS[_name] = DatasetConfig(_path, partial(_load, _corpus, "training"), read_document)
    DATASETS[f"{_name}_validation"] = DatasetConfig(
        _path, partial(_load, _corpus, "held-out"), read_document
    )


_TOKEN = "q"
"""The type of a token in ``array``: int64."""


class ResumableTextDataset(HuggingFaceTextDataset):
    """torchtitan's packed text dataset, which resumes at the very next token, in every epoch.

    Items are ``({"input": int64 [seq_len]}, labels int64 [seq_len])``.

    Raises:
        RefusalError: while iterating, this rank or worker has no document at all.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._last_pass_was_empty = False
        self._loaded_position: dict[str, Any] = {}

    def _get_data_iter(self) -> Iterator[Any]:
        is_empty = True
        for sample in super()._get_data_iter():
            is_empty = False
            self._loaded_position = {}
            yield sample
        # One empty pass is a resume at the end of an epoch. Without an end to them, this rank
        # would wait for data forever, and the others for this rank.
        if self.infinite and is_empty and self._last_pass_was_empty:
            raise RefusalError(
                f"dataset {self.dataset_name!r} has fewer documents than there are "
                "data-parallel ranks times dataloader workers; use fewer of them or more data"
            )
        self._last_pass_was_empty = is_empty

    def state_dict(self) -> dict[str, Any]:
        # Bytes, for with each batch of a worker comes its state, and what pins the batch in memory
        # goes through it item by item, tens of thousands of them, while the trainer waits for
        # Python's lock. And a copy: a worker goes on while its state is on its way.
        buffer = array(_TOKEN, self._token_buffer).tobytes()
        return {**super().state_dict(), **self._loaded_position, "token_buffer": buffer}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        buffer = state_dict["token_buffer"]
        if isinstance(buffer, bytes):  # a list is of torchtitan's own, or of an earlier version
            buffer = array(_TOKEN, buffer).tolist()
        super().load_state_dict({**state_dict, "token_buffer": buffer})
        if not isinstance(self._data, Dataset):
            # `datasets` ignores a state of another epoch than its own, and does not restore it;
            # and until the first document is read, it gives its state before the loading.
            self._data.set_epoch(state_dict["data"]["epoch"])
            self._loaded_position = {"data": state_dict["data"]}


class RepeatingTextDataset(ResumableTextDataset):
    """A dataset that starts anew on each iteration.

    torchtitan's goes on with the tokens that the last iteration has left over.
    """

    def __iter__(self) -> Iterator[Any]:
        self._sample_idx = 0
        self._token_buffer: list[int] = []
        if not isinstance(self._data, Dataset):
            self._data.set_epoch(0)
        return super().__iter__()


def build_dataloader(
    dp_world_size: int,
    dp_rank: int,
    tokenizer: BaseTokenizer,
    job_config: JobConfig,
    infinite: bool = True,
) -> ParallelAwareDataloader:
    """Build the training data of one data-parallel rank, as ``[training]`` describes it."""
    section = job_config.training
    return _build(ResumableTextDataset, section, dp_world_size, dp_rank, tokenizer, infinite)


def build_validation_dataloader(
    dp_world_size: int,
    dp_rank: int,
    tokenizer: BaseTokenizer,
    job_config: JobConfig,
    infinite: bool,
) -> ParallelAwareDataloader:
    """Build the held-out data of one data-parallel rank: the same batches on each iteration."""
    section = job_config.validation
    return _build(RepeatingTextDataset, section, dp_world_size, dp_rank, tokenizer, infinite)


def _build(
    dataset_class: type[HuggingFaceTextDataset],
    section: Any,
    dp_world_size: int,
    dp_rank: int,
    tokenizer: BaseTokenizer,
    infinite: bool,
) -> ParallelAwareDataloader:
    dataset = dataset_class(
        dataset_name=section.dataset,
        dataset_path=section.dataset_path,
        tokenizer=tokenizer,
        seq_len=section.seq_len,
        dp_rank=dp_rank,
        dp_world_size=dp_world_size,
        infinite=infinite,
    )
    loading = {**asdict(section.dataloader), "batch_size": section.local_batch_size}
    return ParallelAwareDataloader(
        dataset,
        dp_rank=dp_rank,
        dp_world_size=dp_world_size,
        worker_init_fn=_leave_process_group,
        **loading,
    )


def _leave_process_group(worker: int) -> None:
    """Leave the rank's process group: a signal to it must not end the rank's workers early."""
    os.setpgid(0, 0)
