"""Jobs that cannot train are refused before a process group or a model exists."""

import logging

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.distributed import checkpoint as dcp
from torchtitan.config import JobConfig

from tests.support.jobs import parse
from tests.support.models import CHECKPOINTING
from torchtitan_lighthouse.titan.checks import check_job
from torchtitan_lighthouse.titan.trainer import LighthouseTrainer


def refusal(job_config) -> str:
    """What the trainer says when it refuses a job, having set up nothing."""
    with pytest.raises(ValueError, match=r".+") as raised:
        LighthouseTrainer(job_config)
    assert not torch.distributed.is_initialized()
    return str(raised.value)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lighthouse__steps": 24},
        {"model__flavor": "debugmodel"},
        {"model__flavor": "8B_flex", "lighthouse__enable": False},
        {"parallelism__context_parallel_degree": 2, "lighthouse__enable": False},
        {"parallelism__context_parallel_degree": 4, "lighthouse__tile": 2},
        CHECKPOINTING["every-2nd-layer"],
        CHECKPOINTING["selective"],
        CHECKPOINTING["attention"],
    ],
    ids=[
        *("single-stage", "all-steps", "larger-vocabulary", "flex-dense", "cp-dense", "cp"),
        *("every-2nd-layer", "op", "attention"),
    ],
)
def test_job_is_accepted(tmp_path, fields):
    check_job(parse(tmp_path, **fields))


CP4 = {"parallelism__context_parallel_degree": 4, "lighthouse__tile": 2}
REFUSED = {
    "model-name": ({"model__name": "llama3"}, ["model.name", "'llama3_lighthouse'"]),
    "flavor": ({"model__flavor": "600M"}, ["model.flavor", "'600M'", "530M_byte"]),
    "flex": ({"model__flavor": "debugmodel_flex_attn"}, ["attn_type 'flex'", "'sdpa'"]),
    "varlen": ({"model__flavor": "8B_varlen"}, ["attn_type 'varlen'", "'sdpa'"]),
    "layer-too-high": ({"lighthouse__dense_layers": [0, 4]}, ["[4]", "from -4 to 3"]),
    "layer-too-low": ({"lighthouse__dense_layers": [-5]}, ["[-5]", "from -4 to 3"]),
    "all-dense": ({"lighthouse__dense_layers": [0, 1, 2, 3]}, ["all 4", "enable = false"]),
    "scorer": ({"lighthouse__scorer": "nrom"}, ["scorer", "nrom", "norm"]),
    "topk": ({"lighthouse__topk": 20}, ["topk", "20", "16 or 24"]),
    "seq-len": ({"training__seq_len": 250}, ["seq_len", "250", "248 or 256"]),
    "validation-seq-len": (
        {"validation__enable": True, "validation__seq_len": 250},
        ["seq_len", "250", "248 or 256"],
    ),
    "validation-seq-len-beyond-training": (
        {"validation__enable": True, "validation__seq_len": 512},
        ["validation.seq_len = 512", "training.seq_len = 256"],
    ),
    "steps-beyond-training": ({"lighthouse__steps": 25}, ["steps = 25", "steps = 24", "-1"]),
    "steps-negative": ({"lighthouse__steps": -2}, ["lighthouse.steps = -2", "-1"]),
    "context-parallel-topk": (
        {"parallelism__context_parallel_degree": 2},
        ["topk=16", "2·W·tile = 2·2·8 = 32", "use 32"],
    ),
    "context-parallel-seq-len": (
        {**CP4, "training__seq_len": 250},
        ["seq_len=250", "use 224 or 256"],
    ),
    "context-parallel-validation-seq-len": (
        {**CP4, "validation__enable": True, "validation__seq_len": 250},
        ["seq_len=250", "use 224 or 256"],
    ),
    "context-parallel-scorer": ({**CP4, "lighthouse__scorer": "gla"}, ["scorer=gla", "use norm"]),
    "checkpointing-option": (
        {**CHECKPOINTING["attention"], "activation_checkpoint__selective_ac_option": "sdpa"},
        ["selective_ac_option='sdpa'", '"op"', '"attention"'],
    ),
    "context-parallel-load-balancer": (
        {
            "parallelism__context_parallel_degree": 2,
            "parallelism__context_parallel_load_balancer": "ptrr",
            "lighthouse__enable": False,
        },
        ["load_balancer = 'ptrr'", "'headtail'"],
    ),
}


