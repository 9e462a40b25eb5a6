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
from pathlib import Path

from torchtitan_lighthouse.estimate.choice import FORMS, fastest, peaks
from torchtitan_lighthouse.estimate.memory import MemoryModel, Peak
from torchtitan_lighthouse.titan.config import LighthouseConfigManager
from torchtitan_lighthouse.titan.stages import Stage

GIB = 2**30


def main(args: list[str] | None = None) -> None:
    """Parse the command line and print the estimate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file")
    parser.add_argument("--gpus", type=int, metavar="N", help="[as few as [parallelism] takes]")
    parser.add_argument(
        "--gpu-gib",
        type=float,
        metavar="GIB",
        help="also find the fastest activation checkpointing and the largest seq_len that fit this",
    )
    options, overrides = parser.parse_known_args(args)
    config_file = ["--job.config_file", str(options.config)]
    job_config = LighthouseConfigManager().parse_args([*config_file, *overrides])
    try:
        memory = MemoryModel(job_config, options.gpus)
        seq_len = job_config.training.seq_len
        for stage in memory.stages:
            print(table(memory.peak(seq_len, stage), stage, seq_len, memory.gpus))
        if options.gpu_gib is not None:
            print(checkpointing(peaks(job_config, options.gpus), options.gpu_gib))
            longest = memory.largest_seq_len(int(options.gpu_gib * GIB))
            print(largest(longest, options.gpu_gib))
    except ValueError as error:
        parser.error(str(error))


def table(peak: Peak, stage: Stage, seq_len: int, gpus: int) -> str:
    """The parts of a peak in GiB, one a line."""
    job = f"{stage} stage, {seq_len:,} tokens, {gpus} GPU{'s' if gpus > 1 else ''}"
    lines = [f"{job}: GiB per GPU at {peak.moment}"]
    lines += [f"{size / GIB:10.2f}  {part}" for part, size in peak.parts.items() if size]
    return "\n".join([*lines, f"{peak.total / GIB:10.2f}  in all", ""])


def checkpointing(of_forms: dict[str, int], gpu_gib: float) -> str:
    """The peak of each form in GiB, one a line, and the options of the fastest that fits."""
    lines = ["Activation checkpointing, the fastest first: GiB per GPU at the peak"]
    lines += [f"{size / GIB:10.2f}  {form}" for form, size in of_forms.items()]
    form = fastest(of_forms, gpu_gib * GIB)
    if form is None:
        found = "none fits"
    else:
        options = [f"--activation_checkpoint.{name} {v}" for name, v in FORMS[form].items()]
        found = f"the fastest that fits is {form}: {' '.join(options)}"
    return "\n".join([*lines, f"In {gpu_gib:g} GiB, an eighth of the peak left free: {found}", ""])


def largest(seq_len: int, gpu_gib: float) -> str:
    """One line; ``seq_len`` 0 means that none fits."""
    found = f"largest seq_len is {seq_len:,}" if seq_len else "no seq_len fits"
    return f"In {gpu_gib:g} GiB, with everything else as it is: {found}"


if __name__ == "__main__":
    main()
