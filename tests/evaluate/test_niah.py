"""The retrieval test against models whose answers are known, and its script."""

import json
import os
import shutil
import string

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.distributed import checkpoint as dcp
from torchtitan.models.llama3 import Transformer

from tests.support.jobs import parse
from torchtitan_lighthouse.data.bytes import BOS_ID
from torchtitan_lighthouse.evaluate import niah_results, retrieval
from torchtitan_lighthouse.evaluate.checkpoint import load_trained
from torchtitan_lighthouse.evaluate.niah import CUE, NEEDLE, Haystack, digit_found
from torchtitan_lighthouse.evaluate.predictions import last_logits_of
from torchtitan_lighthouse.evaluate.prompts import DEPTHS, retrieval_rates
from torchtitan_lighthouse.evaluate.trained import TrainedRun
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.runs.markdown import markdown
from torchtitan_lighthouse.runs.names import file_name, path_name
from torchtitan_lighthouse.titan.components.tokenizer import ByteTokenizer, build_tokenizer
from torchtitan_lighthouse.titan.models.flavors import FLAVORS
from torchtitan_lighthouse.tools import niah as niah_tool

REFUSED = (RefusalError, FileNotFoundError)

BEFORE, AFTER = (part.encode() for part in NEEDLE)
FILLER = 100
# bos, filler, needle with its digit, cue.
LENGTH = 1 + FILLER + len(BEFORE) + 1 + len(AFTER) + len(CUE)


def haystack(length=LENGTH, *, trials=10, seed=0, tokenizer=None):
    return Haystack(tokenizer or ByteTokenizer(), length, trials=trials, seed=seed)


def rates(answer, *, batch_tokens=10**9, **fields):
    """Of the model that answers with ``answer(prompt's bytes)``, a digit's character."""

    def last_logits(tokens):
        assert tokens.dtype == torch.int64
        logits = torch.zeros(len(tokens), 320)
        logits[:, ord("x")] = 2  # likelier, but no digit
        for row, prompt in zip(logits, tokens.tolist(), strict=True):
            row[answer(bytes(t for t in prompt if t != BOS_ID))] = 1
        return logits

    prompts = haystack(**fields)
    found = digit_found(last_logits, prompts.digits)
    return retrieval_rates(prompts, found, batch_tokens=batch_tokens)


def after_marker(text):
    """The digit behind the needle's first words, 0 where they are not."""
    _, _, rest = text.partition(BEFORE)
    return (rest or b"0")[0]


@pytest.mark.parametrize("batch_tokens", [1, 3 * LENGTH, 10**9])
def test_a_model_that_copies_finds_every_digit(batch_tokens):
    assert rates(after_marker, batch_tokens=batch_tokens) == dict.fromkeys(DEPTHS, 1.0)


