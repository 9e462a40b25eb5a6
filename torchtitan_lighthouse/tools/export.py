"""Export a checkpoint as a Hugging Face folder: ``torchtitan_lighthouse export CHECKPOINT OUT``.

    python -m torchtitan_lighthouse export outputs/run/checkpoint/step-16000 outputs/run/hf

``transformers.AutoModelForCausalLM`` and ``AutoTokenizer``, of version 5, load OUT. Version 4 would
run another RoPE without a word, unless training started from a folder that version 4 had written.
What is written: see ``torchtitan_lighthouse/evaluate/export.py``.
"""

import argparse
import sys
from pathlib import Path

from torchtitan_lighthouse.tools.job_option import JOB_HELP

_LIGHTHOUSE = (
    "Mind: the checkpoint is of the Lighthouse stage, and attention is dense in the folder, where "
    "such a model does worse. Export one of the dense stage"
)


def main(args: list[str] | None = None) -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".../step-N")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), help="[training.mixed_precision_param]"
    )
    parser.add_argument("--job", type=Path, metavar="FILE", help=JOB_HELP)
    options = parser.parse_args(args)

    from torchtitan_lighthouse.evaluate.checkpoint import job_of, stage_of
    from torchtitan_lighthouse.evaluate.export import export_hf

    changed = export_hf(options.checkpoint, options.out, options.dtype, options.job)
    print(f"Wrote {options.out}")
    if stage_of(options.checkpoint, job_of(options.checkpoint, options.job)) == "lighthouse":
        print(_LIGHTHOUSE, file=sys.stderr)
    for name, value in changed.items():
        print(f"config.json: {name} is now {value}")


if __name__ == "__main__":
    main()
