"""The geometry of the pyramid: its numbers, their rules, and the lengths that follow from them.

The functions take plain numbers, as the ops and their kernels do, and take the rules for kept.
"""

import math
from dataclasses import dataclass, fields

from torchtitan_lighthouse.refusal import RefusalError, multiples, neighbours, refusal


def table_lengths(seq_len: int, levels: int, pooling_factor: int) -> list[int]:
    """N/p^ℓ for ℓ = 1..L-1, the entries of each level in the nodes table."""
    return [seq_len // pooling_factor**level for level in range(1, levels)]


def number_of_tiles(topk: int, tile: int) -> int:
    """k/m, the equal tiles that the coarsest level is cut into; selection is local to each."""
    return topk // tile


def number_of_pieces(ranks: int) -> int:
    """2W, the equal pieces that W context-parallel ranks cut a sequence into, two for each."""
    return 2 * ranks


@dataclass(frozen=True)
class Pyramid:
    """The numbers of a pyramid over N tokens (paper, section 3).

    The rules: p is a power of two; m is even and divides k; k/m divides N/p^(L-1), the entries of
    the coarsest level, which are at least k. Under context parallelism each piece of the sequence
    has whole tiles. One level is dense attention, over any N.

    Attributes:
        levels: L, the levels, level 0 being the tokens.
        pooling_factor: p, how many entries of one level make one of the next.
        topk: k, how many entries each level above 0 expands, per sequence and head.
        tile: m, how many of those one tile of the stratified selection expands.

    Raises:
        RefusalError: a number breaks its rule. The message names values that would work.
    """

    levels: int = 3
    pooling_factor: int = 4
    topk: int = 1536
    tile: int = 128

    def __post_init__(self) -> None:
        for field in fields(self):
            _require_type(field.name, getattr(self, field.name), field.type)
        if self.levels < 1:
            raise refusal("levels", self.levels, "must be at least 1", 1)
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

    @property
    def coarsest_window(self) -> int:
        """p^(L-1), the tokens that one entry of the coarsest level summarises."""
        return int(self.pooling_factor ** (self.levels - 1))

    @property
    def tiles(self) -> int:
        """k/m (see ``number_of_tiles``)."""
        return number_of_tiles(self.topk, self.tile)

    def sub_sequence_length(self, seq_len: int) -> int:
        """S = N/p^(L-1) + (L-1)·p·k, the gathered entries, the same for every head and input.

        N itself with one level.

        Raises:
            RefusalError: the pyramid does not fit N (see ``validate_seq_len``).
        """
        self.validate_seq_len(seq_len)
        expanded = (self.levels - 1) * self.topk
        return seq_len // self.coarsest_window + self.pooling_factor * expanded

    @property
    def shortest_seq_len(self) -> int:
        """The least N, in tokens: the coarsest level has k entries to expand."""
        return 1 if self.levels == 1 else self.coarsest_window * self.topk

    @property
    def seq_len_unit(self) -> int:
        """What N must be a multiple of, in tokens."""
        return math.lcm(*self.seq_len_divisors().values())

    def seq_len_divisors(self) -> dict[str, int]:
        """What must divide N, by its name: the tokens of a coarsest entry times the tiles."""
        if self.levels == 1:
            return {}
        return {"pooling_factor^(levels-1)·topk/tile": self.coarsest_window * self.tiles}

    def validate_seq_len(self, seq_len: int) -> None:
        """Refuse a sequence length, in tokens, that the pyramid cannot take.

        Raises:
            RefusalError: names the nearest lengths that would work.
        """
        unit, shortest = self.seq_len_unit, self.shortest_seq_len
        if seq_len >= shortest and seq_len % unit == 0:
            return
        rule = "must be at least 1"
        if self.levels > 1:
            divisors = [f"{name}={number}" for name, number in self.seq_len_divisors().items()]
            rule = (
                f"must be a multiple of {' and of '.join(divisors)}, and at least "
                f"pooling_factor^(levels-1)·topk={shortest}"
            )
        raise refusal("seq_len", seq_len, rule, *multiples(seq_len, unit, at_least=shortest))

    def validate_context_parallel(self, degree: int, seq_len: int) -> None:
        """Refuse what cannot be cut into pieces of whole tiles for ``degree`` ranks.

        Args:
            degree: W, the ranks that share the sequence.
            seq_len: N, the tokens of all of them together.

        Raises:
            RefusalError: names the nearest values that would work.
        """
        pieces = number_of_pieces(degree)
        if self.levels == 1 and seq_len % pieces:
            rule = f"must be a multiple of 2·W = {pieces} for W = {degree} context-parallel ranks"
            raise refusal("seq_len", seq_len, rule, *multiples(seq_len, pieces))
        if self.levels > 1 and self.tiles % pieces:
            rule = (
                f"must be a multiple of 2·W·tile = 2·{degree}·{self.tile} = {pieces * self.tile} "
                f"for W = {degree} context-parallel ranks"
            )
            raise refusal("topk", self.topk, rule, *self._budgets(pieces, seq_len))
        self.validate_seq_len(seq_len)

    def _budgets(self, pieces: int, seq_len: int) -> list[int]:
        """The k nearest to this one that give each piece whole tiles, and fit N if any does."""
        coarsest = seq_len // self.coarsest_window
        tiles = range(pieces, coarsest // self.tile + 1, pieces)
        fitting = [n * self.tile for n in tiles if coarsest % n == 0]
        return neighbours(self.topk, fitting) or multiples(self.topk, pieces * self.tile)


def _require_type(name: str, value: object, expected: object) -> None:
    # bool is an int to Python, but `levels = true` is a mistake.
    if type(value) is not expected:
        expected_name = getattr(expected, "__name__", str(expected))
        raise RefusalError(f"{name}={value!r} must be of type {expected_name}")
