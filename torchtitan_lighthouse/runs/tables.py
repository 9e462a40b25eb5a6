"""Tables of runs side by side. The first run is what the others are compared to."""

from itertools import groupby

from torchtitan_lighthouse.runs import summary
from torchtitan_lighthouse.runs.markdown import markdown
from torchtitan_lighthouse.runs.metrics import LOSS, PEAK_MEMORY, TOKENS, training_seconds
from torchtitan_lighthouse.runs.summary import Records


def stage_table(runs: dict[str, Records]) -> str:
    """One line per stage of each run.

    The first loss is that of one step, the final one the mean of the stage's last tenth.
    """
    rows = [("run", "stage", "steps", "first loss", "final loss", "tokens/s/GPU", "peak GiB")]
    for name, records in runs.items():
        for stage, group in groupby(summary.training_records(records), key=lambda r: r["stage"]):
            part = list(group)
            rows.append(
                (
                    name,
                    stage,
                    f"{part[0]['step']}-{part[-1]['step']}",
                    f"{part[0][LOSS]:.4f}",
                    f"{summary.final_loss(part):.4f}",
                    f"{summary.throughput(part):,.0f}",
                    f"{max(r[PEAK_MEMORY] for r in part):.2f}",
                )
            )
    return markdown(rows)


def total_table(runs: dict[str, Records], to_loss: float | None = None) -> str:
    """One line per run: what it came to, what the switch cost, and how long it took.

    The final loss is the mean of the last tenth. Held-out losses are under dense attention. Minutes
    count all that a run does, saving and validation included. The speed-up is the ratio of the
    times to the same number of tokens, the most that both have seen.

    Args:
        to_loss: also show the minutes to this training loss.
    """
    heading = ["run", "final loss", "held-out", "over first", "spike", "steps to recover"]
    heading += ["tokens", "minutes", "speed-up"]
    baseline = next(iter(runs.values()))
    rows = [heading if to_loss is None else [*heading, f"minutes to {to_loss:g}"]]
    for name, records in runs.items():
        switch = summary.switch(records)
        held_out, reference = map(summary.held_out_loss, (records, baseline))
        gap = None if held_out is None or reference is None else held_out - reference
        row = [
            name,
            f"{summary.final_loss(records):.4f}",
            _shown(held_out, ".4f"),
            _shown(gap, "+.4f"),
            _shown(switch and switch.spike, "+.3f"),
            _shown(switch and switch.steps_to_recover, ","),
            f"{summary.training_records(records)[-1][TOKENS]:,.0f}",
            f"{training_seconds(records)[-1] / 60:.1f}",
            _shown(_speed_up(records, baseline), ".2f"),
        ]
        if to_loss is not None:
            seconds = summary.seconds_to_loss(records, to_loss)
            row.append(_shown(None if seconds is None else seconds / 60, ".1f"))
        rows.append(row)
    return markdown(rows)


def _speed_up(records: Records, baseline: Records) -> float | None:
    tokens = min(summary.training_records(r)[-1][TOKENS] for r in (records, baseline))
    slow, fast = (summary.seconds_to_tokens(r, tokens) for r in (baseline, records))
    return slow / fast if slow and fast else None


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
