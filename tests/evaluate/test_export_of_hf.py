"""What training started from a Hugging Face folder is given back as one: only the trained differs.

The folder itself is gone by then: a checkpoint keeps what is needed of it.
"""

import json
import shutil

import pytest
import torch
from torch.distributed import checkpoint as dcp
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.support.hf import LLAMA3, load_weights, write_llama
from tests.support.jobs import parse
from tests.support.models import tokens
from torchtitan_lighthouse.evaluate.checkpoint import empty_model
from torchtitan_lighthouse.evaluate.export import export_hf
from torchtitan_lighthouse.hf.config import read_config
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.config import JOB_FILE
from torchtitan_lighthouse.titan.folder.job import write_job
from torchtitan_lighthouse.titan.folder.model import ASSETS, MODEL_FILE, read_model, write_model
from torchtitan_lighthouse.titan.models.of_job import model_args_of
from torchtitan_lighthouse.tools import export as export_tool

SEQ_LEN = 512
ROUNDING = 2e-5  # as in test_export.py
LONGER = {"rope__factor": 8.0}
V4 = {
    "rope_theta": 1000.0,
    "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"},
    "torch_dtype": "bfloat16",
}


def trained(folder, *, source=None, change=None, **fields):
    """The checkpoint of a run that started from a folder, which is gone, and its model.

    Args:
        source: fields of the folder's config.json.
        change: what training does to the model.
    """
    hf = folder / "source"
    write_llama(hf, **(source or {}))
    job_config = parse(
        folder, model__flavor="hf", model__hf_assets_path=hf, training__seq_len=SEQ_LEN, **fields
    )
    args = model_args_of(job_config)
    args.max_seq_len = SEQ_LEN
    model = empty_model(args, torch.device("cpu")).eval()
    load_weights(model, hf)
    if change is not None:
        with torch.no_grad():
            change(model)
    checkpoint = folder / "checkpoint" / "step-1"
    write_job(checkpoint / JOB_FILE, job_config)
    write_model(checkpoint, job_config, args)
    dcp.save(model.state_dict(), checkpoint_id=checkpoint, no_dist=True)
    before = json.loads((hf / "config.json").read_text())
    shutil.rmtree(hf)
    return checkpoint, model, before


def scale(model):
    model.output.weight *= 1.5


@torch.no_grad()
def error(model, exported):
    batch = tokens()[:, :-1]
    loaded = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    return (loaded(batch).logits - model(batch)).abs().max()


def test_config_has_only_what_training_changed(tmp_path):
    checkpoint, model, before = trained(tmp_path, change=scale, **LONGER)
    changed = export_hf(checkpoint, tmp_path / "hf")
    after = json.loads((tmp_path / "hf/config.json").read_text())
    expected = {
        "rope_parameters": {**LLAMA3, "factor": 8.0},
        "max_position_embeddings": SEQ_LEN,
        "dtype": "float32",
    }
    assert after == {**before, **expected}
    assert changed == {n: v for n, v in expected.items() if before[n] != v}
    assert error(model, tmp_path / "hf") < ROUNDING


def test_all_ends_of_a_reply_are_kept(tmp_path):
    checkpoint, _, _ = trained(tmp_path)
    export_hf(checkpoint, tmp_path / "hf")
    assert GenerationConfig.from_pretrained(tmp_path / "hf").eos_token_id == [257, 258]
    assert AutoTokenizer.from_pretrained(tmp_path / "hf")("é")["input_ids"] == [256, 0xC3, 0xA9]


def test_shorter_training_does_not_shorten_the_model(tmp_path):
    checkpoint, _, before = trained(tmp_path, source={"max_position_embeddings": 4096})
    assert export_hf(checkpoint, tmp_path / "hf") == {}
    assert json.loads((tmp_path / "hf/config.json").read_text()) == before


def test_length_is_not_below_that_of_rope(tmp_path):
    checkpoint, _, _ = trained(tmp_path, rope__original_max_position_embeddings=2048)
    assert export_hf(checkpoint, tmp_path / "hf")["max_position_embeddings"] == 2048


