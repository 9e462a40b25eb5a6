"""Short runs that are compared, with a fake in the trainer's place."""

from contextlib import nullcontext
from typing import NamedTuple

import pytest
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchtitan.config import JobConfig

from tests.support.hf import write_llama
from tests.support.jobs import checked_job
from tests.support.models import build_meta_model
from tests.support.runs import write_metrics, write_run
from torchtitan_lighthouse.attention.module import LighthouseAttention
from torchtitan_lighthouse.configs import path
from torchtitan_lighthouse.estimate.memory import peak
from torchtitan_lighthouse.experiments.benchmark import Benchmark, benchmark_run, measure
from torchtitan_lighthouse.experiments.paper import paper_benchmarks
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.metrics import TOKENS_PER_SECOND
from torchtitan_lighthouse.titan.layout import layouts_of, parallel_dims_of
from torchtitan_lighthouse.tools import benchmark as benchmark_tool
from torchtitan_lighthouse.tools import paper as paper_tool

H100 = 78 * 2**30  # bytes
TRAINS = "speed = 4.0 if name.startswith('dense') else 10.0\ntrain(steps)"
SMALLER = "--model.flavor 530M_byte --training.seq_len 32768 --lighthouse.topk 512"
SMALLER += " --lighthouse.tile 64"
PAPER_RUNS = [
    *("dense-98k", "norm-98k", "dilated-98k", "dense-98k-cp2", "norm-98k-cp2"),
    *("dense-262k-cp8", "norm-262k-cp8", "dense-1m-cp8", "norm-1m-cp8"),
    *("stage1-98k-cp2", "stage2-98k-cp2", "stage2-98k-cp1"),
]


class Launch(NamedTuple):
    job: JobConfig
    ranks: int


def launches(gpus, out, *overrides):
    """The jobs that would be launched, and on how many ranks, by their names."""
    runs = [benchmark.run for benchmark in paper_benchmarks(gpus, out, overrides)]
    return {run.name: Launch(checked_job(run), run.gpus) for run in runs}


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """What the tool launches on a node of 8 GPUs."""
    return launches(8, tmp_path_factory.mktemp("paper"))


