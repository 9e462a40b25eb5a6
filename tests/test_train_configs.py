"""Every file in train_configs is read by the real ConfigManager and describes a job that can be."""

import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torchtitan.hf_datasets.text_datasets import DATASETS
from torchtitan.protocols.train_spec import get_train_spec

from tests.support.checkpoints import write_index
from tests.support.hf import SIZES, write_headers
from torchtitan_lighthouse.titan.checks import check_job
from torchtitan_lighthouse.titan.config import LighthouseConfigManager
from torchtitan_lighthouse.titan.models.args import lighthouse_layers
from torchtitan_lighthouse.titan.stages import has_switch, stage_at

FOLDER = Path(__file__).parents[1] / "train_configs"
NAMES = sorted(file.stem for file in FOLDER.glob("*.toml"))
PAPER = "lighthouse_530m_98k"
# Tokens of a sequence, GPUs that share one, all GPUs.
CONTEXT_PARALLEL = {
    "lighthouse_530m_98k_cp2": (98_304, 2, 8),
    "lighthouse_530m_262k_cp8": (262_144, 8, 8),
    "lighthouse_530m_1m_cp8": (1_048_576, 8, 32),
    "lighthouse_llama3_8b_1m": (1_048_576, 8, 64),
    "extend_llama3_1_8b_1m": (1_048_576, 8, 64),
}
LLAMA3_1_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
# What model is in the folder that they start from.
EXTENDED = {
    "extend_llama3_1_8b_131k": LLAMA3_1_8B,
    "extend_llama3_1_8b_1m": LLAMA3_1_8B,
    "extend_tiny": {
        **SIZES,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 256,
    },
}
STAGE_1, STAGE_2 = f"{PAPER}_stage1", f"{PAPER}_stage2"


def load(name):
    return LighthouseConfigManager().parse_args(["--job.config_file", f"{FOLDER / name}.toml"])


@pytest.fixture(params=NAMES)
def job(request, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where no earlier run has left checkpoints
    if request.param in EXTENDED:
        job = load(request.param)
        write_headers(Path(job.model.hf_assets_path), EXTENDED[request.param])
    return load(request.param)


@pytest.fixture
def text(job):
    return Path(job.job.config_file).read_text()


def test_there_is_one_for_every_way_to_train():
    ways = {"quickstart", PAPER, STAGE_1, STAGE_2, "dense_530m_98k", "lighthouse_llama3_8b_131k"}
    assert ways | set(CONTEXT_PARALLEL) | set(EXTENDED) <= set(NAMES)


def test_geometry_fits_and_is_as_the_comment_says(job, text):
    comment = re.search(r"# S = (?P<formula>\d+/\d+ \+ \d+·\d+·\d+) = (?P<length>\d+) ", text)
    if not job.lighthouse.enable:
        assert comment is None
        return
    config = job.lighthouse.attention_config()
    length = config.sub_sequence_length(job.training.seq_len)
    N, L, p, k = job.training.seq_len, config.levels, config.pooling_factor, config.topk
    assert comment["formula"] == f"{N}/{p ** (L - 1)} + {L - 1}·{p}·{k}"
    assert int(comment["length"]) == length < N


def test_the_model_builds_and_has_the_layers_that_stay_dense(job):
    spec = get_train_spec(job.model.name)
    args = deepcopy(spec.model_args[job.model.flavor])  # the flavors are shared
    args.update_from_config(job)
    with torch.device("meta"):
        model = spec.model_cls(args)
    args.get_nparams_and_flops(model, job.training.seq_len)
    if job.lighthouse.enable:
        assert lighthouse_layers(len(model.layers), job.lighthouse.dense_layers)


def test_the_job_passes_the_checks_of_a_launch(job):
    if job.checkpoint.initial_load_path:
        write_index(Path(job.checkpoint.initial_load_path), job.model.flavor, full=True)
    check_job(job)


def test_two_launches_start_from_the_same_weights(job):
    assert job.debug.seed is not None


def test_the_data_set_is_registered(job):
    assert job.training.dataset in DATASETS


def test_the_checkpoint_before_the_switch_is_made_and_kept(job):
    steps, checkpoint = job.lighthouse.steps, job.checkpoint
    assert checkpoint.enable
    assert checkpoint.last_save_in_hf or not checkpoint.last_save_model_only
    if has_switch(job.lighthouse, job.training.steps):
        assert steps % checkpoint.interval == 0
        assert (job.training.steps - steps) // checkpoint.interval < checkpoint.keep_latest_k


@pytest.mark.parametrize("name", CONTEXT_PARALLEL)
def test_long_sequences_are_shared_and_the_batch_divides(name):
    job = load(name)
    seq_len, degree, gpus = CONTEXT_PARALLEL[name]
    assert (job.training.seq_len, job.parallelism.context_parallel_degree) == (seq_len, degree)
    groups = gpus // (degree * job.parallelism.tensor_parallel_degree)
    assert job.training.global_batch_size % (groups * job.training.local_batch_size) == 0


def test_context_parallelism_is_all_that_the_paper_s_run_with_it_changes():
    plain, shared = (load(name).to_dict() for name in (PAPER, "lighthouse_530m_98k_cp2"))
    plain["parallelism"]["context_parallel_degree"] = 2
    for config in (plain, shared):
        config.pop("job")
    assert shared == plain


@pytest.mark.parametrize(
    "name", ["quickstart", PAPER, "lighthouse_llama3_8b_131k", *CONTEXT_PARALLEL, *EXTENDED]
)
def test_one_launch_has_both_stages(name):
    job = load(name)
    assert has_switch(job.lighthouse, job.training.steps)


def test_two_launches_are_the_one_launch_cut_at_the_switch():
    one, first, second = (load(name).to_dict() for name in (PAPER, STAGE_1, STAGE_2))
    assert first["training"]["steps"] == one["lighthouse"]["steps"]
    assert second["training"]["steps"] == one["training"]["steps"]
    assert second["checkpoint"]["initial_load_path"] == (
        f"{first['job']['dump_folder']}/checkpoint/step-{first['training']['steps']}"
    )
    assert not second["checkpoint"]["initial_load_model_only"]
    for stage in (first, second):
        assert stage["lr_scheduler"].pop("total_steps") == one["training"]["steps"]
        for section in ("job", "checkpoint"):
            stage.pop(section)
        stage["training"]["steps"] = one["training"]["steps"]
    one["lr_scheduler"].pop("total_steps")
    assert first == second == {s: v for s, v in one.items() if s not in ("job", "checkpoint")}


def test_the_baseline_differs_only_in_being_dense():
    lighthouse, dense = load(PAPER), load("dense_530m_98k")
    assert stage_at(1, dense.lighthouse) == "dense"
    lighthouse, dense = lighthouse.to_dict(), dense.to_dict()
    for config in (lighthouse, dense):
        for section in ("job", "lighthouse"):
            config.pop(section)
    assert dense == lighthouse


def test_the_paper_s_setting_is_the_paper_s():
    job = load(PAPER)
    assert (job.training.seq_len, job.training.global_batch_size) == (98_304, 32)
    assert (job.lighthouse.steps, job.training.steps) == (10_000, 16_000)
    assert job.lighthouse.dense_layers == [0, 1, 28, 29]
    optimizer = job.optimizer
    assert (optimizer.lr, optimizer.beta1, optimizer.beta2) == (2e-3, 0.9, 0.95)
    assert (optimizer.weight_decay, job.training.max_norm) == (0.1, 1.0)
    assert (job.lr_scheduler.warmup_steps, job.lr_scheduler.decay_ratio) == (2000, 0.0)
