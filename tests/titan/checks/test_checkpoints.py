"""Which checkpoint a launch would load is known, and fit for it, before anything is built."""

import logging
import pickle
from dataclasses import replace

import pytest
import torch
from torch.distributed import checkpoint as dcp
from torchtitan.models.llama3 import Transformer

from tests.support.checkpoints import write_index
from tests.support.jobs import parse
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.checks import check_job
from torchtitan_lighthouse.titan.checks.checkpoints import check_checkpoints
from torchtitan_lighthouse.titan.models.flavors import FLAVORS
from torchtitan_lighthouse.titan.trainer import LighthouseTrainer


def refusal(job_config) -> str:
    """What the trainer says when it refuses a job, having set up nothing."""
    with pytest.raises(RefusalError) as raised:
        LighthouseTrainer(job_config)
    assert not torch.distributed.is_initialized()
    return str(raised.value)


def resume(folder, **fields):
    return parse(folder, **{"checkpoint__enable": True, **fields})


@pytest.fixture
def stage1(tmp_path):
    return write_index(tmp_path / "stage1" / "checkpoint" / "step-10", "tiny_byte", full=True)


def continue_from(path, folder, **fields):
    loading = {"checkpoint__initial_load_path": path, "checkpoint__initial_load_model_only": False}
    return parse(folder, checkpoint__enable=True, **{**loading, **fields})


def test_full_checkpoint_can_be_continued(tmp_path, stage1):
    check_job(continue_from(stage1, tmp_path / "stage2"))


@pytest.mark.parametrize("own_step", [None, 10], ids=["empty", "not-later"])
def test_existing_checkpoint_folder_that_hides_initial_load_path_is_refused(
    tmp_path, stage1, own_step
):
    own = tmp_path / "stage2" / "checkpoint"
    own.mkdir(parents=True)
    if own_step:
        write_index(own / f"step-{own_step}", "tiny_byte", full=True)
    message = refusal(continue_from(stage1, tmp_path / "stage2"))
    assert "checkpoint.initial_load_path" in message
    assert "would be ignored" in message


def test_a_folder_without_a_checkpoint_does_not_hide_weights_in_another_format(tmp_path):
    """A first launch from them that ended in its first save, relaunched."""
    write_steps(tmp_path)
    (tmp_path / "checkpoint" / "step-2").mkdir(parents=True)
    message = refusal(resume(tmp_path, checkpoint__initial_load_in_hf=True))
    assert "checkpoint.initial_load_in_hf = true would be ignored" in message


def test_relaunch_of_a_continued_run_is_accepted(tmp_path, stage1):
    write_index(tmp_path / "stage2" / "checkpoint" / "step-12", "tiny_byte", full=True)
    check_job(continue_from(stage1, tmp_path / "stage2"))


def test_weights_alone_cannot_be_continued(tmp_path):
    weights = write_index(tmp_path / "stage1" / "checkpoint" / "step-10", "tiny_byte", full=False)
    message = refusal(continue_from(weights, tmp_path / "stage2"))
    assert "holds weights only" in message
    assert "checkpoint.last_save_model_only = false" in message


def test_missing_initial_checkpoint_is_refused(tmp_path):
    message = refusal(continue_from(tmp_path / "step-10", tmp_path / "stage2"))
    assert "step-10 does not exist" in message
    assert "must be a folder such as .../checkpoint/step-1000" in message


@pytest.mark.parametrize("form", ["weights", "huggingface"])
def test_relaunch_from_weights_alone_is_refused(tmp_path, form):
    folder = tmp_path / "checkpoint"
    write_index(folder / "step-6", "tiny_byte", full=True)
    if form == "weights":
        write_index(folder / "step-12", "tiny_byte", full=False)
    else:
        (folder / "step-12").mkdir()
        (folder / "step-12" / "model.safetensors.index.json").touch()
    job_config = parse(tmp_path, checkpoint__enable=True)
    assert "step-12 holds weights only" in refusal(job_config)
    check_job(parse(tmp_path, checkpoint__enable=True, checkpoint__load_step=6))


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"checkpoint__initial_load_model_only": True}, "training starts at step 1"),
        ({}, "The last checkpoint will hold the weights only"),
    ],
    ids=["starting-from-weights", "saving-weights"],
)
def test_checkpoints_of_weights_are_warned_of(tmp_path, stage1, caplog, fields, warning):
    with caplog.at_level(logging.WARNING):
        check_job(continue_from(stage1, tmp_path / "stage2", **fields))
    assert warning in caplog.text


