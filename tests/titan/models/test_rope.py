"""Rotary position embedding in real numbers is torchtitan's, and compiles to fused kernels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor import metrics
from torchtitan.models.llama3.model import model as titan

from tests.support.jobs import parse
from tests.support.models import build_model, loss, tokens
from torchtitan_lighthouse.titan.models import rope

TORCHTITANS = titan.apply_rotary_emb
BATCH, LENGTH, TABLE, HEAD_DIM = 2, 24, 40, 16
POSITIONS = {
    "from-the-start": None,
    "by-position": torch.arange(TABLE - LENGTH, TABLE).flip(0).view(1, -1),
    "by-position-and-sequence": torch.arange(BATCH * LENGTH).view(BATCH, -1) % TABLE,
}


def test_is_loaded_before_any_model_has_changed_torchtitan():
    assert TORCHTITANS.__module__ == titan.__name__


def turned_and_gradients(
    rotate: Callable, dtype: torch.dtype, positions: Tensor | None
) -> list[Tensor]:
    """Of fixed inputs with four query heads and two key heads."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(BATCH, LENGTH, heads, HEAD_DIM) for heads in (4, 2)]
    leaves = [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]
    upstream = [torch.randn(s, generator=generator).to(dtype) for s in shapes]
    turned = rotate(*leaves, titan.precompute_freqs_cis(HEAD_DIM, TABLE), positions)
    return [*turned, *torch.autograd.grad(turned, leaves, upstream)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
def test_equals_torchtitans_forward_and_backward(positions, dtype):
    actual, expected = (
        turned_and_gradients(rotate, dtype, positions) for rotate in (rope.rotate, TORCHTITANS)
    )
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        # Each is a sum of two products in float32, rounded once to the dtype.
        ulp = torch.finfo(dtype).eps
        torch.testing.assert_close(a, e, rtol=ulp, atol=2 * torch.finfo(torch.float32).eps * 4)


@pytest.mark.parametrize("positions", POSITIONS.values(), ids=POSITIONS)
def test_inductor_makes_one_kernel_of_each_rotation(positions):
    torch._dynamo.reset()
    metrics.reset()
    compiled = torch.compile(rope.rotate, fullgraph=True)
    actual = turned_and_gradients(compiled, torch.float32, positions)
    # Of q and of k, forward and backward; the rows of the table may be taken beforehand.
    assert 4 <= metrics.generated_kernel_count <= (4 if positions is None else 5)
    expected = turned_and_gradients(rope.rotate, torch.float32, positions)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


def test_compiled_blocks_compute_nothing_in_complex_numbers(tmp_path):
    operations = []

    def record(graph, inputs):
        operations.extend(node for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph)

    torch._dynamo.reset()
    job_config = parse(tmp_path, compile__enable=True)
    job_config.compile.backend = aot_autograd(fw_compiler=record)
    loss(build_model(job_config), tokens()).backward()
    values = [node.meta["val"] for node in operations]
    assert len(values) > 100
    assert not any(isinstance(v, Tensor) and v.is_complex() for v in values)
