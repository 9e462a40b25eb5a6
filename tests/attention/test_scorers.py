"""The scorers against their loops, and the registry."""

from functools import partial

import pytest
import torch

from tests.support import slow_loop
from tests.support.cases import HEADS, case, entries_of, heads_id, random_qkv, rows_of
from torchtitan_lighthouse import (
    SCORERS,
    LighthouseConfig,
    Scorer,
    lighthouse_attention,
    score,
    select,
)
from torchtitan_lighthouse.attention.context_parallel import ContextParallel, local_config
from torchtitan_lighthouse.attention.scorers import gla_log_decay
from torchtitan_lighthouse.refusal import RefusalError

# float32 scores of float32 sums; bfloat16 anywhere would be off by 1e-3.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def _loops(q, k, v, scorer_of_head):
    """Group scores [2, B, Hkv, N] by a scorer that may depend on the query head."""
    group = q.shape[1] // k.shape[1]
    out = torch.empty(2, *k.shape[:3])
    for b in range(q.shape[0]):
        for h in range(k.shape[1]):
            streams = [
                scorer_of_head(g)(q[b, g], k[b, h], v[b, h])
                for g in range(h * group, (h + 1) * group)
            ]
            out[:, b, h] = torch.tensor(streams).amax(0)
    return out


def _assert_scores(actual, expected):
    for scores, loop in zip(actual, expected, strict=True):
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, loop, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("heads", HEADS, ids=heads_id)
def test_norm(heads, dtype):
    batch, *heads = heads
    q, k, v = random_qkv(40, batch=batch, heads=heads, dtype=dtype)
    expected = _loops(q.double(), k.double(), v.double(), lambda head: slow_loop.norm_scores)
    _assert_scores(score(q, k, v, LighthouseConfig()), expected)


@pytest.mark.parametrize("dilation", [1, 2, 5])
@pytest.mark.parametrize("heads", HEADS, ids=heads_id)
def test_dilated(heads, dilation):
    batch, *heads = heads
    q, k, v = random_qkv(40, batch=batch, heads=heads, dtype=torch.float32)
    scorer = partial(slow_loop.dilated_scores, dilation=dilation)
    expected = _loops(q.double(), k.double(), v.double(), lambda head: scorer)
    _assert_scores(score(q, k, v, LighthouseConfig(scorer="dilated", dilation=dilation)), expected)


@pytest.mark.parametrize("length", [40, 300])
@pytest.mark.parametrize("heads", HEADS, ids=heads_id)
def test_gla(heads, length):
    batch, *heads = heads
    q, k, v = random_qkv(length, batch=batch, heads=heads, dtype=torch.float32)
    decays = gla_log_decay(heads[0], q.device).double().exp().tolist()
    expected = _loops(
        q.double(),
        k.double(),
        v.double(),
        lambda head: partial(slow_loop.gla_scores, decay=decays[head]),
    )
    _assert_scores(score(q, k, v, LighthouseConfig(scorer="gla")), expected)


def test_gla_decays_of_8_heads_are_retnets():
    retnet = torch.tensor([1 - 2.0 ** (-5 - head) for head in range(8)])
    assert torch.equal(gla_log_decay(8, torch.device("cpu")), retnet.double().log().float())


def test_gla_decays_of_32_heads_span_the_same_range():
    decays = gla_log_decay(32, torch.device("cpu")).exp()
    assert (decays.diff() > 0).all()
    torch.testing.assert_close(decays[[0, -1]], torch.tensor([1 - 2.0**-5, 1 - 2.0**-12]))


@pytest.mark.parametrize("scorer", SCORERS)
def test_autocast_changes_no_score(scorer):
    q, k, v = random_qkv(40, heads=(4, 2), dtype=torch.float32)
    plain = score(q, k, v, LighthouseConfig(scorer=scorer))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = score(q, k, v, LighthouseConfig(scorer=scorer))
    for a, p in zip(autocast, plain, strict=True):
        assert torch.equal(a, p)


def early(q, k, v):
    scores = -torch.arange(k.shape[2], dtype=torch.float32).expand(k.shape[:3])
    return scores, scores


def test_a_registered_scorer_is_the_one_that_selects(monkeypatch):
    monkeypatch.setitem(SCORERS, "early", Scorer(early))
    config, length = case(3, 2, 4, 2, 7, scorer="early")
    qkv = random_qkv(length)
    by_scorer = lighthouse_attention(*qkv, config)
    selection = select(*early(*qkv), config)
    assert entries_of(selection, config, length)[0][0][:4] == [(0, 0), (0, 1), (1, 0), (0, 2)]
    torch.testing.assert_close(by_scorer, lighthouse_attention(*qkv, config, selection=selection))


def first_channel(q, k, v):
    return q[..., 0].float(), k[..., 0].float()


def test_a_registered_local_scorer_scores_on_ranks_what_it_scores_on_one_device(monkeypatch):
    monkeypatch.setitem(SCORERS, "first_channel", Scorer(first_channel, local=True))
    config, length = case(3, 2, 2, 8, 3, scorer="first_channel")
    qkv = random_qkv(length)
    of_one_device = score(*qkv, config)
    for rank in range(2):
        context_parallel = ContextParallel("", rank, 2)
        numbers = local_config(config, context_parallel, length // 2)
        of_rank = score(*(rows_of(x, context_parallel, 2) for x in qkv), numbers)
        for local, whole in zip(of_rank, of_one_device, strict=True):
            assert torch.equal(local, rows_of(whole, context_parallel, 2))


def test_a_registered_scorer_that_is_not_local_is_refused_on_ranks(monkeypatch):
    monkeypatch.setitem(SCORERS, "early", Scorer(early))
    monkeypatch.setitem(SCORERS, "first_channel", Scorer(first_channel, local=True))
    config, length = case(3, 2, 2, 8, 3, scorer="early")
    rows = random_qkv(length // 2)
    with pytest.raises(RefusalError, match=r"scorer=early reads .* use norm or first_channel$"):
        lighthouse_attention(*rows, config, context_parallel=ContextParallel("", 0, 2))


def test_a_registered_scorer_is_given_the_options_that_it_takes(monkeypatch):
    given = []

    def scorer(q, k, v, dilation, tile):
        given.append((dilation, tile))
        return early(q, k, v)

    monkeypatch.setitem(SCORERS, "mine", Scorer(scorer, options=("dilation", "tile")))
    score(*random_qkv(8), LighthouseConfig(scorer="mine", dilation=3))
    assert given == [(3, 128)]


def test_what_a_registered_scorer_asks_of_the_length_is_a_rule(monkeypatch):
    monkeypatch.setitem(SCORERS, "early", Scorer(early, divisor="dilation"))
    numbers = {"topk": 2, "tile": 2, "pooling_factor": 2, "levels": 2, "dilation": 3}
    with pytest.raises(ValueError, match=r"seq_len=8 .*dilation=3, .*; use 6 or 12"):
        LighthouseConfig(**numbers, scorer="early").validate_seq_len(8)
    LighthouseConfig(**numbers, scorer="norm").validate_seq_len(8)
