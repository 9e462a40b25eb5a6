"""Attention merged from parts of its keys, by the plain op and by the kernel, is one softmax."""

import math

import pytest
import torch
from torch import Tensor

from torchtitan_lighthouse.attention import ops, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMS = {"own": (), "earlier": ("earlier",), "later": ("later",), "both": ("earlier", "later")}
BATCH, HEADS = 2, 3

Part = tuple[Tensor, Tensor]  # the output and its log-sum-exp
Parts = dict[str, Part]

MERGES = [pytest.param(reference.merge, id="plain")]
if ops.kernels is not None:
    MERGES.append(pytest.param(ops.kernels.merge, id="kernel"))
merges = pytest.mark.parametrize("merge", MERGES)
forms = pytest.mark.parametrize("form", FORMS)


def _arguments(form: str, parts: Parts) -> list[Tensor | None]:
    names = ("own", *FORMS[form])
    return [
        x for n in ("own", "earlier", "later") for x in (parts[n] if n in names else (None,) * 2)
    ]


def _random(*shape: int) -> Tensor:
    return torch.randn(BATCH, HEADS, *shape, dtype=torch.float64, device=DEVICE)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Part:
    logits = (q @ k.mT).masked_fill(~mask, -math.inf)
    return logits.softmax(-1) @ v, logits.logsumexp(-1)


