"""torch.compile takes forward and backward in one graph, and blocks share it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.support.cases import ONE_LEVEL, case, random_qkv, requires_grad
from torchtitan_lighthouse import LighthouseAttention, LighthouseConfig, lighthouse_attention


class Sdpa(nn.Module):
    def forward(self, q, k, v, **kwargs):
        return F.scaled_dot_product_attention(q, k, v, **kwargs)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


def _forward_and_backward(function, qkv: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = requires_grad(*qkv)
    out = function(*leaves)
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


def _assert_compiled_equals_eager(
    config: LighthouseConfig, length: int, backend: str, device: str = "cpu"
) -> None:
    qkv = random_qkv(length, batch=2, heads=(4, 2), dim=16, dtype=torch.float32)
    qkv = tuple(x.to(device) for x in qkv)

    def function(q, k, v):
        return lighthouse_attention(q, k, v, config)

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    actual, expected = (_forward_and_backward(f, qkv) for f in (compiled, function))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scorer", ["norm", "dilated", "gla"])
def test_full_graph_equals_eager(scorer):
    config, length = case(3, 2, 4, 2, 8, scorer=scorer)
    _assert_compiled_equals_eager(config, length, "aot_eager")


def test_full_graph_of_one_level_equals_eager():
    _assert_compiled_equals_eager(*ONE_LEVEL, "aot_eager")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_full_graph_by_inductor_equals_eager(device):
    config, length = case(3, 4, 8, 2, 12)
    _assert_compiled_equals_eager(config, length, "inductor", device)


@torch._dynamo.config.patch(automatic_dynamic_shapes=True)  # the trainer's process turns it off
def test_lengths_share_one_dynamic_graph():
    config, length = case(3, 2, 4, 2, 8)
    counter = CompileCounterWithBackend("aot_eager")
    layer = torch.compile(LighthouseAttention(Sdpa(), config), fullgraph=True, backend=counter)
    for n in (1, 2, 3, 4):
        qkv = random_qkv(n * length, dtype=torch.float32)
        torch.testing.assert_close(layer(*qkv), lighthouse_attention(*qkv, config))
    assert counter.frame_count == 2  # one for the first length, one for all others


def test_grouped_heads_compile_with_every_size_dynamic():
    config, length = case(3, 2, 4, 2, 8)
    layer = LighthouseAttention(Sdpa(), config)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    qkv = random_qkv(length, heads=(4, 2), dtype=torch.float32)
    torch.testing.assert_close(compiled(*qkv, enable_gqa=True), layer(*qkv, enable_gqa=True))


def test_layers_share_one_graph():
    config, length = case(3, 2, 4, 2, 8)
    counter = CompileCounterWithBackend("aot_eager")
    layers = [LighthouseAttention(Sdpa(), config) for _ in range(3)]
    for layer in layers:
        layer.compile(fullgraph=True, backend=counter)
        _forward_and_backward(layer, random_qkv(length, dtype=torch.float32))
    assert counter.frame_count == 1
