"""The oracle against answers worked out by hand, and against dense attention."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.support import slow_loop

# N = 8, two entries in the coarsest level, which k = m = 2 expands both.
NUMBERS = SimpleNamespace(levels=3, pooling_factor=2, topk=2, tile=2)
QUERY_SCORES = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
KEY_SCORES = [0.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0]
BY_HAND = {
    False: [(1, 0), (0, 2), (0, 3), (1, 1), (2, 0), (0, 4), (0, 5), (1, 2), (1, 3), (2, 1)],
    True: [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (0, 4), (0, 5), (1, 2), (1, 3), (2, 1)],
}


@pytest.mark.parametrize("pin_first", [False, True], ids=["unpinned", "pinned"])
def test_selection_worked_out_by_hand(pin_first):
    config = SimpleNamespace(**vars(NUMBERS), pin_first=pin_first)
    assert slow_loop.select(QUERY_SCORES, KEY_SCORES, config) == BY_HAND[pin_first]


def test_gather_and_scatter_worked_out_by_hand():
    rows = torch.arange(8.0)[:, None]
    pooled = slow_loop.gather(rows, BY_HAND[True], p=2)
    assert pooled[:, 0].tolist() == [0, 1, 0.5, 2.5, 1.5, 4, 5, 4.5, 6.5, 5.5]
    # Leaves stay in place; (1, 0) reaches 1 and 2, (1, 1) 3 and 4, (1, 2) 5 and 6, (1, 3) and
    # (2, 1) only 7, (2, 0) reaches 3 to 6.
    out = slow_loop.scatter(pooled, BY_HAND[True], p=2, length=8)
    expected = [0, 1 + 0.5, 0.5, 2.5 + 1.5, 2.5 + 1.5 + 4, 1.5 + 5 + 4.5, 1.5 + 4.5, 6.5 + 5.5]
    assert out[:, 0].tolist() == expected


def test_one_level_is_dense_attention():
    q, k, v = torch.randn(3, 1, 2, 12, 4, dtype=torch.float64)
    config = SimpleNamespace(levels=1, pooling_factor=2, topk=4, tile=2, pin_first=True)
    out, _ = slow_loop.lighthouse_attention(q, k, v, config)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, is_causal=True))
