"""Gradients that ranks have in parts are whole before they are clipped."""

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor

from tests.support.ranks import run_ranks
from torchtitan_lighthouse.titan.components.partial_gradients import sum_partial_gradients

RANKS = 2


def sum_on_a_rank(rank, folder):
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    mesh = init_device_mesh("cpu", (RANKS,))
    module = nn.Module()
    for name in ("in_parts", "whole", "without"):
        weight = distribute_tensor(torch.ones(4), mesh, [Replicate()])
        module.register_parameter(name, nn.Parameter(weight))
    module.plain = nn.Parameter(torch.ones(4))
    part = torch.full((4,), rank + 1.0)
    module.in_parts.grad = DTensor.from_local(part, mesh, [Partial()])
    module.whole.grad = DTensor.from_local(torch.full((4,), 5.0), mesh, [Replicate()])
    module.plain.grad = part.clone()
    sum_partial_gradients([module])
    assert module.in_parts.grad.placements == (Replicate(),)
    assert module.in_parts.grad.to_local().tolist() == [3.0] * 4
    assert module.whole.grad.to_local().tolist() == [5.0] * 4
    assert module.without.grad is None
    assert module.plain.grad.tolist() == part.tolist()
    dist.destroy_process_group()


def test_parts_are_summed_and_all_else_stays(tmp_path):
    run_ranks(sum_on_a_rank, RANKS, tmp_path)
