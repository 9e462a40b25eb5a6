"""A model on ranks that share a sequence, over gloo, against the same model on one rank."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import distribute_tensor
from torchtitan.distributed.context_parallel import prepare_context_parallel_input

from tests.support.jobs import parse
from tests.support.models import CHECKPOINTING, build_model, parallel_dims, tokens
from tests.support.ranks import run_ranks
from torchtitan_lighthouse.titan.stages import AttentionSwitch

pytestmark = pytest.mark.trainer

# Whole tiles in each piece of four ranks.
TILE = {"lighthouse__tile": 2}
COMPILED = {"compile__enable": True, "compile__backend": "aot_eager"}
MODES = {
    "plain": {},
    "selective": CHECKPOINTING["selective"],
    "attention": CHECKPOINTING["attention"],
    "full": CHECKPOINTING["full"],
    "selective-compiled": {**CHECKPOINTING["selective"], **COMPILED},
    "attention-compiled": {**CHECKPOINTING["attention"], **COMPILED},
    "full-compiled": {**CHECKPOINTING["full"], **COMPILED},
}
# By the number of ranks: how many share a sequence, and how.
RUNS = {
    2: [(2, mode) for mode in MODES if mode != "selective-compiled"],
    4: [(4, "plain"), (4, "selective-compiled"), (2, "plain")],
}
STAGES = ("lighthouse", "dense")

Step = tuple[Tensor, dict[str, Tensor]]  # the loss, and the gradient of each parameter


def plain(name: str) -> str:
    """A parameter's name without what wraps its block."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def steps(model: nn.Module, batch: Tensor, labels: Tensor, **kwargs: Tensor) -> dict[str, Step]:
    """Of a model in Lighthouse use: one step in each stage, with the tokens' losses summed."""
    switch = AttentionSwitch([model])
    results = {}
    for stage in STAGES:
        switch.use(stage)
        logits = model(batch, **kwargs).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")
        loss.backward()
        results[stage] = loss.detach(), {plain(n): p.grad for n, p in model.named_parameters()}
        model.zero_grad()
    return results


def steps_on_a_rank(folder: Path, ranks: int, degree: int, mode: str) -> dict[str, Step]:
    """The losses of all ranks together, and the whole gradients."""
    torch._dynamo.reset()
    groups = ranks // degree
    dims = parallel_dims(dp_shard=groups, cp=degree)
    model = build_model(parse(folder, **TILE, **MODES[mode]), dims)
    weights = build_model(parse(folder, **TILE)).state_dict()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(distribute_tensor(weights[plain(name)], p.device_mesh, p.placements))
    sequence = tokens(distributed.get_rank() // degree)
    batch, labels, positions = prepare_context_parallel_input(
        sequence[:, :-1], sequence[:, 1:], {}, dims.get_mesh("cp"), sequence.device
    )
    results = steps(model, batch, labels, **positions)
    for loss, gradients in results.values():
        distributed.all_reduce(loss)
        gradients.update({name: g.full_tensor() for name, g in gradients.items()})
    return results


def run_on_a_rank(rank: int, ranks: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
    )
    results = {
        (degree, mode): steps_on_a_rank(folder / f"{rank}", ranks, degree, mode)
        for degree, mode in RUNS[ranks]
    }
    torch.save(results, folder / f"{rank}.pt")
    distributed.barrier()  # a rank that is done would close the connections that others read
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    """The results of each run, by the number of ranks, as rank 0 has them."""
    results = {}
    for ranks in RUNS:
        folder = tmp_path_factory.mktemp(f"{ranks}-ranks")
        run_ranks(run_on_a_rank, ranks, ranks, folder)
        results[ranks] = torch.load(folder / "0.pt")
    return results


@pytest.fixture(scope="module")
def of_one_rank(tmp_path_factory):
    """By the number of groups of ranks: the results of their sequences on one rank."""
    job_config = parse(tmp_path_factory.mktemp("one-rank"), **TILE)
    results = {}
    for groups in (1, 2):
        model = build_model(job_config)
        sequences = torch.cat([tokens(group) for group in range(groups)])
        results[groups] = steps(model, sequences[:, :-1], sequences[:, 1:])
    return results


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("ranks", "degree", "mode"),
    [
        pytest.param(ranks, degree, mode, id=f"CP{degree}-DP{ranks // degree}-{mode}")
        for ranks, runs in RUNS.items()
        for degree, mode in runs
    ],
)
def test_loss_and_gradients_are_those_of_one_rank(
    of_ranks, of_one_rank, ranks, degree, mode, stage
):
    loss, gradients = of_ranks[ranks][degree, mode][stage]
    expected_loss, expected = of_one_rank[ranks // degree][stage]
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        scale = expected[name].abs().max()
        error = (gradient - expected[name]).abs().max() / scale
        assert error < 1e-5, name


@pytest.mark.parametrize("groups", [1, 2])
def test_the_stages_differ(of_one_rank, groups):
    first, second = (of_one_rank[groups][stage] for stage in STAGES)
    assert first[0] != second[0]
