"""What only a GPU can show of the kernels: whole layers, equal bits, large offsets, CUDA graphs."""

from functools import partial

import pytest
import torch
from torch import Tensor

from torchtitan_lighthouse import LighthouseConfig, Selection, lighthouse_attention, select
from torchtitan_lighthouse.attention import reference

kernels = pytest.importorskip("torchtitan_lighthouse.attention.kernels")
pytestmark = pytest.mark.gpu

LARGE = LighthouseConfig()


def _qkv(length: int, heads: int = 8, dim: int = 128) -> list[Tensor]:
    return [
        torch.randn(1, length, heads, dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
        for _ in range(3)
    ]


def _step(qkv: list[Tensor], config: LighthouseConfig, **options) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in qkv]
    out = lighthouse_attention(*leaves, config, **options)
    return [out, *torch.autograd.grad(out, leaves, out.detach())]


def _sum_of_streams(q: Tensor, k: Tensor, v: Tensor, **_) -> Tensor:
    return q + k + v


def test_two_runs_of_the_ops_give_equal_bits():
    qkv = _qkv(98_304)
    runs = [_step(qkv, LARGE, attention=_sum_of_streams) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_two_runs_give_equal_bits_where_sdpa_does(poisoned):
    """SDPA's own backward repeats its bits only in PyTorch's deterministic mode."""
    qkv = _qkv(98_304)
    for first, second in zip(_step(qkv, LARGE), _step(qkv, LARGE), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_attention_equals_the_plain_ops_on_cpu(dtype):
    config = LighthouseConfig(topk=256, tile=32)
    qkv = [x.to(dtype) for x in _qkv(8192, heads=2, dim=64)]
    scores = [x.float().norm(dim=-1) for x in qkv[:2]]
    on_gpu = select(*scores, config)
    on_cpu = select(*(s.cpu() for s in scores), config)
    assert torch.equal(on_gpu.nodes.cpu(), on_cpu.nodes)

    def step(device: str, dtype: torch.dtype, selection: Selection) -> list[Tensor]:
        leaves = [x.detach().to(device, dtype).requires_grad_() for x in qkv]
        out = lighthouse_attention(*leaves, config, selection=selection)
        grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
        return [x.cpu() for x in (out, *grads)]

    exact = step("cpu", torch.float64, on_cpu)
    plain = step("cpu", dtype, on_cpu)
    for name, a, p, e in zip(
        ("out", "dq", "dk", "dv"), step("cuda", dtype, on_gpu), plain, exact, strict=True
    ):
        error, plain_error = ((x.double() - e).norm() / e.norm() for x in (a, p))
        assert error <= 2 * plain_error, (name, error, plain_error)


def test_gla_by_its_kernel():
    pytest.importorskip("fla")
    q, k, v = _qkv(1000, heads=4, dim=64)
    log_decay = -torch.rand(4, device="cuda") / 8
    arguments = (q, k[:, ::2], v[:, ::2], log_decay)
    exact = reference.gla_scores(*(x.float() for x in arguments))
    for actual, expected in zip(kernels.gla_scores(*arguments), exact, strict=True):
        assert (actual - expected).norm() <= 2 * torch.finfo(q.dtype).eps * expected.norm()


def test_offsets_beyond_32_bits():
    """2.2e9 elements per tensor: a row near the end is where 64-bit arithmetic puts it."""
    length, heads, dim = 2**21 + 2**16, 8, 128
    # Everything is expanded, so there are more slots than tokens.
    config = LighthouseConfig(levels=2, pooling_factor=2, topk=length // 2, tile=64)
    x = torch.zeros(1, length, heads, dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    x[0, :, -4:] = torch.randn(heads, 4, dim, device="cuda")
    query_scores, key_scores = kernels.norm_scores(x, x)
    assert query_scores[..., :-4].count_nonzero() == 0
    torch.testing.assert_close(query_scores[0, :, -4:], x[0, :, -4:].float().norm(dim=-1))
    selection = select(query_scores, key_scores, config)
    slots = config.sub_sequence_length(length)
    y, _, _ = kernels.gather(x, x, x, selection.nodes, None, slots, 2, 2)
    leaves = y[0, :, [-6, -5, -3, -2]]
    assert torch.equal(leaves, x[0, :, -4:])
    parents = y[0, :, [-4, -1]]
    torch.testing.assert_close(
        parents, x[0, :, -4:].unflatten(1, (2, 2)).float().mean(2).bfloat16()
    )
    back = kernels.scatter(y, selection.nodes, length, 2, 2, 1)
    last = leaves[:, 3].float() + parents[:, 1].float()
    torch.testing.assert_close(back[0, :, -1], last.bfloat16())


def test_captures_into_a_cuda_graph():
    qkv = _qkv(32_768)
    step = partial(_step, qkv, LighthouseConfig(topk=512), attention=_sum_of_streams)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for x in qkv:
        x.copy_(torch.randn_like(x))
    graph.replay()
    for a, e in zip(captured, step(), strict=True):
        assert torch.equal(a, e)
