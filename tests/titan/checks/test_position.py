"""A saved position in the data is resumed only in the data that it is of."""

import json
import logging
from dataclasses import asdict

import pytest
from tokenizers import Tokenizer, models

from tests.support.checkpoints import write_index
from tests.support.jobs import parse
from torchtitan_lighthouse.data.corpora import CORPORA
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.checks import check_position
from torchtitan_lighthouse.titan.components.tokenizer import build_tokenizer
from torchtitan_lighthouse.titan.folder.data import DATA_FILE, data_facts, write_facts

WAYS_ON = 'or read the data from their start: checkpoint.exclude_from_loading = ["dataloader"]'


@pytest.fixture(autouse=True)
def _corpora_are_looked_at_anew():
    clear()


def clear():
    for corpus, _ in CORPORA.values():
        corpus.cache_clear()


def corpus_of(folder, **files):
    (corpus := folder / "corpus").mkdir(parents=True)
    for name, text in {"a": "text " * 100, "b": "more text", **files}.items():
        (corpus / name).write_text(text)
    return corpus


@pytest.fixture
def corpus(tmp_path):
    return corpus_of(tmp_path)


def job(folder, corpus, **fields):
    fields = {"training__dataset_path": corpus, **fields}
    return parse(folder, checkpoint__enable=True, **fields)


def saved(folder, corpus, **fields):
    """The job, and its checkpoint of step 2 as the trainer leaves it."""
    job_config = job(folder, corpus, **fields)
    checkpoint = write_index(folder / "checkpoint" / "step-2", "tiny_byte", full=True)
    write_facts(checkpoint, data_facts(job_config, build_tokenizer(job_config)))
    return checkpoint


def check(job_config):
    clear()
    check_position(job_config, build_tokenizer(job_config))


def refusal_of(job_config):
    with pytest.raises(RefusalError) as raised:
        check(job_config)
    return str(raised.value)


def test_the_same_data_are_resumed(tmp_path, corpus):
    saved(tmp_path, corpus, training__dataloader__num_workers=2)
    check(job(tmp_path, corpus, training__dataloader__num_workers=2))


def test_sequences_and_batches_of_another_size_are_resumed(tmp_path, corpus):
    saved(tmp_path, corpus)
    check(job(tmp_path, corpus, training__seq_len=512, training__local_batch_size=4))


def test_files_that_have_moved_are_resumed(tmp_path, corpus):
    saved(tmp_path, corpus)
    check(job(tmp_path, corpus.rename(tmp_path / "moved")))


FIELDS = {
    "workers": (
        {"training__dataloader__num_workers": 2},
        "was saved with training.dataloader.num_workers = 4, and the job has 2: set "
        "training.dataloader.num_workers = 4, ",
    ),
    "dataset": (
        {"training__dataset": "local_text"},
        "was saved with training.dataset = 'local', and the job has 'local_text': set "
        "training.dataset = 'local', ",
    ),
}


@pytest.mark.parametrize(("fields", "words"), FIELDS.values(), ids=FIELDS)
def test_other_fields_are_refused_with_both_values_and_both_ways_on(
    tmp_path, corpus, fields, words
):
    checkpoint = saved(tmp_path, corpus, training__dataloader__num_workers=4)
    message = refusal_of(job(tmp_path, corpus, **fields))
    assert message == f"{checkpoint} {words}{WAYS_ON}"


def test_another_path_of_data_that_are_not_here_is_refused(tmp_path):
    saved(tmp_path, "allenai/c4", training__dataset="c4")
    message = refusal_of(job(tmp_path, "other/c4", training__dataset="c4"))
    assert "training.dataset_path = 'allenai/c4', and the job has 'other/c4'" in message


