"""A Hugging Face folder in, both stages, killed and resumed on the way, a folder out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.support.hf import LLAMA3, write_llama
from tests.support.models import tokens
from torchtitan_lighthouse.evaluate.export import export_hf
from torchtitan_lighthouse.evaluate.trained import open_trained
from torchtitan_lighthouse.runs.metrics import read_metrics
from torchtitan_lighthouse.titan.folder.lock import LOCK_FILE
from torchtitan_lighthouse.tools import niah as niah_tool

pytestmark = pytest.mark.trainer

CONFIG = Path(__file__).parents[2] / "train_configs" / "extend_tiny.toml"
STEPS = {"training.steps": 6, "lighthouse.steps": 4, "checkpoint.interval": 2}
ROPE = {"rope.factor": 16.0, "rope.original_max_position_embeddings": 96}
# A step of many batches, so that there is time to kill it.
BATCH = {"training.global_batch_size": 48, "training.dataloader.num_workers": 0}
OPTIONS = {**STEPS, **ROPE, **BATCH}


def launch(run, source, log):
    """One rank of the tiny configuration, its output in ``log``."""
    options = {**OPTIONS, "job.dump_folder": run, "model.hf_assets_path": source}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    torchrun = ["torch.distributed.run", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", "localhost:0", "-m", "torchtitan_lighthouse.train"]
    return subprocess.Popen(
        [sys.executable, "-m", *torchrun, "--job.config_file", str(CONFIG), *arguments],
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def kill_when(process, run, marker, log):
    """Kill the trainer where it is, and with it the launch."""
    deadline = time.monotonic() + 240
    while not marker.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    trainer = (run / LOCK_FILE).read_text().split()[1]
    os.kill(int(trainer), signal.SIGKILL)
    process.wait(timeout=60)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that is over; the model that it started from is gone."""
    folder = tmp_path_factory.mktemp("extend")
    source, run = folder / "llama", folder / "run"
    tied_in_shards = {"tie_word_embeddings": True, "dtype": "bfloat16", "max_shard_size": "100KB"}
    write_llama(source, **tied_in_shards)
    first = launch(run, source, folder / "first.txt")
    kill_when(first, run, run / "checkpoint/step-2/.metadata", folder / "first.txt")
    second = launch(run, source, folder / "second.txt")
    assert second.wait(timeout=280) == 0, (folder / "second.txt").read_text()
    shutil.rmtree(source)
    return run


def test_it_starts_from_the_folder_and_goes_on_from_the_checkpoint(run):
    first, second = ((run.parent / f"{name}.txt").read_text() for name in ("first", "second"))
    assert "loading HF safetensors" in first
    assert "RoPE of" in first
    assert "to rope_type llama3, rope_theta 1000.0, factor 16.0" in first
    assert "are trained apart" in first
    assert "loading HF safetensors" not in second
    assert "checkpoint/step-" in second
    stages = [record["stage"] for record in read_metrics(run)]
    assert stages == ["lighthouse"] * 4 + ["dense"] * 2


def test_the_last_step_is_a_complete_folder(run):
    folder = run / "checkpoint/step-6"
    names = {path.name for path in folder.iterdir() if path.suffix != ".safetensors"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    index = "model.safetensors.index.json"
    assert names == {"config.json", "generation_config.json", index, *tokenizer}
    config = json.loads((folder / "config.json").read_text())
    given = {"factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert config["rope_parameters"] == {**LLAMA3, **given}
    assert (config["max_position_embeddings"], config["dtype"]) == (512, "float32")
    assert config["tie_word_embeddings"] is False
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [257, 258]
    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"] == [256, 97]


@torch.no_grad()
def test_transformers_and_this_package_compute_the_same_from_it(run):
    trained = open_trained(run / "checkpoint/step-6")
    batch = tokens()[:, :-1]
    ours = trained.load(256, torch.device("cpu"))(batch)
    theirs = AutoModelForCausalLM.from_pretrained(trained.path)(batch).logits
    torch.testing.assert_close(theirs, ours, rtol=0, atol=5e-5)


def test_a_checkpoint_and_the_folder_are_exported_and_evaluated_alike(run, tmp_path, capsys):
    export_hf(run / "checkpoint/step-4", tmp_path / "hf")
    models = [run / "checkpoint/step-4", tmp_path / "hf", run / "checkpoint/step-6"]
    arguments = ["--form", "single", "--trials", "1", "--lengths", "300", "--out", str(tmp_path)]
    niah_tool.main([*map(str, models), *arguments])
    records = json.loads((tmp_path / "niah.json").read_text())
    assert [record["checkpoint"] for record in records] == [str(path) for path in models]
    assert records[0]["rates"] == records[1]["rates"]
