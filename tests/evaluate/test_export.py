"""An exported checkpoint is the same model and the same tokenizer under transformers."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.distributed import checkpoint as dcp
from torchtitan.models.llama3 import Transformer
from torchtitan.models.llama3.model.args import RoPEScalingArgs
from torchtitan.models.llama3.model.state_dict_adapter import Llama3StateDictAdapter
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.support.jobs import parse
from torchtitan_lighthouse.data.bytes import VOCAB_SIZE
from torchtitan_lighthouse.evaluate.export import export_hf
from torchtitan_lighthouse.hf.byte_tokenizer import BOS, EOS
from torchtitan_lighthouse.titan.components.tokenizer import ByteTokenizer, build_tokenizer
from torchtitan_lighthouse.titan.config import JOB_FILE, read_job
from torchtitan_lighthouse.titan.models.args import LighthouseModelArgs
from torchtitan_lighthouse.titan.models.flavors import FLAVORS
from torchtitan_lighthouse.tools import export as export_tool

SEQ_LEN = 256
# Logits have a standard deviation of 1; the largest errors measured are 4e-6 (odd) and 7e-6.
ROUNDING = 2e-5
# No number is a default of transformers or torchtitan, and the scaling bites within SEQ_LEN: of the
# eight frequencies two are kept, one is in between, five are divided.
SCALING = {
    "factor": 4.0,
    "low_freq_factor": 2.0,
    "high_freq_factor": 6.0,
    "original_max_position_embeddings": 96,
}
ROPE = {"rope_type": "llama3", "rope_theta": 1000.0, **SCALING}
ODD = LighthouseModelArgs(
    dim=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    vocab_size=VOCAB_SIZE,
    multiple_of=48,
    norm_eps=1e-3,
    rope_theta=1000,
    rope_scaling_args=RoPEScalingArgs(*SCALING.values()),
)
STEP = "checkpoint/step-1"


def save(folder, **fields):
    """A job's folder with a checkpoint of random weights, and its model.

    The weights are large enough that attention is sharp: a wrong rotation changes every logit.
    """
    job_config = parse(folder, training__seq_len=SEQ_LEN, **fields)
    (folder / JOB_FILE).write_text(json.dumps(job_config.to_dict()))
    model = Transformer(replace(FLAVORS[job_config.model.flavor], max_seq_len=SEQ_LEN)).eval()
    with torch.no_grad():
        model.init_weights()
        for p in model.parameters():
            p.normal_(std=p.shape[-1] ** -0.5) if p.dim() == 2 else p.uniform_(0.5, 1.5)
    state = {**model.state_dict(), "train_state": {"step": 1}}
    dcp.save(state, checkpoint_id=folder / STEP, no_dist=True)
    return model


@pytest.fixture(scope="module", params=["odd", "tiny_byte"])
def saved(request, tmp_path_factory):
    """A job's folder with its export in ``hf``, and its model: grouped heads and scaled RoPE, or
    neither."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FLAVORS, "odd", ODD)
        torch.manual_seed(0)
        model = save(folder, model__flavor=request.param)
        export_hf(folder / STEP, folder / "hf")
        yield folder, model


only_odd = pytest.mark.parametrize("saved", ["odd"], indirect=True)
only_tiny = pytest.mark.parametrize("saved", ["tiny_byte"], indirect=True)


@torch.no_grad()
def error(model, exported, **config):
    """The largest error of the logits of SEQ_LEN random bytes; ``config`` overrides config.json."""
    tokens = torch.randint(256, (1, SEQ_LEN))
    loaded = AutoModelForCausalLM.from_pretrained(exported, **config)
    return (loaded(tokens).logits - model(tokens)).abs().max()


def test_logits_are_the_same(saved):
    folder, model = saved
    assert error(model, folder / "hf") < ROUNDING


@only_odd
@pytest.mark.parametrize(
    "wrong",
    [
        {"rms_norm_eps": 1e-5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}},
        {"rope_parameters": {**ROPE, "rope_theta": 10_000.0}},
        *({"rope_parameters": {**ROPE, name: 1.25 * n}} for name, n in SCALING.items()),
    ],
    ids=["norm-eps", "no-scaling", "theta", *SCALING],
)
def test_a_wrong_number_changes_the_logits(saved, wrong):
    folder, model = saved
    assert error(model, folder / "hf", **wrong) > 1e4 * ROUNDING


