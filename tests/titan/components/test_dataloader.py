"""Packed text: what a document is, who reads which, and resuming at the very next token."""

import json
from itertools import islice, product
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from torchtitan.config import JobConfig
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataset

from torchtitan_lighthouse.data.bytes import BOS_ID, EOS_ID
from torchtitan_lighthouse.data.corpora import local_corpus, python_stdlib_corpus
from torchtitan_lighthouse.data.documents import Share, read_document
from torchtitan_lighthouse.data.sections import part_of
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.components.dataloader import (
    build_dataloader,
    build_validation_dataloader,
)
from torchtitan_lighthouse.titan.components.tokenizer import ByteTokenizer

SEQ_LEN = 64


def words(document, count):
    return " ".join(f"{document}.{word}" for word in range(count))


def write_text_folder(path, documents=40):
    for n in range(documents):
        file = path / f"{n % 3}" / f"{n}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(words(n, 30))
    return path


def write_text_file(path, documents=600):
    file = path / "book.txt"
    file.write_text("\n".join(words(n, 30) for n in range(documents)))
    return file


def write_jsonl(path, documents=40):
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": words(n, 30)}) + "\n" for n in range(documents)))
    return file


def write_parquet(path, documents=40):
    file = path / "rows.parquet"
    table = pa.table({"text": [words(n, 30) for n in range(documents)], "n": range(documents)})
    pq.write_table(table, file, row_group_size=4)
    return file


