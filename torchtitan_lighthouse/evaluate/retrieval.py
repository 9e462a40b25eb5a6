"""The retrieval rates of a model, of which those that are known are not measured again."""

from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from torchtitan_lighthouse.evaluate.forms import PASSKEY
from torchtitan_lighthouse.evaluate.needles import Needles, found_rates
from torchtitan_lighthouse.evaluate.niah import (
    Haystack,
    greedy_of,
    last_logits_of,
    retrieval_rates,
)
from torchtitan_lighthouse.evaluate.niah_results import Rates, Results
from torchtitan_lighthouse.evaluate.trained import Trained
from torchtitan_lighthouse.refusal import RefusalError


def haystack(
    model: Trained, form: str, length: int, *, trials: int, seed: int
) -> Haystack | Needles:
    """The prompts of one length, which must be one that the model was trained at.

    Raises:
        RefusalError: it is not, or the form takes no such length or trials.
    """
    if length > model.seq_len:
        raise RefusalError(
            f"length {length} is beyond the {model.seq_len} tokens that {model.path} was trained at"
        )
    if form == PASSKEY:
        return Haystack(model.tokenizer(), length, trials=trials, seed=seed)
    return Needles(model.tokenizer(), form, length, trials=trials, seed=seed)


def evaluate(
    model: Trained, haystacks: list[Haystack | Needles], results: Results, batch_tokens: int
) -> Rates:
    """The rates of one model; those that ``results`` lacks are measured and added to it."""
    rates = {h.length: results.find(_question(model, h)) for h in haystacks}
    missing = [h for h in haystacks if not rates[h.length]]
    if not missing:
        return rates
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = model.load(max(h.length for h in missing), device)
    last_logits, greedy = None, None
    for h in missing:
        progress = partial(tqdm, desc=f"{model.name}, {h.length:,} tokens", unit="trial")
        if isinstance(h, Needles):
            greedy = greedy or greedy_of(loaded, model.dtype)
            found = found_rates(greedy, h, batch_tokens=batch_tokens, progress=progress)
        else:
            last_logits = last_logits or last_logits_of(loaded, model.dtype)
            found = retrieval_rates(last_logits, h, batch_tokens=batch_tokens, progress=progress)
        results.add(_question(model, h), found)
        rates[h.length] = found
    return rates


def _question(model: Trained, haystack: Haystack | Needles) -> dict[str, Any]:
    """All that the rates depend on. A retrained checkpoint is another one."""
    return {
        "checkpoint": str(model.path),
        "saved": model.saved,
        "length": haystack.length,
        "trials": haystack.trials,
        "seed": haystack.seed,
        **haystack.asked(),
    }
