"""Needle in a haystack: does a model find the digit that was hidden in its context?

A prompt is random letters and digits with a needle in them, and a cue whose next token is the
needle's digit. The model's answer is the likeliest of the ten digits; guessing finds one in ten.
"""

import random
import string

import torch
from torchtitan.components.tokenizer import BaseTokenizer

from torchtitan_lighthouse.evaluate.predictions import LastLogits
from torchtitan_lighthouse.evaluate.prompts import DEPTHS, Found, Prompts, Trial
from torchtitan_lighthouse.refusal import RefusalError

NEEDLE = ("\nThe passkey is ", ".\n")
"""What is before and after the digit."""

CUE = "\nWhat is the passkey? The passkey is "


class Haystack(Prompts):
    """Prompts that ask for a digit; a trial's answer is its digit, as an int.

    Args:
        length: tokens of a prompt, the cue included.
        trials: prompts of each depth; each digit is in a tenth of them.
        seed: of the filler.

    Raises:
        RefusalError: no room for filler, trials that ten does not divide, or a tokenizer that does
            not end the ten digits with ten different tokens.
    """

    def __init__(self, tokenizer: BaseTokenizer, length: int, *, trials: int, seed: int) -> None:
        super().__init__(tokenizer, length, trials=trials, seed=seed)
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

    def asked(self) -> dict[str, object]:
        return {"needle": "{digit}".join(NEEDLE), "cue": CUE}

    def _trial(self, trial: int, rng: random.Random) -> Trial:
        digit = trial % 10
        needle = [*self._before, self.digits[digit], *self._after]
        filler = self._filler(rng)
        cuts = [len(filler) * depth // 100 for depth in DEPTHS]
        rows = [[*self._bos, *filler[:c], *needle, *filler[c:], *self._cue] for c in cuts]
        return digit, torch.tensor(rows)

    def _filler(self, rng: random.Random) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < self._filler_length:
            characters = rng.choices(string.ascii_letters + string.digits, k=self._filler_length)
            tokens += self._encode("".join(characters))
        return tokens[: self._filler_length]


def digit_found(last_logits: LastLogits, digits: list[int]) -> Found:
    """Count a digit as found where its token is the likeliest of the ten ``digits``."""

    def found(rows: torch.Tensor, digit: int) -> torch.Tensor:
        return last_logits(rows)[:, digits].argmax(-1) == digit

    return found
