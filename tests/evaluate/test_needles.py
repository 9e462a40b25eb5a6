"""RULER's forms of retrieval, against models whose answers are known; and Hugging Face folders."""

import json
import re
import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

from tests.support.hf import write_llama
from tests.support.models import tokens as random_tokens
from torchtitan_lighthouse.data.bytes import BOS_ID, decode
from torchtitan_lighthouse.evaluate.needles import FORMS, NOISE, Needles, number_found
from torchtitan_lighthouse.evaluate.prompts import DEPTHS, retrieval_rates
from torchtitan_lighthouse.evaluate.trained import open_trained
from torchtitan_lighthouse.hf.byte_tokenizer import write_byte_tokenizer
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.components.hf_tokenizer import DocumentTokenizer
from torchtitan_lighthouse.titan.components.tokenizer import ByteTokenizer
from torchtitan_lighthouse.tools import niah as niah_tool

LENGTH = 700
PAIR = r"The number of (\w+ \w+) is (\d{7})\."


def needles(form="single", length=LENGTH, *, trials=3, seed=0, tokenizer=None):
    return Needles(tokenizer or ByteTokenizer(), form, length, trials=trials, seed=seed)


def prompts_of(stack):
    """For each trial and depth, the answer and the text of the prompt with it."""
    for answer, rows in stack:
        for depth, row in zip(DEPTHS, rows.tolist(), strict=True):
            yield decode(answer), depth, row, decode(row)


@pytest.mark.parametrize("form", FORMS)
def test_a_prompt_asks_for_one_of_its_keys(form):
    for answer, depth, row, text in prompts_of(needles(form)):
        assert len(row) == LENGTH
        assert row[0] == BOS_ID
        hay, question = text.rsplit("\nWhat is", 1)
        (key,) = re.findall(r"The number of (\w+ \w+) is \d{7}$", question)
        assert question.endswith(f"The number of {key} is{answer}")
        pairs = re.findall(PAIR, hay)
        assert pairs.count((key, answer.strip())) == 1
        others = {k for k, _ in pairs} - {key}
        assert len(others) == len(pairs) - 1
        assert len(pairs) == FORMS[form].keys or (form == "needles" and len(pairs) > 10)
        assert (NOISE[:20] in hay) == (form != "needles")
        if depth in (0, 100):
            first_or_last = pairs[0] if depth == 0 else pairs[-1]
            assert form == "multikey" or first_or_last[0] == key


@pytest.mark.parametrize("form", FORMS)
def test_the_depths_differ_in_the_needle_alone(form):
    for answer, rows in needles(form):
        lengths = []
        for row in rows.tolist():
            text = decode(row)
            needle = re.search(rf" The number of \w+ \w+ is {decode(answer).strip()}\.", text)
            lengths.append(needle.start())
            assert decode(rows[0].tolist()).replace(needle[0], "") == text.replace(needle[0], "")
        assert lengths == sorted(set(lengths))


@pytest.mark.parametrize("batch_tokens", [1, 10**9])
@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_reads_finds_all_and_one_that_guesses_none(form, batch_tokens):
    def reader(tokens, n):
        """The number of the key that is asked for, behind the question."""
        rows = []
        for row in tokens.tolist():
            text = decode(row)
            key = re.findall(r"What is the number of (\w+ \w+)\?", text)[-1]
            number = dict(re.findall(PAIR, text))[key]
            rows.append(list(f" {number}".encode()))
        return torch.tensor(rows)[:, :n]

    stack = needles(form)
    rates = retrieval_rates(stack, number_found(reader), batch_tokens=batch_tokens)
    assert rates == dict.fromkeys(DEPTHS, 1.0)

    def all_but_the_last_digit(tokens, n):
        given = reader(tokens, n)
        given[:, -1] = ord("x")
        return given

    found = number_found(all_but_the_last_digit)
    rates = retrieval_rates(stack, found, batch_tokens=batch_tokens)
    assert rates == dict.fromkeys(DEPTHS, 0.0)


def test_the_seed_alone_makes_the_prompts():
    def rows(**fields):
        return torch.stack([rows for _, rows in needles(**fields)])

    assert torch.equal(rows(), rows())
    assert not torch.equal(rows(), rows(seed=1))


@pytest.mark.parametrize("form", FORMS)
def test_what_has_no_room_is_refused(form):
    with pytest.raises(ValueError, match=rf"too short for the form '{form}'"):
        needles(form, 90)


def bpe(folder):
    """A tokenizer with merges, digits one at a time, that adds bos by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = None
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([NOISE, "The number of amber anchor is 1234567."] * 9, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    specials = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(specials))
    return DocumentTokenizer(str(folder))


@pytest.mark.parametrize("form", FORMS)
def test_merged_tokens_fill_the_length(tmp_path, form):
    tokenizer = bpe(tmp_path / "bpe")
    for answer, rows in needles(form, 300, tokenizer=tokenizer):
        assert rows.shape == (len(DEPTHS), 300)
        assert (rows[:, 0] == 0).all()
        for row in rows.tolist():
            assert row[-len(answer) :] == answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "hf"
    write_llama(folder, tie_word_embeddings=True, max_position_embeddings=512)
    write_byte_tokenizer(folder)
    return folder


@torch.no_grad()
def test_a_folder_is_the_model_that_transformers_loads(folder):
    trained = open_trained(folder)
    batch = random_tokens()[:, :-1]
    expected = AutoModelForCausalLM.from_pretrained(folder)(batch).logits
    model = trained.load(256, torch.device("cpu"))
    torch.testing.assert_close(model(batch), expected, rtol=0, atol=2e-5)
    assert (trained.seq_len, trained.dtype) == (512, torch.float32)
    assert trained.tokenizer().encode("é", add_eos=False) == [BOS_ID, 0xC3, 0xA9]


@pytest.mark.parametrize("dtype", ["int8", "auto"])
def test_a_folder_of_a_type_that_is_not_computed_in_is_refused(folder, tmp_path, dtype):
    other = shutil.copytree(folder, tmp_path / "hf")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
    with pytest.raises(RefusalError, match=rf"json: dtype='{dtype}' .* float32 or bfloat16"):
        open_trained(other)


def test_the_tool_takes_a_folder_and_a_form(folder, tmp_path, capsys):
    arguments = [str(folder), "--trials", "2", "--out", str(tmp_path), "--form", "multikey"]
    niah_tool.main(arguments)
    (record,) = json.loads((tmp_path / "niah.json").read_text())
    assert (record["form"], record["length"], record["trials"]) == ("multikey", 512, 2)
    assert ", hf, mean 0.000\n" in capsys.readouterr().out
    assert next(tmp_path.glob("niah-multikey_*.png")).read_bytes().startswith(b"\x89PNG")