WRITERS = {
    "text folder": write_text_folder,
    "text file": write_text_file,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


def build(dataset, path, rank=0, world=1, *, rows=2, workers=0, seq_len=SEQ_LEN, infinite=True):
    config = JobConfig()
    section = config.training
    section.dataset = dataset
    section.dataset_path = None if path is None else str(path)
    section.seq_len = seq_len
    section.local_batch_size = rows
    section.dataloader.num_workers = workers
    return build_dataloader(world, rank, ByteTokenizer(), config, infinite=infinite)


def tokens(batches):
    """The rows of the batches with the last label, which the next row does not repeat."""
    return [
        torch.cat([inputs["input"][row], labels[row, -1:]])
        for inputs, labels in batches
        for row in range(len(labels))
    ]


def documents(path, part="training", rank=0, world=1, corpus=local_corpus):
    """What one rank reads in the first epoch, in order."""
    dataset = split_dataset_by_node(corpus(str(path)).stream(part), rank, world)
    return [read_document(sample) for sample in dataset]


def epoch_batches(path):
    return len(list(build("local", path, infinite=False)))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("world", [1, 2], ids=["1 rank", "2 ranks"])
@pytest.mark.parametrize("epochs", [0.5, 1, 1.5, 2.3], ids="after {} epochs".format)
def test_resume_continues_at_the_very_next_token(name, world, epochs, tmp_path):
    path = WRITERS[name](tmp_path)
    stop = int(epochs * epoch_batches(path) / world)
    for rank in range(world):
        unstopped = build("local", path, rank, world)
        expected = tokens(islice(iter(unstopped), stop + 40))[2 * stop :]

        stopped = build("local", path, rank, world)
        list(islice(iter(stopped), stop))
        resumed = build("local", path, rank, world)
        resumed.load_state_dict(stopped.state_dict())
        torch.testing.assert_close(tokens(islice(iter(resumed), 40)), expected, rtol=0, atol=0)


def test_resume_at_every_batch_of_two_epochs_and_again_after_it(tmp_path):
    path = write_text_folder(tmp_path, documents=6)
    batches = 2 * epoch_batches(path) + 2
    expected = tokens(islice(iter(build("local", path)), batches))

    loader, got = build("local", path), []
    for _ in range(batches):
        got += tokens(islice(iter(loader), 1))
        state = loader.state_dict()
        loader = build("local", path)
        loader.load_state_dict(state)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_resume_in_the_second_epoch_of_the_standard_library(tmp_path):
    path = write_text_folder(tmp_path)
    for file in path.rglob("*.txt"):
        file.rename(file.with_suffix(".py"))
    stop = int(1.5 * len(list(build("python_stdlib", path, infinite=False))))
    loader = build("python_stdlib", path)
    batches = iter(loader)
    list(islice(batches, stop))
    resumed = build("python_stdlib", path)
    resumed.load_state_dict(loader.state_dict())
    expected = tokens(islice(batches, 5))
    torch.testing.assert_close(tokens(islice(iter(resumed), 5)), expected, rtol=0, atol=0)


def test_resume_with_a_worker_process(tmp_path):
    path = write_jsonl(tmp_path)
    stop = int(1.5 * epoch_batches(path))
    expected = tokens(islice(iter(build("local", path)), stop + 10))[2 * stop :]
    loader = build("local", path, workers=1)
    list(islice(iter(loader), stop))
    resumed = build("local", path, workers=1)
    resumed.load_state_dict(loader.state_dict())
    torch.testing.assert_close(tokens(islice(iter(resumed), 10)), expected, rtol=0, atol=0)


def test_a_state_has_no_item_for_each_token(tmp_path):
    (tmp_path / "long.txt").write_text(words(0, 3000))
    loader = build("local", tmp_path)
    list(islice(iter(loader), 1))
    left_over = loader.dataset.state_dict()["token_buffer"]
    assert isinstance(left_over, bytes)  # pinning in memory takes these as one
    assert len(left_over) > 1000


def test_a_state_with_a_list_of_tokens_is_read(tmp_path):
    """Of torchtitan's own, and of checkpoints of earlier versions."""
    path = write_text_folder(tmp_path)
    dataset, resumed = (build("local", path).dataset for _ in range(2))
    batches = iter(dataset)
    list(islice(batches, 3))
    resumed.load_state_dict({**dataset.state_dict(), "token_buffer": list(dataset._token_buffer)})
    expected, got = ([x["input"] for x, _ in islice(it, 4)] for it in (batches, iter(resumed)))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_resume_with_another_batch_size_continues_at_the_next_token(tmp_path):
    path = write_text_folder(tmp_path)
    expected = tokens(islice(iter(build("local", path, rows=1)), 14))[6:]
    loader = build("local", path, rows=2)
    list(islice(iter(loader), 3))
    resumed = build("local", path, rows=4)
    resumed.load_state_dict(loader.state_dict())
    torch.testing.assert_close(tokens(islice(iter(resumed), 2)), expected, rtol=0, atol=0)


def test_resume_with_shorter_sequences_continues_at_the_next_token(tmp_path):
    path = write_text_folder(tmp_path)
    stream = torch.cat(tokens(islice(iter(build("local", path, rows=1)), 14)))
    loader = build("local", path, rows=1)
    list(islice(iter(loader), 3))
    resumed = build("local", path, rows=1, seq_len=SEQ_LEN // 4)
    resumed.load_state_dict(loader.state_dict())
    got = torch.cat(tokens(islice(iter(resumed), 30)))
    assert torch.equal(got, stream[3 * (SEQ_LEN + 1) :][: len(got)])


def test_text_is_packed_as_torchtitan_packs_it(tmp_path):
    path = str(write_text_folder(tmp_path))
    titan = HuggingFaceTextDataset("local", path, ByteTokenizer(), SEQ_LEN, infinite=True)
    count = int(1.5 * len(list(build("local", path, rows=1, infinite=False))))
    expected = [
        torch.cat([inputs["input"], labels[-1:]]) for inputs, labels in islice(titan, 2 * count)
    ]
    got = tokens(islice(iter(build("local", path, rows=2)), count))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_labels_are_the_next_tokens(tmp_path):
    inputs, labels = next(iter(build("local", write_text_folder(tmp_path))))
    assert inputs["input"].shape == labels.shape == (2, SEQ_LEN)
    assert inputs["input"].dtype == labels.dtype == torch.int64
    assert torch.equal(inputs["input"][:, 1:], labels[:, :-1])
    assert inputs["input"][0, 0] == BOS_ID


@pytest.mark.parametrize("name", ["text folder", "jsonl", "parquet"])
@pytest.mark.parametrize("world", [1, 2, 3, 7], ids="{} ranks".format)
def test_ranks_share_every_document_out_once(name, world, tmp_path):
    path = WRITERS[name](tmp_path)
    read = [text for rank in range(world) for text in documents(path, rank=rank, world=world)]
    everything = read + documents(path, "held-out")
    assert sorted(everything) == sorted(words(n, 30) for n in range(40))


@pytest.mark.parametrize("name", ["text folder", "jsonl"])
@pytest.mark.parametrize("ranks", [1, 2, 3], ids="{} ranks".format)
@pytest.mark.parametrize("workers", [1, 3], ids="{} workers".format)
def test_shares_are_those_that_ranks_and_workers_read(name, ranks, workers, tmp_path, monkeypatch):
    path = WRITERS[name](tmp_path)
    sections = part_of(local_corpus(str(path)).sections, "training")
    for rank, worker in product(range(ranks), range(workers)):
        info = SimpleNamespace(id=worker, num_workers=workers)
        monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda info=info: info)
        dataset = build("local", path, rank, ranks, infinite=False).dataset
        read = [read_document(sample) for sample in dataset._data]
        share = Share(rank, ranks, worker, workers)
        assert [unread() for unread in share.documents(sections)] == read


def test_a_single_text_file_serves_several_ranks(tmp_path):
    path = write_text_file(tmp_path)
    parts = [text for rank in range(3) for text in documents(path, rank=rank, world=3)]
    assert len(parts) >= 3
    assert sorted("\n".join(parts).split()) == sorted(path.read_text().split())


def test_long_text_is_cut_at_line_starts(tmp_path):
    path = tmp_path / "book.txt"
    lines = [f"line {n} of the book\n" for n in range(200_000)]
    path.write_text("".join(lines))
    texts = documents(path, "training") + documents(path, "held-out")
    assert max(map(len, texts)) < 2**14 + 2**12
    assert sorted(line for text in texts for line in text.splitlines(True)) == sorted(lines)


def test_text_without_line_ends_is_cut_all_the_same(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"{n}," for n in range(30_000)))
    size = path.stat().st_size
    texts = documents(path, "training") + documents(path, "held-out")
    assert sum(map(len, texts)) == size
    assert max(map(len, texts)) < size // 4


