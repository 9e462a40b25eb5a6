"""Memory outside SDPA grows with N, not with its square: measured in processes of their own."""

import json
import os
import subprocess
import sys

import pytest

MEASURE = """
import json, resource, sys, time
import torch
from torchtitan_lighthouse import LighthouseConfig, lighthouse_attention

length, heads, dim, topk = map(int, sys.argv[1:])
config = LighthouseConfig(levels=3, pooling_factor=4, topk=topk)

def step(length):
    q, k, v = (torch.randn(1, heads, length, dim, requires_grad=True) for _ in range(3))
    lighthouse_attention(q, k, v, config).sum().backward()
    return q.nbytes

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

step(16 * topk)  # loads what is loaded on first use
before, start = peak(), time.perf_counter()
tensor = step(length)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "peak": peak(), "tensors": (peak() - before) / tensor}))
"""


def _measure(length: int, heads: int, dim: int, topk: int) -> dict[str, float]:
    command = [sys.executable, "-c", MEASURE, *map(str, (length, heads, dim, topk))]
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    return json.loads(run.stdout)


def test_memory_is_a_few_tensors_of_the_inputs_size():
    # q, k, v, their gradients, the output and its gradient are 8 of them.
    assert _measure(length=65_536, heads=2, dim=64, topk=256)["tensors"] <= 12


@pytest.mark.skipif(
    "LIGHTHOUSE_FULL_SIZE" not in os.environ, reason="takes a minute; set LIGHTHOUSE_FULL_SIZE"
)
def test_full_size_runs_in_24_gib():
    cost = _measure(length=131_072, heads=8, dim=64, topk=1024)
    print(cost)  # for pytest -s
    assert cost["peak"] <= 24 * 2**30
