"""What the retrieval tests have in common: prompts with a needle at several depths, and rates."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torchtitan.components.tokenizer import BaseTokenizer

DEPTHS = (0, 15, 30, 50, 70, 85, 100)
"""Percent of the filler that is before the needle."""

Trial = tuple[Any, torch.Tensor]
"""What answers a trial's prompts, and their tokens, int64 [len(DEPTHS), N]: one row per depth."""

Found = Callable[[torch.Tensor, Any], torch.Tensor]
"""From prompts, int64 [B, N], and their answer to whether a model finds it in each, bool [B]."""


class Prompts(ABC):
    """The prompts of one length. Iterating gives a ``Trial`` at a time, the same ones every time.

    A prompt begins as a document does, with bos where the tokenizer has one.

    Args:
        length: tokens of a prompt.
        trials: prompts of each depth.
        seed: of all that is random in them.
    """

    def __init__(self, tokenizer: BaseTokenizer, length: int, *, trials: int, seed: int) -> None:
        self.length, self.trials, self.seed = length, trials, seed
        self._tokenizer = tokenizer
        self._bos = tokenizer.encode("", add_bos=True, add_eos=False)
        # Some of Hugging Face's add bos to all they encode.
        self._added = len(tokenizer.encode("", add_bos=False, add_eos=False))

    def __len__(self) -> int:
        return self.trials

    def __iter__(self) -> Iterator[Trial]:
        rng = random.Random(self.seed)
        for trial in range(self.trials):
            yield self._trial(trial, rng)

    @abstractmethod
    def asked(self) -> dict[str, object]:
        """Name what the rates depend on beside length, trials and seed."""

    @abstractmethod
    def _trial(self, trial: int, rng: random.Random) -> Trial:
        """Make the trial of this number, counted from 0."""

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_bos=False, add_eos=False)[self._added :]


def retrieval_rates(
    prompts: Prompts,
    found: Found,
    *,
    batch_tokens: int,
    progress: Callable[[Prompts], Iterable[Trial]] = iter,
) -> dict[int, float]:
    """Measure, for each of ``DEPTHS``, the share of the trials in which a model finds the answer.

    Args:
        batch_tokens: tokens that the model is given at once; a single prompt may be longer.
        progress: wraps the iteration over the trials, as ``tqdm`` does.
    """
    batch = max(1, batch_tokens // prompts.length)
    total = torch.zeros(len(DEPTHS), dtype=torch.float64)
    for answer, rows in progress(prompts):
        total += torch.cat([found(r, answer).cpu() for r in rows.split(batch)])
    return dict(zip(DEPTHS, (total / prompts.trials).tolist(), strict=True))
