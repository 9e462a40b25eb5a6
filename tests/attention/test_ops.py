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


def _rows(length: int, grad: bool = False) -> torch.Tensor:
    """Four heads, twice those of the selection, in the memory layout that torchtitan passes."""
    return torch.randn(1, length, 4, 16).transpose(1, 2).requires_grad_(grad)


def _grouped() -> tuple[torch.Tensor, ...]:
    return _rows(LENGTH), _rows(LENGTH)[:, :2], _rows(LENGTH)[:, :2]


def _arguments(name: str) -> tuple:
    nodes = random_selection(CONFIG, LENGTH).nodes
    scores = torch.rand(2, 1, 2, LENGTH)
    arguments = {
        "norm_scores": lambda: _grouped()[:2],
        "dilated_scores": lambda: (*_grouped(), 2),
        "gla_scores": lambda: (*_grouped(), -torch.rand(4)),
        "select": lambda: (*scores, *PYRAMID, CONFIG.topk, CONFIG.tile, True),
        "gather": lambda: (_rows(LENGTH, grad=True), nodes, SLOTS, *PYRAMID),
        "gather_backward": lambda: (_rows(SLOTS, grad=True), nodes, LENGTH, *PYRAMID),
        "scatter": lambda: (_rows(SLOTS, grad=True), nodes, LENGTH, *PYRAMID, 2),
        "scatter_backward": lambda: (_rows(LENGTH, grad=True), nodes, SLOTS, *PYRAMID, 2),
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
    ],
)
def test_opcheck(name, device):
    arguments = tuple(_to(device, argument) for argument in _arguments(name))
    torch.library.opcheck(getattr(ops, name), arguments)


@pytest.mark.parametrize("name", ["gather", "gather_backward", "scatter", "scatter_backward"])
def test_gradient_is_the_transpose(name):
    op = getattr(ops, name)
    rows, *rest = _arguments(name)
    rows = rows.detach()[..., :2].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: op(rows, *rest), (rows,))


def test_scores_are_compared_in_float32():
    query, key = 1 + torch.rand(2, 1, 2, LENGTH, dtype=torch.float64) * 1e-9
    in_float64, in_float32 = select(query, key, CONFIG), select(query.float(), key.float(), CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(in_float64, in_float32, strict=True))
