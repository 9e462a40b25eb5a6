"""Ranks that share a sequence select, compute and differentiate what one device does."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.support import slow_loop
from tests.support.cases import (
    Case,
    case,
    case_id,
    output_and_gradients,
    random_qkv,
    rows_of,
)
from tests.support.ranks import run_ranks
from tests.support.rope import FREQUENCIES, rope, rotation_over
from torchtitan_lighthouse import (
    LighthouseAttention,
    LighthouseConfig,
    lighthouse_attention,
    select,
)
from torchtitan_lighthouse.attention.all_gather import AllGatherAttention
from torchtitan_lighthouse.attention.context_parallel import ContextParallel, local_config
from torchtitan_lighthouse.attention.selection import entries_in_order

# float64 rounding through one softmax; no other source of difference is allowed.
EXACT = {"rtol": 1e-11, "atol": 1e-12}

# Eight tiles: a tile to each piece of four ranks, two to those of two.
GEOMETRIES = [
    case(1, 2, 2, 1, 96),
    case(2, 4, 2, 8, 3),
    case(3, 2, 2, 8, 3),
    case(3, 2, 2, 8, 3, pin_first=False),
    case(3, 4, 2, 8, 3),
    case(4, 2, 2, 8, 4),
    case(3, 2, 2, 8, 3, rope_aligned=True),
]
HEADS = (4, 2)
RUNS = [*(("eager", geometry) for geometry in GEOMETRIES), ("compiled", GEOMETRIES[2])]
LOW_PRECISION = ("bfloat16", GEOMETRIES[4])
OF_THREE = case(3, 4, 2, 6, 3)  # a tile to each piece of three ranks


def run_id(value: tuple[str, Case]) -> str:
    mode, geometry = value
    return f"{mode}-{case_id(geometry)}"


def inputs(length: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """q, k, v and the gradient of the output, the same on every rank."""
    torch.manual_seed(length)
    q, k, v = random_qkv(length, heads=HEADS, dtype=dtype)
    return q, k, v, torch.randn_like(q)


def attend_on_a_rank(rank: int, size: int, folder: Path, runs: list[tuple[str, Case]]) -> None:
    """Save what this rank computes in each run."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    context_parallel = ContextParallel.of(distributed.group.WORLD)
    results = {}
    for mode, (config, length) in runs:
        attention = AllGatherAttention(context_parallel)
        rotation = rotation_over(config.coarsest_window)
        module = LighthouseAttention(attention, config, context_parallel, rotation)
        if mode == "compiled":
            module.compile(fullgraph=True, backend="aot_eager")
        dtype = torch.bfloat16 if mode == "bfloat16" else torch.float64
        local = [rows_of(x, context_parallel, 2) for x in inputs(length, dtype)]
        results[run_id((mode, (config, length)))] = output_and_gradients(
            partial(module, enable_gqa=True), *local
        )
    torch.save((context_parallel, results), folder / f"{rank}.pt")
    distributed.barrier()  # a rank that is done would close the connections that others read
    distributed.destroy_process_group()


def results_of_ranks(size: int, folder: Path, runs: list[tuple[str, Case]]) -> list:
    """What each rank is and has computed."""
    run_ranks(attend_on_a_rank, size, size, folder, runs)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


@pytest.fixture(scope="module", params=[2, 4], ids=lambda size: f"W{size}")
def ranks(request, tmp_path_factory):
    """What each of 2 or 4 ranks is and has computed."""
    return results_of_ranks(request.param, tmp_path_factory.mktemp("ranks"), [*RUNS, LOW_PRECISION])


