"""The Triton kernels against the plain ops: on a GPU where there is one, else interpreted."""

from itertools import product

import pytest
import torch
from torch import Tensor

from tests.support.cases import case, case_id, random_selection
from torchtitan_lighthouse.attention import reference

kernels = pytest.importorskip("torchtitan_lighthouse.attention.kernels")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

CASES = [
    case(2, 2, 8, 1, 24),
    case(2, 4, 16, 2, 16),
    case(2, 8, 8, 1, 9),
    case(3, 2, 8, 2, 12),
    case(3, 4, 8, 2, 12, pin_first=False),
    case(3, 4, 32, 1, 32),
    case(3, 8, 8, 1, 8),
    case(4, 2, 8, 3, 8),
    case(4, 2, 6, 2, 7),
    case(5, 2, 8, 1, 12),
    case(6, 2, 2, 2, 3),
]
GPU_CASES = [
    pytest.param(value, marks=pytest.mark.gpu, id=case_id(value))
    for value in (
        case(3, 4, 128, 12, 512),
        case(3, 2, 256, 4, 1024),
        case(6, 4, 16, 2, 24),
        case(4, 8, 64, 2, 100),
        case(2, 2, 128, 1, 8192),  # the most that one program selects from
        case(2, 2, 128, 1, 16384),
    )
]
ALL_CASES = [pytest.param(value, id=case_id(value)) for value in CASES] + GPU_CASES
HEADS = [(1, 1, 1), (2, 2, 1)]  # B, Hq, Hkv
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _strided_rows(batch: int, heads: int, length: int, dim: int, dtype: torch.dtype) -> Tensor:
    rows = torch.randn(batch, length, heads, dim, device=DEVICE).to(dtype)
    return rows.transpose(1, 2)


def _assert_accurate(actual: Tensor, plain: Tensor, exact: Tensor, turns: int = 1) -> None:
    """``actual`` is the float32 result, of the plain op's accuracy, rounded once to its dtype.

    Triton's interpreter truncates where a GPU rounds when it stores bfloat16: one ulp, not half.

    Args:
        turns: how often a row is turned, and rounded, where the plain op turns it once.
    """
    assert actual.shape == exact.shape
    interpreted = DEVICE == "cpu" and actual.dtype == torch.bfloat16
    rounding = torch.finfo(actual.dtype).eps * (1.0 if interpreted else 0.5)
    in_float32 = 2 * turns * (plain.double() - exact).abs().max()
    assert ((actual.double() - exact).abs() <= rounding * exact.abs() + in_float32).all()


def _scores(kind: str, length: int) -> Tensor:
    """[2, N], of the queries and of the keys."""
    shape = (2, length)
    if kind == "normal":
        scores = torch.randn(shape)
    elif kind == "ties":
        scores = torch.randint(-1, 2, shape).float() * torch.randint(0, 2, shape).sub(0.5).sign()
    elif kind == "nan":
        # Of either sign, alone in a window and in all of it.
        scores = torch.randn(shape)
        scores[torch.rand(shape) < 0.6] = float("nan")
        scores *= torch.randint(0, 2, shape).sub(0.5).sign()
    else:
        scores = torch.rand(shape).log().where(torch.rand(shape) < 0.5, -float("inf"))
        scores[torch.rand(shape) < 0.1] = float("inf")
    return scores


KINDS = ["normal", "ties", "infinite", "nan"]


@pytest.mark.parametrize("value", ALL_CASES)
def test_select_is_exact(value, poisoned):
    """Two sequences of two heads, each of scores of another kind."""
    config, length = value
    scores = torch.stack([_scores(kind, length) for kind in KINDS], 1).unflatten(1, (2, 2))
    arguments = (
        *scores.to(DEVICE),
        config.levels,
        config.pooling_factor,
        config.topk,
        config.tile,
        config.pin_first,
    )
    actual = kernels.select(*arguments)
    expected = reference.select(*(x.cpu() if torch.is_tensor(x) else x for x in arguments))
    for kind, a, e in zip(KINDS, actual.cpu().flatten(0, 1), expected.flatten(0, 1), strict=True):
        assert torch.equal(a, e), kind


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=lambda h: f"B{h[0]}-H{h[1]}:{h[2]}")
@pytest.mark.parametrize("dim", [32, 80, 128, 256])
def test_norm_scores(dim, heads, dtype, poisoned):
    batch, query_heads, kv_heads = heads
    q = _strided_rows(batch, query_heads, 100, dim, dtype)
    k = _strided_rows(batch, kv_heads, 100, dim, dtype)
    exact_q = q.double().norm(dim=-1).unflatten(1, (kv_heads, -1)).amax(2)
    for actual, plain, exact in zip(
        kernels.norm_scores(q, k),
        reference.norm_scores(q, k),
        (exact_q, k.double().norm(dim=-1)),
        strict=True,
    ):
        assert actual.dtype == torch.float32
        _assert_accurate(actual, plain, exact)


