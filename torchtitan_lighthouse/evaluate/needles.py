"""Needles with many digits and many keys, in the forms of RULER (arXiv 2404.06654).

A prompt asks for the number of one key. It is found where the model's greedy continuation of the
prompt is that number: the mean is what RULER calls recall, of one answer each. RULER also counts a
number that the continuation comes to later. The sentences are this package's; RULER's own come
through lm-eval.
"""

import random
from collections.abc import Callable, Iterable, Iterator

import torch
from torchtitan.components.tokenizer import BaseTokenizer

from torchtitan_lighthouse.evaluate.forms import FORMS
from torchtitan_lighthouse.evaluate.niah import DEPTHS
from torchtitan_lighthouse.refusal import RefusalError

Greedy = Callable[[torch.Tensor, int], torch.Tensor]
"""From tokens, int64 [B, N], and n: the likeliest token after each of the last n, int64 [B, n]."""

NOISE = " The harbour is calm. The tide is low. The gulls are loud. A boat goes out and comes back."
NEEDLE = " The number of {key} is {value}."
QUESTION = "\nWhat is the number of {key}? The number of {key} is"
DIGITS = 7

_FIRST = "amber brisk coral dusty eager faint giddy hazel ivory jolly keen lunar misty noble olive"
_SECOND = "anchor basket candle dragon engine feather garden hammer island jacket kettle lantern"
KEYS = [f"{first} {second}" for first in _FIRST.split() for second in _SECOND.split()]


class Needles:
    """The prompts of one form and length. Iterating gives, for each trial, the tokens of its answer
    and its prompts with that answer, int64 [len(DEPTHS), length]: they differ in the depth of the
    needle only. Every time they are the same.

    Args:
        form: "single": one needle in noise; "multikey": four, three of them of other keys, at
            random places; "needles": nothing but needles of other keys around it.
        length: tokens of a prompt and its answer.
        trials: prompts of each depth.

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
        self.form, self.length, self.trials, self.seed = form, length, trials, seed
        self._tokenizer = tokenizer
        self._bos = tokenizer.encode("", add_bos=True, add_eos=False)
        # Some of Hugging Face's add bos to all they encode.
        self._added = len(tokenizer.encode("", add_bos=False, add_eos=False))
        self._noise = self._encode(NOISE)
        next(iter(self))  # refuses what is too short

    def __len__(self) -> int:
        return self.trials

    def __iter__(self) -> Iterator[tuple[list[int], torch.Tensor]]:
        rng = random.Random(self.seed)
        for _ in range(self.trials):
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
            yield answer, torch.tensor(rows)

    def asked(self) -> dict[str, object]:
        """What the rates depend on beside length, trials and seed."""
        return {"form": self.form, "needle": NEEDLE, "question": QUESTION, "noise": NOISE}

    def _question(self, key: str, value: str) -> tuple[list[int], list[int]]:
        """The tokens of the question, and those that follow them where the answer does."""
        question = self._encode(QUESTION.format(key=key))
        whole = self._encode(f"{QUESTION.format(key=key)} {value}")
        if whole[: len(question)] != question:
            raise RefusalError("the tokenizer writes a question otherwise before its answer")
        return question, whole[len(question) :]

    def _hay(self, rng: random.Random, others: list[str], room: int) -> list[list[int]]:
        """Pieces between which a needle can be, of ``room`` tokens in all."""
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

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_bos=False, add_eos=False)[self._added :]


def _number(rng: random.Random) -> str:
    return str(rng.randrange(10 ** (DIGITS - 1), 10**DIGITS))


def found_rates(
    greedy: Greedy,
    needles: Needles,
    *,
    batch_tokens: int,
    progress: Callable[[Needles], Iterable[tuple[list[int], torch.Tensor]]] = iter,
) -> dict[int, float]:
    """The share of the trials, for each of ``DEPTHS``, in which the model gives the whole number.

    Args:
        batch_tokens: tokens that the model is given at once; a single prompt may be longer.
        progress: wraps the iteration over the trials, as ``tqdm`` does.
    """
    batch = max(1, batch_tokens // needles.length)
    found = torch.zeros(len(DEPTHS), dtype=torch.float64)
    for answer, rows in progress(needles):
        # Greedy decoding gives the answer if each of its tokens is the likeliest after the last.
        given = torch.cat([greedy(r[:, :-1], len(answer)).cpu() for r in rows.split(batch)])
        found += (given == torch.tensor(answer)).all(-1)
    return dict(zip(DEPTHS, (found / needles.trials).tolist(), strict=True))
