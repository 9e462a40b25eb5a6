"""Text that cannot be trained on is refused before anything is built; the log says what is read."""

import json
import logging

import pytest

from tests.support.jobs import parse
from torchtitan_lighthouse.data.corpora import CORPORA
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.checks import check_data
from torchtitan_lighthouse.titan.components.tokenizer import build_tokenizer


@pytest.fixture(autouse=True)
def _corpora_are_looked_at_anew():
    for corpus, _ in CORPORA.values():
        corpus.cache_clear()


def check(folder, **fields):
    job_config = parse(folder, **fields)
    check_data(job_config, build_tokenizer(job_config))


def corpus_of(folder, *texts):
    (corpus := folder / "corpus").mkdir()
    rows = (json.dumps({"text": text}) + "\n" for text in texts)
    (corpus / "rows.jsonl").write_text("".join(rows))
    return corpus


VALIDATION = {"validation__enable": True, "validation__dataset": "local_validation"}


def test_a_launch_logs_once_what_is_read(tmp_path, caplog):
    held_out = {**VALIDATION, "validation__dataset_path": tmp_path / "corpus.txt"}
    with caplog.at_level(logging.INFO):
        check(tmp_path, **held_out)
    lines = [line for line in caplog.messages if line.startswith("Corpus")]
    assert lines == [
        f"Corpus {tmp_path}/corpus.txt: read text 1 file 1.62 MB (.txt 1); left out nothing"
    ]


def test_more_left_out_than_read_is_a_warning(tmp_path, caplog):
    corpus = corpus_of(tmp_path, "text " * 100)
    (corpus / "picture.png").write_bytes(bytes(10_000))
    with caplog.at_level(logging.WARNING):
        check(tmp_path, training__dataset_path=corpus)
    assert "left out 1 binary (10 kB" in caplog.text
    assert "Mind: most bytes are left out" in caplog.text


def test_validation_on_what_is_trained_on_is_a_warning(tmp_path, caplog):
    path = {"validation__dataset_path": tmp_path / "corpus.txt"}
    check(tmp_path, **VALIDATION, **path)
    assert "is the text that is trained on" not in caplog.text
    check(tmp_path, **{**VALIDATION, "validation__dataset": "local"}, **path)
    assert "'local_validation' is the part that is held out" in caplog.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"training__dataset_path": ""}, ["training.dataset_path", "file or folder"]),
        (VALIDATION, ["validation.dataset_path", "local_validation"]),
        ({"training__dataset": "locl"}, ["training.dataset='locl' is unknown", "local_text"]),
        ({"training__dataset_path": "nowhere"}, ["'nowhere' does not exist"]),
        ({"training__seq_len": 1_700_000}, ["training.seq_len = 1700000", "1700001", "more text"]),
    ],
    ids=["no path", "no path to validate on", "name", "no such path", "smaller than a sequence"],
)
def test_a_job_without_its_text_is_refused(tmp_path, fields, words):
    with pytest.raises(RefusalError) as raised:
        check(tmp_path, **fields)
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_held_out_part_smaller_than_a_sequence_is_refused(tmp_path):
    corpus = corpus_of(tmp_path, *["text " * 20] * 12)
    with pytest.raises(RefusalError, match=r"validation.seq_len = 128.* held-out .* has 102"):
        check(
            tmp_path,
            **VALIDATION,
            validation__dataset_path=corpus,
            validation__seq_len=128,
        )


@pytest.mark.parametrize(("rank", "tokens"), [("0", 306), ("1", 306), ("2", 204)])
def test_each_rank_and_worker_needs_a_sequence_of_its_own(tmp_path, monkeypatch, rank, tokens):
    # 3, 3 and 2 documents of 102 tokens for the ranks.
    corpus = corpus_of(tmp_path, *["text " * 20] * 8)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", rank)
    fields = {"training__dataset_path": corpus, "training__dataloader__num_workers": 1}
    check(tmp_path, **fields, training__seq_len=tokens - 1)
    with pytest.raises(RefusalError, match=rf"rank {rank} of 3 .* has {tokens}; use"):
        check(tmp_path, **fields, training__seq_len=tokens)


def test_fewer_documents_than_ranks_and_workers_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    corpus = corpus_of(tmp_path, *["text " * 100] * 7)
    fields = {"training__dataset_path": corpus, "training__dataloader__num_workers": 2}
    fields["training__seq_len"] = 250
    with pytest.raises(RefusalError, match=r"7 documents.* 4 data-parallel ranks times 2"):
        check(tmp_path, **fields, parallelism__tensor_parallel_degree=2)
    check(tmp_path, **fields, parallelism__context_parallel_degree=4)
