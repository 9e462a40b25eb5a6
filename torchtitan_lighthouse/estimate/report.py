"""The estimate in words, in GiB: what a stage's peak is made of, and what fits a GPU."""

from collections.abc import Mapping

from torchtitan_lighthouse.estimate.choice import FORMS, fastest, live, peaks
from torchtitan_lighthouse.estimate.layout import Layout
from torchtitan_lighthouse.estimate.memory import largest_seq_len, peak

GIB = 2**30


def peaks_by_stage(stages: Mapping[str, Layout], seq_len: int) -> str:
    """List the parts of each stage's peak, one per line.

    Args:
        stages: the layouts of a job by their stages' names.
    """
    return "\n".join(_parts(name, layout, seq_len) for name, layout in stages.items())


def fitting(stages: Mapping[str, Layout], seq_len: int, gpu_gib: float) -> str:
    """Say which activation checkpointing and which sequence length fit a GPU of ``gpu_gib``."""
    forms = _checkpointing(peaks(stages.values(), seq_len), gpu_gib)
    longest = largest_seq_len(stages.values(), live(gpu_gib * GIB))
    found = f"the largest seq_len is {longest:,}" if longest else "no seq_len fits"
    return f"{forms}\n{_room(gpu_gib)}, and with everything else as it is: {found}"


def left_out(training: int, validation: int) -> str | None:
    """Say that validation is not in an estimate, where it has more tokens at once than training.

    Args:
        training: tokens of a batch of one rank.
        validation: the same; 0 without validation.
    """
    if validation <= training:
        return None
    return (
        f"Not counted: validation, of {validation:,} tokens at once, where training has "
        f"{training:,}: set validation.local_batch_size and validation.seq_len to no more"
    )


def _parts(stage: str, layout: Layout, seq_len: int) -> str:
    moment, parts = found = peak(layout, seq_len)
    gpus = f"{layout.ranks} GPU{'s' if layout.ranks > 1 else ''}"
    lines = [f"{stage} stage, {seq_len:,} tokens, {gpus}: GiB per GPU at {moment}"]
    lines += [f"{size / GIB:10.2f}  {part}" for part, size in parts.items() if size]
    return "\n".join([*lines, f"{found.total / GIB:10.2f}  in all", ""])


def _checkpointing(of_forms: dict[str, int], gpu_gib: float) -> str:
    """List the peak of each form, one per line, and the options of the fastest that fits."""
    lines = ["Activation checkpointing, the fastest first: GiB per GPU at the peak"]
    lines += [f"{size / GIB:10.2f}  {form}" for form, size in of_forms.items()]
    form = fastest(of_forms, gpu_gib * GIB)
    if form is None:
        found = "none fits"
    else:
        options = [f"--activation_checkpoint.{name} {v}" for name, v in FORMS[form].items()]
        found = f"the fastest that fits is {form}: {' '.join(options)}"
    return "\n".join([*lines, f"{_room(gpu_gib)}: {found}", ""])


def _room(gpu_gib: float) -> str:
    return f"In {gpu_gib:g} GiB, an eighth of the peak left free"
