"""The chart that ``torchtitan_lighthouse plot`` draws."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.markers import CARETUP

from tests.support.runs import write_metrics, write_run
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.metrics import HELD_OUT_LIGHTHOUSE_LOSS, HELD_OUT_LOSS
from torchtitan_lighthouse.tools import plot as plot_tool


@pytest.fixture
def charts(monkeypatch):
    """The panels of the charts that were drawn, as [steps, time] pairs of axes."""
    drawn, close = [], plt.close
    monkeypatch.setattr(plt, "close", lambda figure: drawn.append(figure.axes))
    yield drawn
    close("all")


def lines(axes):
    """(x, y) of the smoothed lines, run after run; a run alone has its raw line first."""
    return [line.get_data() for line in axes.get_lines() if len(line.get_xdata()) > 2]


def marks(axes):
    """(x, y) of the held-out losses: under dense and under Lighthouse attention, run after run."""
    shown = [line for line in axes.get_lines() if line.get_marker() not in ("None", CARETUP)]
    return [line.get_xydata().tolist() for line in shown]


def legend(axes):
    (legend,) = axes.figure.legends
    return [text.get_text() for text in legend.get_texts()]


def switches(axes):
    return [line.get_xdata()[0] for line in axes.get_lines() if line.get_linestyle() == "--"]


def test_a_png_beside_the_metrics_whose_path_is_printed(tmp_path, capsys):
    plot_tool.main([write_run(tmp_path / "run", range(1, 101), 60)])
    png = tmp_path / "run" / "loss.png"
    assert png.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.strip() == str(png)


def test_both_panels_show_every_loss_and_the_switch(charts, tmp_path):
    plot_tool.main([write_run(tmp_path / "run", range(1, 101), 60, pace=2.0)])
    ((by_step, by_time),) = charts
    (steps, loss), _ = lines(by_step)
    assert np.array_equal(steps, range(1, 101))
    assert np.array_equal(loss, 1 / steps)
    assert switches(by_step) == [61]
    (seconds, _), _ = lines(by_time)
    assert by_time.get_xlabel() == "training time (minutes)"
    assert np.allclose(seconds * 60, 2 * steps)
    assert switches(by_time) == [2 * 61 / 60]


def test_the_smoothed_line_averages_each_stage_by_itself(charts, tmp_path):
    run = write_run(tmp_path / "run", range(1, 41), 20, loss=lambda step: 5.0 if step > 20 else 1.0)
    plot_tool.main([run, "--smooth", "9"])
    _, (steps, mean) = lines(charts[0][0])
    assert np.allclose(mean, np.where(steps > 20, 5.0, 1.0))


def test_a_mean_of_more_steps_than_a_stage_has_is_that_stage_s(charts, tmp_path):
    run = write_run(tmp_path / "run", range(1, 41), 38, loss=float)
    plot_tool.main([run, "--smooth", "9"])
    _, (_, mean) = lines(charts[0][0])
    assert np.isclose(mean[10], 11.0)
    assert np.allclose(mean[38:], 39.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_run_is_drawn_where_it_is_finite(charts, tmp_path, bad):
    run = write_run(tmp_path / "run", range(1, 41), 40, loss=lambda n: bad if n > 30 else 2.0 + n)
    plot_tool.main([run, "--smooth", "5"])
    _, (steps, mean) = lines(charts[0][0])
    assert np.allclose(mean[(steps > 2) & (steps < 29)], 2 + np.arange(3, 29))
    # From the ninth of forty steps to the last whose mean is finite.
    assert np.allclose(charts[0][0].get_ylim(), (2 + 9 - 0.04 * 19, 2 + 28 + 0.04 * 19))


def test_a_run_that_was_never_finite_is_drawn(charts, tmp_path):
    plot_tool.main([write_run(tmp_path / "run", range(1, 9), 8, loss=lambda _: float("nan"))])
    assert charts[0][0].get_ylim() == (0, 1)


def test_a_mean_starts_anew_behind_what_is_not_finite(charts, tmp_path):
    run = write_run(tmp_path / "run", range(1, 41), 40, loss=lambda n: np.nan if n == 9 else 2.0)
    plot_tool.main([run, "--smooth", "5"])
    _, (steps, mean) = lines(charts[0][0])
    assert np.allclose(mean[abs(steps - 9) > 2], 2.0)
    assert np.isnan(mean[abs(steps - 9) <= 2]).all()


def test_runs_are_overlaid_in_their_own_colours_and_named(charts, tmp_path):
    runs = [
        write_run(tmp_path / "lighthouse", range(10, 101, 10), 50),
        write_run(tmp_path / "baseline", range(10, 101, 10), 0),
    ]
    plot_tool.main([*runs, "--out", str(tmp_path / "charts" / "both.png")])
    assert (tmp_path / "charts" / "both.png").exists()
    ((by_step, by_time),) = charts
    colours = [line.get_color() for line in by_step.get_lines() if len(line.get_xdata()) > 2]
    assert colours == ["C0", "C1"]  # the raw lines of several runs would hide each other
    assert switches(by_step) == [60]
    assert legend(by_time) == ["lighthouse", "baseline", "switch to dense"]
    assert by_time.get_legend() is None  # nothing stands on the curves


def test_labels_replace_the_folders_names(charts, tmp_path):
    runs = [write_run(tmp_path / name, range(1, 9), 0) for name in "ab"]
    plot_tool.main([*runs, "--labels", "one", "two"])
    assert legend(charts[0][1]) == ["one", "two"]
    with pytest.raises(RefusalError, match="2 runs need as many labels, and have one"):
        plot_tool.main([*runs, "--labels", "one"])


def test_held_out_losses_are_drawn_where_there_are_any(charts, tmp_path):
    run = write_run(tmp_path / "run", range(1, 9), 4)
    both = {HELD_OUT_LOSS: 3.0, HELD_OUT_LIGHTHOUSE_LOSS: 2.0, "stage": "lighthouse"}
    write_metrics(tmp_path / "run", (8, {HELD_OUT_LOSS: 1.0, "stage": "dense"}))
    plot_tool.main([run])
    assert marks(charts[0][0]) == [[[8.0, 1.0]], []]
    write_metrics(tmp_path / "run", (4, both), started=100.0)
    plot_tool.main([run])
    assert marks(charts[1][0]) == [[[4.0, 3.0]], [[4.0, 2.0]]]
    _, lighthouse = (line for line in charts[1][0].get_lines() if line.get_marker() == "o")
    assert lighthouse.get_markerfacecolor() == "white"


def test_runs_marks_differ_in_shape(charts, tmp_path):
    runs = [write_run(tmp_path / name, range(1, 9), 0, **{HELD_OUT_LOSS: 0.2}) for name in "ab"]
    plot_tool.main(runs)
    shapes = [line.get_marker() for line in charts[0][0].get_lines() if line.get_xydata().size]
    assert shapes == ["None", "o", "None", "s"]


def test_the_axis_is_of_what_is_left_after_the_first_fall(charts, tmp_path):
    """Of held-out losses under dense attention too, which are far above it in the first stage."""
    runs = [
        write_run(
            tmp_path / name, range(1, 101), 60, loss=lambda n, end=end: 9.0 if n <= 10 else end
        )
        for name, end in (("a", 1.0), ("b", 1.1))
    ]
    write_metrics(tmp_path / "a", (100, {HELD_OUT_LOSS: 1.2, "stage": "dense"}))
    high = write_run(tmp_path / "c", range(1, 50), 50, loss=lambda n: 1.0, **{HELD_OUT_LOSS: 3.0})
    plot_tool.main([*runs, high])
    low, top = charts[0][0].get_ylim()
    assert (low, top) == pytest.approx((1.0 - 0.04 * 0.2, 1.2 + 0.04 * 0.2))
    edge = [line for line in charts[0][0].get_lines() if line.get_marker() == CARETUP]
    assert any((line.get_ydata() == top).sum() == 49 for line in edge)


def test_steps_are_whole_numbers(charts, tmp_path):
    plot_tool.main([write_run(tmp_path / "run", range(1, 4), 0)])
    ticks = charts[0][0].get_xticks()
    assert np.array_equal(ticks, np.round(ticks))


def test_folders_of_one_name_are_told_apart_by_their_paths(charts, tmp_path):
    runs = [write_run(tmp_path / name / "run", range(1, 9), 0) for name in "ab"]
    plot_tool.main(runs)
    assert legend(charts[0][1]) == runs


def test_seeds_share_a_colour_and_an_entry(charts, tmp_path):
    names = ("dense-seed0", "dense-seed1", "lighthouse-seed0")
    runs = [write_run(tmp_path / name, range(1, 101), 60) for name in names]
    plot_tool.main([*runs, "--out", str(tmp_path / "chart.png")])
    colours = [line.get_color() for line in charts[0][0].get_lines() if len(line.get_xdata()) > 2]
    assert colours[0] == colours[1] != colours[2]
    assert legend(charts[0][0])[:2] == ["dense (2 seeds)", "lighthouse-seed0"]


@pytest.mark.parametrize("length", [10, 40, 120, 240])
def test_the_legend_is_within_the_chart(charts, tmp_path, length):
    runs = [write_run(tmp_path / (name * length), range(1, 9), 0) for name in "abcde"]
    plot_tool.main([*map(str, runs), "--out", str(tmp_path / "out.png")])
    figure = charts[0][0].figure
    (drawn,) = figure.legends
    assert drawn.get_window_extent().width <= figure.bbox.width
