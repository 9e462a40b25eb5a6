"""Time flash-linear-attention's layers, which a user might pick instead of Lighthouse attention."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from layer_times import DEVICE, Inputs, Shape, Timer, forward, forward_backward, input_sets
from torch import Tensor

from torchtitan_lighthouse.attention.scorers import gla_log_decay


def bench_peers(shape: Shape, time: Timer) -> dict[str, list[float]]:
    """Forward and forward+backward ms of each layer, by its name; without those that fail.

    Native sparse attention has 16 query heads on one key head, blocks of 64 and 16 of them.
    """
    from fla.ops.gla import chunk_gla
    from fla.ops.nsa import parallel_nsa
    from fla.ops.simple_gla import chunk_simple_gla

    def by_time(heads: int, kv_heads: int) -> list[Inputs]:
        sets = input_sets(replace(shape, heads=heads, kv_heads=kv_heads))
        return [tuple(x.transpose(1, 2).detach().requires_grad_() for x in s) for s in sets]

    decay = gla_log_decay(shape.heads, torch.device(DEVICE))
    rows = (1, shape.length, shape.heads, shape.head_dim)
    gates = F.logsigmoid(torch.randn(rows, device=DEVICE))
    dtype = getattr(torch, shape.dtype)
    nsa_gates = torch.rand(1, shape.length, 16, device=DEVICE, dtype=dtype)

    def simple_gla(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return chunk_simple_gla(q, k, v, g_gamma=decay)[0]

    def gla(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return chunk_gla(q, k, v, gates.to(q.dtype))[0]

    def nsa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return parallel_nsa(
            q, k, v, nsa_gates, nsa_gates, nsa_gates, block_counts=16, block_size=64
        )

    times = {}
    for function, sets in (
        (simple_gla, by_time(shape.heads, shape.heads)),
        (gla, by_time(shape.heads, shape.heads)),
        (nsa, by_time(16, 1)),
    ):
        name = function.__name__
        try:
            times[name] = [time(forward(function), sets), time(forward_backward(function), sets)]
            print(f"{name}: {times[name]} ms", flush=True)
        except Exception as error:  # one peer that fails should not cost the others' figures
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
    return times
