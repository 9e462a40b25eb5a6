from pathlib import Path

import pytest

from tests.support import fake_trainer
from tests.support.jobs import TOML

TEXT = "text.txt"


@pytest.fixture
def config(tmp_path) -> Path:
    """A job that the trainer would take: 24 steps, of which no stage is named."""
    path = tmp_path / "job.toml"
    (tmp_path / TEXT).write_text("some text\n")
    text = f'dataset = "local"\ndataset_path = "{tmp_path / TEXT}"'
    job = TOML.replace('dataset = "local"', text)
    path.write_text(f"{job}\n[checkpoint]\nenable = true\n")
    return path


@pytest.fixture
def trainer(tmp_path, monkeypatch) -> fake_trainer.FakeTrainer:
    return fake_trainer.install(tmp_path, monkeypatch.setattr)
