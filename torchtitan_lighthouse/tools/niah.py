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
from pathlib import Path

from torchtitan_lighthouse.evaluate.forms import FORMS, PASSKEY
from torchtitan_lighthouse.tools.job_option import JOB_HELP

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

    from torchtitan_lighthouse.evaluate.niah_results import Results, draw, table
    from torchtitan_lighthouse.evaluate.retrieval import evaluate, haystack
    from torchtitan_lighthouse.evaluate.trained import open_trained
    from torchtitan_lighthouse.runs.names import file_name, path_name

    models = [open_trained(path.absolute(), options.job) for path in options.models]
    how = {"trials": options.trials, "seed": options.seed}
    haystacks = [
        [haystack(m, options.form, length, **how) for length in options.lengths or [m.seq_len]]
        for m in models
    ]

    results = Results(options.out / "niah.json")
    panels = []
    for model, stacks in zip(models, haystacks, strict=True):
        rates = evaluate(model, stacks, results, options.batch_tokens)
        mean = statistics.fmean(r for column in rates.values() for r in column.values())
        title = f"{model.name}, mean {mean:.3f}"
        panels.append((title, rates))
        print(table(title, rates))
    prefix = "niah" if options.form == PASSKEY else f"niah-{options.form}"
    png = options.out / file_name(prefix, [path_name(model.path) for model in models], ".png")
    draw(panels, png)
    print(png)


if __name__ == "__main__":
    main()
