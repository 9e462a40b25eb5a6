"""Which entries are selected, in which order, and the look-up from an entry to its slot."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attention.test_slow_loop import BY_HAND, KEY_SCORES, QUERY_SCORES
from tests.support import slow_loop
from tests.support.cases import CASES, PINNED, case, case_id, entries_of, random_selection
from torchtitan_lighthouse import LighthouseConfig, select
from torchtitan_lighthouse.attention.selection import entries_in_order


def _from(values: list[float]):
    table = torch.tensor(values)
    return lambda shape: table[torch.randint(len(values), shape)]


SCORES = {
    "normal": torch.randn,
    "ties": _from([0.0, 1.0, 2.0]),
    "constant": torch.zeros,
    "signed-zeros": _from([-0.0, 0.0]),
    "infinities": _from([-torch.inf, -1.0, 0.0, 1.0, torch.inf]),
    "neighbours": _from([1.0, 1.0 + 2**-23, 1.0 - 2**-24]),
}


@st.composite
def geometries(draw):
    """Every kind of geometry that the rules admit, small enough to enumerate."""
    levels = draw(st.integers(2, 4))
    p = draw(st.sampled_from([2, 4] if levels < 4 else [2]))
    tile = draw(st.sampled_from([2, 4, 6, 8]))
    tiles = draw(st.integers(1, 3))
    tile_length = tile + draw(st.integers(0, 3))
    return case(levels, p, tile, tiles, tile_length, pin_first=draw(st.booleans()))


@settings(max_examples=100, deadline=None)
@given(
    geometry=geometries() | st.sampled_from(CASES),
    kind=st.sampled_from(sorted(SCORES)),
    seed=st.integers(0, 2**31),
)
def test_equals_the_slow_loop_on_any_geometry(geometry, kind, seed):
    config, length = geometry
    torch.manual_seed(seed)
    query_scores, key_scores = SCORES[kind]((2, 2, 3, length))
    selection = select(query_scores, key_scores, config)
    assert selection.slots == config.sub_sequence_length(length)
    entries = entries_of(selection, config, length)
    for b in range(2):
        for h in range(3):
            scores = query_scores[b, h].tolist(), key_scores[b, h].tolist()
            assert entries[b][h] == slow_loop.select(*scores, config)


@pytest.mark.parametrize("pin_first", [False, True], ids=["unpinned", "pinned"])
def test_worked_out_by_hand(pin_first):
    config = LighthouseConfig(levels=3, pooling_factor=2, topk=2, tile=2, pin_first=pin_first)
    scores = torch.tensor([[QUERY_SCORES]]), torch.tensor([[KEY_SCORES]])
    assert entries_of(select(*scores, config), config, 8) == [[BY_HAND[pin_first]]]


@pytest.mark.parametrize(
    ("levels", "p", "topk", "length", "expected"),
    [
        (1, 4, 1536, 1000, 1000),
        (3, 4, 512, 32_768, 6_144),
        (3, 4, 1536, 98_304, 18_432),
        (3, 4, 2048, 262_144, 32_768),
        (3, 2, 6144, 98_304, 49_152),
        (4, 2, 128, 2_048, 1_024),
    ],
)
def test_length_by_the_formula(levels, p, topk, length, expected):
    config = LighthouseConfig(levels=levels, pooling_factor=p, topk=topk)
    assert config.sub_sequence_length(length) == expected


@pytest.mark.parametrize("geometry", CASES, ids=case_id)
def test_nodes_are_int32_of_the_stated_shape(geometry):
    config, length = geometry
    selection = random_selection(config, length, batch=2, heads=3)
    pooled = sum(length // config.pooling_factor**level for level in range(1, config.levels))
    assert selection.nodes.shape == (2, 3, pooled)
    assert selection.nodes.dtype == torch.int32


@pytest.mark.parametrize("geometry", CASES, ids=case_id)
def test_windows_ends_never_decrease(geometry):
    config, length = geometry
    level, index = entries_in_order(random_selection(config, length), config, length)
    ends = (index + 1) * config.pooling_factor**level
    assert (ends.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("geometry", CASES, ids=case_id)
def test_unexpanded_entries_partition_the_sequence(geometry):
    config, length = geometry
    p = config.pooling_factor
    for entries in entries_of(random_selection(config, length), config, length)[0]:
        gathered = set(entries)
        leaves = [(level, i) for level, i in entries if (level - 1, i * p) not in gathered]
        covered = sorted(j for entry in leaves for j in slow_loop.window(entry, p))
        assert covered == list(range(length))


@pytest.mark.parametrize("geometry", CASES, ids=case_id)
def test_nodes_invert_the_order(geometry):
    config, length = geometry
    p = config.pooling_factor
    selection = random_selection(config, length)
    for h, entries in enumerate(entries_of(selection, config, length)[0]):
        slots = {entry: slot for slot, entry in enumerate(entries)}
        pooled = [
            (level, i) for level in range(1, config.levels) for i in range(length // p**level)
        ]
        expected = [
            2 * slots[entry] + (slow_loop.children(entry, p)[0] in slots) if entry in slots else -1
            for entry in pooled
        ]
        assert selection.nodes[0, h].tolist() == expected


@pytest.mark.parametrize("geometry", PINNED, ids=case_id)
def test_pinning_expands_the_first_entry_of_every_level(geometry):
    config, length = geometry
    # Scores that grow with the position would leave the first entries out.
    scores = torch.arange(length, dtype=torch.float32).expand(1, 1, length)
    entries = entries_of(select(scores, scores, config), config, length)[0][0]
    assert entries[: config.pooling_factor] == [(0, j) for j in range(config.pooling_factor)]


def test_heads_and_batch_elements_select_on_their_own():
    config, length = case(3, 4, 8, 2, 12)
    query_scores, key_scores = torch.rand(2, 2, 3, length)
    together = select(query_scores, key_scores, config)
    for b in range(2):
        for h in range(3):
            one = (slice(b, b + 1), slice(h, h + 1))
            alone = select(query_scores[one], key_scores[one], config)
            assert torch.equal(together.nodes[one], alone.nodes)


def test_strided_scores_select_alike():
    config, length = case(3, 4, 8, 2, 12)
    query_scores, key_scores = torch.rand(2, 2, length, 3).transpose(-1, -2)
    strided = select(query_scores, key_scores, config)
    contiguous = select(query_scores.contiguous(), key_scores.contiguous(), config)
    assert torch.equal(strided.nodes, contiguous.nodes)


def test_nan_counts_as_minus_infinity():
    config, length = case(3, 4, 8, 2, 12, pin_first=False)
    scores = torch.randn(2, 2, 3, length)
    scores[torch.rand(scores.shape) < 0.7] = torch.nan
    instead = scores.nan_to_num(nan=-torch.inf)
    assert torch.equal(select(*scores, config).nodes, select(*instead, config).nodes)


def test_a_length_that_the_pyramid_cannot_take_is_refused():
    config, length = case(3, 4, 8, 2, 12)
    with pytest.raises(ValueError, match=f"seq_len={length + 1}"):
        select(*torch.rand(2, 1, 1, length + 1), config)


def test_one_level_is_refused():
    with pytest.raises(ValueError, match="levels=1 is dense attention"):
        select(*torch.rand(2, 1, 1, 16), LighthouseConfig(levels=1))