@pytest.mark.parametrize("ranks", ["4", "16"], ids=["fewer ranks", "more ranks"])
def test_another_number_of_data_parallel_ranks_is_refused(tmp_path, corpus, ranks, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    saved(tmp_path, corpus)
    monkeypatch.setenv("WORLD_SIZE", ranks)
    message = refusal_of(job(tmp_path, corpus))
    assert f"was saved by 8 data-parallel ranks, and the job has {ranks} " in message
    assert WAYS_ON in message
    if ranks == "16":
        check(job(tmp_path, corpus, parallelism__context_parallel_degree=2))


def add(corpus):
    (corpus / "c").write_text("third")


def remove(corpus):
    (corpus / "b").unlink()


def lengthen(corpus):
    (corpus / "b").write_text("more text and more")


def rename(corpus):
    (corpus / "b").rename(corpus / "c")


CHANGES = {
    "added": (add, "2 files of 509 bytes, and it has 3 files of 514 bytes now"),
    "removed": (remove, "and it has 1 files of 500 bytes now"),
    "longer": (lengthen, "and it has 2 files of 518 bytes now"),
    "renamed": (rename, "2 files of 509 bytes, and it has others of that size now"),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES)
def test_files_that_have_changed_are_refused(tmp_path, corpus, change, words):
    saved(tmp_path, corpus)
    change(corpus)
    message = refusal_of(job(tmp_path, corpus))
    assert "was saved when training.dataset = 'local' had " in message
    assert words in message
    assert f"now, in {corpus}: use the same files, {WAYS_ON}" in message


def test_another_tokenizer_is_refused(tmp_path, corpus):
    def tokenizer_of(name, *words):
        (assets := tmp_path / name).mkdir()
        vocabulary = {word: n for n, word in enumerate(words)}
        path = str(assets / "tokenizer.json")
        Tokenizer(models.WordLevel(vocabulary, unk_token=words[0])).save(path)
        return {"tokenizer__name": "huggingface", "model__hf_assets_path": assets}

    saved(tmp_path, corpus, **tokenizer_of("first", "a", "b"))
    check(job(tmp_path, corpus, **tokenizer_of("copy", "a", "b")))
    for other in (tokenizer_of("other", "a", "c"), {}):
        message = refusal_of(job(tmp_path, corpus, **other))
        assert "was saved with the tokenizer 'huggingface " in message


def test_data_can_be_read_from_their_start_instead(tmp_path, corpus, caplog):
    saved(tmp_path, corpus, training__dataloader__num_workers=4)
    with caplog.at_level(logging.INFO):
        check(job(tmp_path, corpus, checkpoint__exclude_from_loading=["dataloader"]))
    assert "The data are read from their start" in caplog.text


def test_a_stage_from_another_folder_is_checked_too(tmp_path, corpus):
    checkpoint = saved(tmp_path / "stage1", corpus, training__dataloader__num_workers=4)
    initial = {"checkpoint__initial_load_path": checkpoint}
    message = refusal_of(
        job(tmp_path / "stage2", corpus, checkpoint__initial_load_model_only=False, **initial)
    )
    assert f"{checkpoint} was saved with training.dataloader.num_workers = 4" in message
    check(job(tmp_path / "stage2", corpus, **initial))  # from the weights alone


def test_a_stage_from_a_folder_of_another_name_is_checked_too(tmp_path, corpus):
    checkpoint = saved(tmp_path / "stage1", corpus).rename(tmp_path / "best")
    fields = {"checkpoint__initial_load_path": checkpoint, "training__dataset": "local_text"}
    fields["checkpoint__initial_load_model_only"] = False
    assert f"{checkpoint} was saved" in refusal_of(job(tmp_path / "stage2", corpus, **fields))


def test_a_checkpoint_that_does_not_say_is_resumed_with_a_word(tmp_path, corpus, caplog):
    (saved(tmp_path, corpus) / DATA_FILE).unlink()
    with caplog.at_level(logging.WARNING):
        check(job(tmp_path, corpus))
    assert "does not say what data it was saved in" in caplog.text


def test_ranks_are_counted_where_a_checkpoint_does_not_say(tmp_path, corpus, monkeypatch):
    (saved(tmp_path, corpus) / DATA_FILE).unlink()
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = refusal_of(job(tmp_path, corpus))
    assert "was saved by 1 data-parallel ranks, and the job has 2 " in message
    assert WAYS_ON in message


def test_facts_of_a_later_version_or_damaged_ones_are_refused(tmp_path, corpus):
    file = saved(tmp_path, corpus) / DATA_FILE
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, "version": 2}))
    assert "is of version 2, and this package's is 1" in refusal_of(job(tmp_path, corpus))
    for damaged in ('{"version": 1, "dataset": "c4"}', "{", "[]"):
        file.write_text(damaged)
        assert f"{file} is damaged" in refusal_of(job(tmp_path, corpus))


def test_facts_name_all_that_is_written(tmp_path, corpus):
    job_config = job(tmp_path, corpus)
    facts = data_facts(job_config, build_tokenizer(job_config))
    assert asdict(facts) == {
        "dataset": "local",
        "dataset_path": None,
        "files": 2,
        "size": 509,
        "sections": facts.sections,
        "tokenizer": "byte",
        "num_workers": 0,
        "ranks": 1,
    }