@only_odd
def test_unpermuted_heads_change_the_logits(saved, tmp_path, monkeypatch):
    folder, model = saved
    monkeypatch.setattr(Llama3StateDictAdapter, "_permute", lambda self, w, *shape: w)
    export_hf(folder / STEP, tmp_path)
    assert error(model, tmp_path) > 1e4 * ROUNDING


def test_config(saved):
    folder, _ = saved
    config = json.loads((folder / "hf/config.json").read_text())
    expected = {
        "max_position_embeddings": SEQ_LEN,
        "tie_word_embeddings": False,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "dtype": "float32",
    }
    assert expected.items() <= config.items()


@torch.no_grad()
def test_generate_is_argmax_of_the_model(saved):
    folder, model = saved
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
    prompt = tokenizer("def f(x):\n", return_tensors="pt")
    tokens = prompt["input_ids"]
    for _ in range(16):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], dim=1)
    exported = AutoModelForCausalLM.from_pretrained(folder / "hf")
    generated = exported.generate(**prompt, max_new_tokens=16, do_sample=False)
    assert generated.tolist() == tokens.tolist()
    text = tokenizer.decode(generated[0], skip_special_tokens=True)
    assert text == ByteTokenizer().decode(tokens[0])


@only_tiny
def test_all_files_are_for_those_that_new_files_are_for(saved, tmp_path):
    before = os.umask(0o027)
    try:
        export_hf(saved[0] / STEP, tmp_path / "hf")
    finally:
        os.umask(before)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in (tmp_path / "hf").iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {oct(0o640)}


@only_tiny
def test_the_script_rounds_to_the_dtype(saved, tmp_path, capsys):
    folder, model = saved
    arguments = [str(folder / STEP), str(tmp_path / "hf"), "--dtype", "bfloat16"]
    export_tool.main(arguments)
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'hf'}\n"
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert exported.dtype == torch.bfloat16
    assert torch.equal(exported.lm_head.weight, model.output.weight.bfloat16())


@pytest.fixture(scope="module")
def byte_tokenizer(saved):
    return AutoTokenizer.from_pretrained(saved[0] / "hf")


@only_tiny
@given(st.text())
@example("😀 \r\n\0 \ufeff  a n't ,")
@example(f"{BOS}x{EOS}")
def test_byte_ids_are_the_trained_ones(byte_tokenizer, text):
    ids = ByteTokenizer().encode(text)
    assert byte_tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    assert byte_tokenizer.decode(ids) == text
    # As a document begins in training.
    assert byte_tokenizer(text)["input_ids"] == ByteTokenizer().encode(text, add_bos=True)


@only_tiny
@given(st.lists(st.integers(0, VOCAB_SIZE - 1)))
def test_any_ids_decode_alike(byte_tokenizer, ids):
    text = byte_tokenizer.decode(ids, skip_special_tokens=True)
    assert text == ByteTokenizer().decode(ids)


def test_huggingface_tokenizer(tmp_path):
    assets = tmp_path / "assets"
    assets.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([Path(__file__).read_text()], trainer)
    tokenizer.save(str(assets / "tokenizer.json"))
    specials = {"bos_token": "<s>", "eos_token": "</s>"}
    (assets / "tokenizer_config.json").write_text(json.dumps(specials))
    save(tmp_path, tokenizer__name="huggingface", model__hf_assets_path=assets)
    export_hf(tmp_path / STEP, tmp_path / "hf")
    exported = AutoTokenizer.from_pretrained(tmp_path / "hf")
    trained = build_tokenizer(read_job(tmp_path / JOB_FILE))
    text = "def f(x):\n    return x\n"
    assert exported(text)["input_ids"] == trained.encode(text)
    config = AutoConfig.from_pretrained(tmp_path / "hf")
    assert (config.bos_token_id, config.eos_token_id) == (trained.bos_id, trained.eos_id) == (0, 1)


def test_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no checkpoint"):
        export_hf(tmp_path, tmp_path / "hf")


@only_tiny
def test_a_folder_in_use_is_refused(saved):
    folder, _ = saved
    with pytest.raises(FileExistsError, match="hf is not empty"):
        export_hf(folder / STEP, folder / "hf")
