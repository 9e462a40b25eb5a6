"""Folders of Hugging Face models that do not fit are refused before anything is built."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from tests.support.hf import LLAMA3, write_llama
from tests.support.jobs import parse
from tests.titan.checks.test_checks import refusal
from torchtitan_lighthouse.hf.byte_tokenizer import write_byte_tokenizer
from torchtitan_lighthouse.titan.checks import check_job
from torchtitan_lighthouse.titan.models.args import LighthouseModelArgs
from torchtitan_lighthouse.titan.models.flavors import FLAVORS

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder / "whole")
    write_llama(folder / "shards", max_shard_size="150KB", tie_word_embeddings=True)
    return folder


@pytest.fixture
def whole(sources, tmp_path):
    return shutil.copytree(sources / "whole", tmp_path / "hf")


def job(folder, source, **fields):
    loading = {"checkpoint__enable": True, "checkpoint__initial_load_in_hf": True}
    fields = {"model__flavor": "hf", "model__hf_assets_path": source, **loading, **fields}
    return parse(folder, **fields)


def config(**changes):
    def edit(folder):
        file = folder / "config.json"
        content = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({k: v for k, v in content.items() if v != "absent"}))

    return edit


def tensors(**changes):
    """The weights with some replaced, or taken out where they are None."""

    def edit(folder):
        weights = {**load_file(folder / WEIGHTS), **changes}
        save_file({k: w for k, w in weights.items() if w is not None}, folder / WEIGHTS)

    return edit


def without_config(folder):
    (folder / "config.json").unlink()


def config_of_text(folder):
    (folder / "config.json").write_text("{model_type: llama}")


def without_weights(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def cut_short(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])


def no_safetensors(folder):
    (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")


def twice(folder):
    shutil.copy(folder / WEIGHTS, folder / "consolidated.safetensors")


def index_of_a_lost_shard(folder):
    (folder / INDEX).write_text(
        json.dumps({"weight_map": {Q0: "model-00002-of-00002.safetensors"}})
    )


def index_of_a_lost_tensor(folder):
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.lost.weight": WEIGHTS}}))


def index_of_numbers(folder):
    (folder / INDEX).write_text(json.dumps({"weight_map": {Q0: 3}}))


def too_few_bytes(folder):
    """A header that leaves a tensor less than its shape needs."""
    content = (folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header[Q0]["data_offsets"][1] -= 4096
    written = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(written).to_bytes(8, "little") + written + content[end:])


def only_a_folder(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def only_an_adapter(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")


def generation_config_of_text(folder):
    (folder / "generation_config.json").write_text("eos: 2")


def linear(factor):
    return {"rope_type": "linear", "rope_theta": 1e4, "factor": factor}


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
NO_ORIGINAL = {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}
LLAMA3_TO_NOWHERE = {**LLAMA3, "factor": float("inf")}
WRONG = {
    "no-folder": (shutil.rmtree, ["hf is no folder"]),
    "no-config": (without_config, ["config.json is missing"]),
    "config-is-no-json": (config_of_text, ["config.json cannot be read as JSON"]),
    "model-type": (config(model_type="qwen3"), ["config.json: model_type=qwen3", "llama"]),
    "rope-yarn": (config(rope_parameters=YARN), ["config.json: rope_type=yarn", "default"]),
    "rope-linear": (config(rope_parameters=linear(2.0)), ["config.json: rope_type=linear"]),
    "rope-incomplete": (
        config(rope_parameters=NO_ORIGINAL),
        ["config.json: original_max_position_embeddings is missing"],
    ),
    "rope-twice": (config(rope_scaling=linear(2.0)), ["config.json has rope_parameters", "rope_s"]),
    "partial-rope": (
        config(rope_parameters={**LLAMA3, "partial_rotary_factor": 0.5}),
        ["config.json: partial_rotary_factor=0.5"],
    ),
    "rope-is-a-list": (config(rope_parameters=[1]), ["config.json: rope_parameters=[1]", "object"]),
    "rope-type-is-a-list": (
        config(rope_parameters={**LLAMA3, "rope_type": ["llama3"]}),
        ["config.json: rope_type=['llama3']", "default"],
    ),
    "rope-infinite": (
        config(rope_parameters=LLAMA3_TO_NOWHERE),
        ["config.json: factor=inf", "positive number"],
    ),
    "two-thetas": (config(rope_theta=5.0), ["config.json has rope_theta 5.0 and 1000.0"]),
    "partial-rope-outside": (
        config(partial_rotary_factor=0.5),
        ["config.json: partial_rotary_factor=0.5"],
    ),
    "head-dim-of-float": (config(head_dim=16.0), ["config.json: head_dim=16.0", "integer"]),
    "tie-as-text": (
        config(tie_word_embeddings="false"),
        ["config.json: tie_word_embeddings='false'", "true or false"],
    ),
    "config-is-a-list": (
        lambda folder: (folder / "config.json").write_text("[]"),
        ["config.json holds no JSON object"],
    ),
    "eps-not-a-number": (config(rms_norm_eps=float("nan")), ["config.json: rms_norm_eps=nan"]),
    "quantized": (
        config(quantization_config={"quant_method": "fp8"}),
        ["config.json: quantization_config=", "quantized weights"],
    ),
    "generation-config": (
        generation_config_of_text,
        ["generation_config.json cannot be read as JSON"],
    ),
    "head-dim": (config(head_dim=32), ["config.json: head_dim=32", "= 16"]),
    "odd-heads": (config(hidden_size=60), ["config.json: hidden_size=60", "56 or 64"]),
    "groups": (config(num_key_value_heads=3), ["config.json: num_key_value_heads=3"]),
    "no-layers": (config(num_hidden_layers="absent"), ["config.json: num_hidden_layers=None"]),
    "size-as-text": (config(vocab_size="320"), ["config.json: vocab_size=320", "integer"]),
    "no-eps": (config(rms_norm_eps="absent"), ["config.json: rms_norm_eps=None"]),
    "activation": (config(hidden_act="gelu"), ["config.json: hidden_act=gelu", "silu"]),
    "attention-bias": (config(attention_bias=True), ["config.json: attention_bias=True"]),
    "mlp-bias": (config(mlp_bias=True), ["config.json: mlp_bias=True"]),
    "dropout": (config(attention_dropout=0.1), ["config.json: attention_dropout=0.1"]),
    "sliding-window": (config(sliding_window=128), ["config.json: sliding_window=128"]),
    "qk-norm": (config(use_qk_norm=True), ["config.json: use_qk_norm=True", "select"]),
    "no-weights": (without_weights, ["hf has no *.safetensors"]),
    "cut-short": (cut_short, [f"{WEIGHTS} is cut short"]),
    "git-lfs-pointer": (no_safetensors, [f"{WEIGHTS} is damaged or cut short"]),
    "tensor-twice": (twice, ["consolidated.safetensors", WEIGHTS, "both have a tensor"]),
    "lost-shard": (index_of_a_lost_shard, ["model-00002-of-00002.safetensors is missing", Q0]),
    "lost-tensor": (index_of_a_lost_tensor, [f"{WEIGHTS} has no tensor model.lost.weight"]),
    "lost-index": (index_of_numbers, [f"{INDEX}: weight_map of {Q0}=3"]),
    "too-few-bytes": (too_few_bytes, [f"{WEIGHTS} has 12288 bytes of {Q0}, not 16384"]),
    "weights-are-a-folder": (only_a_folder, [f"{WEIGHTS} is no file"]),
    "only-an-adapter": (only_an_adapter, ["config.json is missing"]),
    "eight-bits": (
        tensors(**{Q0: torch.ones(64, 64).to(torch.float8_e4m3fn)}),
        [f"dtype of {Q0}=F8_E4M3", "BF16"],
    ),
    "layer-without-number": (
        tensors(**{"model.layers.x": torch.ones(2)}),
        [WEIGHTS, "model.layers.x", "a Llama does not have"],
    ),
    "no-tensor": (tensors(**{Q0: None}), [f"no tensor {Q0}, of shape (64, 64)"]),
    "other-shape": (tensors(**{Q0: torch.ones(64, 32)}), [WEIGHTS, Q0, "(64, 32)", "(64, 64)"]),
    "transposed": (
        tensors(**{"model.layers.1.mlp.down_proj.weight": torch.ones(90, 64)}),
        [WEIGHTS, "layers.1.mlp.down_proj.weight=(90, 64)", "(64, 90)"],
    ),
    "integers": (
        tensors(**{Q0: torch.ones(64, 64, dtype=torch.int8)}),
        [f"dtype of {Q0}=I8", "BF16"],
    ),
    "more-layers": (config(num_hidden_layers=3), [WEIGHTS, "layers.3.", "num_hidden_layers=3"]),
    "fewer-layers": (config(num_hidden_layers=5), ["no tensor model.layers.4."]),
    "bias": (
        tensors(**{"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}),
        [WEIGHTS, "q_proj.bias", "no biases"],
    ),
    "q-norm": (
        tensors(**{"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}),
        [WEIGHTS, "q_norm.weight", "select"],
    ),
    "adapter": (
        tensors(**{"base_model.lora_A.weight": torch.ones(2)}),
        [WEIGHTS, "lora_A.weight", "a Llama does not have"],
    ),
    "no-output": (tensors(**{"lm_head.weight": None}), ["no tensor lm_head.weight"]),
    "tied-with-output": (config(tie_word_embeddings=True), [WEIGHTS, "lm_head.weight", "ties"]),
    "tokenizer": (config(vocab_size=256), [WEIGHTS, "embed_tokens.weight=(320, 64)"]),
}


@pytest.mark.parametrize(("break_it", "words"), WRONG.values(), ids=WRONG)
def test_wrong_folder_is_refused(tmp_path, whole, break_it, words):
    break_it(whole)
    message = refusal(job(tmp_path / "run", whole))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("source", ["whole", "shards"])
def test_folder_that_transformers_has_written_is_accepted(tmp_path, sources, source):
    check_job(job(tmp_path, sources / source))


def test_shards_are_checked(tmp_path, sources):
    folder = shutil.copytree(sources / "shards", tmp_path / "hf")
    lost = sorted(folder.glob("model-*"))[1]
    lost.unlink()
    assert f"{lost} is missing" in refusal(job(tmp_path / "run", folder))


def test_old_frequencies_of_rope_are_passed_over(tmp_path, whole):
    tensors(**{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})(whole)
    check_job(job(tmp_path / "run", whole))


MINE = LighthouseModelArgs(
    dim=64, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=320, multiple_of=90, norm_eps=1e-3
)
MINE.ffn_dim_multiplier = 0.5
MINE.rope = LLAMA3


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("n_layers", 3, ["num_hidden_layers=4", "has 3"]),
        ("multiple_of", 96, ["intermediate_size=90", "has 96"]),
        ("n_kv_heads", None, ["num_key_value_heads=2", "has 4"]),
        ("norm_eps", 1e-5, ["rms_norm_eps=0.001", "has 1e-05"]),
        ("rope_theta", 10_000, ["rope_theta 1000.0", "rope_theta 10000.0", "[rope]"]),
    ],
)
def test_flavor_that_is_not_the_folders_is_refused(
    tmp_path, sources, monkeypatch, field, value, words
):
    monkeypatch.setitem(FLAVORS, "mine", LighthouseModelArgs(**vars(MINE)))
    check_job(job(tmp_path, sources / "whole", model__flavor="mine"))
    setattr(FLAVORS["mine"], field, value)
    message = refusal(job(tmp_path, sources / "whole", model__flavor="mine"))
    assert all(word in message for word in ["config.json", *words, "use model.flavor"]), message


def test_rope_that_the_job_says_is_meant(tmp_path, sources, monkeypatch, caplog):
    monkeypatch.setitem(FLAVORS, "mine", LighthouseModelArgs(**vars(MINE)))
    FLAVORS["mine"].rope_theta = 10_000
    with caplog.at_level(logging.INFO):
        check_job(job(tmp_path, sources / "whole", model__flavor="mine", rope__rope_theta=1e4))
    assert "from rope_type llama3, rope_theta 1000.0" in caplog.text
    assert "to rope_type llama3, rope_theta 10000.0" in caplog.text


def test_tie_is_logged(tmp_path, sources, caplog):
    with caplog.at_level(logging.INFO):
        check_job(job(tmp_path, sources / "shards"))
    assert "start equal and are trained apart" in caplog.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"checkpoint__enable": False}, ["loads nothing with checkpoint.enable = false"]),
        ({"checkpoint__initial_load_in_hf_quantized": True}, ["initial_load_in_hf_quantized"]),
        ({"rope__rope_type": "yarn"}, ["rope.rope_type=yarn"]),
    ],
    ids=["no-checkpoints", "quantized", "yarn"],
)
def test_job_that_cannot_load_is_refused(tmp_path, sources, fields, words):
    message = refusal(job(tmp_path, sources / "whole", **fields))
    assert all(word in message for word in words), message


def test_a_folder_that_is_not_there_is_named_by_its_field(tmp_path):
    fields = {"model__flavor": "tiny_byte"}
    message = refusal(job(tmp_path, "nowhere", **fields))
    assert "model.hf_assets_path='nowhere' is no folder" in message
    message = refusal(job(tmp_path, "", checkpoint__initial_load_path="nowhere", **fields))
    assert "checkpoint.initial_load_path='nowhere' is no folder" in message


def test_bytes_for_weights_of_another_tokenizer_are_warned_of(tmp_path, whole, caplog):
    write_byte_tokenizer(whole)
    check_job(job(tmp_path, whole))
    assert "tokenizer.name" not in caplog.text

    Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).save(f"{whole}/tokenizer.json")
    check_job(job(tmp_path, whole))
    assert 'set tokenizer.name = "huggingface"' in caplog.text


def test_sizes_without_weights_are_warned_of(tmp_path, sources, caplog):
    check_job(job(tmp_path, sources / "whole", checkpoint__initial_load_in_hf=False))
    assert "training starts from random weights" in caplog.text
