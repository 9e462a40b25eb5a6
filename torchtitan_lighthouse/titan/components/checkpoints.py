"""torchtitan's checkpoints, each with the job that saved it; and a disk that is full, in words."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torchtitan.components.checkpoint import DATALOADER, CheckpointManager
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError, disk_is_full
from torchtitan_lighthouse.titan.config import JOB_FILE
from torchtitan_lighthouse.titan.folder.data import DataFacts, data_facts, write_facts
from torchtitan_lighthouse.titan.folder.hf import describe_model
from torchtitan_lighthouse.titan.folder.job import write_job
from torchtitan_lighthouse.titan.folder.model import write_model


class LighthouseCheckpointManager(CheckpointManager):
    """torchtitan's CheckpointManager, whose ``step-N`` say what they are of.

    Each holds a ``job.json``, a ``model.json``, and a ``data.json`` where it has a position in the
    data. Those in Hugging Face's format are folders that transformers loads.

    Raises:
        RefusalError: there is no space for a checkpoint.
    """

    def __init__(self, job_config: JobConfig, tokenizer: BaseTokenizer, **parts: Any) -> None:
        self._job_config = job_config
        self._tokenizer = tokenizer
        super().__init__(**parts)

    def dcp_save(self, state_dict: dict[str, Any], checkpoint_id: str, *args: Any, **how: Any):
        with self._naming_a_full_disk():
            folder, first = Path(checkpoint_id), torch.distributed.get_rank() == 0
            to_hf = how.get("to_hf", False)
            if first and not to_hf:
                self._write_facts(folder, has_data=DATALOADER in state_dict)
            saved = super().dcp_save(state_dict, checkpoint_id, *args, **how)
            if first and to_hf:
                self._complete_hf_folder(folder)
            return saved

    def _write_facts(self, folder: Path, *, has_data: bool) -> None:
        write_job(folder / JOB_FILE, self._job_config)
        write_model(folder, self._job_config, self.sd_adapter.model_args)
        if has_data:
            write_facts(folder, self._data_facts)

    def _complete_hf_folder(self, folder: Path) -> None:
        """Remove the shards that torchtitan leaves beside whole weights, and add config.json."""
        shutil.rmtree(folder / "sharded")
        describe_model(
            folder,
            self._job_config,
            self.sd_adapter.model_args,
            dtype=self._job_config.checkpoint.export_dtype,
            tied=False,
        )

    @cached_property
    def _data_facts(self) -> DataFacts:
        return data_facts(self._job_config, self._tokenizer)

    def _async_wait(self) -> None:
        with self._naming_a_full_disk():
            super()._async_wait()

    def save_whole(self, step: int) -> Path | None:
        """Save all that a resume needs, now, whatever the interval and the last save are.

        Returns:
            The checkpoint's folder; None where the job saves nothing.
        """
        if not self.enable or self.load_only:
            return None
        if self._should_save(step):
            self._async_wait()  # the interval's own save, which holds everything
        else:
            self.last_save_model_only = self.last_save_in_hf = False
            self.save(step, last_step=True)
        return Path(self._create_checkpoint_id(step))

    @contextmanager
    def _naming_a_full_disk(self) -> Iterator[None]:
        try:
            yield
        except (Exception, CheckpointException) as error:
            if not _disk_is_full(error):
                raise
            free = shutil.disk_usage(self.folder).free >> 20
            raise RefusalError(
                f"a checkpoint did not fit in {self.folder}, which has {free:,} MiB left: free "
                "some, or set checkpoint.keep_latest_k; the same command then continues from the "
                "last whole checkpoint"
            ) from error


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error of saving, on this rank or another."""
    if error is None:
        return False
    if isinstance(error, CheckpointException):
        return any(_disk_is_full(failure) for failure, _ in error.failures.values())
    return disk_is_full(error) or _disk_is_full(error.__cause__ or error.__context__)