@pytest.fixture
def bench_paper(trainer, tmp_path, monkeypatch):
    """The tool, with a folder of its own and the trainer replaced."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    trainer.does(TRAINS)
    return lambda *options: paper_tool.main(["--out", str(tmp_path / "out"), *options])


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


def test_the_table_has_speed_ups_and_a_repeated_call_trains_nothing(trainer, bench_paper, capsys):
    only = ["--only", "dense-98k", "norm-98k"]
    bench_paper(*only)
    assert trainer.names == only[1:]
    output = capsys.readouterr().out
    (line,) = (line for line in output.splitlines() if line.startswith("| norm-98k"))
    assert "2.50×" in line
    bench_paper("--only", "dense-98k")
    assert len(trainer.launches) == 2
    assert line in capsys.readouterr().out


def test_a_call_whose_time_is_over_starts_no_run(trainer, bench_paper, capsys):
    with pytest.raises(SystemExit) as stop:
        bench_paper("--minutes", "0", "--only", "dense-98k")
    assert stop.value.code == 3
    assert not trainer.launches
    error = capsys.readouterr().err
    assert error == (
        "dense-98k: not begun\nStopped, as --minutes 0 were over: repeat the command to continue\n"
    )


def test_a_run_that_fails_is_named_and_made_in_the_next_call(
    trainer, bench_paper, capsys, tmp_path
):
    only = ["--only", "dense-98k", "stage2-98k-cp1"]
    trainer.does("sys.exit(1) if name.startswith('stage1') else train(steps)")
    with pytest.raises(SystemExit) as stop:
        bench_paper(*only)
    assert stop.value.code == 1
    assert trainer.names == ["dense-98k", "stage1-98k-cp2"]
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0] == f"stage1-98k-cp2: failed, see {tmp_path}/out/8-gpus/stage1-98k-cp2/output.txt"
    )
    assert lines[1].startswith("stage2-98k-cp1: not begun, for stage1-98k-cp2 did not come so far")
    trainer.does(TRAINS)
    bench_paper(*only)
    assert trainer.names[2:] == ["stage1-98k-cp2", "stage2-98k-cp1"]


def test_runs_that_are_not_the_paper_s_are_refused(bench_paper):
    with pytest.raises(RefusalError, match="--only sparse: must be of dense-98k norm-98k"):
        bench_paper("--only", "sparse")


@pytest.mark.parametrize(
    "runs",
    [[""], ["../dense"], ["--lighthouse.no-enable"], ["dense", "dense --training.seq_len 128"]],
)
def test_variants_have_names_of_their_own(trainer, tmp_path, runs):
    options = [f"--run={run}" for run in runs]
    with pytest.raises(RefusalError, match=r"--run '.*': each needs a name of its own"):
        benchmark_tool.main([str(path("quickstart")), "--out", str(tmp_path / "out"), *options])
    assert not trainer.launches


@pytest.mark.parametrize("gpus", [2, 4])
def test_a_smaller_node_makes_smaller_runs(tmp_path, gpus):
    smaller = [*SMALLER.split(), "--training.global_batch_size", str(gpus)]
    launched = launches(gpus, tmp_path, *smaller)
    assert len(launched) == len(PAPER_RUNS)
    for name, run in launched.items():
        dims = parallel_dims_of(*run)
        assert run.ranks <= gpus
        assert "cp" not in name or name.endswith(f"cp{dims.cp}")
        assert run.job.training.global_batch_size % dims.dp_shard == 0


def test_a_benchmark_keeps_the_schedule_of_the_whole_job(trainer, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    trainer.does(TRAINS)
    config = path("lighthouse_530m_98k")
    runs = ["--run", "dense --lighthouse.no-enable", "--run", "lighthouse"]
    benchmark_tool.main([str(config), "--out", str(tmp_path / "out"), "--steps", "6", *runs])
    for launch in trainer.launches:
        arguments = " ".join(launch["args"])
        assert "--training.steps 6" in arguments
        assert "--lr_scheduler.total_steps 16000" in arguments
        assert "--lighthouse.steps -1" in arguments
    table = (tmp_path / "out/table.md").read_text()
    assert table in capsys.readouterr().out
    assert "2.50×" in table


def write_launches(folder, *launches):
    """Launches of (steps, tokens/s, loss), one after the other."""
    for started, (steps, speed, loss) in enumerate(launches):
        metrics = {TOKENS_PER_SECOND: speed, "mfu(%)": 50.0, "started": started}
        write_run(folder, steps, 4, loss=lambda step, loss=loss: loss, **metrics)


def test_a_run_that_continues_another_is_measured_from_its_own_start(tmp_path):
    load = ["--checkpoint.enable", "--checkpoint.initial_load_path", str(tmp_path / "one/step-4")]
    load += ["--checkpoint.no-initial_load_model_only"]
    run = benchmark_run(path("lighthouse_530m_98k"), tmp_path / "run", steps=8, options=load)
    write_launches(run.folder, (range(1, 5), 1.0, 6.0), (range(5, 9), 5.0, 3.0))
    result = measure(Benchmark(run, skip=1))
    assert result.losses == [3.0] * 4
    assert result.tokens_per_second == 5.0


def test_a_run_that_was_interrupted_is_measured_in_all_its_launches(tmp_path):
    run = benchmark_run(path("lighthouse_530m_98k"), tmp_path / "run", steps=8)
    write_launches(run.folder, (range(1, 7), 2.0, 6.0), (range(7, 9), 9.0, 3.0))
    write_metrics(run.folder, (8, {"validation_metrics/loss": 1.0, "started": 1}))
    result = measure(Benchmark(run, skip=4))
    assert (result.losses[0], result.losses[-1]) == (6.0, 3.0)
    assert result.tokens_per_second == 2.0  # of steps 5 and 6; the second launch was too short
    with pytest.raises(RefusalError, match="run was trained in launches too short to time: remove"):
        measure(Benchmark(run, skip=6))


def test_a_model_of_a_folder_is_measured_without_its_weights(tmp_path):
    write_llama(tmp_path / "llama")
    folder = ["--model.hf_assets_path", str(tmp_path / "llama")]
    run = benchmark_run(path("extend_tiny"), tmp_path / "run", steps=4, options=folder)
    checkpoint = checked_job(run).checkpoint
    assert not checkpoint.initial_load_in_hf
    assert not checkpoint.last_save_in_hf


def test_steps_that_are_not_timed_are_in_no_interval_that_is(tmp_path):
    run = benchmark_run(path("lighthouse_530m_98k"), tmp_path / "run", steps=20)
    for step, speed in ((1, 1.0), (5, 2.0), (10, 3.0), (15, 4.0), (20, 6.0)):
        metrics = {TOKENS_PER_SECOND: speed, "mfu(%)": 50.0}
        write_run(run.folder, range(step, step + 1), 20, **metrics)
    # The interval that ends at step 10 begins after step 5, the one before it after step 1.
    speeds = [measure(Benchmark(run, skip)).tokens_per_second for skip in (1, 2, 5, 6)]
    assert speeds == [3.5, 4.0, 4.0, 5.0]


@pytest.mark.parametrize(("steps", "is_timed"), [("9", False), ("10", True)])
def test_a_benchmark_that_would_time_no_interval_is_refused(
    trainer, tmp_path, monkeypatch, steps, is_timed
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    trainer.does(TRAINS)
    config = str(path("lighthouse_530m_98k"))
    options = ["--steps", steps, "--run", "lighthouse --metrics.log_freq 5"]
    expected = nullcontext()
    if not is_timed:
        expected = pytest.raises(RefusalError, match=r"log_freq = 5 logs no .* use more --steps")
    with expected:
        benchmark_tool.main([config, "--out", str(tmp_path / "out"), *options])
    assert bool(trainer.launches) == is_timed


def test_a_benchmark_of_both_stages_is_refused(trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    options = ["--out", str(tmp_path / "out"), "--run", "both --lighthouse.steps 6"]
    with pytest.raises(
        RefusalError, match=r"both: lighthouse\.steps = 6 ends the Lighthouse stage"
    ):
        benchmark_tool.main([str(path("lighthouse_530m_98k")), *options])
    assert not trainer.launches


@pytest.mark.parametrize(
    "options", [("--skip", "-1"), ("--skip", "5"), ("--run=b --metrics.log_freq 0",)]
)
def test_numbers_that_measure_nothing_are_refused(trainer, tmp_path, monkeypatch, options):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    common = ["--out", str(tmp_path / "out"), "--steps", "5", "--run", "a"]
    with pytest.raises((SystemExit, RefusalError)):
        benchmark_tool.main([str(path("lighthouse_530m_98k")), *common, *options])
    assert not trainer.launches
