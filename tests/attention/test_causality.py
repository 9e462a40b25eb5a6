"""At a fixed selection nothing sees its future, and with pinning no position goes without."""

from functools import partial

import pytest
import torch

from tests.support.cases import (
    CASES,
    PINNED,
    SMALL,
    case,
    case_id,
    ones_attention,
    random_qkv,
    random_selection,
)
from torchtitan_lighthouse import LighthouseConfig, lighthouse_attention, select


@pytest.mark.parametrize("geometry", CASES, ids=case_id)
def test_changing_the_future_leaves_the_past(geometry):
    config, length = geometry
    qkv = random_qkv(length, heads=(4, 2))
    attend = partial(
        lighthouse_attention, config=config, selection=random_selection(config, length)
    )
    before = attend(*qkv)
    noise = random_qkv(length, heads=(4, 2))
    for t in range(length - 1):
        changed = [x.clone() for x in qkv]
        for x, n in zip(changed, noise, strict=True):
            x[:, :, t + 1 :] = n[:, :, t + 1 :]
        assert torch.equal(attend(*changed)[:, :, : t + 1], before[:, :, : t + 1]), t


@pytest.mark.parametrize("geometry", [SMALL, case(4, 2, 2, 1, 3)], ids=case_id)
def test_the_jacobian_is_lower_triangular(geometry):
    config, length = geometry
    qkv = random_qkv(length, heads=(1, 1), dim=2)
    attend = partial(
        lighthouse_attention, config=config, selection=random_selection(config, length, heads=1)
    )
    for jacobian in torch.autograd.functional.jacobian(attend, qkv):
        by_position = jacobian.abs().sum(dim=(0, 1, 3, 4, 5, 7))  # [output t, input j]
        assert torch.equal(by_position.triu(1), torch.zeros_like(by_position))
        assert by_position[-1, -1] > 0


def _contributors(config: LighthouseConfig, length: int, scores: torch.Tensor) -> torch.Tensor:
    q = torch.zeros(*scores.shape[:2], length, 1)
    selection = select(scores, scores, config)
    counts = lighthouse_attention(q, q, q, config, attention=ones_attention, selection=selection)
    return counts[..., 0]


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
@pytest.mark.parametrize("geometry", PINNED, ids=case_id)
def test_every_position_has_a_contributor_and_at_most_one_per_level(geometry, order):
    config, length = geometry
    ascending = torch.arange(length, dtype=torch.float32).expand(2, 3, length)
    scores = {
        "random": torch.rand(2, 3, length),
        "ascending": ascending,
        "descending": -ascending,
    }
    counts = _contributors(config, length, scores[order])
    assert counts.min() >= 1
    assert counts.max() <= config.levels


def test_without_pinning_the_first_positions_can_go_without():
    config, length = case(3, 2, 4, 2, 7, pin_first=False)
    ascending = torch.arange(length, dtype=torch.float32).expand(1, 1, length)
    counts = _contributors(config, length, ascending)[0, 0]
    # The first window of 4 is one unexpanded entry, which reaches positions 3 to 6.
    assert counts[:4].tolist() == [0, 0, 0, 1]
    assert (counts[3:] >= 1).all()
