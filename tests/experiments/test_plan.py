"""From an experiment's file to its runs: all that is decided before anything is trained."""

from functools import cache
from pathlib import Path

import pytest

from tests.experiments.conftest import TEXT, write_config
from tests.support.jobs import checked_job
from torchtitan_lighthouse.experiments.experiment import read_experiment
from torchtitan_lighthouse.experiments.plan import plan
from torchtitan_lighthouse.experiments.run import choose
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.folder.steps import step_of
from torchtitan_lighthouse.titan.stages import has_switch, stage_at

SPLITS = """
config = "job.toml"
options = ["--training.steps", "32"]

[[variants]]
name = "dense"
options = ["--lighthouse.no-enable"]
seeds = [0, 7]

[[variants]]
name = "lighthouse"
splits = [0.625, 0.6875, 0.75]
"""
WIDE = """
[[variants]]
name = "wide"
from = "lighthouse-stage1"
at = 22
options = ["--lighthouse.topk", "32", "--lighthouse.steps", "28"]
"""
GRID = """
config = "job.toml"
options = ["--training.steps", "6", "--lighthouse.steps", "4"]

[grid]
topk = [24, 16]
dense_layers = [[0, -1], []]
pin_first = [true, false]
"""
SHIPPED = sorted((Path(__file__).parents[2] / "train_configs/experiments").glob("*.toml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plan")


@pytest.fixture(scope="module")
def planned(folder):
    """A function that plans an experiment beside a job's config; each once, as parsing is slow."""
    write_config(folder)

    @cache
    def planned(toml, seeds=()):
        (file := folder / "experiment.toml").write_text(toml)
        return plan(read_experiment(file), folder / "out", seeds)

    return planned


def by_name(plan):
    return {run.name: run for run in plan.runs}


def test_one_first_stage_and_a_dense_tail_from_each_split(planned, folder):
    runs = by_name(planned(SPLITS))
    dense, first, *tails = list(runs)[:5]
    assert (dense, first) == ("dense-seed0", "lighthouse-stage1-seed0")
    assert tails == [f"lighthouse{n}-dense{32 - n}-seed0" for n in (20, 22, 24)]
    assert not runs[dense].job.lighthouse.enable
    assert (runs[first].steps, runs[first].is_first_stage) == (24, True)
    for name, switch in zip(tails, (20, 22, 24), strict=True):
        job = checked_job(runs[name])
        assert runs[name].source == first
        assert job.checkpoint.initial_load_path == (
            f"{folder}/out/{first}/checkpoint/step-{switch}"
        )
        assert not job.checkpoint.initial_load_model_only
        stages = [stage_at(step, job.lighthouse) for step in (switch, switch + 1)]
        assert stages == ["lighthouse", "dense"]


def test_the_runs_of_a_seed_differ_in_nothing_else(planned):
    jobs = [checked_job(run).to_dict() for run in planned(SPLITS).runs if run.seed == 0]
    for job in jobs:
        assert job["lr_scheduler"]["total_steps"] == 32
        job["training"].pop("steps")
    differ = {"job", "checkpoint", "lighthouse"}
    common = [{name: s for name, s in job.items() if name not in differ} for job in jobs]
    assert common == common[:1] * 5


def test_all_variants_of_a_seed_come_before_the_next(planned):
    runs = planned(SPLITS.replace("0.6875, 0.75", "0.75")).runs
    assert [(run.name, run.job.debug.seed) for run in runs] == [
        ("dense-seed0", 0),
        ("lighthouse-stage1-seed0", 0),
        ("lighthouse20-dense12-seed0", 0),
        ("lighthouse24-dense8-seed0", 0),
        ("dense-seed7", 7),
    ]
    assert {run.seed for run in planned(SPLITS, seeds=(3,)).runs} == {3}


def test_a_variant_begins_from_a_step_of_another(planned):
    runs = by_name(planned(SPLITS + WIDE))
    wide, first = runs["wide-seed0"], runs["lighthouse-stage1-seed0"]
    assert wide.job.checkpoint.initial_load_path.endswith(
        "lighthouse-stage1-seed0/checkpoint/step-22"
    )
    assert (wide.source, wide.steps, wide.job.lighthouse.topk) == (first.name, 32, 32)
    assert first.kept == {20, 22, 24}


@pytest.mark.parametrize("interval", [500, 24, 2, 10])
def test_checkpoints_are_there_where_a_tail_begins_and_where_the_config_wants_them(
    planned, interval
):
    toml = SPLITS.replace('"32"]', f'"32", "--checkpoint.interval", "{interval}"]')
    runs = by_name(planned(toml.replace("0.625, 0.6875, 0.75", "0.5, 0.625")))
    first = runs.pop("lighthouse-stage1-seed0")
    assert saved_steps(first) >= {16, 20, *range(interval, 21, interval)}
    assert not first.job.checkpoint.last_save_model_only
    assert {run.job.checkpoint.interval for run in runs.values()} == {interval}


def saved_steps(run) -> set[int]:
    """The steps whose checkpoints are there when torchtitan has trained a run."""
    checkpoint = run.job.checkpoint
    steps = [*range(checkpoint.interval, run.steps, checkpoint.interval), run.steps]
    return set(steps[-checkpoint.keep_latest_k :])  # 0 keeps all


def test_the_checkpoint_folder_is_the_job_s(planned):
    toml = SPLITS.replace('"32"]', '"32", "--checkpoint.folder", "saved"]')
    wide = WIDE.replace("options = [", 'options = ["--checkpoint.folder", "own", ')
    runs = by_name(planned(toml + wide))
    run = runs["lighthouse20-dense12-seed0"]
    assert run.job.checkpoint.initial_load_path.endswith("lighthouse-stage1-seed0/saved/step-20")
    assert run.checkpoints == run.folder / "saved"
    path = runs["wide-seed0"].job.checkpoint.initial_load_path
    assert path.endswith("lighthouse-stage1-seed0/saved/step-22")


def test_every_combination_of_a_grid_is_a_run_or_a_reason(planned):
    planned = planned(GRID)
    sections = [run.job.lighthouse for run in planned.runs]
    assert [(s.topk, s.dense_layers, s.pin_first) for s in sections] == [
        (16, layers, pin) for layers in ([0, -1], []) for pin in (True, False)
    ]
    assert [run.variant for run in planned.runs][-1] == "topk-16_dense_layers-none_pin_first-False"
    assert len(planned.refused) == 4
    assert all("topk-24" in name for name in planned.refused)
    assert all("seq_len=256 must be a multiple" in reason for reason in planned.refused.values())


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (
            SPLITS.replace('"32"', '"30"'),
            r"steps = 30 must make whole numbers of the splits \[0.62",
        ),
        (SPLITS.replace("0.75]", "1.0]"), r"0.6875, 1.0\] must be above 0 and below 1"),
        (SPLITS.replace("[0.625", "[0.0, 0.625"), r"\[0.0, .* must be above 0 and below 1"),
        (SPLITS + WIDE.replace("22", "32"), "begins from step 32 of lighthouse-stage1, which must"),
        (SPLITS + WIDE.replace("-stage1", ""), "of a variant above it: dense, lighthouse-stage1, "),
        (SPLITS + WIDE + "seeds = [1]", "lighthouse-stage1-seed1 must be trained, too"),
        (SPLITS + WIDE.replace("at = 22", ""), "'from' and 'at' go together"),
        (
            SPLITS + WIDE.replace("at =", "steps ="),
            "a variant of experiment.toml has steps: it can",
        ),
        (SPLITS.replace("config", "configs"), "experiment.toml has configs: it can have config, "),
        (
            SPLITS.replace("job.toml", "jobs.toml"),
            "config = 'jobs.toml': there is no .*jobs.toml; a config that is shipped ",
        ),
        (SPLITS.replace('"lighthouse"', '"dense"'), "needs variants, each with a name of its own"),
        (SPLITS.replace("no-enable", "topk=24"), "variant dense: seq_len=256 must be a multiple"),
        (SPLITS.replace("no-enable", "steps=40"), r"lighthouse.steps = 40 must be from 0 to"),
        (
            SPLITS + "[passkeys]\nlengths = [64]\ntrials = 15",
            "must be a multiple of 10 digits; use 10",
        ),
        (
            SPLITS.replace("no-enable", "no-enable', '--checkpoint.no-enable".replace("'", '"'))
            + "[passkeys]\nlengths = [64]",
            "needs a checkpoint",
        ),
        (SPLITS + "[passkeys]\nlengths = [64, 512]", r"lengths=512 of .*; use at most 256"),
        ("config = [", "experiment.toml cannot be read: "),
        (
            SPLITS.replace('["--training.steps", "32"]', '"--training.steps 32"'),
            "must be a list of",
        ),
        ("seeds = 3" + SPLITS, "experiment.toml: seeds = 3 must be a list of integers"),
        ("gpus = 0" + SPLITS, "gpus = 0 must be an integer of at least 1"),
        (
            SPLITS.replace("no-enable", "no-enable', '--validation.freq=0".replace("'", '"')),
            "freq=0 must",
        ),
        (SPLITS + "[passkeys]\nlengths = [64]\ntrials = 0", "trials = 0 must be an integer of at"),
        (SPLITS.replace('"dense"', '"../dense"'), "variant ../dense .* has no slash"),
        (SPLITS + "[grid]\ntopk = 8", r"\[grid\]: topk = 8 must be a list of its values"),
        ('config = "job.toml"\n[grid]\ntopk = [24]', "no combination .* topk-24: seq_len=256 must"),
        (SPLITS.replace('"32"]', '"32", "--debug.seed=3"]'), "--debug.seed is given by the seeds"),
        (SPLITS.replace('"32"]', '"32", "--job.dump-folder=x"]'), "--job.dump-folder is given by"),
        (SPLITS.replace('"32"]', '"32", "--lighthouse.no-enable"]'), "splits need lighthouse.enab"),
        (SPLITS.replace('"dense"', '"lighthouse-stage1"'), "two are called lighthouse-stage1"),
        (SPLITS + WIDE + "splits = [0.75]", "wide .* has 'from' and 'splits'"),
        (
            SPLITS
            + WIDE.replace("-stage1", "22-dense10")
            .replace('"--l', '"--training.steps", "64", "--l', 1)
            .replace("22\n", "40\n"),
            "step 40 of lighthouse22-dense10, which must be below both .*, 32,",
        ),
        (
            SPLITS.replace('"32"]', '"128", "--checkpoint.interval", "64"]').replace(
                "0.625, 0.6875", "0.5078125"
            ),
            "step 65, and with .* 64 that takes a checkpoint at every 1 steps: begin from 64 or ",
        ),
        (
            SPLITS.replace(
                '"32"]',
                '"32", "--validation.enable", "--validation.seq_len=256", "--validation.freq=12"]',
            ),
            r"validation.freq=12 must divide training.steps=32, .*; use 8 or 16",
        ),
    ],
    ids=lambda value: value if len(value) < 70 else "",
)
def test_an_experiment_that_cannot_be_is_refused(planned, toml, message):
    with pytest.raises(RefusalError, match=message):
        planned(toml)


