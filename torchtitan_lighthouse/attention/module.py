"""Lighthouse attention as a module around a dense attention module."""

from collections.abc import Callable
from functools import partial
from typing import Self

from torch import Tensor, nn

from torchtitan_lighthouse.attention.config import LighthouseConfig
from torchtitan_lighthouse.attention.context_parallel import ContextParallel
from torchtitan_lighthouse.attention.functional import lighthouse_attention
from torchtitan_lighthouse.refusal import RefusalError


class LighthouseAttention(nn.Module):
    """Stands where a causal SDPA module stood, and calls it on the gathered sub-sequence.

    It has no parameters and no state of its own. Taking ``attention`` back out of it is all that
    a return to dense attention needs.

    Args:
        attention: a module called as ``attention(q, k, v, scale=, enable_gqa=, is_causal=)``, such
            as torchtitan's ``ScaledDotProductAttentionWrapper``.
        config: the pyramid, the budget and the scorer.
        context_parallel: the ranks that share the sequence (see ``lighthouse_attention``), among
            which ``attention`` attends too.
        rotation: see ``lighthouse_attention``. Kept as a buffer that no state dict holds, which has
            these values and this dtype wherever the module is moved, ``to_empty`` included.
    """

    rotation: Tensor | None

    def __init__(
        self,
        attention: nn.Module,
        config: LighthouseConfig,
        context_parallel: ContextParallel | None = None,
        rotation: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.config = config
        self.context_parallel = context_parallel
        self.register_buffer("rotation", rotation, persistent=False)
        self._rotation = rotation

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self._rotation is not None and self.rotation is not None:
            self.rotation = self._rotation.to(self.rotation.device)
        return self

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attend (see ``lighthouse_attention``).

        Args:
            q: [B, Hq, N, D].
            k, v: [B, Hkv, N, D].
            scale: of the logits, for ``attention``.
            enable_gqa: whether Hkv may differ from Hq.

        Returns:
            [B, Hq, N, D].

        Raises:
            RefusalError: also if Hkv differs from Hq without ``enable_gqa``, as SDPA would.
        """
        if q.shape[1] != k.shape[1] and not enable_gqa:
            raise RefusalError(
                f"{q.shape[1]} query and {k.shape[1]} key heads need enable_gqa=True"
            )
        attention = partial(self.attention, scale=scale)
        rotation = self.rotation
        if rotation is not None:
            rotation = rotation.to(q.device)  # which is not this module's if that is offloaded
        return lighthouse_attention(
            q,
            k,
            v,
            self.config,
            attention=attention,
            context_parallel=self.context_parallel,
            rotation=rotation,
        )
