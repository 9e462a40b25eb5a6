"""Needles with many digits and many keys, in the forms of RULER (arXiv 2404.06654).

A prompt asks for the number of one key. It is found where the model's greedy continuation of the
prompt is that number: the mean is what RULER calls recall, of one answer each. RULER also counts a
number that the continuation comes to later. The sentences are this package's; RULER's own come
through lm-eval.
"""

import random

import torch
from torchtitan.components.tokenizer import BaseTokenizer

from torchtitan_lighthouse.evaluate.forms import FORMS
from torchtitan_lighthouse.evaluate.predictions import Greedy
from torchtitan_lighthouse.evaluate.prompts import DEPTHS, Found, Prompts, Trial
from torchtitan_lighthouse.refusal import RefusalError

NOISE = " The harbour is calm. The tide is low. The gulls are loud. A boat goes out and comes back."
NEEDLE = " The number of {key} is {value}."
QUESTION = "\nWhat is the number of {key}? The number of {key} is"
DIGITS = 7

_FIRST = "amber brisk coral dusty eager faint giddy hazel ivory jolly keen lunar misty noble olive"
_SECOND = "anchor basket candle dragon engine feather garden hammer island jacket kettle lantern"
KEYS = [f"{first} {second}" for first in _FIRST.split() for second in _SECOND.split()]


class Needles(Prompts):
    """Prompts that ask for a number; a trial's answer is its tokens, which end the prompts.

    Args:
        form: "single": one needle in noise; "multikey": four, three of them of other keys, at
            random places; "needles": nothing but needles of other keys around it.
        length: tokens of a prompt and its answer.
        trials: prompts of each depth.
        seed: of the keys, the numbers and the places.

    Raises:
        RefusalError: no such form, no room, or no trial.
    """

    def __init__(
        self, tokenizer: BaseTokenizer, form: str, length: int, *, trials: int, seed: int
    ) -> None:
        if form not in FORMS:
            raise RefusalError(f"form {form!r} must be one of {', '.join(FORMS)}")
        if trials < 1:
            raise RefusalError(f"trials = {trials} must be at least 1")
        super().__init__(tokenizer, length, trials=trials, seed=seed)
        self.form = form
        self._noise = self._encode(NOISE)
        next(iter(self))  # refuses what is too short

    def asked(self) -> dict[str, object]:
        return {"form": self.form, "needle": NEEDLE, "question": QUESTION, "noise": NOISE}

    def _trial(self, trial: int, rng: random.Random) -> Trial:
        key, *others = rng.sample(KEYS, len(KEYS))
        value = _number(rng)
        needle = self._encode(NEEDLE.format(key=key, value=value))
        question, answer = self._question(key, value)
        room = self.length - len([*self._bos, *needle, *question, *answer])
        hay = self._hay(rng, others, room)
        rows = []
        for depth in DEPTHS:
            cut = len(hay) * depth // 100
            parts = [*hay[:cut], needle, *hay[cut:]]
            rows.append([*self._bos, *(t for p in parts for t in p), *question, *answer])
        return answer, torch.tensor(rows)

    def _question(self, key: str, value: str) -> tuple[list[int], list[int]]:
        """Return the tokens of the question, and those of the answer after it."""
        question = self._encode(QUESTION.format(key=key))
        whole = self._encode(f"{QUESTION.format(key=key)} {value}")
        if whole[: len(question)] != question:
            raise RefusalError("the tokenizer writes a question otherwise before its answer")
        return question, whole[len(question) :]

    def _hay(self, rng: random.Random, others: list[str], room: int) -> list[list[int]]:
        """Make the pieces between which a needle can be, of ``room`` tokens in all."""
        keys = FORMS[self.form].keys
        pieces: list[list[int]] = []
        left = room
        wanted = keys - 1 if keys else room
        for number in range(wanted):
            other = others[number % len(others)]
            piece = self._encode(NEEDLE.format(key=other, value=_number(rng)))
            if len(piece) > left:
                break
            pieces.append(piece)
            left -= len(piece)
        if room < 1 or (keys and len(pieces) < wanted):
            raise RefusalError(f"length {self.length} is too short for the form {self.form!r}")
        noise = self._noise
        fill = [noise[: left - start] for start in range(0, left, len(noise))]
        if not keys:
            return [*pieces, *fill]
        for piece in pieces:
            fill.insert(rng.randint(0, len(fill)), piece)
        return fill


def _number(rng: random.Random) -> str:
    return str(rng.randrange(10 ** (DIGITS - 1), 10**DIGITS))


def number_found(greedy: Greedy) -> Found:
    """Count a number as found where the model gives the whole of it."""

    def found(rows: torch.Tensor, answer: list[int]) -> torch.Tensor:
        # Greedy decoding gives the answer if each of its tokens is the likeliest after the last.
        given = greedy(rows[:, :-1], len(answer)).cpu()
        return (given == torch.tensor(answer)).all(-1)

    return found
