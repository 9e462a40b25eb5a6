"""Estimate the peak memory per GPU of a training job, without one.

    python -m torchtitan_lighthouse memory train_configs/lighthouse_530m_98k.toml --gpus 8 \
        --gpu-gib 80 --model.flavor 530M_byte

Other options are torchtitan's and override the TOML file. What the estimate counts, and how exact
it is: see ``torchtitan_lighthouse/estimate/memory.py``.

--gpu-gib also says which activation checkpointing to choose, the fastest that fits: "none" where a
short sequence leaves room for everything; "op" where several times the memory of "full" is there;
"attention" where little more is, for it costs N rows of a dense layer and S of a Lighthouse one,
and saves the more time the more of the step is dense attention; "full" where nothing else fits.
"""

import argparse
from math import inf
from pathlib import Path

from torchtitan_lighthouse import configs


def main(args: list[str] | None = None) -> None:
    """Parse the command line and print the estimate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("config", type=Path, metavar="CONFIG", help=configs.HELP)
    parser.add_argument("--gpus", type=int, metavar="N", help="[as few as [parallelism] takes]")
    parser.add_argument(
        "--gpu-gib",
        type=_gib,
        metavar="GIB",
        help="also find the fastest activation checkpointing and the largest seq_len that fit this",
    )
    options, overrides = parser.parse_known_args(args)

    from torchtitan_lighthouse.estimate.report import fitting, left_out, peaks_by_stage
    from torchtitan_lighthouse.titan.config import LighthouseConfigManager
    from torchtitan_lighthouse.titan.layout import layouts_of

    file = configs.find(options.config)
    job_config = LighthouseConfigManager().parse_args(["--job.config_file", str(file), *overrides])
    training, validation = job_config.training, job_config.validation
    layouts = layouts_of(job_config, options.gpus)
    print(peaks_by_stage(layouts, training.seq_len))
    validated = validation.local_batch_size * validation.seq_len * validation.enable
    if note := left_out(training.local_batch_size * training.seq_len, validated):
        print(f"{note}\n")
    if options.gpu_gib is not None:
        print(fitting(layouts, training.seq_len, options.gpu_gib))


def _gib(text: str) -> float:
    gib = float(text)
    if not 0 < gib < inf:
        raise argparse.ArgumentTypeError(f"{text} must be a positive number")
    return gib


if __name__ == "__main__":
    main()
