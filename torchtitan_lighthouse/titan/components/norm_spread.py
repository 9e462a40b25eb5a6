"""How far the norms differ that the ``norm`` scorer selects by, looked at while a step trains.

Rows of q, or of k, whose norms are equal within rounding are selected by rounding. It looks at what
attention is given: in eager code before a block, whatever the block is compiled to, and where FSDP
has gathered its weights.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from torchtitan_lighthouse.attention.functional import score
from torchtitan_lighthouse.attention.module import LighthouseAttention

ROWS = 256
"""The rows of a sequence, evenly over what a rank has of it, whose norms are compared."""

ROUNDING = 2**-8
"""bfloat16's unit roundoff. With norms that spread no further, changing the last place of q and k
changes at least a quarter as much of the selection as scores of another layer would."""


class Least(NamedTuple):
    """The smallest spread, and the number of the layer that has it."""

    layer: int
    spread: float


class NormSpread:
    """The relative spread of the norms of q and of k in each Lighthouse layer with that scorer.

    Of one sequence and head group: from the lower to the upper quartile of its scores, as a part of
    their median. Of a layer: the smallest of those.
    """

    def __init__(self, model_parts: Iterable[nn.Module]) -> None:
        """Takes a model, or its pipeline stages, in Lighthouse use."""
        parts: list[Any] = list(model_parts)
        self._blocks = {
            int(number): block
            for part in parts
            for number, block in part.layers.named_children()
            if _selects_by_norms(block.attention.inner_attention)
        }
        self._spreads = torch.empty(0)
        self._n_layers = parts[0].model_args.n_layers

    @contextmanager
    def measured(self, device: torch.device) -> Iterator[None]:
        """Look at the last batch that each layer trains meanwhile."""
        self._spreads = torch.full((2, self._n_layers), torch.inf, device=device)
        with ExitStack() as hooks:
            for number, block in self._blocks.items():
                hooks.enter_context(block.register_forward_pre_hook(partial(self._look, number)))
            yield

    def least(self) -> dict[str, Least]:
        """Of q and of k, over all layers and ranks; empty where nothing was measured. Collective.

        It forgets what was measured.
        """
        found, self._spreads = self._spreads, torch.empty(0)
        if not len(found):
            return {}
        distributed.all_reduce(found, distributed.ReduceOp.MIN)
        spreads, layers = found.min(-1)
        least = zip("qk", layers.tolist(), spreads.tolist(), strict=True)
        return {name: Least(layer, spread) for name, layer, spread in least if spread < torch.inf}

    @torch.no_grad()
    def _look(self, number: int, block: nn.Module, args: tuple[Tensor, ...]) -> None:
        x, freqs_cis = args
        rows = x[:, :: max(1, x.shape[1] // ROWS)][:, :ROWS]
        attention: Any = block.attention
        lighthouse = attention.inner_attention
        attention.inner_attention = look = _Look(lighthouse)
        try:
            # RoPE turns rows by whatever positions, and keeps their norms.
            attention(block.attention_norm(rows), freqs_cis, None, None)
        finally:
            attention.inner_attention = lighthouse
        self._spreads[:, number] = look.spreads


def relative_spread(scores: Tensor) -> Tensor:
    """From quartile to quartile, as a part of the median: float32 [..., N] to [...]."""
    quartiles = torch.tensor([0.25, 0.5, 0.75], device=scores.device)
    low, median, high = torch.quantile(scores, quartiles, dim=-1)
    return torch.where(high == low, 0.0, (high - low) / median)


class _Look(nn.Module):
    """Stands where Lighthouse attention stood, and attends to nothing.

    ``spreads``, float32 [2], are those of q and k, once it has been called.
    """

    spreads: Tensor

    def __init__(self, lighthouse: LighthouseAttention) -> None:
        super().__init__()
        self._config = lighthouse.config

    def forward(self, q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:
        scores = torch.stack(score(q, k, v, self._config))
        self.spreads = relative_spread(scores).flatten(1).amin(1)
        return q


def _selects_by_norms(attention: nn.Module) -> bool:
    if not isinstance(attention, LighthouseAttention):
        return False
    return attention.config.scorer == "norm" and attention.config.levels > 1
