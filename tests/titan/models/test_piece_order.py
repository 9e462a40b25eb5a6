"""The order of the pieces is torch's, and made once for a length."""

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchtitan.distributed import context_parallel
from torchtitan.distributed.context_parallel import (
    _HeadTailLoadBalancer,
    prepare_context_parallel_input,
)

from torchtitan_lighthouse.titan.models import piece_order
from torchtitan_lighthouse.titan.models.piece_order import remember_piece_order


@pytest.fixture(params=[2, 4], ids=lambda size: f"W{size}")
def mesh(request):
    size = request.param
    distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=size)
    yield init_device_mesh("cpu", (size,), mesh_dim_names=("cp",))
    distributed.destroy_process_group()


def shares(mesh, length):
    batch = torch.arange(2 * length).view(2, length)
    inputs, labels, others = prepare_context_parallel_input(
        batch, batch + 1, {}, mesh, batch.device
    )
    return inputs, labels, others["positions"]


def test_batches_are_shared_as_before_in_an_order_made_once(mesh, monkeypatch):
    monkeypatch.setattr(context_parallel, "_HeadTailLoadBalancer", _HeadTailLoadBalancer)
    piece_order._kept.cache_clear()
    expected = {length: shares(mesh, length) for length in (64, 128)}
    made = []
    make = _HeadTailLoadBalancer._generate_indices
    monkeypatch.setattr(
        _HeadTailLoadBalancer,
        "_generate_indices",
        lambda self, restore=False: made.append(self.seq_length) or make(self, restore),
    )
    remember_piece_order()
    for length in (64, 128, 64, 128):
        for theirs, ours in zip(expected[length], shares(mesh, length), strict=True):
            assert torch.equal(ours, theirs)
    assert made == [64, 128]
