"""torchtitan's text dataloader over its own data sets and ours, resumable in every epoch.

Names, for ``training.dataset`` and ``validation.dataset`` (a path is the section's
``dataset_path``):

- ``local``, ``local_validation``: the training and the held-out part of the files at the path;
- ``python_stdlib``, ``python_stdlib_validation``: of the standard library's sources;
- ``c4`` and every other one that torchtitan knows.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from itertools import cycle
from typing import Any
from unittest import mock

import torch
from datasets import Dataset
from torchtitan.components import validate
from torchtitan.components.dataloader import ParallelAwareDataloader
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.components.validate import BaseValidator
from torchtitan.config import JobConfig
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS, HuggingFaceTextDataset

from torchtitan_lighthouse.titan.corpora import (
    load_local,
    load_python_stdlib,
    read_document,
    stdlib_path,
)

for _name, _path, _load in (
    ("local", "", load_local),
    ("python_stdlib", stdlib_path(), load_python_stdlib),
):
    DATASETS[_name] = DatasetConfig(_path, partial(_load, part="training"), read_document)
    DATASETS[f"{_name}_validation"] = DatasetConfig(
        _path, partial(_load, part="held-out"), read_document
    )


class PackedTextDataset(HuggingFaceTextDataset):
    """Text packed as torchtitan packs it, but each row of a batch reads documents of its own.

    torchtitan's rows are neighbours in one stream, so a long document fills whole batches, one
    after the other, and a model of little text learns that document rather than the language.
    With one row per batch the order is torchtitan's. A resume continues at the very next token.

    Items are ``({"input": int64 [seq_len]}, labels int64 [seq_len])``, row after row.

    Raises:
        ValueError: while iterating, this rank or worker has no document at all; or on loading, a
            state of another number of rows.
    """

    _token_buffer: list[list[int]]
    _sample_idx: int

    def __init__(self, *, rows: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._token_buffer = [[] for _ in range(rows)]
        self._last_pass_was_empty = False
        self._loaded_position: dict[str, Any] = {}

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        documents = self._documents()
        for buffer in cycle(self._token_buffer):
            while len(buffer) <= self.seq_len:
                text = next(documents, None)
                if text is None:
                    return
                buffer += self._tokenizer.encode(text, add_bos=True, add_eos=True)
            tokens = torch.tensor(buffer[: self.seq_len + 1])
            del buffer[: self.seq_len + 1]
            yield {"input": tokens[:-1]}, tokens[1:]

    def _documents(self) -> Iterator[str]:
        while True:
            is_empty = True
            for sample in self._get_data_iter():
                is_empty = False
                self._sample_idx += 1
                self._loaded_position = {}
                yield self._text_processor(sample)
            if not self.infinite:
                return
            # One empty pass is a resume at the end of an epoch. Without an end to them, this rank
            # would wait for data forever, and the others for this rank.
            if is_empty and self._last_pass_was_empty:
                raise ValueError(
                    f"dataset {self.dataset_name!r} has fewer documents than there are "
                    "data-parallel ranks times dataloader workers; use fewer of them or more data"
                )
            self._last_pass_was_empty = is_empty
            self._sample_idx = 0
            if not isinstance(self._data, Dataset):
                self._data.set_epoch(self._data.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        # A copy, because a worker process goes on while its state is on its way.
        rows = [list(row) for row in self._token_buffer]
        return {**super().state_dict(), **self._loaded_position, "token_buffer": rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rows, saved = len(self._token_buffer), len(state_dict["token_buffer"])
        if rows != saved:
            raise ValueError(
                f"the checkpoint's data is that of local_batch_size = {saved}, and this job's is "
                f"{rows}: keep it, and change training.global_batch_size instead"
            )
        super().load_state_dict(state_dict)
        if not isinstance(self._data, Dataset):
            # `datasets` ignores a state of another epoch than its own, and does not restore it;
            # and until the first document is read, it gives its state before the loading.
            self._data.set_epoch(state_dict["data"]["epoch"])
            self._loaded_position = {"data": state_dict["data"]}


def build_dataloader(
    dp_world_size: int,
    dp_rank: int,
    tokenizer: BaseTokenizer,
    job_config: JobConfig,
    infinite: bool = True,
) -> ParallelAwareDataloader:
    """The training data of one data-parallel rank, as ``[training]`` describes it."""
    return _build(job_config.training, dp_world_size, dp_rank, tokenizer, infinite)


def build_validator(**components: Any) -> BaseValidator:
    """torchtitan's validator, over the data that ``[validation]`` describes."""
    # torchtitan 0.2.2's Validator takes no dataloader, and builds one of a class that waits forever
    # where a rank has no document. This can go when it takes one.
    with mock.patch.object(validate, "build_text_validation_dataloader", _build_validation):
        return validate.build_validator(**components)


def _build_validation(
    dp_world_size: int,
    dp_rank: int,
    tokenizer: BaseTokenizer,
    job_config: JobConfig,
    infinite: bool,
) -> ParallelAwareDataloader:
    return _build(job_config.validation, dp_world_size, dp_rank, tokenizer, infinite)


def _build(
    section: Any, dp_world_size: int, dp_rank: int, tokenizer: BaseTokenizer, infinite: bool
) -> ParallelAwareDataloader:
    dataset = PackedTextDataset(
        rows=section.local_batch_size,
        dataset_name=section.dataset,
        dataset_path=section.dataset_path,
        tokenizer=tokenizer,
        seq_len=section.seq_len,
        dp_rank=dp_rank,
        dp_world_size=dp_world_size,
        infinite=infinite,
    )
    loading = {**asdict(section.dataloader), "batch_size": section.local_batch_size}
    return ParallelAwareDataloader(dataset, dp_rank=dp_rank, dp_world_size=dp_world_size, **loading)
