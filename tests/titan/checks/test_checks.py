"""Jobs that cannot train are refused before a process group or a model exists."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torchtitan.config import JobConfig

from tests.support.jobs import parse
from tests.support.models import CHECKPOINTING
from torchtitan_lighthouse.titan.checks import check_job, context_parallel
from torchtitan_lighthouse.titan.spec import get_train_spec
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
    "checkpointing-memory-budget": (
        {"activation_checkpoint__mode": "memory_budget", "compile__enable": True},
        ["selects anew in the backward", "lighthouse.enable = false", '"full"'],
    ),
    "checkpointing-memory-budget-eager": (
        {"activation_checkpoint__mode": "memory_budget", "lighthouse__enable": False},
        ["compile.enable = true"],
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
    assert "activation_checkpoint.mode = 'attention' must be one of" in refusal(job_config)


def test_one_gather_without_a_kernel_for_it_is_refused(tmp_path, monkeypatch):
    one_gather = {"parallelism__context_parallel_attention": "allgather", **CP4}
    job_config = parse(tmp_path, **one_gather)  # in float32, which the CPU takes
    check_job(job_config)
    monkeypatch.setattr(context_parallel, "runs_on_cpu", lambda: False)
    assert 'training.mixed_precision_param = "bfloat16"' in refusal(job_config)
    check_job(parse(tmp_path, **one_gather, training__mixed_precision_param="bfloat16"))
    flex = {"model__flavor": "8B_flex", "lighthouse__enable": False}
    assert "attn_type 'flex'; use ring" in refusal(parse(tmp_path, **one_gather, **flex))


def test_a_way_to_attend_that_a_file_spells_wrong_is_refused(tmp_path):
    job_config = parse(tmp_path)
    job_config.parallelism.context_parallel_attention = "gather"
    assert "= 'gather' must be one of 'ring', 'allgather'" in refusal(job_config)


def test_tokenizer_with_more_ids_than_the_embedding_is_refused(tmp_path):
    words = WordLevel({f"w{n}": n for n in range(400)}, unk_token="w0")
    Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    job_config = parse(tmp_path, tokenizer__name="huggingface", model__hf_assets_path=tmp_path)
    message = refusal(job_config)
    assert "400" in message
    assert "320" in message


def test_stock_trainer_is_refused_a_switch(tmp_path):
    with pytest.raises(ValueError, match=r"-m torchtitan_lighthouse\.train"):
        get_train_spec().build_tokenizer_fn(parse(tmp_path, lighthouse__steps=5))


def test_job_without_our_sections_is_refused():
    with pytest.raises(ValueError, match=r"job\.custom_config_module"):
        check_job(JobConfig())