def test_a_second_stage_keeps_what_the_first_has_of_the_source(tmp_path):
    first, _, before = trained(tmp_path)
    job_config = parse(tmp_path, checkpoint__initial_load_path=first)
    second = tmp_path / "stage2/checkpoint/step-2"
    write_model(second, job_config, read_model(first, job_config))
    assert json.loads((second / ASSETS / "config.json").read_text()) == before
    assert (second / ASSETS / "generation_config.json").exists()


@pytest.mark.parametrize("change", [None, scale], ids=["equal", "trained-apart"])
def test_tie(tmp_path, change):
    checkpoint, model, _ = trained(tmp_path, source={"tie_word_embeddings": True}, change=change)
    changed = export_hf(checkpoint, tmp_path / "hf")
    assert changed.get("tie_word_embeddings", True) is (change is None)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tied = exported.lm_head.weight is exported.model.embed_tokens.weight
    assert tied is (change is None)
    assert error(model, tmp_path / "hf") < ROUNDING


@pytest.mark.parametrize("fields", [{}, LONGER, {"rope__rope_type": "default"}])
def test_config_of_transformers_4_keeps_its_form(tmp_path, fields):
    checkpoint, model, before = trained(tmp_path, **fields)
    file = checkpoint / "hf_assets/config.json"
    old = {k: v for k, v in before.items() if k not in ("rope_parameters", "dtype")} | V4
    file.write_text(json.dumps(old))
    export_hf(checkpoint, tmp_path / "hf")
    after = json.loads((tmp_path / "hf/config.json").read_text())
    assert after.keys() == old.keys()
    assert after["torch_dtype"] == "float32"
    assert error(model, tmp_path / "hf") < ROUNDING


def test_rope_that_stands_twice_is_changed_twice(tmp_path):
    checkpoint, model, before = trained(tmp_path, rope__rope_theta=5000.0)
    file = checkpoint / "hf_assets/config.json"
    twice = {"rope_theta": 1000.0, "rope_scaling": LLAMA3}
    file.write_text(json.dumps({**before, **twice}))
    export_hf(checkpoint, tmp_path / "hf")
    assert read_config(tmp_path / "hf").rope["rope_theta"] == 5000.0
    assert error(model, tmp_path / "hf") < ROUNDING


@pytest.mark.parametrize(
    ("stages", "minds"),
    [
        ({"lighthouse__steps": -1}, True),
        ({"lighthouse__steps": 0}, False),
        ({"lighthouse__enable": False}, False),
    ],
    ids=["lighthouse", "after-the-switch", "dense"],
)
def test_tool_says_where_the_dense_stage_is_missing(tmp_path, capsys, stages, minds):
    checkpoint, _, _ = trained(tmp_path, **stages)
    export_tool.main([str(checkpoint), str(tmp_path / "hf")])
    assert ("Mind: the checkpoint is of the Lighthouse stage" in capsys.readouterr().err) is minds
    with pytest.raises(RefusalError, match="hf is a Hugging Face folder already"):
        export_hf(tmp_path / "hf", tmp_path / "again")


def test_tool_says_what_changed(tmp_path, capsys):
    checkpoint, _, _ = trained(tmp_path, **LONGER)
    export_tool.main([str(checkpoint), str(tmp_path / "hf"), "--dtype", "bfloat16"])
    printed = capsys.readouterr().out
    assert "config.json: dtype is now bfloat16" in printed
    assert "rope_parameters is now" in printed


def test_a_damaged_model_is_refused_by_its_file(tmp_path):
    (tmp_path / MODEL_FILE).write_text('{"dim": 64')
    with pytest.raises(RefusalError, match=r"model\.json cannot be read as JSON"):
        read_model(tmp_path, parse(tmp_path))


def test_model_of_another_version_is_refused(tmp_path):
    (tmp_path / MODEL_FILE).write_text(json.dumps({"dim": 64, "rope_scaling_args": {}}))
    with pytest.raises(ValueError, match=r"model\.json is of another version"):
        read_model(tmp_path, parse(tmp_path))
