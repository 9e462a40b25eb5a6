"""The scripts that train several runs, with the trainer replaced by what its checks let pass."""

import importlib
import subprocess

import pytest

from tests.support.jobs import TOML, launched_job, save_step
from tests.support.runs import write_run
from torchtitan_lighthouse.runs.metrics import HELD_OUT_LOSS, read_metrics
from torchtitan_lighthouse.titan.stages import stage_at


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(TOML)
    return path


@pytest.fixture
def launched():
    """The jobs that were launched, in order, by their folders' names."""
    return {}


@pytest.fixture
def script(launched, monkeypatch):
    """A function that loads a script whose trainer checks the job and makes its files up."""

    def train(config, folder, *, steps, options, processes):
        try:
            job = launched_job(config, folder, steps=steps, options=options)
        except ValueError as error:
            raise subprocess.CalledProcessError(1, options) from error
        launched[folder.name] = job
        for step in {*range(0, steps, job.checkpoint.interval), steps}:
            save_step(job, step)
        stages = [stage_at(step, job.lighthouse) for step in range(1, steps + 1)]
        switch = stages.count("lighthouse")
        write_run(folder, range(1, steps + 1), switch, **{HELD_OUT_LOSS: 1 + switch / 1000})
        return read_metrics(folder)

    def load(name):
        module = importlib.import_module(f"torchtitan_lighthouse.tools.{name}")
        monkeypatch.setattr(module, "train", train)
        return module

    return load


def recoverability(config, out, *options):
    return [str(config), "--out", str(out), *options]


def test_dense_from_scratch_and_one_first_stage_that_every_split_resumes(
    script, launched, config, tmp_path
):
    script("recoverability").main(recoverability(config, tmp_path / "out", "--training.steps=32"))
    dense, first, *resumed = launched
    assert dense == "dense-seed0"
    assert first == "stage1-seed0"
    assert resumed == [f"lighthouse{n}-dense{32 - n}-seed0" for n in (20, 22, 24)]
    assert not launched[dense].lighthouse.enable
    assert launched[first].training.steps == 24
    for name, switch in zip(resumed, (20, 22, 24), strict=True):
        job = launched[name]
        assert (
            job.checkpoint.initial_load_path == f"{tmp_path}/out/{first}/checkpoint/step-{switch}"
        )
        assert not job.checkpoint.initial_load_model_only
        stages = [stage_at(step, job.lighthouse) for step in (switch, switch + 1)]
        assert stages == ["lighthouse", "dense"]


def test_the_runs_differ_in_nothing_else(script, launched, config, tmp_path):
    script("recoverability").main(recoverability(config, tmp_path / "out", "--training.steps=32"))
    differ = {"job", "checkpoint", "lighthouse"}
    jobs = [job.to_dict() for job in launched.values()]
    for job in jobs:
        assert job["lr_scheduler"]["total_steps"] == 32
        job["training"].pop("steps")
    common = [{name: s for name, s in job.items() if name not in differ} for job in jobs]
    assert common == common[:1] * 5


def test_seeds_are_runs_of_their_own(script, launched, config, tmp_path):
    options = ["--training.steps=32", "--splits", "0.5", "--seeds", "0", "1", "--dense-seeds", "7"]
    script("recoverability").main(recoverability(config, tmp_path / "out", *options))
    assert [(name, job.debug.seed) for name, job in launched.items()] == [
        ("dense-seed0", 0),
        ("stage1-seed0", 0),
        ("lighthouse16-dense16-seed0", 0),
        ("dense-seed1", 1),
        ("stage1-seed1", 1),
        ("lighthouse16-dense16-seed1", 1),
        ("dense-seed7", 7),
    ]