@pytest.mark.parametrize(("fields", "words"), REFUSED.values(), ids=REFUSED)
def test_job_is_refused(tmp_path, fields, words):
    message = refusal(parse(tmp_path, **fields))
    assert all(word in message for word in words), message


def test_checkpointing_that_a_file_spells_wrong_is_refused(tmp_path):
    job_config = parse(tmp_path)
    job_config.activation_checkpoint.mode = "attention"  # torchtitan checks no types in TOML
    assert "activation_checkpoint.mode='attention'" in refusal(job_config)


def test_tokenizer_with_more_ids_than_the_embedding_is_refused(tmp_path):
    words = WordLevel({f"w{n}": n for n in range(400)}, unk_token="w0")
    Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    job_config = parse(tmp_path, tokenizer__name="huggingface", model__hf_assets_path=tmp_path)
    message = refusal(job_config)
    assert "400" in message
    assert "320" in message


def test_stock_trainer_is_refused_a_switch(tmp_path):
    with pytest.raises(ValueError, match=r"-m torchtitan_lighthouse\.train"):
        check_job(parse(tmp_path, lighthouse__steps=5))


def test_job_without_our_sections_is_refused():
    with pytest.raises(ValueError, match=r"job\.custom_config_module"):
        check_job(JobConfig())


def save_checkpoint(path, *, full: bool):
    state = {"tok_embeddings.weight": torch.zeros(1)}
    if full:
        state["train_state.step"] = torch.zeros(1)
    dcp.save(state, checkpoint_id=path, no_dist=True)
    return path


@pytest.fixture
def stage1(tmp_path):
    return save_checkpoint(tmp_path / "stage1" / "checkpoint" / "step-10", full=True)


def continue_from(path, folder, **fields):
    loading = {"checkpoint__initial_load_path": path, "checkpoint__initial_load_model_only": False}
    return parse(folder, checkpoint__enable=True, **{**loading, **fields})


def test_full_checkpoint_can_be_continued(tmp_path, stage1):
    check_job(continue_from(stage1, tmp_path / "stage2"))


@pytest.mark.parametrize("own_step", [None, 10], ids=["empty", "not-later"])
def test_existing_checkpoint_folder_that_hides_initial_load_path_is_refused(
    tmp_path, stage1, own_step
):
    own = tmp_path / "stage2" / "checkpoint"
    own.mkdir(parents=True)
    if own_step:
        save_checkpoint(own / f"step-{own_step}", full=True)
    message = refusal(continue_from(stage1, tmp_path / "stage2"))
    assert "checkpoint.initial_load_path" in message
    assert "would be ignored" in message


def test_relaunch_of_a_continued_run_is_accepted(tmp_path, stage1):
    save_checkpoint(tmp_path / "stage2" / "checkpoint" / "step-12", full=True)
    check_job(continue_from(stage1, tmp_path / "stage2"))


def test_weights_alone_cannot_be_continued(tmp_path):
    weights = save_checkpoint(tmp_path / "stage1" / "checkpoint" / "step-10", full=False)
    message = refusal(continue_from(weights, tmp_path / "stage2"))
    assert "holds weights only" in message
    assert "checkpoint.last_save_model_only = false" in message


def test_missing_initial_checkpoint_is_refused(tmp_path):
    message = refusal(continue_from(tmp_path / "step-10", tmp_path / "stage2"))
    assert "is no checkpoint" in message


@pytest.mark.parametrize("form", ["weights", "huggingface"])
def test_relaunch_from_weights_alone_is_refused(tmp_path, form):
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder / "step-6", full=True)
    if form == "weights":
        save_checkpoint(folder / "step-12", full=False)
    else:
        (folder / "step-12").mkdir()
        (folder / "step-12" / "model.safetensors.index.json").touch()
    job_config = parse(tmp_path, checkpoint__enable=True)
    assert "step-12 holds weights only" in refusal(job_config)
    check_job(parse(tmp_path, checkpoint__enable=True, checkpoint__load_step=6))


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"checkpoint__initial_load_model_only": True}, "training starts at step 1"),
        ({}, "The last checkpoint will hold the weights only"),
    ],
    ids=["starting-from-weights", "saving-weights"],
)
def test_checkpoints_of_weights_are_warned_of(tmp_path, stage1, caplog, fields, warning):
    with caplog.at_level(logging.WARNING):
        check_job(continue_from(stage1, tmp_path / "stage2", **fields))
    assert warning in caplog.text