def write_steps(folder, *steps, **kind):
    for step in steps:
        write_index(folder / "checkpoint" / f"step-{step}", "tiny_byte", full=True, **kind)
    return folder / "checkpoint"


def save(path):
    """A whole checkpoint, with its tensors."""
    state = Transformer(FLAVORS["tiny_byte"]).state_dict()
    dcp.save({**state, "train_state.step": torch.zeros(1)}, checkpoint_id=path, no_dist=True)
    return path


def test_a_step_that_is_not_there_names_those_that_are(tmp_path):
    write_steps(tmp_path, 2, 4, 10)
    message = refusal(resume(tmp_path, checkpoint__load_step=5))
    assert f"there is no step-5 in {tmp_path}/checkpoint; there are 2, 4, 10" in message


def test_a_step_of_a_run_that_saved_none_is_refused(tmp_path):
    job_config = resume(tmp_path, checkpoint__load_step=5)
    assert f"load_step = 5, and there is no {tmp_path}/checkpoint" in refusal(job_config)
    (tmp_path / "checkpoint").mkdir()
    assert "there is no step-5" in refusal(job_config)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"checkpoint__load_step": -2}, "load_step = -2 must be a step, or -1"),
        ({"checkpoint__exclude_from_loading": ["data"]}, "names data, and can name optimizer"),
        ({"checkpoint__exclude_from_loading": ["model"]}, "would go on from random weights"),
        (
            {"checkpoint__initial_load_in_hf": True, "checkpoint__initial_load_model_only": False},
            "loads weights only: set checkpoint.initial_load_model_only = true",
        ),
        ({"checkpoint__initial_load_in_hf_quantized": True}, "that nothing loads: leave it out"),
        (
            {"checkpoint__last_save_in_hf": True, "checkpoint__last_save_model_only": False},
            "saves weights only: set checkpoint.last_save_model_only = true",
        ),
        (
            {"checkpoint__create_seed_checkpoint": True, "checkpoint__enable": False},
            "needs checkpoint.enable = true",
        ),
    ],
    ids=["load_step", "exclude", "exclude_model", "initial_load", "quantized", "last_save", "seed"],
)
def test_fields_that_torchtitan_would_find_fault_with_later(tmp_path, fields, words):
    with pytest.raises(RefusalError, match=words):
        check_checkpoints(resume(tmp_path, **fields))


def unfinished(path):
    path.mkdir()
    (path / "__0_0.distcp").write_bytes(b"half")


@pytest.mark.parametrize(
    ("steps", "start"),
    [((2, 4), "training goes on from step-4"), ((), "training starts at step 1")],
    ids=["after others", "alone"],
)
def test_a_half_written_checkpoint_is_passed_over_with_a_word(tmp_path, caplog, steps, start):
    (tmp_path / "checkpoint").mkdir()
    write_steps(tmp_path, *steps)
    unfinished(tmp_path / "checkpoint" / "step-6")
    with caplog.at_level(logging.WARNING):
        check_job(resume(tmp_path))
    assert f"holds step-6, not saved to the end: {start}" in caplog.text


def truncate(file, size):
    with file.open("r+b") as stream:
        stream.truncate(size)


def save_later_format(path):
    index = path / ".metadata"
    metadata = pickle.loads(index.read_bytes())
    metadata.version = "2.0.0"
    index.write_bytes(pickle.dumps(metadata))


