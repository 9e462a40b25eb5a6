"""Experiments from their files to their tables, with a fake in the trainer's place."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.support.locks import holding
from torchtitan_lighthouse.experiments import schedule
from torchtitan_lighthouse.experiments.folder import FINISHED_FILE
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.metrics import METRICS_FILE
from torchtitan_lighthouse.tools import experiment

TWO_VARIANTS = """
config = "job.toml"
seeds = [0, 1]
options = ["--lighthouse.steps", "16"]

[[variants]]
name = "dense"
options = ["--lighthouse.no-enable"]

[[variants]]
name = "lighthouse"
"""
SPLITS = """
config = "job.toml"
options = ["--checkpoint.interval", "8"]

[[variants]]
name = "lighthouse"
splits = [0.5, 0.75]
"""
PASSKEYS = """
[passkeys]
lengths = [64, 128]
trials = 10
"""


REFUSED = 2


@pytest.fixture
def run(config, tmp_path, monkeypatch, capsys):
    """A function that runs an experiment on CPUs and returns what it printed and its status."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(toml, *options):
        (file := tmp_path / "experiment.toml").write_text(toml)
        try:
            experiment.main([str(file), "--out", str(tmp_path / "out"), *options])
        except SystemExit as error:
            return "".join(capsys.readouterr()), error.code
        except RefusalError as error:
            return str(error), REFUSED
        return "".join(capsys.readouterr()), 0

    return run


def rows(text, column):
    """The lines of the table with this first column, by their first cell."""
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines()]
    start = next(i for i, cells in enumerate(lines) if cells[0] == column)
    table = {}
    for cells in lines[start + 2 :]:
        if len(cells) != len(lines[start]):
            break
        table[cells[0]] = dict(zip(lines[start], cells, strict=True))
    return table


def overlap(launches):
    first, second = launches
    return first["begin"] < second["end"] and second["begin"] < first["end"]


def test_every_variant_is_trained_with_every_seed_and_tabulated(trainer, run, tmp_path):
    output, status = run(TWO_VARIANTS)
    assert status == 0
    names = ["dense-seed0", "lighthouse-seed0", "dense-seed1", "lighthouse-seed1"]
    assert trainer.names == names
    table = (tmp_path / "out/table.md").read_text()
    assert table in output
    # 1 + seed + 1/24 at the end.
    variant = rows(table, "variant")["lighthouse"]
    assert variant["held-out"] == "1.5417 (1.0417 to 2.0417)"
    assert variant["seeds"] == "0, 1"
    assert variant["over dense"] == "+0.0000"
    assert rows(table, "variant")["dense"]["over dense"] == "-"
    assert [row["held-out"] for row in rows(table, "run").values()] == ["1.0417"] * 2 + [
        "2.0417"
    ] * 2
    assert (tmp_path / "out/curves.png").read_bytes().startswith(b"\x89PNG")
    thin = (tmp_path / "out/metrics_thin.jsonl").read_text().splitlines()
    assert list(dict.fromkeys(json.loads(line)["run"] for line in thin)) == names


def test_each_seed_is_compared_with_the_first_variant_of_its_own(trainer, run):
    trainer.does("for n in range(1, 25): log(n, loss=2 * seed + (name[0] == 'l') * (1 + seed))")
    output, _ = run(TWO_VARIANTS)
    assert rows(output, "variant")["lighthouse"]["over dense"] == "+1.5000 (+1.0000 to +2.0000)"


def test_a_run_killed_in_its_first_checkpoint_starts_again(trainer, run, tmp_path):
    (tmp_path / "out/dense-seed0/checkpoint/step-24").mkdir(parents=True)
    assert run(TWO_VARIANTS, "--only", "dense-seed0")[1] == 0
    assert (tmp_path / "out/dense-seed0/checkpoint/step-24/.metadata").exists()


def test_as_many_processes_as_a_run_takes(trainer, run):
    run("gpus = 4\n" + TWO_VARIANTS, "--only", "dense-seed0", "--gpus", "4")
    assert "--nproc-per-node 4" in " ".join(trainer.launches[0]["args"])
    output, status = run("gpus = 4\n" + TWO_VARIANTS, "--gpus", "2")
    assert status == REFUSED
    assert "takes 4 GPUs, and there are 2" in output


def test_combinations_that_cannot_be_are_lines(trainer, run):
    output, status = run('config = "job.toml"\n[grid]\ntopk = [24, 16]\nenable = [true, false]')
    assert status == 0
    refused = rows(output, "not there")
    assert list(refused) == ["topk-24_enable-True"]
    assert "seq_len=256 must be a multiple" in refused["topk-24_enable-True"]["why"]
    found = {name: row["S"] for name, row in rows(output, "variant").items()}
    # 256/4 + 2·2·16, and none without a Lighthouse stage.
    assert found == {
        "topk-24_enable-False": "-",
        "topk-16_enable-True": "128",
        "topk-16_enable-False": "-",
    }


