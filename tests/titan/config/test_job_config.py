"""The sections of this package in TOML and on the command line, through the real ConfigManager."""

import sys
from dataclasses import fields

import pytest
from torchtitan.config import ConfigManager

from tests.support.jobs import TOML, parse
from torchtitan_lighthouse import LighthouseConfig
from torchtitan_lighthouse.titan.config import Lighthouse, LighthouseConfigManager


def test_toml_sets_every_field_of_the_section(tmp_path):
    written = Lighthouse(False, 7, 2, 8, 32, 16, "dilated", 2, [0, -2], False, True)
    lines = [f"{f.name} = {getattr(written, f.name)!r}" for f in fields(Lighthouse)]
    toml = "[lighthouse]\n" + "\n".join(lines).replace("False", "false").replace("True", "true")
    assert parse(tmp_path, toml).lighthouse == written


def test_command_line_overrides_toml(tmp_path):
    section = parse(
        tmp_path,
        lighthouse__steps=3,
        lighthouse__dense_layers=[0, 1, -2, -1],
        lighthouse__pin_first=False,
        tokenizer__name="huggingface",
    )
    assert section.lighthouse.steps == 3
    assert section.lighthouse.dense_layers == [0, 1, -2, -1]
    assert not section.lighthouse.pin_first
    assert section.lighthouse.topk == 16
    assert section.tokenizer.name == "huggingface"


def test_command_line_can_empty_dense_layers(tmp_path):
    assert parse(tmp_path, lighthouse__dense_layers=[]).lighthouse.dense_layers == []


def test_section_gives_the_numbers_of_the_method(tmp_path):
    config = parse(tmp_path).lighthouse.attention_config()
    assert config == LighthouseConfig(levels=3, pooling_factor=2, topk=16, tile=8)


@pytest.mark.parametrize(
    ("toml", "key"),
    [
        ("[lighthouse]\ntop_k = 16", "top_k"),
        ("[tokenizer]\nkind = 'byte'", "kind"),
        ("[training]\nseqlen = 256", "seqlen"),
        ("[lighthuose]\ntopk = 16", "lighthuose"),
    ],
    ids=["lighthouse", "tokenizer", "training", "section"],
)
def test_unknown_key_is_refused_by_name(tmp_path, toml, key):
    with pytest.raises(ValueError, match=key):
        parse(tmp_path, toml)


@pytest.mark.parametrize(
    "line",
    [
        'dense_layers = "4,16"',
        "dense_layers = [0, 1.5]",
        "dense_layers = [true]",
        'topk = "16"',
        "topk = 16.0",
        "tile = true",
        "enable = 1",
        'pin_first = "yes"',
        "scorer = 3",
    ],
)
def test_wrong_type_is_refused_by_name(tmp_path, line):
    with pytest.raises(ValueError, match=rf"lighthouse\.{line.split()[0]} = .* must be of type"):
        parse(tmp_path, f"[lighthouse]\n{line}")


def test_arguments_are_read_when_parsing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--lighthouse.steps", "5"])
    assert LighthouseConfigManager().parse_args().lighthouse.steps == 5


@pytest.mark.parametrize("manager", [ConfigManager, LighthouseConfigManager])
def test_config_module_may_be_named_in_toml(tmp_path, manager):
    path = tmp_path / "job.toml"
    path.write_text('[job]\ncustom_config_module = "torchtitan_lighthouse.titan.config"\n' + TOML)
    job_config = manager().parse_args(["--job.config_file", str(path), "--lighthouse.steps", "5"])
    assert job_config.lighthouse.steps == 5
    assert job_config.lighthouse.topk == 16
