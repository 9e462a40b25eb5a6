"""The scripts that compare short runs, with the trainer replaced by what its checks let pass."""

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchtitan.config import JobConfig

from tests.support.jobs import launched_job, save_step
from tests.support.models import build_meta_model
from tests.support.runs import write_run
from torchtitan_lighthouse.attention.module import LighthouseAttention
from torchtitan_lighthouse.estimate.memory import peak
from torchtitan_lighthouse.experiments import benchmark, launch
from torchtitan_lighthouse.experiments.launch import FINISHED_FILE
from torchtitan_lighthouse.runs.metrics import TOKENS_PER_SECOND, read_metrics
from torchtitan_lighthouse.titan.config import JOB_FILE
from torchtitan_lighthouse.titan.layout import layouts_of, parallel_dims_of
from torchtitan_lighthouse.tools import benchmark as benchmark_tool
from torchtitan_lighthouse.tools import paper as paper_tool


class Launch(NamedTuple):
    job: JobConfig
    ranks: int


H100 = 78 * 2**30  # bytes


@pytest.fixture
def launched(monkeypatch):
    """The jobs that were launched, and on how many ranks, by their folders' names."""
    return record_launches(monkeypatch)


def record_launches(monkeypatch):
    jobs = {}

    def train(config, folder, *, steps, options, processes, timeout):
        job = launched_job(config, folder, steps=steps, options=options)
        launch._check_trained(folder, job.to_dict())
        if not (folder / FINISHED_FILE).exists():
            jobs[folder.name] = Launch(job, processes)
            speed = 10.0 if job.lighthouse.enable else 4.0
            metrics = {TOKENS_PER_SECOND: speed, "mfu(%)": 50.0}
            write_run(folder, range(1, steps + 1), steps, **metrics)
            (folder / JOB_FILE).write_text(json.dumps(job.to_dict()))
            if job.checkpoint.enable and not job.checkpoint.load_only:
                save_step(job, steps)
            (folder / FINISHED_FILE).touch()
        return read_metrics(folder)

    monkeypatch.setattr(benchmark, "train", train)
    return jobs