def test_as_many_run_at_once_as_there_are_devices(trainer, run):
    trainer.does("time.sleep(0.5)\ntrain(steps)")
    run(TWO_VARIANTS, "--gpus", "2")
    assert overlap(trainer.launches[:2])
    assert not overlap([trainer.launches[0], trainer.launches[3]])


def test_a_repeated_command_trains_what_is_not_finished(trainer, run):
    trainer.does("train(steps)\nsys.exit(name == 'dense-seed1' and 'no such flavor')")
    output, status = run(TWO_VARIANTS)
    assert status == 1
    assert len(trainer.launches) == 4
    assert "no such flavor" in output
    assert rows(output, "not there") == {
        "dense-seed1": {
            "not there": "dense-seed1",
            "why": f"failed, see {Path(trainer.script).parent}/out/dense-seed1/output.txt",
        }
    }
    trainer.does("train(steps)")
    output, status = run(TWO_VARIANTS)
    assert status == 0
    assert trainer.names[4:] == ["dense-seed1"]
    assert "dense-seed1" in rows(output, "run")


def test_a_tail_begins_when_its_checkpoint_is_there(trainer, run):
    trainer.does("train(min(steps, 14))\ntime.sleep(1)\ntrain(steps)")
    output, status = run(SPLITS, "--gpus", "2")
    assert status == 0, output
    launches = {launch["name"]: launch for launch in trainer.launches}
    first, tail = launches["lighthouse-stage1-seed0"], launches["lighthouse12-dense12-seed0"]
    assert overlap([first, tail])
    assert first["begin"] < tail["begin"]
    assert launches["lighthouse18-dense6-seed0"]["begin"] > first["end"]
    assert list(rows(output, "variant")) == ["lighthouse12-dense12", "lighthouse18-dense6"]


def test_a_tail_waits_for_the_validation_after_its_checkpoint(trainer, run, tmp_path):
    validates = "time.sleep(0.5)\nwrite(folder / 'validated', str(time.time()))"
    trainer.does(f"train(min(steps, 12))\n{validates}\ntrain(steps)")
    assert run(SPLITS, "--gpus", "2")[1] == 0
    begins = {launch["name"]: launch["begin"] for launch in trainer.launches}
    validated = (tmp_path / "out/lighthouse-stage1-seed0/validated").read_text()
    assert begins["lighthouse12-dense12-seed0"] > float(validated)


def test_a_first_stage_keeps_what_others_begin_from(trainer, run, tmp_path):
    run(SPLITS)
    first = tmp_path / "out/lighthouse-stage1-seed0/checkpoint"
    assert {path.name for path in first.iterdir()} == {"step-12", "step-16", "step-18"}


def test_nothing_begins_from_a_run_that_failed(trainer, run):
    trainer.does("train(14)\nsys.exit(steps == 18)")
    output, status = run(SPLITS)
    assert status == 1
    missing = rows(output, "not there")
    assert list(missing) == ["lighthouse-stage1-seed0", "lighthouse18-dense6-seed0"]
    assert (
        "lighthouse-stage1-seed0 did not come so far" in missing["lighthouse18-dense6-seed0"]["why"]
    )


def test_retrieval_follows_on_the_same_device(trainer, run):
    output, status = run(TWO_VARIANTS + PASSKEYS, "--seeds", "0")
    assert status == 0, output
    assert trainer.names == ["dense-seed0"] * 2 + ["lighthouse-seed0"] * 2
    arguments = trainer.launches[1]["args"]
    assert arguments[:3] == ["-m", "torchtitan_lighthouse", "niah"]
    assert arguments[3].endswith("out/dense-seed0/checkpoint/step-24")
    assert rows(output, "variant")["dense"]["passkeys, 128"] == "0.50"
    run(TWO_VARIANTS + PASSKEYS, "--seeds", "0")
    assert len(trainer.launches) == 4


def test_minutes_end_the_trainers_and_the_command_continues(trainer, run):
    trainer.does("signal.signal(15, lambda *_: (save(4), sys.exit(143)))\ntrain(4)\ntime.sleep(60)")
    output, status = run(TWO_VARIANTS, "--gpus", "2", "--minutes", "0.02")
    assert status == 3
    assert sorted(trainer.names) == ["dense-seed0", "lighthouse-seed0"]
    assert "Stopped, as --minutes 0.02 were over: repeat the command to continue" in output
    why = {name: row["why"] for name, row in rows(output, "not there").items()}
    assert why["dense-seed0"] == "stopped, step 4 of 24, lighthouse, loss 1.250"
    assert why["lighthouse-seed1"] == "not begun"
    trainer.does("train(steps)")
    assert run(TWO_VARIANTS, "--gpus", "2")[1] == 0