def test_order_is_neither_the_files_nor_the_same_in_every_epoch(tmp_path):
    path = write_text_folder(tmp_path)
    in_order = [words(n, 30) for n in range(40)]
    first = documents(path)
    assert first not in (in_order, sorted(in_order))
    assert documents(path) == first
    (dataset := local_corpus(str(path)).stream("training")).set_epoch(1)
    second = [read_document(sample) for sample in dataset]
    assert second != first
    assert sorted(second) == sorted(first)


def test_undecodable_bytes_pass_through(tmp_path):
    raw = b"caf\xe9 \xff\xfe \xf0\x9f\x92 end"
    (tmp_path / "latin.txt").write_bytes(raw)
    inputs, labels = next(iter(build("local", tmp_path, seq_len=len(raw) + 1)))
    assert [*inputs["input"][0].tolist(), labels[0, -1].item()] == [BOS_ID, *raw, EOS_ID]


def test_undecodable_and_unpaired_in_jsonl_become_replacements(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "a\xffb"}\n\n{"text": "c\\ud800d"}\n')
    assert documents(tmp_path) == ["a\ufffdb", "c?d"]


def test_hidden_and_binary_files_are_left_out(tmp_path):
    for name, content in {"a.md": b"read", ".b.txt": b"hidden", "c.bin": b"bin\0ary"}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    assert documents(tmp_path) == ["read"]


def test_the_standard_library_is_read_without_tests_packages_and_tables(tmp_path):
    for name in (
        "ast.py",
        "json/decoder.py",
        "test/test_ast.py",
        "site-packages/x.py",
        "encodings/cp437.py",
        "a.txt",
    ):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(name)
    assert sorted(documents(tmp_path, corpus=python_stdlib_corpus)) == ["ast.py", "json/decoder.py"]


