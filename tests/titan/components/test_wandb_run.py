"""The wandb run of a job, and the server that it goes to."""

import os
from types import SimpleNamespace

import pytest

from tests.support.processors import build, job, log
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs import wandb_server
from torchtitan_lighthouse.titan.checks.metrics import check_metrics
from torchtitan_lighthouse.titan.components.wandb_run import RUN_ID_FILE, set_wandb_defaults


@pytest.mark.usefixtures("one_rank")
def test_wandb_runs_offline_without_a_key(tmp_path):
    wandb = pytest.importorskip("wandb")
    processor = build(job(tmp_path, "--metrics.enable_wandb"))
    assert processor.logger._inner.number_of_loggers == 1
    run = wandb.run
    log(processor, 3)
    log(processor, 4)  # wandb closes step 3 only now
    assert run.settings._offline
    assert (run.name, run.group) == (tmp_path.name, "tiny_byte-2048")
    assert run.tags == ("lighthouse", "norm", "L3-p4-k1536", "stage-1")
    assert run.id == (tmp_path / RUN_ID_FILE).read_text().strip()
    assert run.summary["lighthouse/stage"] == 1
    assert run.summary["loss_metrics/global_avg_loss"] == 1.0
    assert run.step == 4
    processor.close()
    assert list(tmp_path.rglob("*.wandb"))


STAGE_2 = ["--checkpoint.enable", "--checkpoint.no-initial_load_model_only"]
STAGE_2 += ["--checkpoint.initial_load_path", "stage1/checkpoint/step-40"]


@pytest.mark.parametrize(
    ("flags", "tags"),
    [
        (["--lighthouse.scorer", "dilated"], "lighthouse,dilated,L3-p4-k1536,stage-1"),
        (["--lighthouse.steps", "40"], "lighthouse,norm,L3-p4-k1536,stage-1,stage-2"),
        (["--lighthouse.steps", "40", *STAGE_2], "lighthouse,norm,L3-p4-k1536,stage-2"),
        (["--lighthouse.no-enable", *STAGE_2], "dense,stage-2"),
        (["--lighthouse.no-enable"], "dense"),
    ],
    ids=["stage 1", "both stages", "stage 2", "stage 2 without the method", "dense baseline"],
)
def test_runs_to_compare_share_a_group_and_differ_in_tags(flags, tags, tmp_path):
    set_wandb_defaults(job(tmp_path / "my run", "--training.seq_len", "98304", *flags))
    assert os.environ["WANDB_RUN_GROUP"] == "tiny_byte-98304"
    assert os.environ["WANDB_RUN_NAME"] == "my run"
    assert os.environ["WANDB_TAGS"] == tags


def test_wandb_settings_of_the_user_are_kept(tmp_path):
    os.environ.update(
        WANDB_RUN_NAME="mine",
        WANDB_RUN_GROUP="ours",
        WANDB_RUN_ID="seven",
        WANDB_RUN_TAGS="a,b",
        WANDB_MODE="online",
    )
    set_wandb_defaults(job(tmp_path))
    assert os.environ["WANDB_RUN_ID"] == "seven"
    assert os.environ["WANDB_RUN_NAME"] == "mine"
    assert os.environ["WANDB_RUN_GROUP"] == "ours"
    assert os.environ["WANDB_MODE"] == "online"
    assert os.environ["WANDB_TAGS"] == "a,b"
    assert "WANDB_RUN_TAGS" not in os.environ


@pytest.mark.parametrize("key", ["environment", "netrc", "NETRC", "unreadable netrc", "none"])
@pytest.mark.parametrize("answer", ["200", "404", "no route"])
def test_wandb_is_online_with_a_key_and_a_server_that_answers(key, answer, tmp_path, monkeypatch):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        if answer == "no route":
            raise OSError
        if answer == "404":
            raise wandb_server.HTTPError(url, 404, "not found", {}, None)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(wandb_server, "urlopen", urlopen)
    os.environ["WANDB_BASE_URL"] = "https://wandb.example.org"
    if key == "environment":
        os.environ["WANDB_API_KEY"] = "0" * 40
    if key == "unreadable netrc":
        (tmp_path / ".netrc").mkdir()  # which root cannot read either
    if key in ("netrc", "NETRC"):
        netrc = tmp_path / (".netrc" if key == "netrc" else "keys")
        if key == "NETRC":
            os.environ["NETRC"] = "~/keys"
        netrc.write_text("machine wandb.example.org login user password secret\n")
        netrc.chmod(0o600)
    set_wandb_defaults(job(tmp_path))
    has_key = key in ("environment", "netrc", "NETRC")
    online = has_key and answer != "no route"
    assert os.environ.get("WANDB_MODE") == (None if online else "offline")
    assert asked == (["https://wandb.example.org"] if has_key else [])


@pytest.mark.parametrize(
    ("steps", "flags", "same"),
    [
        ([2, 4], ["--checkpoint.enable"], True),
        ([2, 4], ["--checkpoint.enable", "--checkpoint.load_step", "4"], True),
        ([2, 4], ["--checkpoint.enable", "--checkpoint.load_step", "2"], False),
        ([2, 4], [], False),
        ([], ["--checkpoint.enable"], False),
    ],
    ids=["resumed", "at its last step", "gone back", "without checkpoints", "killed too early"],
)
def test_a_relaunch_continues_the_run_where_the_steps_go_on(steps, flags, same, tmp_path):
    def run_id() -> str:
        set_wandb_defaults(job(tmp_path, *flags))
        assert os.environ["WANDB_RESUME"] == "allow"
        return os.environ.pop("WANDB_RUN_ID")

    first = run_id()
    for step in steps:
        (tmp_path / "checkpoint" / f"step-{step}").mkdir(parents=True)
        (tmp_path / "checkpoint" / f"step-{step}" / ".metadata").touch()
    assert (run_id() == first) == same


def test_ranks_that_each_have_a_run_keep_their_ids_apart(tmp_path):
    ids = set()
    for rank in (0, 1):
        set_wandb_defaults(job(tmp_path, "--metrics.save_for_all_ranks"), rank)
        ids.add(os.environ.pop("WANDB_RUN_ID"))
    assert len(ids) == 2


@pytest.mark.parametrize(
    "address",
    ["wandb.example.org", "http://", "https://a b.org", "https://a.org:port", "ftp://a.org", ""],
)
def test_an_address_that_is_none_is_refused_on_every_rank(address, tmp_path):
    os.environ["WANDB_BASE_URL"] = address
    check_metrics(job(tmp_path))
    with pytest.raises(RefusalError, match=r"WANDB_BASE_URL = .* no address"):
        check_metrics(job(tmp_path, "--metrics.enable_wandb"))


@pytest.mark.parametrize("address", ["https://wandb.example.org/", "http://localhost:8080"])
def test_other_servers_than_wandbs_own_are_taken(address, tmp_path):
    os.environ["WANDB_BASE_URL"] = address
    check_metrics(job(tmp_path, "--metrics.enable_wandb"))