def test_a_signal_ends_the_trainers(trainer, run):
    trainer.does(
        "signal.signal(15, lambda *_: sys.exit(143))\ntrain(4)\n"
        "os.kill(os.getppid(), 15)\ntime.sleep(60)"
    )
    before = signal.getsignal(signal.SIGTERM)
    output, status = run(TWO_VARIANTS)
    assert status == 128 + signal.SIGTERM
    assert "Stopped, as SIGTERM: repeat the command to continue" in output
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(ProcessLookupError):
        os.kill(trainer.launches[0]["pid"], 0)


def test_trainers_have_the_time_that_the_experiment_waits_for_them(trainer, run, tmp_path):
    """torchrun would kill its ranks after 30 seconds, in a checkpoint maybe."""
    trainer.does(
        "write(folder / 'given', os.environ['TORCH_ELASTIC_SHUTDOWN_TIMEOUT'])\ntrain(steps)"
    )
    assert run(TWO_VARIANTS, "--only", "dense-seed0")[1] == 0
    given = int((tmp_path / "out/dense-seed0/given").read_text())
    assert 30 < given < schedule._GRACE_SECONDS


def test_a_trainer_that_ignores_its_end_is_killed(trainer, run, monkeypatch, tmp_path):
    monkeypatch.setattr(schedule, "_GRACE_SECONDS", 0.2)
    trainer.does(
        "signal.signal(15, signal.SIG_IGN)\nwrite(folder / 'pid', str(os.getpid()))\ntime.sleep(60)"
    )
    assert run(TWO_VARIANTS, "--minutes", "0.02")[1] == 3
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "out/dense-seed0/pid").read_text()), 0)


def test_only_some_and_what_they_begin_from(trainer, run):
    _, status = run(SPLITS, "--only", "lighthouse18-dense6")
    assert status == 0
    assert trainer.names == ["lighthouse-stage1-seed0", "lighthouse18-dense6-seed0"]


def test_a_finished_run_of_other_options_is_refused(trainer, run, tmp_path):
    run(TWO_VARIANTS, "--only", "dense-seed0")
    folder = tmp_path / "out/dense-seed0"
    assert (folder / FINISHED_FILE).exists()
    (folder / "job.json").write_text(json.dumps({"training": {"seq_len": 512}}))
    output, status = run(TWO_VARIANTS)
    assert status == REFUSED
    assert "was trained with training.seq_len = 512, and training.seq_len = 256" in output


def test_a_finished_run_that_is_only_shown_is_refused_too(trainer, run):
    run(TWO_VARIANTS, "--seeds", "0")
    other = TWO_VARIANTS.replace('"lighthouse"', '"lighthouse"\noptions = ["--lighthouse.topk=8"]')
    (trainer.script.parent / "out/lighthouse-seed0/job.json").write_text(
        json.dumps({"lighthouse": {"topk": 16}})
    )
    output, status = run(other, "--seeds", "0", "--only", "dense")
    assert status == REFUSED
    assert "out/lighthouse-seed0 was trained with lighthouse.topk = 16, and" in output


@pytest.mark.parametrize("change", ["loses", "is trained anew"])
def test_a_tail_of_another_first_stage_than_there_is_is_refused(trainer, run, tmp_path, change):
    run(SPLITS)
    first = tmp_path / "out/lighthouse-stage1-seed0"
    shutil.rmtree(first)
    if change == "is trained anew":
        trainer.does("for n in range(1, 25): log(n, loss=3.0)\nsave(12)\nsave(18)")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schedule, "check_trained", lambda _: None)
            run(SPLITS)
    output, status = run(SPLITS)
    assert status == REFUSED
    is_so = "is not there any more" if change == "loses" else "has been trained anew since"
    assert f"12-dense12-seed0 was trained from step 12 of {first}, which {is_so}" in output


def test_a_finished_run_without_metrics_is_refused(trainer, run, tmp_path):
    run(TWO_VARIANTS, "--seeds", "0")
    (tmp_path / "out/dense-seed0" / METRICS_FILE).write_text("")
    output, status = run(TWO_VARIANTS, "--seeds", "0")
    assert status == REFUSED
    assert "out/dense-seed0 is of a finished run, and has no metrics" in output


def test_a_run_that_another_process_trains_is_refused_and_left_alone(trainer, run, tmp_path):
    """As after an experiment was killed: its trainers go on."""
    step = tmp_path / "out/dense-seed0/checkpoint/step-8"
    step.mkdir(parents=True)
    with holding(tmp_path / "out/dense-seed0"):
        output, status = run(TWO_VARIANTS)
        assert status == REFUSED
        assert "out/dense-seed0 is in use by process 7 on node3: wait for its end" in output
        assert step.exists()
    assert run(TWO_VARIANTS)[1] == 0
