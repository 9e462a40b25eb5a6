"""Needle in a haystack: does a model find the digit that was hidden in its context?

A prompt is random letters and digits with a needle in them, and a cue whose next token is the
needle's digit. The model's answer is the likeliest of the ten digits; guessing finds one in ten.
"""

import random
import string
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn
from torchtitan.components.tokenizer import BaseTokenizer

from torchtitan_lighthouse.refusal import RefusalError

DEPTHS = (0, 15, 30, 50, 70, 85, 100)
"""Percent of the filler that is before the needle."""

NEEDLE = ("\nThe passkey is ", ".\n")
"""What is before and after the digit."""

CUE = "\nWhat is the passkey? The passkey is "

LastLogits = Callable[[torch.Tensor], torch.Tensor]
"""From tokens, int64 [B, N], to the logits of the last position, [B, V]."""


class Haystack:
    """The prompts of one length. Iterating gives, for each trial, its digit and its prompts, int64
    [len(DEPTHS), length]: they differ in the needle's depth only. Every time they are the same.

    A prompt begins as a document does, with bos where the tokenizer has one.

    Args:
        length: tokens of a prompt, the cue included.
        trials: prompts of each depth; each digit is in a tenth of them.

    Raises:
        ValueError: no room for filler, trials that ten does not divide, or a tokenizer that does
            not end the ten digits with ten different tokens.
    """

    def __init__(self, tokenizer: BaseTokenizer, length: int, *, trials: int, seed: int) -> None:
        self.length, self.trials, self.seed = length, trials, seed
        self._tokenizer = tokenizer
        self._bos = tokenizer.encode("", add_bos=True, add_eos=False)
        # Some of Hugging Face's add bos to all they encode.
        self._added = len(tokenizer.encode("", add_bos=False, add_eos=False))
        self.digits = [token for digit in string.digits for token in self._encode(digit)[-1:]]
        self._before, self._after, self._cue = map(self._encode, (*NEEDLE, CUE))
        fixed = len([*self._bos, *self._before, *self._after, *self._cue]) + 1
        self._filler_length = length - fixed
        if len(set(self.digits)) < 10:
            raise RefusalError(
                f"the tokens {self.digits} of the digits 0 to 9 are not all different"
            )
        if self._filler_length < 1:
            raise RefusalError(f"length {length} is too short: needle and cue take {fixed} tokens")
        if trials < 1 or trials % 10:
            raise RefusalError(f"trials = {trials} must be a multiple of 10, for the ten digits")

    def __len__(self) -> int:
        return self.trials

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        rng = random.Random(self.seed)
        for trial in range(self.trials):
            digit = trial % 10
            needle = [*self._before, self.digits[digit], *self._after]
            filler = self._filler(rng)
            cuts = [len(filler) * depth // 100 for depth in DEPTHS]
            rows = [[*self._bos, *filler[:c], *needle, *filler[c:], *self._cue] for c in cuts]
            yield digit, torch.tensor(rows)

    def asked(self) -> dict[str, object]:
        """What the rates depend on beside length, trials and seed."""
        return {"needle": "{digit}".join(NEEDLE), "cue": CUE}

    def _filler(self, rng: random.Random) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < self._filler_length:
            characters = rng.choices(string.ascii_letters + string.digits, k=self._filler_length)
            tokens += self._encode("".join(characters))
        return tokens[: self._filler_length]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_bos=False, add_eos=False)[self._added :]


def retrieval_rates(
    last_logits: LastLogits,
    haystack: Haystack,
    *,
    batch_tokens: int,
    progress: Callable[[Haystack], Iterable[tuple[int, torch.Tensor]]] = iter,
) -> dict[int, float]:
    """The share of the trials, for each of ``DEPTHS``, in which the model finds the digit.

    Args:
        batch_tokens: tokens that the model is given at once; a single prompt may be longer.
        progress: wraps the iteration over the trials, as ``tqdm`` does.
    """
    batch = max(1, batch_tokens // haystack.length)
    found = torch.zeros(len(DEPTHS), dtype=torch.float64)
    for digit, prompts in progress(haystack):
        logits = torch.cat([last_logits(tokens) for tokens in prompts.split(batch)])
        found += (logits[:, haystack.digits].argmax(-1) == digit).cpu()
    return dict(zip(DEPTHS, (found / haystack.trials).tolist(), strict=True))


def last_logits_of(model: nn.Module, dtype: torch.dtype) -> LastLogits:
    """torchtitan's model under autocast to ``dtype``; only the last position's logits are made.

    The model is changed: its ``output`` is taken from it.
    """
    last = _last_of(model, dtype)
    return lambda tokens: last(tokens, 1)[:, 0]


def greedy_of(model: nn.Module, dtype: torch.dtype) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """The same, giving the likeliest token after each of the last n, int64 [B, n]."""
    last = _last_of(model, dtype)
    return lambda tokens, n: last(tokens, n).argmax(-1)


def _last_of(model: nn.Module, dtype: torch.dtype) -> Callable[[torch.Tensor, int], torch.Tensor]:
    output, model.output = model.output, None
    device = output.weight.device

    @torch.inference_mode()
    def last(tokens: torch.Tensor, n: int) -> torch.Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            hidden = model(tokens.to(device))[:, -n:]
        # Not in bfloat16, whose few digits make ties.
        return output(hidden.to(output.weight.dtype))

    return last
