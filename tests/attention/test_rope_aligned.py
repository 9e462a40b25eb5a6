"""Pooling that is aligned with RoPE: the same as pooling rows first and turning each mean once."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.support import slow_loop
from tests.support.cases import (
    SMALL,
    case,
    case_id,
    entries_of,
    output_and_gradients,
    random_qkv,
    random_selection,
    values_attention,
)
from tests.support.rope import FREQUENCIES, rope, rotation_over
from torchtitan_lighthouse import LighthouseAttention, lighthouse_attention
from torchtitan_lighthouse.attention.functional import gather

# float64 rounding through rotations and one softmax.
EXACT = {"rtol": 1e-11, "atol": 1e-12}
GEOMETRIES = [
    case(2, 4, 8, 2, 12, rope_aligned=True),
    case(3, 2, 4, 2, 7, rope_aligned=True),
    case(3, 4, 8, 2, 12, rope_aligned=True),
    case(4, 2, 2, 3, 4, rope_aligned=True, pin_first=False),
]


def _aligned(config, q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
    """From rows before RoPE, as a layer of a model computes them."""
    rotation = rotation_over(config.coarsest_window)
    return lighthouse_attention(rope(q), rope(k), v, config, rotation=rotation, **options)


def _slow(config, q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
    return slow_loop.lighthouse_attention(q, k, v, config, frequencies=FREQUENCIES, **options)[0]


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=["H2:2", "H4:2"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=case_id)
def test_output_and_gradients_equal_the_slow_loop_of_unturned_rows(geometry, heads):
    config, length = geometry
    qkv = random_qkv(length, heads=heads)
    upstream = torch.randn_like(qkv[0])
    actual = output_and_gradients(partial(_aligned, config), *qkv, upstream)
    expected = output_and_gradients(partial(_slow, config), *qkv, upstream)
    for name, a, e in zip(("out", "dq", "dk", "dv"), actual, expected, strict=True):
        torch.testing.assert_close(a, e, **EXACT, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=case_id)
def test_gathered_rows_are_means_of_unturned_rows_turned_at_the_last_token(geometry):
    config, length = geometry
    q, k, v = random_qkv(length)
    selection = random_selection(config, length)
    rotation = rotation_over(config.coarsest_window)
    gathered = gather(rope(q), rope(k), v, selection, config, rotation)
    p = config.pooling_factor
    for h, entries in enumerate(entries_of(selection, config, length)[0]):
        last = torch.tensor([slow_loop.window(entry, p)[-1] for entry in entries])
        means = [slow_loop.gather(x[0, h], entries, p) for x in (q, k, v)]
        expected = (rope(means[0], last), rope(means[1], last), means[2])
        for actual, e in zip(gathered, expected, strict=True):
            torch.testing.assert_close(actual[0, h], e, **EXACT)


def test_without_the_option_rows_are_averaged_as_they_are():
    config, length = SMALL
    qkv = random_qkv(length)
    given = lighthouse_attention(*qkv, config, rotation=rotation_over(config.coarsest_window))
    assert torch.equal(given, lighthouse_attention(*qkv, config))


def test_the_option_changes_what_rope_has_turned():
    config, length = GEOMETRIES[1]
    q, k, v = random_qkv(length)
    published = lighthouse_attention(rope(q), rope(k), v, SMALL[0])
    assert (_aligned(config, q, k, v) - published).abs().max() > 1e-3


def test_values_are_not_turned():
    config, length = GEOMETRIES[1]
    qkv = random_qkv(length)
    selection = random_selection(config, length)
    aligned = _aligned(config, *qkv, attention=values_attention, selection=selection)
    published = lighthouse_attention(
        *qkv, SMALL[0], attention=values_attention, selection=selection
    )
    assert torch.equal(aligned, published)


@pytest.mark.parametrize(
    ("dim", "rotation", "given"),
    [
        pytest.param(8, None, "given: none", id="none"),
        pytest.param(8, rotation_over(2), r"given: \[2, 4, 2\]", id="too-few-offsets"),
        pytest.param(6, rotation_over(4), r"given: \[4, 4, 2\]", id="another-head-dim"),
        pytest.param(9, rotation_over(4), "an even head dim", id="odd-head-dim"),
        pytest.param(8, rotation_over(4).to("meta"), "on cpu.*given.*on meta", id="device"),
    ],
)
def test_a_rotation_that_does_not_fit_is_refused(dim, rotation, given):
    config, length = GEOMETRIES[1]
    with pytest.raises(ValueError, match=given):
        lighthouse_attention(*random_qkv(length, dim=dim), config, rotation=rotation)


class _Sdpa(nn.Module):
    def forward(self, q, k, v, **kwargs):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, **kwargs)


def _layer(config) -> LighthouseAttention:
    return LighthouseAttention(_Sdpa(), config, rotation=rotation_over(config.coarsest_window))


def test_compiled_layers_share_one_graph_and_equal_eager():
    torch.compiler.reset()
    config, length = GEOMETRIES[1]
    counter = CompileCounterWithBackend("aot_eager")
    qkv = random_qkv(length)
    upstream = torch.randn_like(qkv[0])
    eager = output_and_gradients(_layer(config), *qkv, upstream)
    for layer in (_layer(config), _layer(config)):
        layer.compile(fullgraph=True, backend=counter)
        compiled = output_and_gradients(layer, *qkv, upstream)
        for a, e in zip(compiled, eager, strict=True):
            torch.testing.assert_close(a, e, **EXACT)
    assert counter.frame_count == 1


def test_a_layer_keeps_its_rotation_wherever_it_is_moved():
    layer = _layer(GEOMETRIES[1][0])
    rotation = layer.rotation.clone()
    assert not layer.state_dict()
    assert not [*layer.parameters()]
    assert layer.to("meta").rotation.is_meta
    assert torch.equal(layer.to_empty(device="cpu").rotation, rotation)
    assert torch.equal(layer.bfloat16().rotation, rotation)