def test_the_standard_library_of_this_machine_needs_no_path():
    inputs, _ = next(iter(build("python_stdlib", None)))
    assert inputs["input"].shape == (2, SEQ_LEN)


@pytest.mark.parametrize("name", WRITERS)
def test_held_out_and_training_parts_make_up_the_corpus(name, tmp_path):
    path = WRITERS[name](tmp_path, 6000)
    training, held_out = documents(path, "training"), documents(path, "held-out")
    assert set(held_out).isdisjoint(training)
    assert len(held_out) < len(training) / 20
    everything = sorted(" ".join(training + held_out).split())
    assert everything == sorted(word for n in range(6000) for word in words(n, 30).split())


def test_a_rank_without_documents_is_an_error_not_a_hang(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "the only one"}\n')
    with pytest.raises(ValueError, match="fewer documents than there are data-parallel ranks"):
        next(iter(build("local", tmp_path, rank=1, world=2)))


def validation_batches(path, rank=0, world=1, *, steps=-1):
    config = JobConfig()
    section = config.validation
    section.dataset, section.dataset_path = "local_validation", str(path)
    section.seq_len, section.local_batch_size, section.steps = SEQ_LEN, 1, steps
    return build_validation_dataloader(world, rank, ByteTokenizer(), config, infinite=steps != -1)


def test_validation_reads_the_held_out_part_once(tmp_path):
    path = write_text_folder(tmp_path, 300)
    held_out = "".join(documents(path, "held-out"))
    got = torch.cat(tokens(validation_batches(path)))
    assert len(held_out) > 5 * SEQ_LEN
    assert ByteTokenizer().decode(got) == held_out[: sum(token < BOS_ID for token in got)]


def test_each_validation_has_the_same_text_whatever_the_last_one_left(tmp_path):
    batches = validation_batches(write_text_folder(tmp_path, 300), steps=3)
    first, second = (torch.cat(tokens(islice(batches, 3))) for _ in range(2))
    assert torch.equal(first, second)


def test_a_rank_without_documents_to_validate_on_is_an_error_not_a_hang(tmp_path):
    path = write_text_folder(tmp_path, 60)
    next(iter(validation_batches(path, 0, 2, steps=1)))
    with pytest.raises(ValueError, match="fewer documents than there are data-parallel ranks"):
        next(iter(validation_batches(path, 1, 2, steps=1)))


def test_a_corpus_too_small_to_hold_out_from_refuses_to_validate(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(ValueError, match=r"too small .* validation.dataset_path"):
        validation_batches(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no text in"),
        ({"a.txt": b""}, "no text in"),
        ({"a.bin": b"\0"}, "neither hidden nor binary"),
        (
            {"a.jsonl": b'{"txt": "a"}\n'},
            r"a.jsonl, the line at byte 0: .* 'text', and has \['txt'\]",
        ),
        ({"a.jsonl": b'{"text": "a"}\n["b"]\n'}, "the line at byte 14: .* and has list"),
        ({"a.jsonl": b"{text}\n"}, "a.jsonl, the line at byte 0: not JSON"),
        ({"a.parquet": b"PAR0"}, "a.parquet is no parquet file"),
    ],
    ids=["no file", "empty", "binary", "no field", "no object", "no JSON", "no parquet"],
)
def test_an_unusable_corpus_is_refused(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        next(iter(build("local", tmp_path)))


def test_a_parquet_file_without_text_is_refused(tmp_path):
    pq.write_table(pa.table({"text": [1], "body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"column 'text' of strings.*'body': 'string'"):
        build("local", tmp_path)


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(RefusalError, match=r"nowhere.* does not exist"):
        build("local", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"set training.dataset_path"):
        build("local", None)


def test_an_unknown_dataset_is_refused_by_torchtitan():
    with pytest.raises(ValueError, match=r"wikitext.*c4.*local.*python_stdlib"):
        build("wikitext", None)
