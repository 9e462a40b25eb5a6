"""Jobs that are wrong or unusual: refused in words before anything is built, or meant to train."""

import os
import tomllib
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Literal, get_args, get_origin

import pytest

from tests.support.jobs import TOML, parse
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.config import LighthouseConfigManager
from torchtitan_lighthouse.titan.spec import build_checked_tokenizer


def walk(config_class, prefix=""):
    for f in fields(config_class):
        if is_dataclass(f.type):
            yield from walk(f.type, f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", f.type


FIELDS = dict(walk(LighthouseConfigManager().config_cls))
NUMBERS = {
    name: type_
    for name, type_ in FIELDS.items()
    if {int, float} & ({type_} | set(get_args(type_))) and get_origin(type_) in (None, UnionType)
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    parse(folder)  # writes the corpus
    return folder


@pytest.fixture
def check(folder, monkeypatch):
    """Check the job of a TOML file with some fields changed, on so many ranks."""

    def check(changes, ranks=1):
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        sections = tomllib.loads(TOML)
        paths = {
            "job.dump_folder": str(folder),
            "training.dataset_path": str(folder / "corpus.txt"),
        }
        for field, value in {**paths, **changes}.items():
            *inside, name = field.split(".")
            section = sections
            for part in inside:
                section = section.setdefault(part, {})
            section[name] = value
        manager = LighthouseConfigManager()
        build_checked_tokenizer(manager._dict_to_dataclass(manager.config_cls, sections))

    return check


def wrong_values(type_):
    """Values that are of no type that the field may have."""
    may_be = {type_, *get_args(type_)}
    values = {"text": "10", "true": True, "list": [0.5], "number": 1.5}
    if str in may_be and get_origin(type_) is not list:
        del values["text"]
    if bool in may_be:
        del values["true"]
    if float in may_be:
        del values["number"]
    return values


TYPES = [
    pytest.param(name, value, id=f"{name}={value!r}")
    for name, type_ in FIELDS.items()
    for value in wrong_values(type_).values()
]


@pytest.mark.parametrize(("field", "value"), TYPES)
def test_a_value_of_another_type_is_refused(check, field, value):
    with pytest.raises(RefusalError, match=field.rsplit(".", 1)[-1]):
        check({field: value})


MEANT = {
    # field: (values, why they train)
    "lighthouse.steps": ((-1, 0), "always, or never, Lighthouse attention"),
    "training.dataloader.num_workers": ((0,), "the rank reads by itself"),
    "validation.dataloader.num_workers": ((0,), "the rank reads by itself"),
    "training.global_batch_size": ((-1,), "one batch of each rank"),
    "validation.steps": ((-1,), "to the end of the text; validation is off"),
    "optimizer.lr": ((0,), "nothing is learned: a dry run"),
    "optimizer.beta1": ((0,), "no momentum"),
    "optimizer.beta2": ((0,), "no memory of squares"),
    "optimizer.eps": ((0,), "as Adam may"),
    "optimizer.weight_decay": ((0,), "none"),
    "lr_scheduler.warmup_steps": ((0,), "none"),
    "lr_scheduler.decay_ratio": ((0,), "constant"),
    "lr_scheduler.min_lr_factor": ((0,), "to nothing"),
    "checkpoint.keep_latest_k": ((0,), "all are kept"),
    "checkpoint.load_step": ((-1, 0), "the latest, or one of the weights alone"),
    "parallelism.data_parallel_shard_degree": ((-1,), "all ranks that are left"),
    "parallelism.pipeline_parallel_first_stage_less_layers": ((0,), "none less"),
    "parallelism.pipeline_parallel_last_stage_less_layers": ((0,), "none less"),
    "activation_checkpoint.memory_budget": ((0,), "read in another mode"),
    "profiling.profiler_warmup": ((0,), "none"),
    "comm.trace_buf_size": ((0,), "no flight recorder"),
    "debug.seed": ((0,), "a seed"),
}
UNREAD = ("fault_tolerance.", "rope.")
NOT_POSITIVE = [
    (name, value) for name in NUMBERS for value in (0, -1, -2) if not name.startswith(UNREAD)
]


@pytest.mark.parametrize(("field", "value"), NOT_POSITIVE)
def test_a_number_that_is_not_positive_is_refused_or_meant(check, field, value):
    meant, _ = MEANT.get(field, ((), ""))
    if value in meant:
        check({field: value})
    else:
        with pytest.raises(RefusalError, match=field.rsplit(".", 1)[-1]):
            check({field: value})


NAN, INF = float("nan"), float("inf")
VALIDATION = {
    "validation.enable": True,
    "validation.dataset": "python_stdlib_validation",
    "validation.seq_len": 256,
    "validation.steps": 1,
}
REFUSED = {
    **{f"{name}=nan": {name: NAN} for name, type_ in NUMBERS.items() if type_ is float},
    "lr-inf": {"optimizer.lr": INF},
    "optimizer": {"optimizer.name": "SGD"},
    "beta-one": {"optimizer.beta1": 1.0},
    "decay-above-one": {"lr_scheduler.decay_ratio": 1.5},
    "step-in-backward": {"optimizer.early_step_in_backward": True},
    "keep-one": {"checkpoint.keep_latest_k": 1},
    "no-dump-folder": {"job.dump_folder": ""},
    "no-checkpoint-folder": {"checkpoint.folder": ""},
    "batch-does-not-divide": {"training.global_batch_size": 3},
    "batch-below-the-local": {"training.global_batch_size": 1},
    "prefetch-without-workers": {"training.dataloader.prefetch_factor": 2},
    "persistent-without-workers": {"training.dataloader.persistent_workers": True},
    "fault-tolerance": {"fault_tolerance.enable": True},
    "memory-estimation": {"memory_estimation.enable": True},
    "fake": {"comm.mode": "fake_backend"},
    "balancer-empty": {"parallelism.context_parallel_load_balancer": ""},
    "profiling": {"profiling.enable_profiling": True},
    "no-such-corpus": {"training.dataset_path": "nowhere"},
    "empty-corpus-path": {"training.dataset_path": ""},
    "no-such-held-out-corpus": {
        **VALIDATION,
        "validation.dataset": "local_validation",
        "validation.dataset_path": "nowhere",
    },
    "section-is-a-number": {"training": 3},
    "unknown-field": {"training.sequence": 3},
    "unknown-section": {"trainer": {"steps": 3}},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED)
def test_job_is_refused(check, changes):
    with pytest.raises(RefusalError, match="|".join(name.rsplit(".", 1)[-1] for name in changes)):
        check(changes)


def test_a_batch_that_the_ranks_cannot_share_is_refused(check):
    check({"training.global_batch_size": 12}, ranks=3)
    with pytest.raises(RefusalError, match="use 6 or 12"):
        check({"training.global_batch_size": 8}, ranks=3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(check, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RefusalError, match="dump_folder"):
        check({"job.dump_folder": str(tmp_path / "run")})


def test_a_dump_folder_that_is_a_file_is_refused(check, tmp_path):
    (tmp_path / "run").touch()
    for folder in ("run", "run/below"):
        with pytest.raises(RefusalError, match=r"job\.dump_folder"):
            check({"job.dump_folder": str(tmp_path / folder)})


def test_a_dump_folder_below_a_link_to_nowhere_is_refused(check, tmp_path):
    (tmp_path / "outputs").symlink_to(tmp_path / "disk")
    with pytest.raises(RefusalError, match=r"outputs is a link to .*disk, which is not there"):
        check({"job.dump_folder": str(tmp_path / "outputs" / "run")})


def test_there_are_many():
    assert len(TYPES) + len(NOT_POSITIVE) + len(REFUSED) > 200


def test_a_choice_is_one_of_its_words(check):
    for field, type_ in FIELDS.items():
        if get_origin(type_) is Literal:
            with pytest.raises(RefusalError, match=rf"{field} = 'other' must be one of"):
                check({field: "other"})
