"""gradcheck, and what stays in memory between forward and backward."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.support.cases import (
    case,
    case_id,
    random_qkv,
    random_selection,
    requires_grad,
    values_attention,
)
from torchtitan_lighthouse import SCORERS, LighthouseConfig, lighthouse_attention


@pytest.mark.parametrize("heads", [(1, 1), (2, 1)], ids=["H1:1", "H2:1"])
@pytest.mark.parametrize("geometry", [case(2, 4, 2, 2, 3), case(3, 2, 2, 2, 3)], ids=case_id)
def test_gradcheck_at_a_fixed_selection(geometry, heads):
    config, length = geometry
    selection = random_selection(config, length, heads=heads[1])
    attend = partial(lighthouse_attention, config=config, selection=selection)
    assert torch.autograd.gradcheck(attend, requires_grad(*random_qkv(length, heads=heads, dim=2)))


@pytest.mark.parametrize("scorer", SCORERS)
def test_only_tensors_of_the_sub_sequence_are_saved(scorer):
    config = LighthouseConfig(levels=3, pooling_factor=4, topk=16, tile=8, scorer=scorer)
    length = 1024
    q, k, v = requires_grad(*random_qkv(length, dtype=torch.float32))
    saved: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = lighthouse_attention(q, k, v, config, attention=values_attention)
    assert saved

    gathered_bytes = q.nbytes * config.sub_sequence_length(length) // length
    for x in saved:
        limit = gathered_bytes if x.is_floating_point() else q.shape[1] * length * x.itemsize
        assert x.untyped_storage().nbytes() <= limit, (x.dtype, x.shape)

    out.sum().backward()
    assert v.grad.abs().sum() > 0


@pytest.mark.parametrize("scorer", SCORERS)
def test_scorers_run_without_grad(scorer, monkeypatch):
    real, calls = SCORERS[scorer], []

    def spy(*args, **options):
        scores = real.function(*args, **options)
        calls.append((torch.is_grad_enabled(), [s.requires_grad for s in scores]))
        return scores

    monkeypatch.setitem(SCORERS, scorer, replace(real, function=spy))
    config, length = case(3, 2, 4, 2, 8, scorer=scorer)
    lighthouse_attention(*requires_grad(*random_qkv(length)), config)
    assert calls == [(False, [False, False])]