def test_the_table_compares_whole_runs_to_the_dense_one(script, config, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--training.steps=32", "--splits", "0.5"]
    script("recoverability").main(recoverability(config, out, *options))
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "stage1" not in table
    (line,) = (line for line in table.splitlines() if "lighthouse16" in line and "1.0160" in line)
    assert "+0.0160" in line
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_killed_in_its_first_checkpoint_starts_again(script, config, tmp_path):
    out = tmp_path / "out"
    name = "lighthouse16-dense16-seed0"
    (out / name / "checkpoint/step-24").mkdir(parents=True)
    options = ["--training.steps=32", "--splits", "0.5"]
    script("recoverability").main(recoverability(config, out, *options))
    assert (out / name / "checkpoint/step-32/.metadata").exists()


def test_what_is_no_checkpoint_is_left_alone(script, config, tmp_path):
    folder = tmp_path / "checkpoint"
    (folder / "step-24").mkdir(parents=True)
    (folder / "notes").touch()
    script("recoverability").remove_unfinished(folder)
    assert [path.name for path in folder.iterdir()] == ["notes"]


def test_the_checkpoint_folder_is_the_job_s(script, launched, config, tmp_path):
    out = tmp_path / "out"
    (out / "dense-seed0/saved/step-24").mkdir(parents=True)
    (out / "dense-seed0/checkpoint/step-24").mkdir(parents=True)
    options = ["--training.steps=32", "--splits", "0.5", "--checkpoint.folder=saved"]
    script("recoverability").main(recoverability(config, out, *options))
    saved = {path.name for path in (out / "dense-seed0/saved").iterdir()}
    assert saved == {"step-0", "step-32"}
    assert (out / "dense-seed0/checkpoint/step-24").exists()
    path = launched["lighthouse16-dense16-seed0"].checkpoint.initial_load_path
    assert path == f"{out}/stage1-seed0/saved/step-16"


@pytest.mark.parametrize(("interval", "first_stage"), [(500, 4), (24, 4), (2, 2), (10, 2)])
def test_checkpoints_are_made_at_each_switch_and_as_often_as_the_config_s(
    script, launched, config, tmp_path, interval, first_stage
):
    options = ["--training.steps=32", "--splits", "0.5", "0.625"]
    options += [f"--checkpoint.interval={interval}"]
    script("recoverability").main(recoverability(config, tmp_path / "out", *options))
    intervals = {name: job.checkpoint.interval for name, job in launched.items()}
    assert intervals.pop("stage1-seed0") == first_stage
    assert set(intervals.values()) == {interval}


def test_each_seed_is_compared_to_its_own_dense_run(script, config, tmp_path):
    out = tmp_path / "out"
    options = ["--training.steps=32", "--splits", "0.5", "--seeds", "0", "1", "--dense-seeds", "7"]
    module = script("recoverability")
    train = module.train

    def apart(config, folder, **kwargs):
        """The runs of seed 1 are 1 nat worse."""
        worse = folder.name.endswith("seed1")
        return [
            {**r, HELD_OUT_LOSS: r[HELD_OUT_LOSS] + worse} for r in train(config, folder, **kwargs)
        ]

    module.train = apart
    module.main(recoverability(config, out, *options))
    tables = (out / "table.md").read_text().split("Seed ")[1:]
    rows = []
    for table in tables:
        heading, *lines = [line for line in table.splitlines() if line.startswith("| ")]
        column = [cell.strip() for cell in heading.split("|")].index("over first")
        cells = [[cell.strip() for cell in line.split("|")] for line in lines]
        rows.append([(line[1], line[column]) for line in cells if line[column][0] in "+-"])
    assert rows == [
        [
            ("dense-seed0", "+0.0000"),
            ("lighthouse16-dense16-seed0", "+0.0160"),
            ("dense-seed1", "+1.0000"),
            ("dense-seed7", "+0.0000"),
        ],
        [
            ("dense-seed1", "+0.0000"),
            ("lighthouse16-dense16-seed1", "+0.0160"),
            ("dense-seed0", "-1.0000"),
            ("dense-seed7", "-1.0000"),
        ],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--training.steps=30"],
            "training.steps = 30 must make whole numbers of the splits [0.62",
        ),
        (["--training.steps=32", "--splits", "0.5", "1"], "[0.5, 1.0] must be above 0 and below 1"),
        (["--training.steps=32", "--splits", "0"], "[0.0] must be above 0 and below 1"),
    ],
)
def test_a_split_that_cannot_be_is_refused(
    script, launched, config, tmp_path, capsys, options, message
):
    with pytest.raises(SystemExit):
        script("recoverability").main(recoverability(config, tmp_path / "out", *options))
    assert message in capsys.readouterr().err
    assert not launched


