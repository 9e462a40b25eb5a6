from pathlib import Path

import pytest

from tests.support import fake_trainer
from tests.support.jobs import TOML

TEXT = "text.txt"


def write_config(folder: Path) -> Path:
    """A job that the trainer would take: 24 steps, of which no stage is named."""
    path = folder / "job.toml"
    (folder / TEXT).write_text("some text\n")
    text = f'dataset = "local"\ndataset_path = "{folder / TEXT}"'
    job = TOML.replace('dataset = "local"', text).replace("total_steps = 24\n", "")
    path.write_text(f"{job}\n[checkpoint]\nenable = true\n")
    return path


@pytest.fixture
def config(tmp_path) -> Path:
    return write_config(tmp_path)


@pytest.fixture
def trainer(tmp_path, monkeypatch) -> fake_trainer.FakeTrainer:
    return fake_trainer.install(tmp_path, monkeypatch.setattr)
