"""Tables of runs side by side. The first run is what the others are compared to."""

from itertools import groupby

from torchtitan_lighthouse.runs import summary
from torchtitan_lighthouse.runs.markdown import markdown
from torchtitan_lighthouse.runs.metrics import LOSS, PEAK_MEMORY, TOKENS, training_seconds
from torchtitan_lighthouse.runs.summary import Records

NOTES = """\
first loss        training loss of the stage's first logged step
final loss        mean training loss of the stage's last steps, a tenth of all the run's; of a run,
                  of its last stage's
tokens/s/device   median over the logged steps but a launch's first, which compiles
peak GiB          the most memory of one device; without a GPU, of one process
held-out          last loss on held-out text, under dense attention; its step, if not the last
over first        held-out loss over that of the first run, when both had last seen as many tokens
spike             highest of 20 logged losses after the switch, over the mean of 20 before it
steps to recover  from the switch until a mean of 20 logged steps is down to the mean before it
minutes           all that the run does, saving and validation included
speed-up          of the first run's time to the number of tokens that both have seen
"""
"""What the columns of both tables are."""

THINNED = """\
Runs of a metrics_thin.jsonl have means of neighbours in the place of logged steps: their losses,
spikes and steps to recover are of those. Those of the dump folders are exact.
"""
"""What is to be known of runs that an experiment has thinned."""


def stage_table(runs: dict[str, Records]) -> str:
    """Tabulate the runs' stages, a line for each."""
    rows = [("run", "stage", "steps", "first loss", "final loss", "tokens/s/device", "peak GiB")]
    for name, records in runs.items():
        for stage, group in groupby(summary.training_records(records), key=lambda r: r["stage"]):
            part = list(group)
            rows.append(
                (
                    name,
                    stage,
                    f"{part[0]['step']}-{part[-1]['step']}",
                    f"{part[0][LOSS]:.4f}",
                    f"{summary.final_loss(part, summary.final_steps(records)):.4f}",
                    f"{summary.throughput(part):,.0f}",
                    f"{max(r[PEAK_MEMORY] for r in part):.2f}",
                )
            )
    return markdown(rows)


def total_table(runs: dict[str, Records], to_loss: float | None = None) -> str:
    """Tabulate the runs: what each came to, what the switch cost, and how long it took.

    Args:
        to_loss: also show the minutes to this training loss.
    """
    heading = ["run", "final loss", "held-out", "over first", "spike", "steps to recover"]
    heading += ["tokens", "minutes", "speed-up"]
    baseline = next(iter(runs.values()))
    rows = [heading if to_loss is None else [*heading, f"minutes to {to_loss:g}"]]
    for name, records in runs.items():
        switch = summary.switch(records)
        row = [
            name,
            f"{summary.final_loss(records):.4f}",
            _shown_held_out(records),
            _shown(summary.held_out_over(records, baseline), "+.4f"),
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


def _shown_held_out(records: Records) -> str:
    step, text = summary.held_out_step(records), _shown(summary.held_out_loss(records), ".4f")
    return text if step in (None, records[-1]["step"]) else f"{text} (step {step:,})"


def _speed_up(records: Records, baseline: Records) -> float | None:
    tokens = min(summary.training_records(r)[-1][TOKENS] for r in (records, baseline))
    slow, fast = (summary.seconds_to_tokens(r, tokens) for r in (baseline, records))
    return slow / fast if slow and fast else None


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
