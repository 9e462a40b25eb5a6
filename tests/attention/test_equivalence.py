"""lighthouse_attention against the slow loop, forward and backward, and against itself."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support import slow_loop
from tests.support.cases import (
    CASES,
    HEADS,
    ONE_LEVEL,
    SMALL,
    case,
    case_id,
    entries_of,
    heads_id,
    random_qkv,
    random_selection,
    requires_grad,
    values_attention,
)
from torchtitan_lighthouse import lighthouse_attention

# float64 rounding through one softmax; no other source of difference is allowed.
EXACT = {"rtol": 1e-11, "atol": 1e-12}

INPUTS = {
    "normal": lambda q, k, v: (q, k, v),
    # Small whole numbers: many rows have exactly the same norm.
    "ties": lambda q, k, v: (q.round(), k.round(), v.round()),
    "constant": lambda q, k, v: (torch.ones_like(q), torch.ones_like(k), v),
}


def _run(function, qkv: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """The output and the gradients of q, k and v."""
    leaves = requires_grad(*qkv)
    out = function(*leaves)
    return [out, *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def _slow(q, k, v, config, **options) -> Tensor:
    return slow_loop.lighthouse_attention(q, k, v, config, **options)[0]


def _rounded(q, k, v, config, selection, dtype) -> Tensor:
    """The slow loop with SDPA itself, on rows and gradients of rows rounded to ``dtype``."""
    p, group = config.pooling_factor, q.shape[1] // k.shape[1]
    of_query_head = [entries for entries in selection[0] for _ in range(group)]

    def gathered(heads: Tensor, selected: list) -> Tensor:
        rows = [slow_loop.gather(h, e, p) for h, e in zip(heads, selected, strict=True)]
        return torch.stack(rows)[None].to(dtype)

    y = F.scaled_dot_product_attention(
        gathered(q[0], of_query_head),
        gathered(k[0], selection[0]),
        gathered(v[0], selection[0]),
        is_causal=True,
        enable_gqa=True,
    )
    out = [
        slow_loop.scatter(rows, entries, p, q.shape[2])
        for rows, entries in zip(y[0].double(), of_query_head, strict=True)
    ]
    return torch.stack(out)[None]


def _assert_all_close(actual: list[Tensor], expected: list[Tensor], **tolerance: float) -> None:
    for name, a, e in zip(("out", "dq", "dk", "dv"), actual, expected, strict=True):
        torch.testing.assert_close(a, e, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("heads", HEADS, ids=heads_id)
def test_one_level_is_dense_sdpa(heads):
    config, length = ONE_LEVEL
    batch, *heads = heads
    qkv = random_qkv(length, batch=batch, heads=heads)
    dense = partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)
    upstream = torch.randn_like(qkv[0])
    lighthouse = _run(partial(lighthouse_attention, config=config), qkv, upstream)
    _assert_all_close(lighthouse, _run(dense, qkv, upstream), **EXACT)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("geometry", CASES, ids=case_id)
def test_equals_the_slow_loop(geometry, kind):
    config, length = geometry
    qkv = INPUTS[kind](*random_qkv(length))
    upstream = torch.randn_like(qkv[0])
    actual = _run(partial(lighthouse_attention, config=config), qkv, upstream)
    _assert_all_close(actual, _run(partial(_slow, config=config), qkv, upstream), **EXACT)


@pytest.mark.parametrize("dim", [8, 16, 64])
@pytest.mark.parametrize("heads", HEADS, ids=heads_id)
def test_equals_the_slow_loop_with_heads_in_groups(heads, dim):
    config, length = SMALL
    batch, *heads = heads
    qkv = random_qkv(length, batch=batch, heads=heads, dim=dim)
    upstream = torch.randn_like(qkv[0])
    actual = _run(partial(lighthouse_attention, config=config), qkv, upstream)
    _assert_all_close(actual, _run(partial(_slow, config=config), qkv, upstream), **EXACT)


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=["H2:2", "H4:2"])
def test_a_given_selection_replaces_the_scorers(heads):
    config, length = SMALL
    qkv = random_qkv(length, batch=2, heads=heads)
    selection = random_selection(config, length, batch=2, heads=heads[1])
    upstream = torch.randn_like(qkv[0])
    actual = _run(partial(lighthouse_attention, config=config, selection=selection), qkv, upstream)
    slow = partial(_slow, config=config, selection=entries_of(selection, config, length))
    _assert_all_close(actual, _run(slow, qkv, upstream), **EXACT)


def test_dilated_scorer_equals_the_slow_loop():
    config, length = case(3, 2, 4, 2, 8, scorer="dilated", dilation=4)
    qkv = random_qkv(length, batch=2, heads=(4, 2))
    upstream = torch.randn_like(qkv[0])
    actual = _run(partial(lighthouse_attention, config=config), qkv, upstream)
    scorer = partial(slow_loop.dilated_scores, dilation=4)
    slow = partial(_slow, config=config, scorer=scorer)
    _assert_all_close(actual, _run(slow, qkv, upstream), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("dim", [8, 64])
@pytest.mark.parametrize("geometry", [SMALL, case(3, 4, 8, 2, 12)], ids=case_id)
def test_low_precision_is_as_near_to_float64_as_its_roundings_allow(geometry, dim, dtype):
    """The yardstick rounds only what must be: the gathered rows, SDPA and the final sums."""
    config, length = geometry
    qkv = random_qkv(length, heads=(4, 2), dim=dim, dtype=dtype)
    upstream = torch.randn_like(qkv[0])

    exact_qkv = [x.double() for x in qkv]
    _, selection = slow_loop.lighthouse_attention(*exact_qkv, config)
    exact = _run(partial(_slow, config=config), exact_qkv, upstream)
    rounded = _run(
        partial(_rounded, config=config, selection=selection, dtype=dtype), exact_qkv, upstream
    )
    actual = _run(partial(lighthouse_attention, config=config), qkv, upstream)

    for name, a, r, e in zip(("out", "dq", "dk", "dv"), actual, rounded, exact, strict=True):
        assert a.dtype == dtype
        error, allowed = (a.double() - e).abs(), (r.to(dtype).double() - e).abs()
        assert error.max() <= 2 * allowed.max(), name
        assert error.mean() <= 1.25 * allowed.mean(), name


def test_gather_and_scatter_round_once():
    """bfloat16 sums taken in more than bfloat16, forward and backward."""
    config, length = case(4, 4, 2, 2, 3)
    qkv = random_qkv(length, dtype=torch.bfloat16)
    upstream = torch.randn_like(qkv[0])
    selection = random_selection(config, length)
    actual_v, exact_v = requires_grad(qkv[2], qkv[2].double())
    out = lighthouse_attention(
        *qkv[:2], actual_v, config, attention=values_attention, selection=selection
    )
    out.backward(upstream)

    exact = []
    for v, entries in zip(exact_v[0], entries_of(selection, config, length)[0], strict=True):
        rows = slow_loop.gather(v, entries, config.pooling_factor).bfloat16()
        exact.append(slow_loop.scatter(rows.double(), entries, config.pooling_factor, length))
    torch.stack(exact)[None].backward(upstream.double())

    one_rounding = torch.finfo(torch.bfloat16).eps / 2 * (1 + 1e-6)
    for a, e in ((out, torch.stack(exact)[None]), (actual_v.grad, exact_v.grad)):
        assert ((a.double() - e).abs() <= one_rounding * e.abs()).all()


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=["H2:2", "H4:2"])
def test_tensors_transposed_in_memory_give_the_same(heads):
    """torchtitan passes [B, N, H, D] memory seen as [B, H, N, D]."""
    config, length = SMALL
    qkv = random_qkv(length, batch=2, heads=heads)
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv]
    upstream = torch.randn(2, length, heads[0], 8, dtype=torch.float64).transpose(1, 2)
    function = partial(lighthouse_attention, config=config)
    leaves = [x.requires_grad_() for x in transposed]
    out = function(*leaves)
    strided = [out, *torch.autograd.grad(out, leaves, upstream)]
    _assert_all_close(strided, _run(function, qkv, upstream.contiguous()), **EXACT)


def test_an_expanded_upstream_gradient_is_taken():
    config, length = SMALL
    qkv = random_qkv(length)
    leaves, slow_leaves = requires_grad(*qkv), requires_grad(*qkv)
    lighthouse_attention(*leaves, config).sum().backward()
    _slow(*slow_leaves, config).sum().backward()
    for a, e in zip(leaves, slow_leaves, strict=True):
        torch.testing.assert_close(a.grad, e.grad, **EXACT)


def test_a_selection_of_another_sequence_or_config_is_refused():
    config, length = case(3, 2, 4, 1, 8)
    qkv = random_qkv(length)
    larger = replace(config, topk=2 * config.topk)
    for selection in (
        random_selection(config, 2 * length),
        random_selection(config, length, 1, 4),
        random_selection(larger, length),
    ):
        with pytest.raises(ValueError, match=r"a selection of .* must be of .* by \[B, Hkv, "):
            lighthouse_attention(*qkv, config, selection=selection)
