"""The retrieval rates of a model, of which those that are known are not measured again."""

from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from torchtitan_lighthouse.evaluate.forms import PASSKEY
from torchtitan_lighthouse.evaluate.needles import Needles, number_found
from torchtitan_lighthouse.evaluate.niah import Haystack, digit_found
from torchtitan_lighthouse.evaluate.niah_results import Rates, Results
from torchtitan_lighthouse.evaluate.predictions import greedy_of, last_logits_of
from torchtitan_lighthouse.evaluate.prompts import Found, Prompts, retrieval_rates
from torchtitan_lighthouse.evaluate.trained import Trained
from torchtitan_lighthouse.refusal import RefusalError


def haystack(model: Trained, form: str, length: int, *, trials: int, seed: int) -> Prompts:
    """Make the prompts of one form and length, which the model must have been trained at.

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
    model: Trained, haystacks: list[Prompts], results: Results, batch_tokens: int
) -> Rates:
    """Return one model's rates, measuring those that ``results`` lacks and adding them to it.

    Args:
        haystacks: prompts of one form.
    """
    rates = {h.length: results.find(_question(model, h)) for h in haystacks}
    missing = [h for h in haystacks if not rates[h.length]]
    if not missing:
        return rates
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = model.load(max(h.length for h in missing), device)
    found: Found | None = None
    for h in missing:
        found = found or _found(loaded, model.dtype, h)
        progress = partial(tqdm, desc=f"{model.name}, {h.length:,} tokens", unit="trial")
        measured = retrieval_rates(h, found, batch_tokens=batch_tokens, progress=progress)
        results.add(_question(model, h), measured)
        rates[h.length] = measured
    return rates


def _found(model: nn.Module, dtype: torch.dtype, prompts: Prompts) -> Found:
    if isinstance(prompts, Haystack):
        return digit_found(last_logits_of(model, dtype), prompts.digits)
    return number_found(greedy_of(model, dtype))


def _question(model: Trained, haystack: Prompts) -> dict[str, Any]:
    """Name all that the rates depend on. A retrained checkpoint is another one."""
    return {
        "checkpoint": str(model.path),
        "saved": model.saved,
        "length": haystack.length,
        "trials": haystack.trials,
        "seed": haystack.seed,
        **haystack.asked(),
    }