def test_a_text_that_is_not_there_is_refused_with_the_line_that_makes_it(config, tmp_path):
    (tmp_path / TEXT).unlink()
    (file := tmp_path / "experiment.toml").write_text(SPLITS)
    with pytest.raises(RefusalError, match=r"python scripts/linux_corpus\.py .*/text\.txt`"):
        plan(read_experiment(file), tmp_path / "out")


def test_chosen_runs_come_with_those_that_they_begin_from(planned):
    runs = planned(SPLITS).runs
    chosen = choose(runs, ["lighthouse24-dense8", "dense-seed7"])
    names = ["lighthouse-stage1-seed0", "lighthouse24-dense8-seed0", "dense-seed7"]
    assert [run.name for run in chosen] == names
    assert choose(runs, None) == runs
    again = WIDE.replace("lighthouse-stage1", "wide").replace('name = "wide"', 'name = "wider"', 1)
    runs = planned(SPLITS + WIDE + again.replace("at = 22", "at = 26")).runs
    names = ["lighthouse-stage1-seed0", "wide-seed0", "wider-seed0"]
    assert [run.name for run in choose(runs, ["wider"])] == names
    with pytest.raises(RefusalError, match="--only sparse: must be of dense dense-seed0 lighthou"):
        choose(runs, ["dense", "sparse"])


