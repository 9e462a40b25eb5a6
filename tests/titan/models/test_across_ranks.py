"""Ranks that share a sequence on GPUs, by either way to attend, in bfloat16, against one GPU.

With one GPU two ranks share it: what they compute does not depend on it, how fast does.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torchtitan.distributed.context_parallel import apply_cp_to_attention_module
from torchtitan.models.attention import ScaledDotProductAttentionWrapper

from tests.support.cases import output_and_gradients, rows_of
from tests.support.ranks import run_ranks_on_gpus
from torchtitan_lighthouse import LighthouseAttention, LighthouseConfig
from torchtitan_lighthouse.attention.all_gather import AllGatherAttention
from torchtitan_lighthouse.attention.context_parallel import ContextParallel

pytestmark = [pytest.mark.gpu, pytest.mark.trainer]

RANKS = 2
CONFIG = LighthouseConfig(levels=3, pooling_factor=4, topk=512, tile=64)
LENGTH = 16_384
HEADS = {"MHA": (4, 4), "GQA": (4, 2)}
MODES = ("eager", "compiled")
ATTENTIONS = ("dense", "lighthouse")
WAYS = ("ring", "allgather")

Results = dict[tuple[str, str, str], list[Tensor]]  # by heads, attention and mode


class Block(nn.Module):
    """What torchtitan compiles: a module around the one on which context parallel hooks."""

    def __init__(
        self, attention: str, make_sdpa: Callable[[], nn.Module], place: ContextParallel | None
    ) -> None:
        super().__init__()
        self.attention = make_sdpa()
        if attention == "lighthouse":
            self.attention = LighthouseAttention(self.attention, CONFIG, place)

    def forward(self, *qkv: Tensor) -> Tensor:
        """[B, N, H, D] to the same."""
        q, k, v = (x.transpose(1, 2) for x in qkv)
        out = self.attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2).contiguous()


def random_inputs(heads: str) -> list[Tensor]:
    """q, k, v and a gradient of the output: [1, N, H, 64]."""
    query_heads, kv_heads = HEADS[heads]
    generator = torch.Generator("cuda").manual_seed(0)
    return [
        torch.randn(1, LENGTH, n, 64, generator=generator, device="cuda", dtype=torch.bfloat16)
        for n in (query_heads, kv_heads, kv_heads, query_heads)
    ]


def run_all(
    make_sdpa: Callable[[], nn.Module] = ScaledDotProductAttentionWrapper,
    place: ContextParallel | None = None,
) -> Results:
    """Every case; of a rank's rows where ``place`` says which."""
    results = {}
    for heads, attention, mode in product(HEADS, ATTENTIONS, MODES):
        torch.compiler.reset()
        block = Block(attention, make_sdpa, place)
        if mode == "compiled":
            block.compile(fullgraph=True)
        inputs = random_inputs(heads)
        if place:
            inputs = [rows_of(x, place, 1) for x in inputs]
        results[heads, attention, mode] = output_and_gradients(block, *inputs)
    return results


def run_on_a_rank(rank: int, folder: Path) -> None:
    distributed.init_process_group(
        "nccl", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    mesh = init_device_mesh("cuda", (RANKS,), mesh_dim_names=("cp",))
    place = ContextParallel.of(mesh.get_group())

    def ring() -> nn.Module:
        sdpa = ScaledDotProductAttentionWrapper()
        apply_cp_to_attention_module([sdpa], mesh, "sdpa")
        return sdpa

    makers = {"ring": ring, "allgather": lambda: AllGatherAttention(place)}
    results = {way: run_all(makers[way], place) for way in WAYS}
    torch.save((place, results), folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ring")
    run_ranks_on_gpus(run_on_a_rank, RANKS, folder, timeout=500)
    return [
        torch.load(folder / f"{rank}.pt", weights_only=False, map_location="cuda")
        for rank in range(RANKS)
    ]


@pytest.fixture(scope="module")
def of_one_gpu():
    return run_all()


def relative_differences(
    of_ranks, way: str, whole: list[Tensor], case: tuple[str, str, str]
) -> list[float]:
    """Of the output and of each gradient, on all ranks together: mean by mean magnitude."""
    differences = []
    for n, expected in enumerate(whole):
        by_rank = [
            results[way][case][n] - rows_of(expected, place, 1) for place, results in of_ranks
        ]
        mean = torch.cat(by_rank).abs().mean(dtype=torch.float32)
        differences.append((mean / expected.abs().mean(dtype=torch.float32)).item())
    return differences


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("heads", HEADS)
def test_ranks_differ_from_one_gpu_as_by_a_ring_of_dense_attention(
    of_ranks, of_one_gpu, heads, mode, attention, way
):
    case, dense = (heads, attention, mode), (heads, "dense", mode)
    ours = relative_differences(of_ranks, way, of_one_gpu[case], case)
    theirs = relative_differences(of_ranks, "ring", of_one_gpu[dense], dense)
    print(f"{case}, {way}: out, dq, dk, dv differ by {ours}, a dense ring by {theirs}")
    for our, their in zip(ours, theirs, strict=True):
        assert 0 < their < 0.01
        assert our <= 1.5 * their
