"""The ops that send are well-formed, as those of test_ops.py are."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from torchtitan_lighthouse.attention.all_gather import attend_across_ranks

LENGTH, DIM = 12, 8
NAMES = (
    "attend_across_ranks",
    "attend_across_ranks_backward",
    "exchange_edges",
    "exchange_edges_backward",
)


@pytest.fixture
def one_rank() -> Iterator[str]:
    """The name of a group of one rank, which does send."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.group.WORLD.group_name
    distributed.destroy_process_group()


@pytest.fixture(params=[(0, 2), (1, 2), (1, 3)], ids=lambda place: f"{place[0]}of{place[1]}")
def silent_place(request) -> Iterator[tuple[str, int, int]]:
    """A rank among ranks that send nothing."""
    rank, size = request.param
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    yield distributed.group.WORLD.group_name, rank, size
    distributed.destroy_process_group()


def _op(name: str) -> Callable:
    return getattr(torch.ops.lighthouse, name).default


def _rows(heads: int, layout: str, dtype: torch.dtype) -> Tensor:
    if layout == "BHND":
        return torch.randn(2, heads, LENGTH, DIM, dtype=dtype)
    return torch.randn(2, LENGTH, heads, DIM, dtype=dtype).transpose(1, 2)


def _arguments(name: str, place: tuple[str, int, int], layout="BHND", dtype=torch.float32) -> tuple:
    group_name, _, size = place
    q, k, v = (_rows(heads, layout, dtype) for heads in (4, 2, 2))
    edges = torch.randn(2 * size, 1, 4, 2, DIM, dtype=dtype)
    lse = torch.randn(2, 4, LENGTH)
    arguments = {
        "attend_across_ranks": (*(x.detach().requires_grad_() for x in (q, k, v)), *place, None),
        "attend_across_ranks_backward": (q, q, k, v, q, lse, *place, None),
        "exchange_edges": (edges[:2].clone().requires_grad_(), group_name, size),
        "exchange_edges_backward": (edges, group_name),
    }
    return arguments[name]


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(one_rank, name):
    torch.library.opcheck(_op(name), _arguments(name, (one_rank, 0, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["BHND", "BNHD"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_allocated_is_what_was_announced(silent_place, name, layout, dtype):
    """Shapes, dtypes and strides, whatever other ranks there are; numbers are not looked at."""
    arguments = _arguments(name, silent_place, layout, dtype)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(_op(name), arguments, test_utils=checks)


@pytest.mark.parametrize("layout", ["BHND", "BNHD"])
def test_the_gradient_of_q_is_laid_out_as_q_and_the_others_as_projections_are(silent_place, layout):
    q, k, v, *numbers = _arguments("attend_across_ranks", silent_place, layout)
    out, _ = attend_across_ranks(q, k, v, *numbers)
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    assert dq.stride() == q.stride()
    assert dk.transpose(1, 2).is_contiguous()
    assert dv.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("name", ["attend_across_ranks", "exchange_edges"])
def test_a_second_derivative_is_refused(one_rank, name):
    first, *rest = _arguments(name, (one_rank, 0, 1))
    result = _op(name)(first, *rest)
    out = result[0] if isinstance(result, tuple) else result
    with pytest.raises(ValueError, match="no second derivative"):
        torch.autograd.grad(out.square().sum(), first, create_graph=True)


def test_autocast_does_not_reach_into_attention(one_rank):
    q, k, v, *numbers = _arguments("attend_across_ranks", (one_rank, 0, 1))
    expected, _ = attend_across_ranks(q, k, v, *numbers)
    with torch.autocast("cpu", torch.bfloat16):
        actual, _ = attend_across_ranks(q, k, v, *numbers)
    assert torch.equal(actual, expected)