@pytest.fixture(scope="module", params=SHIPPED, ids=lambda path: path.stem)
def shipped(request, tmp_path_factory):
    """The plan of one seed of a shipped experiment, in a folder that has its text."""
    folder = tmp_path_factory.mktemp("shipped")
    (folder / "data").mkdir()
    (folder / "data/linux.jsonl").write_text('{"text": "some"}\n')
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        yield plan(read_experiment(request.param), Path("out"), (0,))


def test_shipped_experiments_are_of_jobs_that_can_be(shipped):
    assert shipped.runs
    assert not shipped.refused
    for run in shipped.runs:
        job = checked_job(run)
        assert job.checkpoint.enable
        assert not job.metrics.enable_wandb
        if job.lighthouse.enable:
            config = job.lighthouse.attention_config()
            assert config.sub_sequence_length(job.training.seq_len) < job.training.seq_len
            assert has_switch(job.lighthouse, job.training.steps) or run.is_first_stage


def test_validation_of_compiled_models_has_the_batch_s_shape(shipped):
    compiled = [run.job for run in shipped.runs if run.job.compile.enable]
    for job in compiled:
        training, validation = job.training, job.validation
        assert (validation.seq_len, validation.local_batch_size) == (
            training.seq_len,
            training.local_batch_size,
        )


def test_a_tail_begins_where_its_source_has_a_checkpoint_and_is_dense_from_there(shipped):
    runs = by_name(shipped)
    for run in (run for run in shipped.runs if run.source):
        source, path = runs[run.source], Path(run.job.checkpoint.initial_load_path)
        begin = step_of(path)
        assert path.parent == source.checkpoints
        assert begin in saved_steps(source)
        assert begin < run.steps
        assert [stage_at(step, source.job.lighthouse) for step in (1, begin)] == ["lighthouse"] * 2
        if run.job.lighthouse.steps == begin:
            assert stage_at(begin + 1, run.job.lighthouse) == "dense"
