"""The options of Lighthouse attention: a pyramid, and how its entries are scored and selected."""

from dataclasses import dataclass

from torchtitan_lighthouse.attention.pyramid import Pyramid
from torchtitan_lighthouse.attention.scorers import SCORERS
from torchtitan_lighthouse.refusal import refusal


@dataclass(frozen=True)
class LighthouseConfig(Pyramid):
    """How one Lighthouse layer pools, scores and selects (paper, section 3).

    Attributes:
        levels, pooling_factor, topk, tile: see ``Pyramid``.
        scorer: the name of the scorer, a key of ``SCORERS``.
        dilation: δ of the ``dilated`` scorer; unused by the others.
        pin_first: always expand the first entry of every level, within ``topk``, so that every
            position has an output.
        rope_aligned: turn the rows of q and k to where RoPE has the last token of their window
            before they are averaged: the mean is then that of the rows before RoPE, turned once.
            Published is the mean of rows that RoPE has turned by different angles.

    Raises:
        RefusalError: a field breaks its rule. The message names values that would work.
    """

    scorer: str = "norm"
    dilation: int = 4
    pin_first: bool = True
    rope_aligned: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dilation < 1:
            raise refusal("dilation", self.dilation, "must be at least 1", 1)
        if self.scorer not in SCORERS:
            raise refusal("scorer", self.scorer, "must name a scorer", *sorted(SCORERS))

    def seq_len_divisors(self) -> dict[str, int]:
        """See ``Pyramid``; what the scorer asks for, too, unless nothing is scored."""
        divisors = super().seq_len_divisors()
        option = SCORERS[self.scorer].divisor
        if self.levels > 1 and option is not None:
            divisors[option] = getattr(self, option)
        return divisors

    def validate_context_parallel(self, degree: int, seq_len: int) -> None:
        """See ``Pyramid``; also refuses a scorer that reads what another rank holds.

        Raises:
            RefusalError: names the nearest values that would work.
        """
        if self.levels > 1 and not SCORERS[self.scorer].local:
            rule = f"reads tokens that others of the {degree} context-parallel ranks hold"
            local = [name for name, scorer in SCORERS.items() if scorer.local]
            raise refusal("scorer", self.scorer, rule, *local)
        super().validate_context_parallel(degree, seq_len)