GRID = """
config = "{config}"
options = ["--training.steps", "6", "--lighthouse.steps", "4", "--checkpoint.interval", "6"]

[grid]
topk = [16, 24]
dense_layers = [[0, -1], []]
pin_first = [true, false]
"""


def test_every_combination_is_a_run_and_a_line(script, launched, config, tmp_path, capsys):
    (grid := tmp_path / "grid.toml").write_text(GRID.format(config=config))
    script("ablate").main([str(grid), "--out", str(tmp_path / "out")])
    sections = [job.lighthouse for job in launched.values()]
    assert [(s.topk, s.dense_layers, s.pin_first) for s in sections] == [
        (16, layers, pin) for layers in ([0, -1], []) for pin in (True, False)
    ]
    assert {job.training.steps for job in launched.values()} == {6}
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out
    heading, _, *lines = ([c.strip() for c in line[1:-1].split("|")] for line in table.splitlines())
    names = ["topk", "dense_layers", "pin_first", "S", "tokens/s, stage 1", "final loss"]
    assert heading == [*names, "held-out"]
    # 1/6 at the last step; S = 256/4 + 2·2·16.
    assert lines[0] == ["16", "0,-1", "True", "128", "100", "0.1667", "1.0040"]
    assert len(lines) == 8
    assert all("seq_len=256 must be a multiple" in line[-1] for line in lines[4:])


def table_lines(folder):
    """The cells of each line of table.md under its heading."""
    lines = (folder / "table.md").read_text().splitlines()[2:]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def ablate(script, config, tmp_path, **fields):
    """Run a grid of some fields; returns the table's lines."""
    values = "".join(f"{name} = {choices}\n" for name, choices in fields.items())
    head = GRID.format(config=config).partition("topk")[0]
    (grid := tmp_path / "grid.toml").write_text(head + values)
    script("ablate").main([str(grid), "--out", str(tmp_path / "out")])
    return table_lines(tmp_path / "out")


def test_a_first_combination_that_does_not_fit_is_a_line(script, launched, config, tmp_path):
    first, second = ablate(script, config, tmp_path, topk="[24, 16]")
    assert "seq_len=256 must be a multiple" in first[-1]
    assert second == ["16", "128", "100", "0.1667", "1.0040"]
    assert list(launched) == ["topk-16"]


@pytest.mark.parametrize(
    ("field", "choices", "dense"), [("enable", "[true, false]", "False"), ("steps", "[4, 0]", "0")]
)
def test_runs_without_a_lighthouse_stage_have_no_s(script, config, tmp_path, field, choices, dense):
    lines = ablate(script, config, tmp_path, **{field: choices})
    assert lines[1] == [dense, "-", "-", "0.1667", "1.0000"]
    assert lines[0][1:3] == ["128", "100"]


def test_the_others_go_on_where_a_run_fails(script, launched, config, tmp_path):
    with pytest.raises(SystemExit) as raised:  # layer 9 is refused by the trainer alone
        ablate(script, config, tmp_path, dense_layers="[[9], [0, -1]]")
    assert raised.value.code == 1
    first, second = table_lines(tmp_path / "out")
    assert first == ["9", "128", "-", "-", f"failed, see {tmp_path}/out/dense_layers-9/output.txt"]
    assert second[0] == "0,-1"
    assert list(launched) == ["dense_layers-0,-1"]


def test_a_folder_of_other_options_ends_the_ablation(script, config, tmp_path, monkeypatch, capsys):
    def other(*_, **__):
        raise ValueError("out/topk-16 was trained with optimizer.lr = 1")

    module = script("ablate")
    monkeypatch.setattr(module, "train", other)
    with pytest.raises(SystemExit):
        ablate(lambda _: module, config, tmp_path, topk="[16]")
    assert "was trained with optimizer.lr = 1" in capsys.readouterr().err
