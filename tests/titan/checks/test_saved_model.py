"""A checkpoint is not continued under another RoPE than its own, unless the job says so."""

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torchtitan.models.llama3 import Transformer

from tests.support.jobs import parse
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.checks import check_job
from torchtitan_lighthouse.titan.folder.model import write_model
from torchtitan_lighthouse.titan.models.args import LighthouseModelArgs
from torchtitan_lighthouse.titan.models.flavors import FLAVORS
from torchtitan_lighthouse.titan.models.of_job import model_args_of

THETA = {"rope__rope_theta": 1e6}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A whole checkpoint of a job with plain RoPE."""
    folder = tmp_path_factory.mktemp("first")
    job_config = parse(folder)
    path = folder / "checkpoint" / "step-2"
    write_model(path, job_config, model_args_of(job_config))
    with torch.device("meta"):
        shapes = Transformer(FLAVORS["tiny_byte"]).state_dict()
    weights = {name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}
    state = {**weights, "train_state.step": torch.tensor(2)}
    dcp.save(state, checkpoint_id=path, no_dist=True)
    return path


def start(folder, saved, **fields):
    return parse(folder, checkpoint__enable=True, checkpoint__initial_load_path=saved, **fields)


def test_the_same_rope_goes_on(tmp_path, saved):
    check_job(start(tmp_path, saved))


def test_rope_that_the_job_says_extends_the_weights(tmp_path, saved):
    check_job(start(tmp_path, saved, **THETA))


def test_rope_of_another_flavor_is_refused(tmp_path, saved, monkeypatch):
    other = LighthouseModelArgs(**{**vars(FLAVORS["tiny_byte"]), "rope_theta": 1e4})
    monkeypatch.setitem(FLAVORS, "other", other)
    with pytest.raises(RefusalError, match=r"step-2/model.json has the RoPE .* 500000.0, and"):
        check_job(start(tmp_path, saved, model__flavor="other"))


def test_other_epsilon_is_refused(tmp_path, saved, monkeypatch):
    other = LighthouseModelArgs(**{**vars(FLAVORS["tiny_byte"]), "norm_eps": 1e-6})
    monkeypatch.setitem(FLAVORS, "other", other)
    with pytest.raises(RefusalError, match="norm_eps=1e-05, and the job's model has 1e-06"):
        check_job(start(tmp_path, saved, model__flavor="other"))


def test_a_run_does_not_change_its_rope_on_the_way(saved):
    with pytest.raises(RefusalError, match=r"use the first, or another job\.dump_folder"):
        check_job(parse(saved.parents[1], checkpoint__enable=True, **THETA))
