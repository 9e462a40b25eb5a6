"""A folder that transformers has written, loaded as torchtitan loads it: the same loss, and back.

On one rank, on two that share the parameters (FSDP), the columns (TP) or the sequence (CP), and on
four that share parameters and columns.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor
from torchtitan.distributed.context_parallel import prepare_context_parallel_input
from transformers import AutoModelForCausalLM

from tests.support.hf import LLAMA3, load_weights, write_llama
from tests.support.jobs import parse, train
from tests.support.models import build_model, parallel_dims, tokens
from tests.support.ranks import run_ranks
from torchtitan_lighthouse.titan.components.dataloader import build_dataloader
from torchtitan_lighthouse.titan.components.tokenizer import build_tokenizer
from torchtitan_lighthouse.titan.models.hf_adapter import LighthouseStateDictAdapter
from torchtitan_lighthouse.titan.stages import AttentionSwitch

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
    # More ranks than key heads share the rows of one head.
    "one-key-head": {"num_key_value_heads": 1},
    "odd-width": {"intermediate_size": 89},
    "odd-vocabulary": {"vocab_size": 321},
}
LAYOUTS = {
    "FSDP": {"dp_shard": 2},
    "TP": {"tp": 2},
    "CP": {"cp": 2},
    "FSDP-TP": {"dp_shard": 2, "tp": 2},
}
NOT_SPLIT = ("odd-width", "one-key-head")  # by tensor parallel
RUNS = {
    2: [
        (layout, case)
        for layout in ("FSDP", "TP", "CP")
        for case in CASES
        if layout != "TP" or case not in NOT_SPLIT
    ],
    4: [("FSDP-TP", "llama3-scaling"), ("FSDP-TP", "odd-vocabulary")],
}


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
def ours(workspace: Path, folder: Path, layout: str, rank: int) -> tuple[Tensor, list[str]]:
    """The mean loss of the batch of ``batch_of``, and the tensors that are not saved as loaded."""
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
        loss /= distributed.get_world_size()
    return loss, changed_by_saving(model, folder)


def changed_by_saving(model: nn.Module, folder: Path) -> list[str]:
    """The names of the tensors that are not the folder's when they are on their way back."""
    adapter = LighthouseStateDictAdapter(model.model_args, str(folder))
    saved = adapter.to_hf(get_model_state_dict(model))
    source = {}
    for file in folder.glob("*.safetensors"):
        source |= load_file(file)
    whole = {name: w.full_tensor() if isinstance(w, DTensor) else w for name, w in saved.items()}
    return [name for name, w in source.items() if not torch.equal(whole[name], w.float())]


def batch_of(layout: str, rank: int) -> Tensor:
    """Under FSDP a batch of the rank's own, or of those that share the columns."""
    return tokens({"FSDP": rank, "FSDP-TP": rank // 2}.get(layout, 0))


def run_on_a_rank(rank: int, ranks: int, folder: Path, folders: Path) -> None:
    store = f"file://{folder}/store-{ranks}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    outcome = {
        (layout, case): ours(folder / f"{rank}", folders / case, layout, rank)
        for layout, case in RUNS[ranks]
    }
    torch.save(outcome, folder / f"{ranks}-{rank}.pt")
    distributed.barrier()  # a rank that is done would close the connections that others read
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory, folders):
    """What each rank of a run has found; one launch for all of a size."""
    folder = tmp_path_factory.mktemp("ranks")
    launched = set()

    def of(layout: str, case: str) -> list[tuple[Tensor, list[str]]]:
        (ranks,) = [size for size, runs in RUNS.items() if (layout, case) in runs]
        if ranks not in launched:
            launched.add(ranks)
            run_ranks(run_on_a_rank, ranks, ranks, folder, folders)
        return [torch.load(folder / f"{ranks}-{rank}.pt")[layout, case] for rank in range(ranks)]

    return of


@pytest.mark.parametrize("case", CASES)
def test_loss_is_transformers(tmp_path, folders, case):
    model, _ = loaded(tmp_path, folders / case)
    batch = tokens()
    with torch.no_grad():
        loss = mean_loss(model(batch[:, :-1]), batch[:, 1:])
    torch.testing.assert_close(loss, theirs(folders / case, batch), rtol=1e-6, atol=0)


@pytest.mark.trainer
@pytest.mark.parametrize(("layout", "case"), [run for runs in RUNS.values() for run in runs])
def test_loss_on_ranks_is_transformers_and_what_is_saved_is_what_was_loaded(
    of_ranks, folders, case, layout
):
    for rank, (loss, changed) in enumerate(of_ranks(layout, case)):
        expected = theirs(folders / case, batch_of(layout, rank))
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        assert not changed


@pytest.mark.trainer
def test_the_first_loss_that_the_trainer_logs_is_transformers(tmp_path, folders):
    folder = folders / "tied-bf16-in-shards"
    fields = {
        "model__flavor": "hf",
        "model__hf_assets_path": folder,
        "checkpoint__enable": True,
        "checkpoint__initial_load_in_hf": True,
        "lighthouse__enable": False,
        "training__steps": 1,
    }
    logged = train(tmp_path, **fields)[1]["loss_metrics/global_avg_loss"]
    job_config = parse(tmp_path / "again", **fields)
    tokenizer = build_tokenizer(job_config)
    batches = build_dataloader(1, 0, tokenizer, job_config)
    inputs, labels = next(iter(batches))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = mean_loss(model(inputs["input"]).logits, labels)
    assert logged == pytest.approx(expected.item(), rel=1e-6)


def test_the_cases_differ(folders):
    """So that equal losses say something."""
    losses = {round(theirs(folders / case, tokens()).item(), 4) for case in CASES}
    assert len(losses) == len(CASES)
