"""Checkpoints with their jobs, and a disk that is full."""

import errno
import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torchtitan.components.checkpoint import CheckpointManager

from tests.support.jobs import parse
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.components.checkpoints import LighthouseCheckpointManager
from torchtitan_lighthouse.titan.components.tokenizer import ByteTokenizer
from torchtitan_lighthouse.titan.models.flavors import FLAVORS

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """One whose torchtitan part saves nothing."""
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(CheckpointManager, "__init__", lambda self, folder: None)
    monkeypatch.setattr(CheckpointManager, "dcp_save", lambda *_, **__: "saved")
    manager = LighthouseCheckpointManager(parse(tmp_path), ByteTokenizer(), folder=tmp_path)
    manager.folder = tmp_path
    manager.sd_adapter = SimpleNamespace(model_args=FLAVORS["tiny_byte"])
    return manager


def test_a_checkpoint_has_the_job_that_saved_it(manager, tmp_path):
    assert manager.dcp_save({}, str(tmp_path / "step-2"), "disabled") == "saved"
    job = json.loads((tmp_path / "step-2" / "job.json").read_text())
    assert job["lighthouse"]["topk"] == 16
    names = sorted(path.name for path in (tmp_path / "step-2").iterdir())
    assert names == ["job.json", "model.json"]


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        CheckpointException("ranks: 1", {1: (FULL, None)}),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    ],
    ids=["this-rank", "another-rank", "torch-writer"],
)
@pytest.mark.parametrize("when", ["in the step", "in the background"])
def test_a_full_disk_is_named(manager, tmp_path, monkeypatch, error, when):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(CheckpointManager, "dcp_save", fail)
    manager.async_mode = "async"
    manager.save_future = SimpleNamespace(result=fail)
    in_step = partial(manager.dcp_save, {}, str(tmp_path / "step-2"), "disabled")
    save = in_step if when == "in the step" else manager._async_wait
    with pytest.raises(RefusalError, match=rf"did not fit in {tmp_path}, which has .* MiB left"):
        save()


def test_other_errors_stay_what_they_are(manager, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(CheckpointManager, "dcp_save", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        manager.dcp_save({}, str(tmp_path / "step-2"), "disabled")
