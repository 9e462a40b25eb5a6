"""The trainer end to end, in processes of its own."""

import json
import logging
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torchtitan.models.llama3 import Transformer

from tests.support.jobs import launch, losses, parse, train, train_by_torchrun
from torchtitan_lighthouse.experiments.folder import OUTPUT_FILE
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.metrics import METRICS_FILE, read_metrics
from torchtitan_lighthouse.titan.folder.data import saved_facts
from torchtitan_lighthouse.titan.models.flavors import FLAVORS
from torchtitan_lighthouse.titan.spec import get_train_spec
from torchtitan_lighthouse.titan.trainer import LighthouseTrainer

pytestmark = pytest.mark.trainer

SWITCH, LAST = 6, 12
TWO_STAGES = {
    "ranks": 2,
    "lighthouse__steps": SWITCH,
    "training__steps": LAST,
    "checkpoint__enable": True,
    "checkpoint__interval": 3,
    "checkpoint__last_save_model_only": False,
}
STOCK = {
    "program": "torchtitan.train",
    "job__custom_config_module": "torchtitan_lighthouse.titan.config",
    "experimental__custom_import": "torchtitan_lighthouse.titan",
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder and the metrics of both stages in one launch on two ranks."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, train(folder, **TWO_STAGES)


def test_two_stages(uninterrupted):
    _, metrics = uninterrupted
    stages = [metrics[step]["stage"] for step in range(1, LAST + 1)]
    assert stages == ["lighthouse"] * SWITCH + ["dense"] * (LAST - SWITCH)
    curve = losses(metrics)
    assert curve[SWITCH] < curve[1]
    assert curve[LAST] < curve[SWITCH]


@pytest.mark.parametrize(
    ("step", "flops_per_token"), [(SWITCH, 7_527_168), (SWITCH + 1, 7_527_168 + 589_824)]
)
def test_reported_flops_follow_the_stage(uninterrupted, step, flops_per_token):
    record = uninterrupted[1][step]
    assert record["tflops"] * 1e12 / record["throughput(tps)"] == pytest.approx(flops_per_token)


def test_norms_that_select_are_looked_at_in_every_tenth_step_of_the_first_stage(uninterrupted):
    _, metrics = uninterrupted
    assert {n for n, record in metrics.items() if "lighthouse/norm_spread_q/min" in record} == {1}


def test_switch_is_logged_and_has_time_to_compile(uninterrupted):
    output = (uninterrupted[0] / "output.txt").read_text()
    around_switch = [
        f"step: {SWITCH:2} ",
        "timeout for all ProcessGroups to 0:05:00",
        f"Step {SWITCH + 1}: training with dense SDPA",
        f"step: {SWITCH + 1:2} ",
        "timeout for all ProcessGroups to 0:01:40",
    ]
    assert re.search(".*".join(around_switch), output, re.DOTALL)


@pytest.mark.parametrize("step", [SWITCH - 3, SWITCH + 3], ids=["before", "after"])
def test_resume_around_the_switch_continues_the_curve(uninterrupted, tmp_path, step):
    folder, metrics = uninterrupted
    checkpoint = f"checkpoint/step-{step}"
    shutil.copytree(folder / checkpoint, tmp_path / checkpoint)
    assert losses(train(tmp_path, **TWO_STAGES)) == losses(metrics, after=step)


def test_second_launch_continues_at_the_switch(uninterrupted, tmp_path):
    folder, metrics = uninterrupted
    resumed = train(
        tmp_path,
        **TWO_STAGES,
        checkpoint__initial_load_path=folder / f"checkpoint/step-{SWITCH}",
        checkpoint__initial_load_model_only=False,
    )
    assert losses(resumed, after=SWITCH) == losses(metrics, after=SWITCH)


def test_killed_run_continues_from_its_last_checkpoint(uninterrupted, tmp_path):
    settings = {**TWO_STAGES, "checkpoint__interval": SWITCH}
    torchrun = launch(tmp_path, **settings)
    for _ in torchrun.stdout:  # either rank's; the metrics are the first one's
        if len(logged(tmp_path)) >= SWITCH + 2:
            break
    workers = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    for worker in workers:
        os.kill(int(worker), signal.SIGKILL)
    torchrun.communicate(timeout=60)
    steps = [json.loads(line)["step"] for line in logged(tmp_path)]
    assert SWITCH + 2 <= steps[-1] < LAST

    train(tmp_path, **settings)
    first_after = json.loads(logged(tmp_path)[len(steps)])["step"]
    assert first_after == SWITCH + 1
    metrics = {record["step"]: record for record in read_metrics(tmp_path)}
    assert losses(metrics) == losses(uninterrupted[1])


def test_stopped_run_continues_where_it_stopped(uninterrupted, tmp_path, monkeypatch):
    """All of it is saved, though the job would save little by itself; the workers that read the
    data outlive the signal, which torchrun sends to whole process groups."""
    settings = {
        **TWO_STAGES,
        "checkpoint__interval": 1000,
        "checkpoint__last_save_model_only": True,
        "training__dataloader__num_workers": 1,
    }
    # By default it kills its ranks after 30 seconds, which many tests at once can take for a step.
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "200")
    torchrun = launch(tmp_path, **settings)
    lines = []
    for line in torchrun.stdout:
        lines.append(line)
        if "step:  3 " in line:
            torchrun.terminate()
    torchrun.wait(timeout=60)
    (stopped,) = [line for line in lines if "Stopped by SIGTERM after step" in line]
    step = int(re.search(r"after step (\d+): saved in \S*/step-\1\.", stopped)[1])
    assert sum("step:  3 " in line for line in lines) == 1  # either rank's
    assert 3 <= step < LAST
    assert [json.loads(line)["step"] for line in logged(tmp_path)][-1] == step
    train(tmp_path, **settings)
    # One worker of a rank reads what the rank itself would.
    assert losses(train_metrics(tmp_path)) == losses(uninterrupted[1])