@merges
@forms
def test_parts_become_one_softmax_over_all_keys(form, merge):
    length, dim = 70, 5
    q = _random(length, dim)
    row = torch.arange(length, device=DEVICE).unsqueeze(-1)
    masks = {
        "own": row >= row.mT,
        "earlier": torch.ones(length, 4, dtype=torch.bool, device=DEVICE),
        "later": (row >= length // 2).expand(-1, 9),
    }
    keys = {
        name: (_random(mask.shape[1], dim), _random(mask.shape[1], dim))
        for name, mask in masks.items()
    }
    rows = {name: slice(length // 2 if name == "later" else 0, None) for name in masks}
    parts = {
        name: _attend(q[:, :, rows[name]], *keys[name], masks[name][rows[name]]) for name in masks
    }
    seen = ("own", *FORMS[form])
    k, v = (torch.cat([keys[name][n] for name in seen], 2) for n in range(2))
    expected, expected_lse = _attend(q, k, v, torch.cat([masks[name] for name in seen], 1))
    out, lse = merge(*_arguments(form, parts), torch.float64)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-12, atol=1e-13)


LAYOUTS = {"BHND": (0, 1, 2, 3), "BNHD": (0, 2, 1, 3), "NBHD": (2, 0, 1, 3), "BHDN": (0, 1, 3, 2)}


def _laid_out(x: Tensor, layout: str) -> Tensor:
    """x with its dimensions in this order in memory, and a gap after each of the last."""
    order = LAYOUTS[layout]
    x = x.permute(order)
    x = torch.cat([x, torch.full_like(x, math.nan)], -1)[..., : x.shape[-1]]
    return x.permute([order.index(dim) for dim in range(4)])


def _random_parts(length: int, dim: int, dtype: torch.dtype, layout: str) -> Parts:
    return {
        name: (_laid_out(_random(n, dim).to(dtype), layout), 4 * _random(n).float())
        for name, n in (("own", length), ("earlier", length), ("later", length // 2))
    }


@merges
@forms
@pytest.mark.parametrize(
    ("dim", "dtype", "layout"),
    [
        (128, torch.bfloat16, "BNHD"),
        (33, torch.float16, "NBHD"),
        (80, torch.bfloat16, "BHND"),
        (1, torch.float32, "BNHD"),
        (64, torch.float32, "BHDN"),
    ],
    ids=str,
)
def test_it_is_computed_in_float32_and_rounded_once(dim, dtype, layout, form, merge, poisoned):
    length = 70  # no multiple of a program's rows, and neither is its half
    arguments = _arguments(form, _random_parts(length, dim, dtype, layout))
    exact, exact_lse = reference.merge(
        *(None if x is None else x.double() for x in arguments), torch.float64
    )
    out, lse = merge(*arguments, dtype)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    assert out.transpose(1, 2).is_contiguous()
    assert lse.is_contiguous()
    # Triton's interpreter truncates where a GPU rounds when it stores bfloat16: one ulp, not half.
    truncates = DEVICE == "cpu" and dtype == torch.bfloat16 and merge is not reference.merge
    rounding = torch.finfo(dtype).eps * (1.0 if truncates else 0.5)
    in_float32 = 8 * torch.finfo(torch.float32).eps
    largest = max(x.abs().max() for x in arguments[::2] if x is not None)
    assert ((out.double() - exact).abs() <= rounding * exact.abs() + in_float32 * largest).all()
    torch.testing.assert_close(lse.double(), exact_lse, rtol=in_float32, atol=in_float32)


@merges
@pytest.mark.parametrize("ahead", [1e4, math.inf])
@pytest.mark.parametrize("name", ["own", "earlier", "later"])
def test_a_part_that_is_far_ahead_is_all_there_is(name, ahead, merge, poisoned):
    """Infinitely far ahead it is of parts whose keys count for nothing."""
    parts = _random_parts(70, 16, torch.float16, "BNHD")
    for other in parts.keys() - {name}:
        parts[other][1].sub_(ahead)
    out, lse = merge(*_arguments("both", parts), torch.float16)
    rows = slice(-parts[name][0].shape[2], None)
    assert torch.equal(out[:, :, rows], parts[name][0])
    assert torch.equal(lse[:, :, rows], parts[name][1])


@merges
def test_equal_parts_count_alike(merge, poisoned):
    parts = _random_parts(70, 16, torch.float32, "BHND")
    for _, lse in parts.values():
        lse.fill_(1e4)
    out, lse = merge(*_arguments("both", parts), torch.float32)
    own, earlier, later = (out for out, _ in parts.values())
    first, second = out.chunk(2, 2)
    torch.testing.assert_close(first, (own + earlier)[:, :, :35] / 2)
    torch.testing.assert_close(second, ((own + earlier)[:, :, 35:] + later) / 3)
    first, second = lse.chunk(2, 2)
    assert torch.equal(first, torch.full_like(first, 1e4 + math.log(2)))
    assert torch.equal(second, torch.full_like(second, 1e4 + math.log(3)))


@merges
def test_a_row_that_sees_nothing_is_zero(merge, poisoned):
    parts = _random_parts(70, 16, torch.float32, "BHND")
    for _, lse in parts.values():
        lse[:, :, ::2] = -math.inf
    out, lse = merge(*_arguments("both", parts), torch.float32)
    # Every other row of the later part begins at an odd row of all.
    nothing = torch.zeros(70, dtype=torch.bool, device=DEVICE)
    nothing[::2] = True
    nothing[36::2] = False
    assert (out[:, :, nothing] == 0).all()
    assert (lse[:, :, nothing] == -math.inf).all()
    assert out.isfinite().all()
    assert lse[:, :, ~nothing].isfinite().all()


@merges
def test_what_is_no_number_stays_so(merge, poisoned):
    parts = _random_parts(70, 16, torch.float32, "BHND")
    for _, lse in parts.values():
        lse[0, 0, 0] = math.nan
    out, lse = merge(*_arguments("both", parts), torch.float32)
    assert out[0, 0, [0, 35]].isnan().all()
    assert lse.isnan().sum() == 2


@pytest.mark.gpu
def test_offsets_beyond_32_bits():
    """2.2e9 elements: the last rows are where 64-bit arithmetic puts them."""
    length, heads, dim = 2**21 + 2**16, 8, 128
    own = torch.zeros(1, length, heads, dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    own[:, :, -4:] = torch.randn(heads, 4, dim, device="cuda")
    lse = torch.zeros(1, heads, length, device="cuda")
    later = (own[:, :, length // 2 :], lse[:, :, length // 2 :].contiguous())
    out, merged_lse = ops.merge(own, lse, None, None, *later, torch.bfloat16)
    assert torch.equal(out[:, :, -4:], own[:, :, -4:])
    assert out[:, :, :-4].count_nonzero() == 0
    assert (merged_lse[:, :, : length // 2] == 0).all()
    torch.testing.assert_close(merged_lse[0, :, -4:].exp(), torch.full((heads, 4), 2.0).cuda())
