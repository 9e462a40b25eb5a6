"""A folder that transformers has written, loaded as torchtitan loads it: the same loss.

On one rank, and on two that share the parameters (FSDP), the columns (TP) or the sequence (CP).
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torchtitan.distributed.context_parallel import prepare_context_parallel_input
from transformers import AutoModelForCausalLM

from tests.support.hf import LLAMA3, load_weights, write_llama
from tests.support.jobs import parse
from tests.support.models import build_model, parallel_dims, tokens
from tests.support.ranks import run_ranks
from torchtitan_lighthouse.titan.stages import AttentionSwitch

RANKS = 2
PLAIN = {"rope_type": "default", "rope_theta": 5000.0}
CASES = {
    "plain-rope": {"rope_parameters": PLAIN},
    "llama3-scaling": {"rope_parameters": LLAMA3},
    "tied": {"tie_word_embeddings": True},
    "bf16-in-shards": {"dtype": "bfloat16", "max_shard_size": "100KB"},
    "tied-bf16-in-shards": {
        "dtype": "bfloat16",
        "max_shard_size": "100KB",
        "tie_word_embeddings": True,
    },
    "every-head-its-own": {"num_key_value_heads": 4},
    "odd-width": {"intermediate_size": 89},
}
LAYOUTS = {"FSDP": {"dp_shard": RANKS}, "TP": {"tp": RANKS}, "CP": {"cp": RANKS}}
# torchtitan cannot split an odd number of columns.
RUNS = [
    (layout, case) for layout in LAYOUTS for case in CASES if (layout, case) != ("TP", "odd-width")
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    for name, fields in CASES.items():
        write_llama(folder / name, **fields)
    return folder


@torch.no_grad()
def theirs(folder: Path, batch: Tensor) -> Tensor:
    """transformers' mean loss in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return mean_loss(model(batch[:, :-1]).logits, batch[:, 1:])


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def loaded(workspace: Path, folder: Path, **degrees: int) -> tuple[nn.Module, object]:
    """The folder's model on ranks, under dense SDPA."""
    fields = {"model__flavor": "hf", "model__hf_assets_path": folder, "lighthouse__tile": 2}
    job_config = parse(workspace, **fields, parallelism__disable_loss_parallel=True)
    dims = parallel_dims(**degrees)
    model = build_model(job_config, dims)
    load_weights(model, folder)
    AttentionSwitch([model]).use("dense")
    return model, dims


@torch.no_grad()
def ours(workspace: Path, folder: Path, layout: str, rank: int) -> Tensor:
    """The mean loss of the batch of ``batch_of``."""
    model, dims = loaded(workspace, folder, **LAYOUTS[layout])
    batch = batch_of(layout, rank)
    inputs, labels, positions = batch[:, :-1], batch[:, 1:], {}
    if layout == "CP":
        inputs, labels, positions = prepare_context_parallel_input(
            inputs, labels, {}, dims.get_mesh("cp"), inputs.device
        )
    loss = mean_loss(model(inputs, **positions), labels)
    if layout == "CP":
        distributed.all_reduce(loss)
        loss /= RANKS
    return loss


def batch_of(layout: str, rank: int) -> Tensor:
    """Under FSDP a batch of the rank's own."""
    return tokens(rank if layout == "FSDP" else 0)


def run_on_a_rank(rank: int, folder: Path, folders: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    losses = {
        (layout, case): ours(folder / f"{rank}", folders / case, layout, rank)
        for layout, case in RUNS
    }
    torch.save(losses, folder / f"{rank}.pt")
    distributed.barrier()  # a rank that is done would close the connections that others read
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory, folders):
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(run_on_a_rank, RANKS, folder, folders)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES)
def test_loss_is_transformers(tmp_path, folders, case):
    model, _ = loaded(tmp_path, folders / case)
    batch = tokens()
    with torch.no_grad():
        loss = mean_loss(model(batch[:, :-1]), batch[:, 1:])
    torch.testing.assert_close(loss, theirs(folders / case, batch), rtol=1e-6, atol=0)


@pytest.mark.trainer
@pytest.mark.parametrize(("layout", "case"), RUNS)
def test_loss_on_ranks_is_transformers(of_ranks, folders, case, layout):
    for rank, losses in enumerate(of_ranks):
        expected = theirs(folders / case, batch_of(layout, rank))
        torch.testing.assert_close(losses[layout, case], expected, rtol=1e-6, atol=0)


def test_the_cases_differ(folders):
    """So that equal losses say something."""
    losses = {round(theirs(folders / case, tokens()).item(), 4) for case in CASES}
    assert len(losses) == len(CASES)