def test_a_model_that_always_gives_one_digit_finds_a_tenth():
    assert rates(lambda _: ord("7"), trials=30) == dict.fromkeys(DEPTHS, 0.1)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_model_with_a_window_finds_what_is_in_it(depth):
    window = LENGTH - (1 + FILLER * depth // 100)
    at_least = {d: 1.0 if d >= depth else 0.1 for d in DEPTHS}
    assert rates(lambda text: after_marker(text[-window:])) == at_least
    assert rates(lambda text: after_marker(text[-window + 1 :])) == at_least | {depth: 0.1}


def test_prompts_are_as_long_as_asked_and_the_needle_where_it_should_be():
    for trial, (digit, prompts) in enumerate(haystack(trials=20)):
        assert digit == trial % 10
        assert prompts.shape == (len(DEPTHS), LENGTH)
        needle = BEFORE + str(digit).encode() + AFTER
        for depth, (first, *prompt) in zip(DEPTHS, prompts.tolist(), strict=True):
            assert first == BOS_ID
            filler = bytes(prompt).removesuffix(CUE.encode()).replace(needle, b"")
            assert len(filler) == FILLER
            assert filler.isalnum()
            cut = FILLER * depth // 100
            assert bytes(prompt) == filler[:cut] + needle + filler[cut:] + CUE.encode()


def test_the_seed_alone_makes_the_prompts():
    def prompts(**fields):
        return torch.stack([tokens for _, tokens in haystack(**fields)])

    twice = haystack(trials=20)
    first, again = ([tokens for _, tokens in twice] for _ in range(2))
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert torch.equal(prompts(), torch.stack(first[:10]))
    assert not torch.equal(prompts(), prompts(seed=1))
    assert len({tuple(tokens[0].tolist()) for _, tokens in twice}) == 20


def test_what_cannot_be_asked_is_refused():
    shortest = LENGTH - FILLER + 1
    assert next(iter(haystack(shortest)))[1].shape == (len(DEPTHS), shortest)
    with pytest.raises(ValueError, match=f"length {shortest - 1} is too short: .* {shortest - 1} "):
        haystack(shortest - 1)
    for trials in (0, 25):
        with pytest.raises(ValueError, match=f"trials = {trials} must be a multiple of 10"):
            haystack(trials=trials)


def huggingface(folder, characters, merges=()):
    """A BPE tokenizer that adds bos, id 0, to all it encodes."""
    tokens = ["<bos>", "<unk>", *characters, *(a + b for a, b in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<bos>"}')
    job = parse(folder, tokenizer__name="huggingface", model__hf_assets_path=folder)
    return build_tokenizer(job)


def test_merged_tokens_are_cut_to_the_length(tmp_path):
    merges = [(a, b) for a in string.ascii_letters for b in string.ascii_letters]
    tokenizer = huggingface(tmp_path, string.printable, merges)
    assert tokenizer.encode("ab 1") == [0, *map(tokenizer.token_to_id, ("ab", " ", "1"))]
    for digit, prompts in haystack(tokenizer=tokenizer):
        assert prompts.shape == (len(DEPTHS), LENGTH)
        assert (prompts == 0).sum(1).tolist() == [1] * len(DEPTHS)
        for (first, *prompt), depth in zip(prompts.tolist(), DEPTHS, strict=True):
            text = "".join(map(tokenizer.id_to_token, prompt))
            assert first == 0
            assert text.count(f"{NEEDLE[0]}{digit}{NEEDLE[1]}") == 1
            assert text.startswith(NEEDLE[0]) == (depth == 0)
            assert text.endswith(CUE)


@pytest.mark.parametrize("digits", ["", "01234567"])
def test_a_tokenizer_that_confuses_digits_is_refused(tmp_path, digits):
    with pytest.raises(ValueError, match="of the digits 0 to 9 are not all different"):
        haystack(tokenizer=huggingface(tmp_path, string.ascii_letters + digits))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a tiny model with random weights."""
    folder = tmp_path_factory.mktemp("run")
    job_config = parse(folder, training__seq_len=160)
    (folder / "job.json").write_text(json.dumps(job_config.to_dict()))
    model = Transformer(FLAVORS["tiny_byte"])
    with torch.no_grad():
        model.init_weights()
    dcp.save(model.state_dict(), checkpoint_id=folder / "checkpoint/step-1", no_dist=True)
    return folder / "checkpoint/step-1"


def test_the_last_logits_are_the_model_s_and_no_others_are_made(checkpoint, tmp_path):
    def load():
        return load_trained(checkpoint, parse(tmp_path), seq_len=64, device=torch.device("cpu"))

    tokens, model, shapes = torch.randint(256, (3, 64)), load(), []
    model.output.register_forward_hook(lambda _, args, out: shapes.append(out.shape))
    logits = last_logits_of(model, torch.float32)(tokens)
    assert shapes == [(3, 1, 320)]
    assert torch.allclose(logits, load()(tokens)[:, -1], atol=1e-5)
    halves = last_logits_of(load(), torch.bfloat16)(tokens)
    assert halves.dtype == torch.float32
    assert not torch.equal(halves, logits)
    assert torch.allclose(halves, logits, atol=0.05)


@pytest.fixture
def niah():
    return niah_tool


@pytest.fixture
def measured(niah, monkeypatch):
    """The lengths that the script measures, for which this makes up the rates and draws none."""
    lengths = []

    def made_up(haystack, _, **__):
        lengths.append(haystack.length)
        return {depth: depth / haystack.length for depth in DEPTHS}

    monkeypatch.setattr(retrieval, "retrieval_rates", made_up)
    monkeypatch.setattr(niah_results, "draw", lambda *_: None)
    return lengths


def test_the_script_writes_what_it_prints(niah, checkpoint, tmp_path, capsys):
    niah.main([str(checkpoint), "--trials", "10", "--out", str(tmp_path / "out")])
    (record,) = json.loads((tmp_path / "out/niah.json").read_text())
    assert (record["checkpoint"], record["length"]) == (str(checkpoint), 160)
    assert (record["trials"], record["seed"]) == (10, 0)
    assert list(record["rates"]) == [str(depth) for depth in DEPTHS]
    assert all(rate * 10 == round(rate * 10) for rate in record["rates"].values())
    assert record["mean"] == pytest.approx(sum(record["rates"].values()) / len(DEPTHS))
    png = tmp_path / "out" / file_name("niah", [path_name(checkpoint)], ".png")
    assert png.read_bytes().startswith(b"\x89PNG")
    rows = [("depth", "160"), *((f"{d}%", f"{record['rates'][str(d)]:.2f}") for d in DEPTHS)]
    heading = f"{checkpoint.parents[1].name}, step-1, mean {record['mean']:.3f}\n\n"
    assert capsys.readouterr().out == f"{heading}{markdown(rows)}\n{png}\n"


def test_only_what_is_missing_is_run(niah, measured, checkpoint, tmp_path, monkeypatch, capsys):
    arguments = [str(checkpoint), "--out", str(tmp_path), "--lengths", "96", "128"]
    niah.main(arguments)
    first = capsys.readouterr().out
    niah.main([*arguments, "160"])
    assert measured == [96, 128, 160]
    for setting in (["--seed", "1"], ["--trials", "20"]):
        niah.main([*arguments[:-1], *setting])
    assert measured == [96, 128, 160, 96, 96]
    capsys.readouterr()
    monkeypatch.setattr(TrainedRun, "load", None)
    niah.main(arguments)
    assert capsys.readouterr().out == first
    assert len(json.loads((tmp_path / "niah.json").read_text())) == 5


def test_a_checkpoint_saved_anew_is_run_again(niah, measured, checkpoint, tmp_path):
    for _ in range(2):
        niah.main([str(checkpoint), "--out", str(tmp_path), "--lengths", "96"])
        os.utime(checkpoint / ".metadata", (0, 0))
    assert measured == [96, 96]


def test_a_call_on_other_checkpoints_keeps_the_charts_that_are_there(
    niah, measured, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(niah_results, "draw", lambda _, png: png.write_text("a chart"))
    run = checkpoint.parents[1]
    other = shutil.copytree(checkpoint, checkpoint.with_name("step-2"))
    namesake = shutil.copytree(run, tmp_path / run.name) / checkpoint.relative_to(run)
    for checkpoints in ([checkpoint], [other], [checkpoint, other], [namesake]):
        niah.main([*map(str, checkpoints), "--out", str(tmp_path), "--lengths", "96"])
    assert len(list(tmp_path.glob("*.png"))) == 4


def test_a_moved_checkpoint_takes_the_job_that_is_named(niah, measured, checkpoint, tmp_path):
    moved = shutil.copytree(checkpoint, tmp_path / "elsewhere" / "step-1")
    arguments = [str(moved), "--out", str(tmp_path / "out")]
    with pytest.raises(REFUSED, match=f"name the job.json of {moved} with --job"):
        niah.main(arguments)
    job = checkpoint.parents[1] / "job.json"
    niah.main([*arguments, "--job", str(job)])
    assert measured == [160]
    shutil.copy(job, moved)  # as the trainer leaves them
    niah.main([*arguments, "--lengths", "96"])
    assert measured == [160, 96]


@pytest.mark.parametrize("content", ['[{"rates": ', '{"rates": {}}'])
def test_records_that_are_none_are_refused_before_anything_is_measured(
    niah, measured, checkpoint, tmp_path, content
):
    (tmp_path / "niah.json").write_text(content)
    with pytest.raises(REFUSED, match=r"niah\.json (is damaged|has no list)"):
        niah.main([str(checkpoint), "--out", str(tmp_path)])
    assert not measured


def test_a_job_that_is_none_is_refused_by_its_file(niah, measured, checkpoint, tmp_path):
    (toml := tmp_path / "job.toml").write_text("[model]")
    with pytest.raises(REFUSED, match=r"job\.toml cannot be read as JSON"):
        niah.main([str(checkpoint), "--out", str(tmp_path), "--job", str(toml)])


def test_the_help_says_the_rule_of_the_trials(niah, capsys):
    with pytest.raises(SystemExit):
        niah.main(["--help"])
    assert "multiple of 10" in " ".join(capsys.readouterr().out.split())


def test_an_interrupted_script_keeps_the_lengths_it_finished(
    niah, measured, checkpoint, tmp_path, monkeypatch
):
    def interrupted(haystack, _, **__):
        if haystack.length == 128:
            raise KeyboardInterrupt
        return made_up(haystack, _)

    arguments = [str(checkpoint), "--out", str(tmp_path), "--lengths", "96", "128"]
    made_up = retrieval.retrieval_rates
    monkeypatch.setattr(retrieval, "retrieval_rates", interrupted)
    with pytest.raises(KeyboardInterrupt):
        niah.main(arguments)
    monkeypatch.setattr(retrieval, "retrieval_rates", made_up)
    niah.main(arguments)
    assert measured == [96, 128]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "8"], "length 8 is too short"),
        (["--lengths", "161"], "length 161 is beyond the 160 tokens"),
        (["--lengths", "64", "--form", "multikey"], "length 64 is too short"),
        (["--trials", "5"], "trials = 5 must be a multiple of 10"),
        (["no/such/step-1"], "is no checkpoint"),
    ],
    ids=["length", "beyond", "multikey", "trials", "checkpoint"],
)
def test_bad_arguments_are_refused_before_any_run(
    niah, measured, checkpoint, tmp_path, arguments, message
):
    with pytest.raises(REFUSED, match=message):
        niah.main([str(checkpoint), *arguments, "--out", str(tmp_path)])
    assert not measured
