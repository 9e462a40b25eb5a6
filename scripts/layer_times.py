"""Time the Lighthouse layer of the checkout that PYTHONPATH names: ``layer_times.py REQUEST``.

``commit_times.py`` runs it for each of two commits, ``bench_attention.py`` takes its parts. Of the
package it may use only what every commit has: ``lighthouse_attention`` and ``LighthouseConfig``.
"""

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import torchtitan_lighthouse
from torchtitan_lighthouse import LighthouseConfig, lighthouse_attention

DEVICE = "cuda"
INPUT_SETS = 3
HEAD_START = 50_000_000  # clock cycles
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}

Inputs = tuple[Tensor, ...]
Timer = Callable[[Callable[..., object], Sequence[Inputs]], float]  # ms


@dataclass(frozen=True)
class Shape:
    """Of q [1, heads, length, head_dim], and k and v [1, kv_heads, length, head_dim]."""

    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    length: int


class Layer(NamedTuple):
    """A layer to time: its inputs, and the fields that its LighthouseConfig is made of."""

    shape: Shape
    fields: dict[str, Any]


def main(request: str) -> None:
    """Time the layers of a request, a JSON of ``times_of``'s arguments, and print the times."""
    arguments = json.loads(request)
    layers = [Layer(Shape(**shape), fields) for shape, fields in arguments.pop("layers")]
    times = times_of(layers, **arguments)
    package = str(Path(torchtitan_lighthouse.__file__).parent)
    print(json.dumps({"package": package, "times": times}))


def times_of(layers: Sequence[Layer], backend: str, repeats: int) -> list[tuple[float, float]]:
    """Forward and forward+backward ms of each layer."""
    times = []
    with sdpa_kernel(BACKENDS[backend]):
        for shape, fields in layers:
            layer = layer_of(LighthouseConfig(**fields), shape.head_dim)
            sets = input_sets(shape)
            passes = forward(layer), forward_backward(layer)
            times.append(tuple(median_ms(function, sets, repeats) for function in passes))
    return times


def layer_of(config: LighthouseConfig, head_dim: int) -> Callable[..., Tensor]:
    """The layer as a function of q, k and v."""
    layer = partial(lighthouse_attention, config=config)
    if not getattr(config, "rope_aligned", False):  # which older commits do not have
        return layer
    return partial(layer, rotation=rotation_over(config.coarsest_window, head_dim))


def rotation_over(tokens: int, head_dim: int) -> Tensor:
    """What RoPE does over 0 to ``tokens`` - 1 tokens (see ``lighthouse_attention``)."""
    frequencies = 500_000.0 ** -(torch.arange(0, head_dim, 2, device=DEVICE) / head_dim)
    angles = torch.outer(torch.arange(tokens, device=DEVICE), frequencies)
    return torch.stack([angles.cos(), angles.sin()], -1)


def input_sets(shape: Shape) -> list[Inputs]:
    """Random q, k and v, in the memory layout that torchtitan passes, [1, length, H, D]."""
    dtype = getattr(torch, shape.dtype)

    def rows(heads: int) -> Tensor:
        size = (1, shape.length, heads, shape.head_dim)
        return torch.randn(size, device=DEVICE, dtype=dtype).transpose(1, 2).requires_grad_()

    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    return [tuple(map(rows, heads)) for _ in range(INPUT_SETS)]


def forward(function: Callable[..., Tensor]) -> Callable[..., object]:
    return torch.no_grad()(function)


def forward_backward(function: Callable[..., Tensor]) -> Callable[..., object]:
    def run(*inputs: Tensor) -> object:
        out = function(*inputs)
        # A gradient like the output, not ones: real data, without a pass to make it.
        return torch.autograd.grad(out, inputs, out.detach())

    return run


def median_ms(function: Callable[..., object], sets: Sequence[Inputs], repeats: int) -> float:
    """By CUDA events, over warm runs that rotate among the input sets."""
    for inputs in sets:
        function(*inputs)
    # The GPU waits while the host queues, so that short parts are not timed by their launches.
    torch.cuda._sleep(HEAD_START)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for i, (start, end) in enumerate(events):
        start.record()
        function(*sets[i % len(sets)])
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


if __name__ == "__main__":
    main(sys.argv[1])