def test_a_launch_that_does_not_train_leaves_the_job_alone(uninterrupted, caplog):
    """A finished run's, with other settings."""
    folder, _ = uninterrupted
    saved = (folder / "job.json").read_text()
    settings = {name: value for name, value in TWO_STAGES.items() if name != "ranks"}
    job = parse(folder, **settings, lighthouse__topk=24)
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as end:
        LighthouseTrainer(job)
    assert end.value.code == 0
    assert f"Finished at step {LAST}, nothing to train" in caplog.text
    assert not torch.distributed.is_initialized()
    assert (folder / "job.json").read_text() == saved
    job_of_checkpoint = json.loads((folder / f"checkpoint/step-{SWITCH}/job.json").read_text())
    assert job_of_checkpoint["lighthouse"]["topk"] == 16


def train_metrics(folder):
    return {record["step"]: record for record in read_metrics(folder)}


def logged(folder):
    file = folder / METRICS_FILE
    return file.read_text().splitlines() if file.exists() else []


def test_checkpoints_say_what_data_their_position_is_in(uninterrupted):
    facts = saved_facts(uninterrupted[0] / f"checkpoint/step-{SWITCH}")
    assert (facts.dataset, facts.files, facts.num_workers, facts.ranks) == ("local", 1, 0, 2)


def test_stage1_checkpoint_loads_in_torchtitans_llama3(uninterrupted):
    folder, _ = uninterrupted
    stock = Transformer(FLAVORS["tiny_byte"])
    fresh = {name: p.clone() for name, p in stock.state_dict().items()}
    state = stock.state_dict()
    dcp.load(state, checkpoint_id=folder / f"checkpoint/step-{SWITCH}", no_dist=True)
    stock.load_state_dict(state)
    assert not any(torch.equal(p, fresh[name]) for name, p in stock.state_dict().items())