@pytest.fixture
def bench_paper(tmp_path):
    """The script's main, with a folder of its own."""
    script = paper_tool
    return lambda *options: script.main(["--out", str(tmp_path / "out"), *options])


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """What the script launches on a node of 8 GPUs."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        jobs = record_launches(monkeypatch)
        paper_tool.main(["--out", str(tmp_path_factory.mktemp("paper"))])
    return jobs


PAPER_RUNS = [run.name for run in paper_tool.plan(8, Path("out"))]


def test_the_paper_s_runs_are_jobs_that_fit_a_node(paper):
    assert list(paper) == PAPER_RUNS
    for name, run in paper.items():
        for layout in layouts_of(*run).values():
            assert peak(layout, run.job.training.seq_len).total < H100, name
        groups = parallel_dims_of(*run).dp_shard
        assert run.job.training.global_batch_size % groups == 0


def test_they_are_those_of_the_paper(paper):
    jobs = {name: run.job for name, run in paper.items()}
    for name in ("dense-98k", "norm-98k", "dilated-98k"):
        assert paper[name].ranks == 8
        assert (jobs[name].training.seq_len, jobs[name].training.global_batch_size) == (98_304, 32)
        assert jobs[name].activation_checkpoint.mode == "full"
    assert not jobs["dense-98k"].lighthouse.enable
    settings = [
        (job.lighthouse.scorer, job.lighthouse.pooling_factor, job.lighthouse.topk)
        for job in (jobs["norm-98k"], jobs["dilated-98k"])
    ]
    assert settings == [("norm", 4, 1536), ("dilated", 2, 1536)]


@pytest.mark.parametrize("name", PAPER_RUNS)
def test_the_model_builds_on_as_many_ranks(paper, name):
    job, ranks = paper[name]
    distributed.init_process_group("fake", store=FakeStore(), rank=ranks - 1, world_size=ranks)
    try:
        model = build_meta_model(job, parallel_dims_of(job, ranks))
        wrapped = [type(layer.attention.inner_attention) for layer in model.layers.values()]
        assert wrapped.count(LighthouseAttention) == (26 if job.lighthouse.enable else 0)
    finally:
        distributed.destroy_process_group()


def test_the_dense_stage_resumes_with_the_same_groups_of_ranks(paper):
    first, same, other = (
        paper[name] for name in ("stage1-98k-cp2", "stage2-98k-cp2", "stage2-98k-cp1")
    )
    assert [parallel_dims_of(*run).dp_shard for run in (first, same, other)] == [4, 4, 4]
    assert [run.job.parallelism.context_parallel_degree for run in (first, same, other)] == [
        2,
        2,
        1,
    ]
    for run in (same, other):
        checkpoint = run.job.checkpoint
        assert checkpoint.initial_load_path == f"{first.job.job.dump_folder}/checkpoint/step-4"
        assert not checkpoint.initial_load_model_only
        assert run.job.lighthouse.steps == first.job.training.steps == 4


def test_the_table_has_speed_ups_and_a_repeated_call_trains_nothing(launched, bench_paper, capsys):
    bench_paper()
    output = capsys.readouterr().out
    (line,) = (line for line in output.splitlines() if line.startswith("| norm-1m-cp8"))
    assert "2.50×" in line
    launched.clear()
    bench_paper("--only", "dense-98k")
    assert not launched
    assert line in capsys.readouterr().out


def test_a_call_whose_time_is_over_starts_no_run(launched, bench_paper, capsys):
    with pytest.raises(SystemExit) as stop:
        bench_paper("--minutes", "0")
    assert stop.value.code == 1
    assert not launched
    assert f"repeat the command: {', '.join(PAPER_RUNS)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (subprocess.CalledProcessError(1, "torchrun"), "stage1-98k-cp2: failed, see"),
        (subprocess.TimeoutExpired("torchrun", 1), "stage1-98k-cp2: stopped"),
    ],
    ids=["fails", "stopped"],
)
def test_a_run_that_does_not_end_is_named_and_made_in_the_next_call(
    launched, bench_paper, monkeypatch, capsys, error, message
):
    train = benchmark.train
    only = ["--only", "dense-98k", "stage1-98k-cp2", "stage2-98k-cp1"]

    def fail(config, folder, **kwargs):
        if folder.name == "stage1-98k-cp2":
            raise error
        return train(config, folder, **kwargs)

    monkeypatch.setattr(benchmark, "train", fail)
    with pytest.raises(SystemExit) as stop:
        bench_paper(*only)
    assert stop.value.code == 1
    assert list(launched) == ["dense-98k"]
    output = capsys.readouterr()
    assert message in output.out
    assert output.err.endswith("stage1-98k-cp2, stage2-98k-cp1\n")
    monkeypatch.setattr(benchmark, "train", train)
    bench_paper(*only)
    assert list(launched) == ["dense-98k", "stage1-98k-cp2", "stage2-98k-cp1"]


def test_runs_of_other_options_are_refused(launched, bench_paper, capsys):
    bench_paper("--only", "norm-98k")
    with pytest.raises(SystemExit):
        bench_paper("--only", "norm-98k", "--model.flavor", "530M_byte")
    assert "model.flavor = '530M_byte' is asked for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--gpus", "6"], "argument --gpus"), (["--only", "sparse"], "--only sparse: must be of")],
    ids=["gpus", "only"],
)
def test_refusals(bench_paper, capsys, options, message):
    with pytest.raises(SystemExit):
        bench_paper(*options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("gpus", [2, 4])
def test_a_smaller_node_makes_smaller_runs(launched, bench_paper, gpus):
    smaller = "--model.flavor 530M_byte --training.seq_len 32768 --lighthouse.topk 512"
    smaller += f" --lighthouse.tile 64 --training.global_batch_size {gpus}"
    bench_paper("--gpus", str(gpus), *smaller.split())
    assert len(launched) == len(PAPER_RUNS)
    for name, run in launched.items():
        dims = parallel_dims_of(*run)
        assert run.ranks <= gpus
        assert "cp" not in name or name.endswith(f"cp{dims.cp}")
        assert run.job.training.global_batch_size % dims.dp_shard == 0


def test_bench_train_keeps_the_schedule_of_the_whole_job(launched, tmp_path, capsys):
    config = paper_tool.CONFIGS / "lighthouse_530m_98k.toml"
    runs = ["--run", "dense --lighthouse.no-enable", "--run", "lighthouse"]
    benchmark_tool.main([str(config), "--out", str(tmp_path), "--steps", "6", *runs])
    for run in launched.values():
        assert run.job.training.steps == 6
        assert run.job.lr_scheduler.total_steps == 16_000
        assert run.job.lighthouse.steps == -1
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "2.50×" in table


def test_a_run_that_continues_another_is_measured_from_its_own_start(monkeypatch, tmp_path):
    def train(config, folder, **kwargs):
        for started, speed, loss in ((0, 1.0, 6.0), (100, 5.0, 3.0)):
            steps = range(1, 5) if started == 0 else range(5, 9)
            metrics = {TOKENS_PER_SECOND: speed, "mfu(%)": 50.0, "started": started}
            write_run(folder, steps, 4, loss=lambda step, loss=loss: loss, **metrics)
        return read_metrics(folder)

    monkeypatch.setattr(benchmark, "train", train)
    config = paper_tool.CONFIGS / "lighthouse_530m_98k.toml"
    result = benchmark.benchmark(config, tmp_path / "run", steps=8, skip=1)
    assert result.losses == [3.0] * 4
    assert result.tokens_per_second == 5.0
