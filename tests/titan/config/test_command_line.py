"""Command lines and files that cannot be read are refused in a line."""

import io
import logging
import sys

import pytest
from torchtitan.config.manager import custom_registry

from tests.support.hf import write_llama
from tests.support.jobs import parse
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.checks import check_job
from torchtitan_lighthouse.titan.config import LighthouseConfigManager
from torchtitan_lighthouse.titan.models.of_job import model_args_of
from torchtitan_lighthouse.titan.trainer import LighthouseTrainer


def refusal(*args) -> str:
    with pytest.raises(RefusalError) as raised:
        LighthouseConfigManager().parse_args(list(map(str, args)))
    return str(raised.value)


def terminal(encoding: str) -> io.TextIOWrapper:
    """A stdout that takes colours, and boxes if its encoding has them."""
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    stdout.isatty = lambda: True
    return stdout


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["steps"], ["Unrecognized options: steps"]),
        (["--training.stepz", "3"], ["--training.stepz", "perhaps --training.steps"]),
        (["--training.steps", "many"], ["--training.steps", "'many'"]),
        (["--lighthouse.topk"], ["--lighthouse.topk", "Missing value"]),
        (["--tokenizer.name", "words"], ["--tokenizer.name", "'byte', 'huggingface'"]),
    ],
    ids=["word", "option", "value", "no-value", "choice"],
)
def test_a_wrong_command_line_is_one_line(args, words, encoding, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", terminal(encoding))
    monkeypatch.setenv("TERM", "xterm-256color")
    message = refusal(*args)
    assert all(word in message for word in words), message
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 200
    assert not "".join(capsys.readouterr())


def test_help_is_printed(capsys):
    with pytest.raises(SystemExit) as end:
        LighthouseConfigManager().parse_args(["--help"])
    assert end.value.code == 0
    page = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "--lighthouse.topk INT k, how many entries each level above the tokens expands" in page


def test_help_that_is_not_read_to_its_end_is_no_file_that_is_missing(monkeypatch):
    def closed(_: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", terminal("ascii"))
    monkeypatch.setattr(sys.stdout, "write", closed)
    with pytest.raises(SystemExit):
        LighthouseConfigManager().parse_args(["--help"])


def test_jobs_read_before_do_not_slow_a_job():
    LighthouseConfigManager()
    rules = list(custom_registry._primitive_rules)
    LighthouseConfigManager()
    assert custom_registry._primitive_rules == rules


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        ("[training\n", "is not TOML"),
        ("[training]\nstepz = 3\n", "no field training.stepz: did you mean training.steps?"),
        ("[trainig]\nsteps = 3\n", "no section trainig: did you mean training"),
        ("[lighthouse]\nfoo = 3\n", "no field lighthouse.foo"),
        ("training = 3\n", "training = 3 must be a section"),
        ("[training.dataloader]\nworkers = 3\n", "training.dataloader.num_workers?"),
    ],
    ids=["missing", "not-toml", "field", "section", "ours", "not-a-section", "nested"],
)
def test_a_wrong_file_is_one_line(tmp_path, caplog, toml, message):
    file = tmp_path / "job.toml"
    if toml is not None:
        file.write_text(toml)
    said = refusal("--job.config_file", file)
    assert message in said
    assert "run_train.sh" not in said
    assert not caplog.text


@pytest.mark.parametrize("second", [["--job.config_file", "b.toml"], ["--job.config-file=b.toml"]])
def test_a_second_file_is_not_passed_over(tmp_path, second):
    (tmp_path / "a.toml").write_text("[training]\nsteps = 3\n")
    said = refusal("--job.config_file", tmp_path / "a.toml", *second)
    assert "2 times" in said
    assert "a.toml" in said
    assert "b.toml" in said


def test_a_file_is_missed_in_the_folder_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refusal("--job.config_file", "train_configs/mine.toml")
    assert "'train_configs/mine.toml' cannot be read" in said
    assert f"looked in {tmp_path}" in said


def test_a_folder_is_no_file(tmp_path):
    assert "Is a directory" in refusal("--job.config_file", tmp_path)


def test_without_a_job_the_command_that_works_is_named(monkeypatch):
    job = LighthouseConfigManager().parse_args([])
    with pytest.raises(RefusalError, match=r"no job .*torchrun .*--job\.config_file CONFIG\.toml"):
        check_job(job)


def test_without_torchrun_the_command_that_works_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(RefusalError, match=r"without torchrun: torchrun .* -m torchtitan_light"):
        LighthouseTrainer(parse(tmp_path))


def test_a_folder_that_nothing_reads_is_not_missed(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert not parse(tmp_path).model.hf_assets_path
    assert not caplog.text


def test_a_folder_that_is_read_is_missed(tmp_path):
    job = parse(tmp_path, tokenizer__name="huggingface", model__hf_assets_path="nowhere")
    with pytest.raises(RefusalError, match=r"model\.hf_assets_path = 'nowhere' must be a folder"):
        LighthouseTrainer(job)


def test_a_model_s_folder_that_is_not_there_is_not_another(tmp_path, monkeypatch):
    """Its path is kept, whatever reads it: the working directory may hold a model too."""
    write_llama(tmp_path)
    monkeypatch.chdir(tmp_path)
    job = parse(tmp_path, model__flavor="hf", model__hf_assets_path="nowhere")
    with pytest.raises(RefusalError, match=r"model\.hf_assets_path=nowhere is no folder"):
        model_args_of(job)
