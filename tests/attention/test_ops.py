"""The ops are well-formed: schema, fake implementation, autograd registration, compilation."""

import pytest
import torch

from tests.support.cases import SMALL, random_selection
from torchtitan_lighthouse import select
from torchtitan_lighthouse.attention import ops

CONFIG, LENGTH = SMALL
SLOTS = CONFIG.sub_sequence_length(LENGTH)
PYRAMID = (CONFIG.levels, CONFIG.pooling_factor)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def _rows(length: int, heads: int = 4, grad: bool = False) -> torch.Tensor:
    """Rows in the memory layout that torchtitan passes; four heads are twice the selection's."""
    return torch.randn(1, length, heads, 16).transpose(1, 2).requires_grad_(grad)


def _grouped(length: int, grad: bool = False) -> tuple[torch.Tensor, ...]:
    return tuple(_rows(length, heads, grad) for heads in (4, 2, 2))


def _part(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to some keys, and its log-sum-exp."""
    return _rows(length), torch.randn(1, 4, length)


def _arguments(name: str, rotation: torch.Tensor | None = None) -> tuple:
    nodes = random_selection(CONFIG, LENGTH).nodes
    scores = torch.rand(2, 1, 2, LENGTH)
    arguments = {
        "norm_scores": lambda: _grouped(LENGTH)[:2],
        "dilated_scores": lambda: (*_grouped(LENGTH), 2),
        "gla_scores": lambda: (*_grouped(LENGTH), -torch.rand(4)),
        "select": lambda: (*scores, *PYRAMID, CONFIG.topk, CONFIG.tile, True),
        "gather": lambda: (*_grouped(LENGTH, grad=True), nodes, rotation, SLOTS, *PYRAMID),
        "gather_backward": lambda: (*_grouped(SLOTS), nodes, rotation, LENGTH, *PYRAMID),
        "scatter": lambda: (_rows(SLOTS, grad=True), nodes, LENGTH, *PYRAMID, 2),
        "scatter_backward": lambda: (_rows(LENGTH), nodes, SLOTS, *PYRAMID, 2),
        "merge": lambda: (*_part(LENGTH), *_part(LENGTH), *_part(LENGTH // 2), torch.bfloat16),
    }
    return arguments[name]()


def _to(device: str, value: object) -> object:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().to(device).requires_grad_(value.requires_grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "name",
    [
        "norm_scores",
        "dilated_scores",
        "gla_scores",
        "select",
        "gather",
        "gather_backward",
        "scatter",
        "scatter_backward",
        "merge",
    ],
)
def test_opcheck(name, device):
    arguments = tuple(_to(device, argument) for argument in _arguments(name))
    torch.library.opcheck(getattr(ops, name), arguments)


@pytest.mark.parametrize("name", ["gather", "gather_backward"])
def test_opcheck_with_a_rotation(name):
    rotation = torch.randn(CONFIG.coarsest_window, 8, 2)
    torch.library.opcheck(getattr(ops, name), _arguments(name, rotation))


def test_opcheck_of_a_merge_without_other_parts():
    torch.library.opcheck(ops.merge, (*_part(LENGTH), *[None] * 4, torch.float32))


def test_gradient_of_the_gather_is_its_transpose():
    q, k, v, *rest = _arguments("gather")
    qkv = tuple(x.detach()[..., :2].double().requires_grad_() for x in (q, k, v))
    assert torch.autograd.gradcheck(lambda *qkv: ops.gather(*qkv, *rest), qkv)


def test_gradient_of_the_scatter_is_its_transpose():
    rows, *rest = _arguments("scatter")
    rows = rows.detach()[..., :2].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: ops.scatter(rows, *rest), (rows,))


@pytest.mark.parametrize("name", ["gather", "scatter"])
def test_a_second_derivative_is_refused(name):
    out = getattr(ops, name)(*(arguments := _arguments(name)))
    loss = sum(x.square().sum() for x in (out if isinstance(out, tuple) else (out,)))
    with pytest.raises(ValueError, match="no second derivative"):
        torch.autograd.grad(loss, arguments[0], create_graph=True)


@pytest.mark.parametrize("name", ["gather", "scatter"])
def test_a_first_derivative_may_be_asked_for_with_a_graph(name):
    """Of a loss that is linear in the output, nothing could be differentiated again."""
    out = getattr(ops, name)(*(arguments := _arguments(name)))
    loss = sum(x.sum() for x in (out if isinstance(out, tuple) else (out,)))
    (plain,) = torch.autograd.grad(loss, arguments[0], retain_graph=True)
    (with_graph,) = torch.autograd.grad(loss, arguments[0], create_graph=True)
    assert torch.equal(plain, with_graph)


def test_scores_are_compared_in_float32():
    query, key = 1 + torch.rand(2, 1, 2, LENGTH, dtype=torch.float64) * 1e-9
    in_float64, in_float32 = select(query, key, CONFIG), select(query.float(), key.float(), CONFIG)
    assert torch.equal(in_float64.nodes, in_float32.nodes)