def test_llama3_checkpoint_starts_a_run(tmp_path):
    stock = Transformer(FLAVORS["tiny_byte"])
    with torch.no_grad():
        stock.init_weights()
    dcp.save(stock.state_dict(), checkpoint_id=tmp_path / "stock/step-1", no_dist=True)
    loading = {
        "checkpoint__enable": True,
        "checkpoint__initial_load_path": tmp_path / "stock/step-1",
        "optimizer__lr": 0,
        "training__steps": 1,
    }
    train(tmp_path / "run", **loading)
    trained = {name: torch.empty_like(p) for name, p in stock.state_dict().items()}
    dcp.load(trained, checkpoint_id=tmp_path / "run/checkpoint/step-1", no_dist=True)
    assert all(torch.equal(p, trained[name]) for name, p in stock.state_dict().items())
    # The job is checked once.
    output = (tmp_path / "run" / OUTPUT_FILE).read_text()
    assert output.count("training starts at step 1") == 1


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """The curve of six Lighthouse steps on one rank."""
    return losses(train(tmp_path_factory.mktemp("one-rank"), training__steps=6))


def test_stock_trainer_trains_a_single_stage(one_rank, tmp_path):
    assert losses(train_by_torchrun(tmp_path, **STOCK, training__steps=6)) == one_rank


def test_stock_trainer_refuses_two_stages(tmp_path):
    """It builds the tokenizer before the model."""
    build_tokenizer = get_train_spec().build_tokenizer_fn
    with pytest.raises(RefusalError, match="torchtitan's own trainer cannot switch the stage"):
        build_tokenizer(parse(tmp_path, lighthouse__steps=3))


def test_compiled_with_gradient_accumulation_is_the_same(one_rank, tmp_path):
    accumulated = train(
        tmp_path,
        training__steps=6,
        training__local_batch_size=1,
        training__global_batch_size=2,
        compile__enable=True,
        activation_checkpoint__mode="selective",
        activation_checkpoint__selective_ac_option="op",
    )
    assert losses(accumulated) == pytest.approx(one_rank, rel=1e-4)


@pytest.fixture(scope="module")
def seed_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seed")
    train(folder, checkpoint__enable=True, checkpoint__create_seed_checkpoint=True)
    return {
        "lighthouse__steps": 2,
        # Whole tiles in each piece of two ranks that share a sequence.
        "lighthouse__tile": 4,
        "training__steps": 3,
        "checkpoint__enable": True,
        "checkpoint__initial_load_path": folder / "checkpoint/step-0",
    }


@pytest.fixture(scope="module")
def without_parallelism(seed_checkpoint, tmp_path_factory):
    return train(tmp_path_factory.mktemp("without"), **seed_checkpoint)


def degrees(**kinds):
    return {f"parallelism__{kind}_parallel_degree": degree for kind, degree in kinds.items()}


PARALLEL = {
    "tensor": {"ranks": 2, **degrees(tensor=2)},
    "pipeline": {"ranks": 2, **degrees(pipeline=2)},
    "context-and-tensor": {"ranks": 4, **degrees(context=2, tensor=2)},
    "context-and-pipeline": {"ranks": 4, **degrees(context=2, pipeline=2)},
    "context-compiled-accumulated": {
        "ranks": 2,
        **degrees(context=2),
        "training__local_batch_size": 1,
        "training__global_batch_size": 2,
        "compile__enable": True,
        "compile__backend": "aot_eager",
        "activation_checkpoint__mode": "full",
    },
}


@pytest.mark.parametrize("kind", PARALLEL)
def test_parallel_model_is_the_same(without_parallelism, seed_checkpoint, tmp_path, kind):
    parallel = train(tmp_path, **seed_checkpoint, **PARALLEL[kind])
    assert losses(parallel) == pytest.approx(losses(without_parallelism), rel=1e-5)
    seen = [[m["n_tokens_seen"] for m in run.values()] for run in (parallel, without_parallelism)]
    assert seen[0] == seen[1]


def test_resume_at_another_context_parallel_degree(without_parallelism, seed_checkpoint, tmp_path):
    """A rank is added at the switch: the checkpoint does not know how many shared a sequence."""
    full = {"checkpoint__last_save_model_only": False}
    train(tmp_path, **{**seed_checkpoint, **full, "training__steps": 2})
    own = {**seed_checkpoint, **full}
    del own["checkpoint__initial_load_path"]
    resumed = train(tmp_path, ranks=2, **own, **degrees(context=2))
    assert losses(resumed, after=2) == pytest.approx(losses(without_parallelism, after=2), rel=1e-5)
