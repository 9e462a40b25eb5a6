"""From a job to the arguments of its model: a flavor, a Hugging Face folder, a module of a user."""

import logging
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchtitan.models.llama3 import Transformer
from torchtitan.models.llama3.model.state_dict_adapter import Llama3StateDictAdapter

from tests.support.hf import LLAMA3, write_llama
from tests.support.jobs import parse
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.checks import check_job
from torchtitan_lighthouse.titan.models.args import LighthouseModelArgs
from torchtitan_lighthouse.titan.models.flavors import FLAVORS
from torchtitan_lighthouse.titan.models.of_job import model_args_of


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return folder, write_llama(folder)


def hf_job(folder, llama, **fields):
    return parse(folder, model__flavor="hf", model__hf_assets_path=llama, **fields)


def test_sizes_are_those_of_the_folder(tmp_path, llama):
    folder, exported = llama
    args = model_args_of(hf_job(tmp_path, folder))
    with torch.device("meta"):
        ours = Llama3StateDictAdapter(args, None).to_hf(Transformer(args).state_dict())
    theirs = exported.state_dict()
    assert {k: w.shape for k, w in ours.items()} == {k: w.shape for k, w in theirs.items()}
    assert (args.norm_eps, args.max_seq_len, args.rope) == (1e-3, 384, LLAMA3)


def test_torchtitan_gets_the_same(tmp_path, llama):
    """It takes a flavor from the table and shows it the job."""
    job_config = hf_job(tmp_path, llama[0], rope__factor=8.0)
    expected = model_args_of(job_config)
    given_to_torchtitan = LighthouseModelArgs(**vars(FLAVORS["hf"]))
    given_to_torchtitan.update_from_config(job_config)
    assert given_to_torchtitan.max_seq_len == 256
    assert given_to_torchtitan.lighthouse_layers == (1, 2)
    given_to_torchtitan.lighthouse, given_to_torchtitan.lighthouse_layers = None, ()
    given_to_torchtitan.max_seq_len = expected.max_seq_len
    assert given_to_torchtitan == expected
    assert expected.rope == {**LLAMA3, "factor": 8.0}


@pytest.mark.parametrize(
    ("flavor", "rope", "warns"),
    [
        ("tiny_byte", {}, False),
        ("8B", {}, True),
        ("hf", {}, True),
        ("hf", {"rope__factor": 8.0}, False),
    ],
    ids=["plain", "scaled", "folder", "extended"],
)
def test_a_length_is_warned_of_where_the_model_has_a_shorter_one(
    tmp_path, llama, caplog, flavor, rope, warns
):
    fields = {"model__hf_assets_path": llama[0], "training__seq_len": 2**18, **rope}
    job_config = parse(tmp_path, model__flavor=flavor, **fields)
    args = model_args_of(job_config)
    with caplog.at_level(logging.WARNING):
        args.update_from_config(job_config)
    assert ("exceeds original maximum" in caplog.text) is warns
    assert args.max_seq_len == 2**18


@given(width=st.integers(2, 40_000), dim=st.integers(2, 20_000))
def test_any_width_is_exact(width, dim):
    args = LighthouseModelArgs(dim=dim, multiple_of=width)
    args.ffn_dim_multiplier = width / int(8 * dim / 3)
    assert args.ffn_width == width


@pytest.mark.parametrize("flavor", [*FLAVORS])
def test_ffn_width_is_torchtitans(flavor):
    args = FLAVORS[flavor]
    with torch.device("meta"):
        model = Transformer(LighthouseModelArgs(**{**vars(args), "n_layers": 1, "vocab_size": 8}))
    assert args.ffn_width == model.layers["0"].feed_forward.w1.out_features


def test_rope_of_a_job_extends_a_flavor(tmp_path):
    job_config = parse(tmp_path, model__flavor="8B", rope__factor=32.0, rope__rope_theta=8e6)
    scaling = model_args_of(job_config).rope_scaling_args
    assert (scaling.scaling_factor, scaling.original_max_position_embeddings) == (32.0, 8192)
    assert model_args_of(job_config).rope_theta == 8e6
    assert FLAVORS["8B"].rope_scaling_args.scaling_factor == 8.0


CUSTOM = """
from dataclasses import replace
from torchtitan.protocols.train_spec import register_train_spec
from torchtitan_lighthouse.titan.models.args import LighthouseModelArgs
from torchtitan_lighthouse.titan.models.flavors import FLAVORS
from torchtitan_lighthouse.titan.spec import get_train_spec
mine = LighthouseModelArgs(dim=48, n_layers=3, n_heads=2, vocab_size=320)
FLAVORS["mine"] = mine
register_train_spec("my_llama", replace(get_train_spec(), model_args={"own": mine}))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_flavors.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("torchtitan.protocols.train_spec._extra_train_specs", {**_specs()})
    monkeypatch.delitem(sys.modules, "my_flavors", raising=False)
    yield "my_flavors"
    FLAVORS.pop("mine", None)


def _specs():
    from torchtitan.protocols import train_spec

    return train_spec._extra_train_specs


@pytest.mark.parametrize(
    ("name", "flavor"), [("llama3_lighthouse", "mine"), ("my_llama", "own")], ids=["flavor", "spec"]
)
def test_flavor_of_a_custom_import(tmp_path, module, name, flavor):
    fields = {"model__name": name, "model__flavor": flavor, "experimental__custom_import": module}
    job_config = parse(tmp_path, **fields)
    check_job(job_config)
    assert model_args_of(job_config).dim == 48


def test_missing_custom_import_is_refused(tmp_path):
    with pytest.raises(RefusalError, match="custom_import = 'no_such_module'"):
        check_job(parse(tmp_path, experimental__custom_import="no_such_module"))