def _as_tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else value


def _check(name: str, tensors: tuple[Tensor, ...], *rest: object, turns: int = 1) -> None:
    """One op on q, k and v, or on q alone, against the plain one.

    Args:
        turns: see ``_assert_accurate``; of q and of k, for v is not turned.
    """
    kernel, plain = getattr(kernels, name), getattr(reference, name)
    actual = _as_tuple(kernel(*tensors, *rest))
    expected = _as_tuple(plain(*tensors, *rest))
    in_float32, exact = (
        _as_tuple(plain(*(x.to(dtype) for x in tensors), *rest))
        for dtype in (torch.float32, torch.float64)
    )
    of_each = (turns, turns, 1)[: len(tensors)]
    for x, n, a, e, *yardsticks in zip(
        tensors, of_each, actual, expected, in_float32, exact, strict=True
    ):
        assert a.dtype == x.dtype
        for layout in ((0, 1, 2, 3), (0, 2, 1, 3)):
            assert a.permute(layout).is_contiguous() == e.permute(layout).is_contiguous()
        _assert_accurate(a, *yardsticks, n)


def _tensors(name: str, heads: tuple, length: int, dim: int, dtype: torch.dtype):
    """q, k and v, or q alone, as an op takes them."""
    batch, query_heads, kv_heads = heads
    of_each = (query_heads, kv_heads, kv_heads) if "gather" in name else (query_heads,)
    return tuple(_strided_rows(batch, h, length, dim, dtype) for h in of_each)


GATHER, SCATTER = ("gather", "gather_backward"), ("scatter_backward", "scatter")
OPS = [pytest.param(GATHER, id="gather"), pytest.param(SCATTER, id="scatter")]


def _check_both(value, heads, dim, dtype, ops, pieces=1, rotation=None) -> None:
    """An op from windows to slots, and its transpose."""
    config, length = value
    slots = config.sub_sequence_length(length)
    nodes = random_selection(config, length, heads[0], heads[2]).nodes.to(DEVICE)
    numbers = (config.levels, config.pooling_factor)
    tables = (nodes, rotation) if ops == GATHER else (nodes,)
    if ops == SCATTER:
        numbers += (pieces,)
    for name, size, to in zip(ops, (length, slots), (slots, length), strict=True):
        turns = 1
        if name == "gather" and rotation is not None:  # what is summed is turned on by each child
            turns = (config.levels - 1) * (config.pooling_factor - 1)
        _check(name, _tensors(name, heads, size, dim, dtype), *tables, to, *numbers, turns=turns)


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("value", ALL_CASES)
def test_windows_and_slots(value, ops, poisoned):
    _check_both(value, (2, 2, 1), 32, torch.float32, ops)


# In the slow interpreter width and dtype do not meet: there each dtype and each width once.
INTERPRETED = [
    (33, torch.float16),
    (80, torch.bfloat16),
    (128, torch.float32),
    (256, torch.bfloat16),
]


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize(
    ("dim", "dtype"),
    [
        pytest.param(*pair, id=f"{pair[0]}-{pair[1]}", marks=[pytest.mark.gpu] * on_gpu)
        for pair in product([33, 80, 128, 256], DTYPES)
        for on_gpu in [pair not in INTERPRETED]
    ],
)
def test_dtypes_and_head_dims(dim, dtype, ops, poisoned):
    _check_both(case(3, 4, 8, 2, 12), (1, 2, 1), dim, dtype, ops)


@pytest.mark.parametrize(
    ("value", "dim", "dtype"),
    [
        pytest.param(value, dim, dtype, id=f"{case_id(value)}-{dim}-{dtype}")
        for value, dim, dtype in (
            (case(2, 4, 16, 2, 16), 80, torch.bfloat16),
            (case(2, 4, 16, 2, 16), 32, torch.float64),
            (case(3, 4, 8, 2, 12), 32, torch.float32),
            (case(5, 2, 8, 1, 12), 32, torch.float32),
        )
    ],
)
def test_turned_rows(value, dim, dtype, poisoned):
    angles = torch.rand(dim // 2, device=DEVICE) * torch.arange(
        value[0].coarsest_window, device=DEVICE
    ).unsqueeze(-1)
    rotation = torch.stack([angles.cos(), angles.sin()], -1)
    _check_both(value, (1, 2, 1), dim, dtype, GATHER, rotation=rotation)


