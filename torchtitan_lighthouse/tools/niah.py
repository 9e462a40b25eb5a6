"""Test trained models on retrieval from their context, at several depths.

    python -m torchtitan_lighthouse niah outputs/run/checkpoint/step-16000 --lengths 16384
    python -m torchtitan_lighthouse niah outputs/run/hf --form multikey --lengths 16384 131072

A MODEL is a ``<dump folder>/<checkpoint folder>/step-N`` of either stage, or a Hugging Face folder;
it runs under dense SDPA, on the GPU if there is one. Prints a table of retrieval rates for each,
adds them to niah.json and draws them in a PNG that is named after the models. What niah.json
already has is not run again, so that an interrupted test continues. The tests themselves: see
``torchtitan_lighthouse/evaluate/niah.py`` for the form "passkey", one digit, and ``needles.py`` for
RULER's. Needs ``pip install .[plot]``.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from torchtitan_lighthouse.evaluate.needles import FORMS, Needles, found_rates
from torchtitan_lighthouse.evaluate.niah import (
    Haystack,
    greedy_of,
    last_logits_of,
    retrieval_rates,
)
from torchtitan_lighthouse.evaluate.niah_results import Rates, Results, draw, table
from torchtitan_lighthouse.evaluate.trained import Trained, open_trained
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.names import file_name
from torchtitan_lighthouse.tools.job_option import JOB_HELP

PASSKEY = "passkey"
TRIALS_HELP = "for each depth and length; of a passkey a multiple of 10, for the ten digits [50]"


def main(args: list[str] | None = None) -> None:
    """Parse the command line, run what is missing, print the tables and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--form", choices=(PASSKEY, *FORMS), default=PASSKEY, help=f"[{PASSKEY}]")
    parser.add_argument(
        "--lengths", nargs="+", type=int, metavar="TOKENS", help="[the trained length]"
    )
    parser.add_argument("--trials", type=int, default=50, help=TRIALS_HELP)
    parser.add_argument("--seed", type=int, default=0, help="of the filler [0]")
    parser.add_argument(
        "--batch-tokens", type=int, default=2**17, help="given to the model at once [131072]"
    )
    parser.add_argument("--job", type=Path, metavar="FILE", help=JOB_HELP)
    parser.add_argument("--out", type=Path, default=Path("outputs/niah"), help="[outputs/niah]")
    options = parser.parse_args(args)
    try:
        models = [open_trained(path.absolute(), options.job) for path in options.models]
        haystacks = [
            [haystack(model, length, options) for length in options.lengths or [model.seq_len]]
            for model in models
        ]
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))

    results = Results(options.out / "niah.json")
    panels = []
    for model, stacks in zip(models, haystacks, strict=True):
        rates = evaluate(model, stacks, results, options.batch_tokens)
        mean = statistics.fmean(r for column in rates.values() for r in column.values())
        title = f"{model.name}, mean {mean:.3f}"
        panels.append((title, rates))
        print(table(title, rates))
    prefix = "niah" if options.form == PASSKEY else f"niah-{options.form}"
    png = options.out / file_name(prefix, [model.name for model in models], ".png")
    draw(panels, png)
    print(png)


def haystack(model: Trained, length: int, options: argparse.Namespace) -> Haystack | Needles:
    """The prompts of one length, which must be one that the model was trained at."""
    if length > model.seq_len:
        raise RefusalError(
            f"length {length} is beyond the {model.seq_len} tokens that {model.path} was trained at"
        )
    how = {"trials": options.trials, "seed": options.seed}
    if options.form == PASSKEY:
        return Haystack(model.tokenizer(), length, **how)
    return Needles(model.tokenizer(), options.form, length, **how)


def evaluate(
    model: Trained, haystacks: list[Haystack | Needles], results: Results, batch_tokens: int
) -> Rates:
    """The rates of one model; those that ``results`` lacks are measured and added to it."""
    rates = {h.length: results.find(question(model, h)) for h in haystacks}
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
        results.add(question(model, h), found)
        rates[h.length] = found
    return rates


def question(model: Trained, haystack: Haystack | Needles) -> dict[str, Any]:
    """All that the rates depend on. A retrained checkpoint is another one."""
    return {
        "checkpoint": str(model.path),
        "saved": model.saved,
        "length": haystack.length,
        "trials": haystack.trials,
        "seed": haystack.seed,
        **haystack.asked(),
    }


if __name__ == "__main__":
    main()
