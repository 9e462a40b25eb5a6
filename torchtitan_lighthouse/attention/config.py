"""The numbers of Lighthouse attention, their rules, and the lengths that follow from them."""

import math
from dataclasses import dataclass, fields

from torchtitan_lighthouse.attention.pyramid import sub_sequence_length
from torchtitan_lighthouse.attention.scorers import SCORERS
from torchtitan_lighthouse.refusal import RefusalError, multiples, neighbours, refusal


@dataclass(frozen=True)
class LighthouseConfig:
    """How one Lighthouse layer pools, scores and selects (paper, section 3).

    Attributes:
        levels: L, the levels of the pyramid, level 0 being the tokens. 1 is dense attention.
        pooling_factor: p, how many entries of one level make one of the next; a power of two.
        topk: k, how many entries each level above 0 expands, per sequence and head.
        tile: m, how many of those one tile of the stratified selection expands; even.
        scorer: the name of the scorer, a key of ``SCORERS``.
        dilation: δ of the ``dilated`` scorer; unused by the others.
        pin_first: always expand the first entry of every level, within ``topk``, so that every
            position has an output.
        rope_aligned: turn the rows of q and k to where RoPE has the last token of their window
            before they are averaged: the mean is then that of the rows before RoPE, turned once.
            Published is the mean of rows that RoPE has turned by different angles.

    Raises:
        ValueError: a field breaks its rule. The message names values that would work.
    """

    levels: int = 3
    pooling_factor: int = 4
    topk: int = 1536
    tile: int = 128
    scorer: str = "norm"
    dilation: int = 4
    pin_first: bool = True
    rope_aligned: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            _require_type(field.name, getattr(self, field.name), field.type)
        for name in ("levels", "dilation"):
            if (value := getattr(self, name)) < 1:
                raise refusal(name, value, "must be at least 1", 1)
        p = self.pooling_factor
        if p < 2 or p & (p - 1):
            powers = neighbours(p, [2**e for e in range(1, max(p, 2).bit_length() + 1)])
            raise refusal("pooling_factor", p, "must be a power of two", *powers)
        if self.tile < 2 or self.tile % 2:
            divisors = [d for d in range(2, self.topk + 1, 2) if self.topk % d == 0]
            nearest = neighbours(self.tile, divisors or [2, self.tile + 1])
            rule = f"must be even, at least 2 and divide topk={self.topk}"
            raise refusal("tile", self.tile, rule, *nearest)
        if self.topk < self.tile or self.topk % self.tile:
            rule = f"must be a multiple of tile={self.tile}"
            raise refusal("topk", self.topk, rule, *multiples(self.topk, self.tile))
        if self.scorer not in SCORERS:
            raise refusal("scorer", self.scorer, "must name a scorer", *sorted(SCORERS))

    @property
    def coarsest_window(self) -> int:
        """p^(L-1), the tokens that one entry of the coarsest level summarises."""
        return int(self.pooling_factor ** (self.levels - 1))

    @property
    def tiles(self) -> int:
        """k/m, the tiles that the coarsest level is cut into; selection is local to each."""
        return self.topk // self.tile

    @property
    def seq_len_unit(self) -> int:
        """What N must be a multiple of, in tokens: whole tiles, and what the scorer asks."""
        if self.levels == 1:
            return 1
        return math.lcm(self.coarsest_window * self.tiles, self._scorer_divisor or 1)

    @property
    def shortest_seq_len(self) -> int:
        """The least N, in tokens: the coarsest level has k entries to expand."""
        return 1 if self.levels == 1 else self.coarsest_window * self.topk

    def sub_sequence_length(self, seq_len: int) -> int:
        """S, the gathered entries (see ``pyramid.sub_sequence_length``); N itself with one level.

        Raises:
            ValueError: the pyramid does not fit ``seq_len`` (see ``validate_seq_len``).
        """
        self.validate_seq_len(seq_len)
        return sub_sequence_length(seq_len, self.levels, self.pooling_factor, self.topk)

    def validate_seq_len(self, seq_len: int) -> None:
        """Refuse a sequence length that this pyramid or scorer cannot take.

        The coarsest level has N/p^(L-1) entries: a whole number, cut into k/m equal tiles of at
        least m entries each, so that k of them can be expanded. One level takes any length.

        Raises:
            ValueError: names the nearest lengths that would work.
        """
        unit, shortest = self.seq_len_unit, self.shortest_seq_len
        if seq_len < shortest or seq_len % unit:
            lengths = multiples(seq_len, unit, at_least=shortest)
            raise refusal("seq_len", seq_len, self._seq_len_rule(), *lengths)

    def _seq_len_rule(self) -> str:
        if self.levels == 1:
            return "must be at least 1"
        window, tiles = self.coarsest_window, self.tiles
        rule = (
            f"must be a multiple of pooling_factor^(levels-1)·topk/tile = {window}·{tiles}"
            f" = {window * tiles} and at least pooling_factor^(levels-1)·topk = "
            f"{self.shortest_seq_len}"
        )
        if self._scorer_divisor:
            rule += f" and a multiple of {SCORERS[self.scorer].divisor}={self._scorer_divisor}"
        return rule

    @property
    def _scorer_divisor(self) -> int | None:
        """What the scorer asks N to be a multiple of, in tokens."""
        name = SCORERS[self.scorer].divisor
        return None if name is None else getattr(self, name)

    def validate_context_parallel(self, degree: int, seq_len: int) -> None:
        """Refuse what ``degree`` ranks, of 2·degree pieces of ``seq_len``, cannot do as one device.

        Scores may read nothing that another rank holds, and each piece needs whole tiles. With one
        level nothing is scored.

        Raises:
            ValueError: names the nearest values that would work.
        """
        if self.levels > 1 and not SCORERS[self.scorer].local:
            rule = f"reads tokens that others of the {degree} context-parallel ranks hold"
            local = [name for name, scorer in SCORERS.items() if scorer.local]
            raise refusal("scorer", self.scorer, rule, *local)
        pieces = 2 * degree
        if self.levels == 1 and seq_len % pieces:
            rule = f"must be a multiple of 2·W = {pieces} for W = {degree} context-parallel ranks"
            raise refusal("seq_len", seq_len, rule, *multiples(seq_len, pieces))
        if self.levels > 1 and self.tiles % pieces:
            unit = pieces * self.tile
            coarsest = seq_len // self.coarsest_window
            tiles = range(pieces, coarsest // self.tile + 1, pieces)
            budgets = [n * self.tile for n in tiles if coarsest % n == 0]
            nearest = neighbours(self.topk, budgets) or multiples(self.topk, unit)
            rule = (
                f"must be a multiple of 2·W·tile = 2·{degree}·{self.tile} = {unit} for W = "
                f"{degree} context-parallel ranks"
            )
            raise refusal("topk", self.topk, rule, *nearest)
        self.validate_seq_len(seq_len)


def _require_type(name: str, value: object, expected: object) -> None:
    # bool is an int to Python, but `levels = true` is a mistake.
    if type(value) is not expected:
        expected_name = getattr(expected, "__name__", str(expected))
        raise RefusalError(f"{name}={value!r} must be of type {expected_name}")