@pytest.mark.parametrize("name", GATHER)
def test_v_is_not_turned(name, poisoned):
    config, length = case(3, 2, 8, 2, 12)
    slots = config.sub_sequence_length(length)
    size, to = (length, slots) if name == "gather" else (slots, length)
    nodes = random_selection(config, length, 1, 1).nodes.to(DEVICE)
    tensors = _tensors(name, (1, 2, 1), size, 32, torch.float32)
    turned, plain = (
        getattr(kernels, name)(*tensors, nodes, rotation, to, 3, 2)
        for rotation in (_identity_then_noise(4, 32), None)
    )
    assert torch.equal(turned[2], plain[2])
    assert not torch.equal(turned[0], plain[0])
    assert not torch.equal(turned[1], plain[1])


def _identity_then_noise(offsets: int, dim: int) -> Tensor:
    rotation = torch.randn(offsets, dim // 2, 2, device=DEVICE)
    rotation[0] = torch.tensor([1.0, 0.0])
    return rotation


@pytest.mark.parametrize("name", [*GATHER, *SCATTER])
def test_float64_is_summed_in_float64(name, poisoned):
    config, length = case(3, 4, 8, 2, 12)
    slots = config.sub_sequence_length(length)
    nodes = random_selection(config, length, 1, 1).nodes.to(DEVICE)
    sizes = (length, slots) if name in (GATHER[0], SCATTER[0]) else (slots, length)
    tensors = _tensors(name, (1, 2, 1), sizes[0], 32, torch.float64)
    tables, numbers = ((nodes,), (3, 4, 1)) if name in SCATTER else ((nodes, None), (3, 4))
    actual, plain = (
        _as_tuple(getattr(module, name)(*tensors, *tables, sizes[1], *numbers))
        for module in (kernels, reference)
    )
    # Sums of at most 16 rows, in another order.
    tolerance = {"rtol": 0, "atol": 64 * torch.finfo(torch.float64).eps}
    torch.testing.assert_close(actual, plain, **tolerance)


@pytest.mark.parametrize("layout", ["q", "k", "v"])
def test_q_k_and_v_may_lie_differently_in_memory(layout, poisoned):
    config, length = case(3, 2, 8, 2, 12)
    slots = config.sub_sequence_length(length)
    nodes = random_selection(config, length, 2, 2).nodes.to(DEVICE)
    for name, size, to in (("gather", length, slots), ("gather_backward", slots, length)):
        tensors = dict(zip("qkv", _tensors(name, (2, 4, 2), size, 32, torch.float32), strict=True))
        tensors[layout] = tensors[layout].contiguous()
        _check(name, tuple(tensors.values()), nodes, None, to, 3, 2)


@pytest.mark.parametrize("heads", HEADS, ids=lambda h: f"B{h[0]}-H{h[1]}:{h[2]}")
@pytest.mark.parametrize("pieces", [2, 4])
@pytest.mark.parametrize("pyramid", [(2, 4), (3, 2), (4, 2)], ids=str)
def test_pieces(pyramid, pieces, heads, poisoned):
    _check_both(case(*pyramid, 8, 4, 9), heads, 32, torch.float32, SCATTER, pieces)


def test_rows_that_are_not_contiguous():
    config, length = case(3, 2, 8, 2, 12)
    nodes = random_selection(config, length, 1, 1).nodes.to(DEVICE)
    rows = torch.randn(3, 1, 1, 32, length, device=DEVICE).transpose(3, 4)
    _check("gather", tuple(rows), nodes, None, config.sub_sequence_length(length), 3, 2)


def test_nodes_that_are_not_contiguous():
    config, length = case(3, 2, 8, 2, 12)
    nodes = random_selection(config, length, 2, 4).nodes.to(DEVICE)[:, ::2]
    slots = config.sub_sequence_length(length)
    rows = _strided_rows(2, 2, length, 32, torch.float32)
    _check("gather", (rows, rows, rows), nodes, None, slots, 3, 2)
    _check("scatter", (rows[:, :, :slots],), nodes, length, 3, 2, 1)


def test_more_candidates_than_a_program_holds_are_selected_by_the_plain_op_with_a_warning():
    config, length = case(2, 2, 2, 1, 8193)
    scores = torch.rand(2, 1, 1, length, device=DEVICE)
    numbers = (config.levels, config.pooling_factor, config.topk, config.tile, config.pin_first)
    with pytest.warns(UserWarning, match="8193 candidates .* A smaller tile"):
        nodes = kernels.select(*scores, *numbers)
    assert torch.equal(nodes, reference.select(*scores, *numbers))
