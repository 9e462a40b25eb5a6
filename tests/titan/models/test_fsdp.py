"""Activation checkpointing and torch.compile under FSDP over two gloo ranks, in both stages."""

import json

import pytest
import torch

from tests.support.jobs import parse
from tests.support.models import CHECKPOINTING, build_model, loss, parallel_dims, tokens
from tests.support.ranks import run_ranks
from torchtitan_lighthouse.titan.stages import AttentionSwitch

RANKS = 2
COMBINATIONS = {
    **{name: {**fields} for name, fields in CHECKPOINTING.items()},
    **{
        f"{name}-compiled": {
            **CHECKPOINTING[name],
            "compile__enable": True,
            "compile__backend": "aot_eager",
        }
        for name in ("none", "attention")  # others: test_context_parallel.py
    },
}


def train_in_both_stages(job_config, rank, ranks):
    """Losses of a Lighthouse step, a dense one and one more under Lighthouse attention."""
    torch._dynamo.reset()
    model = build_model(job_config, parallel_dims(dp_shard=ranks))
    switch = AttentionSwitch([model])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    curve = []
    for stage in ("lighthouse", "dense", "lighthouse"):
        switch.use(stage)
        step_loss = loss(model, tokens(rank))
        step_loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        curve.append(step_loss.item())
    return curve


def train_every_combination(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    curves = {
        name: train_in_both_stages(parse(folder / f"{rank}", **fields), rank, RANKS)
        for name, fields in COMBINATIONS.items()
    }
    (folder / f"curves-{rank}.json").write_text(json.dumps(curves))
    torch.distributed.barrier()  # a rank that is done would close the connections that others read
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """The curve of each combination, for each rank."""
    folder = tmp_path_factory.mktemp("fsdp")
    run_ranks(train_every_combination, RANKS, folder)
    return [json.loads((folder / f"curves-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.trainer
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_loss_does_not_depend_on_checkpointing_or_compile(curves, combination):
    for rank in range(RANKS):
        assert curves[rank][combination] == curves[rank]["none"]


@pytest.mark.trainer
def test_ranks_see_different_data_and_learn(curves):
    first, second = (curves[rank]["none"] for rank in range(RANKS))
    assert first != second
    assert first[-1] < first[0]
