import os

import pytest
import torch


@pytest.fixture
def one_rank():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def no_wandb_settings(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("WANDB_") or n == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    # What the code under test sets is taken back by restoring a copy.
    monkeypatch.setattr(os, "environ", os.environ.copy())
