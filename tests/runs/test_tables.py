"""Tables of runs side by side, from folders and from wandb."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.runs import write_metrics, write_run
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.metrics import (
    HELD_OUT_LOSS,
    LOSS,
    PEAK_MEMORY,
    TOKENS,
    TOKENS_PER_SECOND,
    read_metrics,
)
from torchtitan_lighthouse.runs.names import file_name, path_name
from torchtitan_lighthouse.runs.read import read_runs
from torchtitan_lighthouse.runs.tables import THINNED, stage_table, total_table
from torchtitan_lighthouse.runs.thin import thin
from torchtitan_lighthouse.tools import compare as compare_tool
from torchtitan_lighthouse.tools import plot as plot_tool


def cells(table):
    """The table as one dict per line."""
    heading, _, *lines = ([c.strip() for c in line[1:-1].split("|")] for line in table.splitlines())
    return [dict(zip(heading, line, strict=True)) for line in lines]


@pytest.fixture
def runs(tmp_path):
    dense = write_run(tmp_path / "dense", range(1, 201), 0, pace=3.0, **{HELD_OUT_LOSS: 1.5})
    ours = write_run(tmp_path / "ours", range(1, 151), 100, **{HELD_OUT_LOSS: 1.25})
    return [dense, ours]


def test_a_line_for_every_stage(runs):
    lines = cells(stage_table(read_runs(runs)))
    assert [(line["run"], line["stage"], line["steps"]) for line in lines] == [
        ("dense", "dense", "1-200"),
        ("ours", "lighthouse", "1-100"),
        ("ours", "dense", "101-150"),
    ]
    # The mean of 1/n over the last fifteen steps, a tenth of the run's.
    assert lines[2]["final loss"] == "0.0070"
    assert [line["tokens/s/device"] for line in lines] == ["33", "100", "100"]


def test_the_final_loss_is_the_same_in_both_tables(runs):
    of_stages = {line["run"]: line["final loss"] for line in cells(stage_table(read_runs(runs)))}
    totals = {line["run"]: line["final loss"] for line in cells(total_table(read_runs(runs)))}
    assert totals == of_stages  # those of the last stages


def test_runs_of_one_length_are_compared_over_as_many_steps(tmp_path):
    """A loss that still falls would flatter the one whose last stage is short."""
    paths = [write_run(tmp_path / str(at), range(1, 101), at, loss=lambda n: -n) for at in (0, 80)]
    totals = cells(total_table(read_runs(paths)))
    assert [line["final loss"] for line in totals] == ["-95.5000"] * 2


def test_runs_are_compared_to_the_first_at_equal_tokens(runs):
    dense, ours = cells(total_table(read_runs(runs), to_loss=0.02))
    assert (dense["held-out"], dense["over first"], dense["speed-up"]) == (
        "1.5000",
        "+0.0000",
        "1.00",
    )
    assert (ours["held-out"], ours["over first"], ours["speed-up"]) == ("1.2500", "-0.2500", "3.00")
    assert (dense["spike"], dense["minutes"], ours["minutes"]) == ("-", "10.0", "2.5")
    # The mean of 1/n over the 20 steps up to 60 is the first at most 0.02.
    assert (dense["minutes to 0.02"], ours["minutes to 0.02"]) == ("3.0", "1.0")


def test_a_held_out_loss_of_an_earlier_step_says_so(runs, tmp_path):
    """A run in progress, or of a length that validation.freq does not divide."""
    write_run(tmp_path / "dense", range(201, 211), 0)
    dense, ours = cells(total_table(read_runs(runs)))
    assert (dense["held-out"], ours["held-out"]) == ("1.5000 (step 200)", "1.2500")


def test_runs_that_were_thinned_are_said_to_be(runs, tmp_path, capsys):
    records = read_runs(runs)["dense"]
    (file := tmp_path / "metrics_thin.jsonl").write_text(
        "".join(json.dumps({"run": "dense", **record}) + "\n" for record in thin(records, 20))
    )
    compare_tool.main([*runs, "--out", str(tmp_path / "a.png")])
    assert THINNED not in capsys.readouterr().out
    compare_tool.main([str(file), "--out", str(tmp_path / "a.png")])
    assert THINNED in capsys.readouterr().out


def test_runs_that_were_thinned_where_they_validate_between_logged_steps_have_tables(tmp_path):
    """Of two logged steps and a validation each record has what the steps had."""
    records = read_runs([write_run(tmp_path / "run", range(10, 101, 10), 0)])["run"]
    records[0][PEAK_MEMORY] = 7.0
    validation = {"stage": "dense", HELD_OUT_LOSS: 1.0}
    for step in (25, 55, 95):
        records.append({**records[0], "step": step, "time": step, **validation})
        for name in (LOSS, TOKENS, TOKENS_PER_SECOND, PEAK_MEMORY):
            del records[-1][name]
    records.sort(key=lambda record: record["step"])
    thinned = thin(records, 3)
    assert len(thinned) < 6
    assert all(
        {LOSS, TOKENS, TOKENS_PER_SECOND, PEAK_MEMORY} <= r.keys() for r in thinned if LOSS in r
    )
    (line,) = cells(stage_table({"run": thinned}))
    assert (line["peak GiB"], line["tokens/s/device"]) == ("7.00", "100")
    (line,) = cells(total_table({"run": thinned}))
    assert line["tokens"] == "10,000"


def test_the_command_prints_both_tables_and_draws(runs, tmp_path, capsys):
    png = tmp_path / "new" / "comparison.png"
    compare_tool.main([*runs, "--out", str(png)])
    printed = capsys.readouterr().out
    assert stage_table(read_runs(runs)) in printed
    assert total_table(read_runs(runs)) in printed
    headings = [line for line in printed.splitlines() if line.startswith("| run")]
    columns = {cell.strip() for line in headings for cell in line[1:-1].split("|")}
    plain = {"run", "stage", "steps", "tokens"}
    assert all(f"\n{column} " in printed for column in columns - plain)
    assert "GPU" not in "".join(headings)
    assert png.read_bytes().startswith(b"\x89PNG")


def test_smoothing_and_the_chart_s_place_are_those_of_plot_loss(runs, monkeypatch):
    drawn = []
    monkeypatch.setattr("torchtitan_lighthouse.runs.plot.plot", lambda *args: drawn.append(args))
    for tool in (plot_tool, compare_tool):
        tool.main([*runs, "--smooth", "7"])
    assert drawn[0] == drawn[1]
    png = file_name("loss", [path_name(runs[1])], ".png")
    assert drawn[0][1:] == (Path(runs[0], png), 7)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_call_on_other_runs_of_the_same_name_keeps_the_chart(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    runs = [write_run(tmp_path / name, range(1, 9), 0) for name in ("a", "x/b", "y/b")]
    if kind == "folder":
        calls = [["a", "x/b"], ["a", "y/b"]]
    else:
        calls = [["x/thin.jsonl"], ["y/thin.jsonl"]]
        for run in runs[1:]:
            lines = [json.dumps({**record, "run": "dense-seed0"}) for record in read_metrics(run)]
            Path(run).with_name("thin.jsonl").write_text("\n".join(lines))
    drawn = []
    monkeypatch.setattr("torchtitan_lighthouse.runs.plot.plot", lambda *args: drawn.append(args[1]))
    for call in calls:
        plot_tool.main(call)
    assert len(set(drawn)) == 2


@pytest.mark.parametrize(
    "option", [("--out", "chart.doc"), ("--out", "."), ("--smooth", "0"), ("--smooth", "-3")]
)
def test_what_no_chart_can_be_is_refused_before_a_run_is_read(capsys, option):
    with pytest.raises(SystemExit) as end:
        plot_tool.main(["no/run", *option])
    assert end.value.code == 2
    assert f"argument {option[0]}: '{option[1]}' must" in capsys.readouterr().err


def test_a_run_of_no_step_is_refused(runs, tmp_path):
    folder = tmp_path / "started"
    write_metrics(folder, (0, {HELD_OUT_LOSS: 5.0, "stage": "dense"}))
    for tool in (plot_tool, compare_tool):
        with pytest.raises(RefusalError, match=f"{folder} has logged no step yet"):
            tool.main([runs[0], str(folder)])


def test_a_diverged_run_is_a_line_like_others(runs, tmp_path):
    run = write_run(tmp_path / "bad", range(1, 51), 25, loss=lambda n: 1.0 if n < 40 else np.nan)
    _, bad = cells(total_table(read_runs([runs[0], run]), to_loss=0.5))
    assert (bad["final loss"], bad["minutes to 0.5"]) == ("nan", "-")


def test_what_is_no_run_is_refused(tmp_path):
    for path, message in [
        (str(tmp_path), "metrics.jsonl"),
        ("nowhere", "neither a dump folder nor a wandb run"),
    ]:
        with pytest.raises((RefusalError, FileNotFoundError), match=message):
            compare_tool.main([path])


def test_a_wandb_run_reads_like_a_folder(runs, monkeypatch):
    """With wandb's client replaced: rows as its scan_history gives them."""
    records = read_metrics(runs[1])
    rows = [
        {
            "_step": r["step"],
            "_timestamp": 1e9 + r["time"],
            "_runtime": r["time"],
            "lighthouse/stage": int(r["stage"] == "lighthouse"),
            **{n: v for n, v in r.items() if n not in ("step", "time", "started", "stage")},
            "other": None,
        }
        for r in records
    ]
    rows.insert(0, {"_step": 0, "_timestamp": 1e9, "_runtime": 0.0, "system": 1})
    run = SimpleNamespace(scan_history=lambda: iter(rows))
    wandb = SimpleNamespace(Api=lambda: SimpleNamespace(run={"team/project/abc": run}.get))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    by_folder = total_table(read_runs([runs[0], runs[1]], ["dense", "ours"]))
    assert total_table(read_runs([runs[0], "team/project/abc"], ["dense", "ours"])) == by_folder


def test_a_file_of_several_runs_reads_like_their_folders(runs, tmp_path):
    file = tmp_path / "metrics_thin.jsonl"
    lines = [{"run": Path(run).name, **r} for run in runs for r in read_metrics(run)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_runs([str(file)]) == read_runs(runs)
    assert next(iter(read_runs([str(file), runs[0]]))) == f"{file}:{Path(runs[0]).name}"


def test_a_file_of_something_else_is_refused(runs):
    with pytest.raises(RefusalError, match="for one run give its dump folder"):
        compare_tool.main([str(Path(runs[0], "metrics.jsonl"))])