def slow(config: LighthouseConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if config.levels == 1:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    if not config.rope_aligned:
        return slow_loop.lighthouse_attention(q, k, v, config)[0]
    before_rope = (rope(x, -torch.arange(x.shape[2])) for x in (q, k))
    return slow_loop.lighthouse_attention(*before_rope, v, config, frequencies=FREQUENCIES)[0]


@pytest.fixture(scope="module")
def expected():
    """What the slow loop computes on the whole sequence."""
    return {
        case_id((config, length)): output_and_gradients(partial(slow, config), *inputs(length))
        for config, length in GEOMETRIES
    }


@pytest.mark.parametrize("name", RUNS, ids=run_id)
def test_output_and_gradients_are_those_of_one_device(ranks, expected, name):
    for context_parallel, results in ranks:
        whole = expected[case_id(name[1])]
        for actual, e in zip(results[run_id(name)], whole, strict=True):
            torch.testing.assert_close(actual, rows_of(e, context_parallel, 2), **EXACT)


def test_three_ranks_compute_what_one_device_does(tmp_path):
    runs = [("eager", OF_THREE), ("compiled", OF_THREE)]
    whole = output_and_gradients(partial(slow, OF_THREE[0]), *inputs(OF_THREE[1]))
    for context_parallel, results in results_of_ranks(3, tmp_path, runs):
        for run in runs:
            for actual, e in zip(results[run_id(run)], whole, strict=True):
                torch.testing.assert_close(actual, rows_of(e, context_parallel, 2), **EXACT)


def test_bfloat16_is_as_near_to_float64_as_on_one_device(ranks):
    config, length = LOW_PRECISION[1]
    qkv_and_upstream = inputs(length, torch.bfloat16)
    exact = output_and_gradients(partial(slow, config), *(x.double() for x in qkv_and_upstream))
    one_device = output_and_gradients(
        partial(lighthouse_attention, config=config), *qkv_and_upstream
    )
    for n, name in enumerate(("out", "dq", "dk", "dv")):
        allowed = (one_device[n].double() - exact[n]).abs()
        error = torch.cat(
            [
                results[run_id(LOW_PRECISION)][n].double() - rows_of(exact[n], place, 2)
                for place, results in ranks
            ]
        ).abs()
        assert error.max() <= 2 * allowed.max(), name
        assert error.mean() <= 1.1 * allowed.mean(), name


@pytest.fixture
def layer():
    """Of a rank among ranks that send nothing: the numbers that it computes are not looked at."""
    torch.compiler.reset()
    distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    context_parallel = ContextParallel.of(distributed.group.WORLD)
    attention = AllGatherAttention(context_parallel)
    yield LighthouseAttention(attention, GEOMETRIES[2][0], context_parallel)
    distributed.destroy_process_group()


@torch._dynamo.config.patch(automatic_dynamic_shapes=True)  # whatever a model here has set
def test_lengths_share_one_dynamic_graph(layer):
    length = GEOMETRIES[2][1]
    counter = CompileCounterWithBackend("aot_eager")
    layer.compile(fullgraph=True, backend=counter)
    for n in (1, 2, 3, 4):
        layer(*random_qkv(n * length // 4))
    assert counter.frame_count == 2  # one for the first length, one for all others


def test_the_layout_is_the_projection_s(layer):
    out = layer(*random_qkv(GEOMETRIES[2][1] // 4, heads=HEADS), enable_gqa=True)
    assert out.transpose(1, 2).is_contiguous()


def test_some_last_entries_are_gathered_and_some_are_not():
    """So that both cases of what spills over an edge are among those above."""
    gathered = set()
    for config, length in GEOMETRIES[1:]:
        q, k, v, _ = inputs(length)
        _, selection = slow_loop.lighthouse_attention(q, k, v, config)
        per_piece = length // config.pooling_factor // 8
        last = [(1, (piece + 1) * per_piece - 1) for piece in range(8)]
        gathered |= {entry in entries for entries in selection[0] for entry in last}
    assert gathered == {True, False}


@pytest.mark.parametrize("scores", ["random", "ties"])
@pytest.mark.parametrize("pin_first", [True, False], ids=["pinned", "unpinned"])
@pytest.mark.parametrize("size", [1, 2, 4, 8], ids=lambda size: f"W{size}")
def test_selection_is_that_of_one_device(size, pin_first, scores):
    config, length = case(3, 4, 8, 32, 12, pin_first=pin_first)
    streams = torch.rand(2, 2, 2, length)
    if scores == "ties":
        streams = (4 * streams).round()
    levels, indices = entries_in_order(select(*streams, config), config, length)
    for rank in range(size):
        context_parallel = ContextParallel("", rank, size)
        local = [rows_of(s, context_parallel, -1) for s in streams]
        numbers = local_config(config, context_parallel, length // size)
        local_length = length // size
        level, index = entries_in_order(select(*local, numbers), numbers, local_length)
        first_token = torch.tensor(context_parallel.pieces) * local_length // 2
        first_token[1] -= local_length // 2  # where the second piece starts on the rank
        offset = first_token.repeat_interleave(level.shape[-1] // 2) // 4**level
        assert torch.equal(level, rows_of(levels, context_parallel, -1))
        assert torch.equal(index + offset, rows_of(indices, context_parallel, -1))


CONFIG = LighthouseConfig(levels=3, pooling_factor=4, topk=1536, tile=128)


@pytest.mark.parametrize(
    ("fields", "degree", "seq_len", "message"),
    [
        pytest.param({}, 4, 98_304, r"topk=1536 .* use 1024 or 2048$", id="topk"),
        pytest.param({}, 8, 98_304, r"topk=1536 .* use 2048$", id="topk-above"),
        pytest.param({"topk": 8192}, 24, 98_304, r"topk=8192 .* use 6144$", id="topk-below"),
        pytest.param({"topk": 2048}, 8, 98_000, r"seq_len=98000 .* use 97792 or 98048$", id="N"),
        pytest.param({"topk": 4096}, 8, 32_768, r"seq_len=32768 .* use 65536$", id="N-short"),
        pytest.param({"levels": 1}, 8, 1000, r"seq_len=1000 .* use 992 or 1008$", id="N-dense"),
        pytest.param({"scorer": "gla"}, 2, 98_304, r"scorer=gla .* use norm$", id="scorer"),
    ],
)
def test_what_ranks_cannot_compute_is_refused(fields, degree, seq_len, message):
    config = LighthouseConfig(**{**vars(CONFIG), **fields})
    with pytest.raises(ValueError, match=message):
        config.validate_context_parallel(degree, seq_len)


@pytest.mark.parametrize("scorer", ["dilated", "gla"])
def test_one_level_is_accepted_with_any_scorer(scorer):
    LighthouseConfig(levels=1, scorer=scorer).validate_context_parallel(2, 1000)


@pytest.mark.parametrize("topk", [1024, 2048, 6144])
def test_suggested_budgets_work(topk):
    config = LighthouseConfig(**{**vars(CONFIG), "topk": topk})
    config.validate_context_parallel(4, 98_304)


@pytest.mark.parametrize("degree", [2, 3, 6])
def test_the_paper_s_numbers_are_accepted(degree):
    CONFIG.validate_context_parallel(degree, 98_304)