DEFECTS = {
    "half written": (lambda p: (p / ".metadata").unlink(), "was not saved to the end"),
    "no checkpoint": (
        lambda p: [file.unlink() for file in p.iterdir()],
        "is no checkpoint: it has no .metadata",
    ),
    "index cut short": (lambda p: truncate(p / ".metadata", 900), "is damaged, or was saved by a"),
    "index empty": (lambda p: truncate(p / ".metadata", 0), "cannot be read, so is damaged"),
    "index of another kind": (
        lambda p: (p / ".metadata").write_bytes(pickle.dumps({"a": 1})),
        "/.metadata cannot be read",
    ),
    "index of names unknown here": (
        lambda p: (p / ".metadata").write_bytes(b"ctorch.distributed.checkpoint.metadata\nNew\n."),
        "saved by a later version of torch (AttributeError: ",
    ),
    "later format": (save_later_format, "later version of torch, in format 2.0.0; this one's is 1"),
    "shard missing": (
        lambda p: next(p.glob("*.distcp")).unlink(),
        "lacks 1 of its 1 files, such as __0_0.distcp",
    ),
    "shard cut short": (
        lambda p: truncate(next(p.glob("*.distcp")), 1000),
        "has a file that is cut short, __0_0.distcp: 1000 of ",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DEFECTS.values(), ids=DEFECTS)
def test_a_checkpoint_that_cannot_be_loaded_is_refused_in_its_own_words(tmp_path, damage, words):
    path = save(tmp_path / "old" / "checkpoint" / "step-4")
    write_steps(tmp_path / "old", 2)
    damage(path)

    own = refusal(resume(tmp_path / "old", checkpoint__load_step=4))
    assert words in own
    assert str(path) in own
    assert "set checkpoint.load_step = 2, or move it away" in own

    initial = refusal(continue_from(path, tmp_path / "new"))
    assert words in initial
    assert f"there is {path.parent}/step-2" in initial


def test_a_whole_checkpoint_is_accepted(tmp_path):
    save(tmp_path / "checkpoint" / "step-4")
    check_job(resume(tmp_path))


def test_a_folder_of_steps_for_a_step_names_the_last(tmp_path):
    folder = write_steps(tmp_path / "old", 2, 4)
    message = refusal(continue_from(folder, tmp_path / "new"))
    assert f"is no checkpoint: it has no .metadata: checkpoint.initial_load_path = '{folder}'" in (
        message
    )
    assert f"there is {folder}/step-4" in message


def test_a_copy_under_another_name_is_not_taken_for_the_step(tmp_path):
    folder = write_steps(tmp_path, 2, 4)
    (folder / "step-4").rename(folder / "step-4.bak")
    message = refusal(resume(tmp_path))
    assert f"{folder}/step-4.bak would be taken for step-4, which is not there" in message
    check_job(resume(tmp_path, checkpoint__load_step=2))


MODELS = {
    "another vocabulary": (
        "debugmodel",
        "its tok_embeddings.weight is (320, 128), not (2048, 256)",
    ),
    "more layers": ("deeper", "it has no layers.4.attention.wq.weight"),
    "fewer layers": ("shallower", "it also has layers.3.attention.wq.weight"),
}


@pytest.mark.parametrize(("flavor", "words"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("full", [True, False], ids=["whole", "weights"])
def test_a_checkpoint_of_another_model_is_refused(tmp_path, monkeypatch, flavor, words, full):
    tiny = FLAVORS["tiny_byte"]
    monkeypatch.setitem(FLAVORS, "deeper", replace(tiny, n_layers=5))
    monkeypatch.setitem(FLAVORS, "shallower", replace(tiny, n_layers=3))
    path = write_index(tmp_path / "old" / "step-4", "tiny_byte", full=full)
    fields = {"model__flavor": flavor, "lighthouse__dense_layers": [0]}
    job_config = continue_from(
        path, tmp_path / "new", checkpoint__initial_load_model_only=not full, **fields
    )
    message = refusal(job_config)
    assert f"{path} is of another model than model.flavor = '{flavor}'" in message
    assert words in message


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_seed_is_saved_by_one_rank(tmp_path, monkeypatch, ranks):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    job_config = parse(tmp_path, checkpoint__enable=True, checkpoint__create_seed_checkpoint=True)
    if ranks == 1:
        check_checkpoints(job_config)
    else:
        with pytest.raises(RefusalError, match="one rank, not 2"):
            check_checkpoints(job_config)
