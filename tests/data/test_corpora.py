"""Which files of a folder are read as what, what is left out, and what is refused."""

import gzip
import json
import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchtitan_lighthouse.data.corpora import local_corpus, local_text_corpus
from torchtitan_lighthouse.data.documents import read_document
from torchtitan_lighthouse.refusal import RefusalError

ROWS = "".join(json.dumps({"text": f"row {n}", "url": "x"}) + "\n" for n in range(3))
TEXTS = ["row 0", "row 1", "row 2"]


def texts(path, part="training", corpus=local_corpus):
    return sorted(map(read_document, corpus(str(path)).stream(part)))


def refusal_of(path, corpus=local_corpus):
    with pytest.raises(RefusalError) as raised:
        corpus(str(path))
    return str(raised.value)


@pytest.mark.parametrize(
    "name",
    ["x.jsonl", "x.JSONL", "x.ndjson", "c4-train.00000.json", "X.Json", "x.jsonlines"],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_json_lines_are_read_by_any_of_their_names(name, mark, tmp_path):
    (tmp_path / name).write_text(mark + ROWS)
    assert texts(tmp_path) == texts(tmp_path / name) == TEXTS


@pytest.mark.parametrize("name", ["x.parquet", "x.PARQUET", "0f3a (a blob of a hub's cache)"])
def test_parquet_is_read_whatever_its_name(name, tmp_path):
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / name)
    assert texts(tmp_path) == TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a.unheard_of", "Makefile", "x.00000"])
def test_other_names_are_text(name, tmp_path):
    (tmp_path / name).write_text("some text, [1] {2}\n")
    assert texts(tmp_path) == ["some text, [1] {2}\n"]


ONE_OBJECT = json.dumps({"text": ["a", "b"]}, indent=2)
REFUSED = {
    "csv": ("a.csv", b"a,b\n", "in a format (.csv)"),
    "tsv in capitals": ("a.TSV", b"a\tb\n", "in a format (.tsv)"),
    "html": ("a.html", b"<p>a", "in a format (.html)"),
    "arrow": ("a.arrow", b"ARROW1\0\0", "in a format (.arrow)"),
    "gzip": ("a.jsonl.gz", gzip.compress(ROWS.encode()), "is compressed"),
    "zstandard": ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", "is compressed"),
    "archive": ("a.tar", b"\0", "or an archive"),
    "gzip by another name": ("c4-train.00000", gzip.compress(ROWS.encode()), "first bytes, gzip"),
    "JSON array": ("a.json", json.dumps([{"text": "a"}]).encode(), "is one JSON value"),
    "JSON object": ("a.json", ONE_OBJECT.encode(), "is one JSON value"),
    "JSON of other things": ("package.json", b'{"name": "a"}\n', "has ['name']"),
    "JSON lines without text": ("a.jsonl", b'{"content": "a"}\n', "has ['content']"),
    "no JSON": ("a.ndjson", b"text\n", "not JSON"),
    "binary JSON lines": ("a.jsonl", b"{\0}", "is binary"),
    "JSON lines named text": ("a.txt", ROWS.encode(), "begins as JSON"),
    "JSON lines without a name": ("c4-train.00000", ROWS.encode(), "begins as JSON"),
    "notebook": ("a.ipynb", json.dumps({"cells": []}, indent=1).encode(), "begins as JSON"),
    "XML": ("a.txt", b'<?xml version="1.0"?>\n', "begins as XML"),
    "UTF-16": ("a.txt", "text".encode("utf-16"), "UTF-16"),
    "Git LFS": ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
}


@pytest.mark.parametrize(("name", "content", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_plain_text_is_refused_beside_text(name, content, words, tmp_path):
    (tmp_path / "a.md").write_text("text")
    (tmp_path / name).write_bytes(content)
    message = refusal_of(tmp_path)
    assert str(tmp_path / name) in message
    assert words in message
    assert "'local_text'" in message


def test_a_folder_of_code_is_read_as_text_by_name_of_the_dataset(tmp_path):
    files = {"a.py": "print(1)", "b.json": '{"name": "a"}', "c.csv": "a,b", "d.html": "<html>"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "e.png").write_bytes(b"\x89PNG\0")
    assert texts(tmp_path, corpus=local_text_corpus) == sorted(files.values())


def test_what_is_read_and_left_out_is_summed_up(tmp_path):
    (tmp_path / "a.md").write_text("text")
    (tmp_path / "b.py").write_text("more text")
    (tmp_path / "c.jsonl").write_text(ROWS)
    (tmp_path / "d.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".git").mkdir()
    (tmp_path / "e.txt").touch()
    summary = local_corpus(str(tmp_path)).summary()
    assert "text 2 files 13 B (.md 1, .py 1), JSON lines 1 file 90 B (.jsonl 1)" in summary
    assert f"left out 1 hidden (0 B, such as {tmp_path}/.git)" in summary
    assert f"1 binary (5 B, such as {tmp_path}/d.png), 1 empty (0 B" in summary


def test_text_beside_rows_is_doubted(tmp_path):
    (tmp_path / "a.jsonl").write_text(ROWS)
    assert not local_corpus(str(tmp_path)).doubts()
    local_corpus.cache_clear()
    (tmp_path / "README.md").write_text("about these rows")
    assert local_corpus(str(tmp_path)).doubts() == [
        "text files beside files of rows are read as text"
    ]


def test_linked_files_and_folders_are_read(tmp_path):
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "a.txt").write_text("in a linked folder")
    (tmp_path / "b.txt").write_text("a linked file")
    (corpus := tmp_path / "corpus").mkdir()
    (corpus / "folder").symlink_to(elsewhere)
    (corpus / "file.txt").symlink_to(tmp_path / "b.txt")
    assert texts(corpus) == ["a linked file", "in a linked folder"]


def test_what_has_two_names_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("once")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    os.link(tmp_path / "a.txt", tmp_path / "c.txt")
    (tmp_path / "circle").symlink_to(tmp_path)
    assert texts(tmp_path) == ["once"]
    assert "3 second name of what is read" in local_corpus(str(tmp_path)).summary()


def test_links_that_lead_nowhere_are_left_out_with_a_warning(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    assert texts(tmp_path) == ["text"]
    corpus = local_corpus(str(tmp_path))
    assert f"2 broken link (0 B, such as {tmp_path}/broken)" in corpus.summary()
    assert corpus.doubts() == ["links lead nowhere"]


def test_pipes_and_sockets_are_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        assert "2 pipe, socket or device" in refusal_of(tmp_path)
        assert "1 pipe, socket or device" in refusal_of(tmp_path / "pipe.txt")


@pytest.mark.parametrize("unreadable", ["file", "folder"])
def test_what_may_not_be_read_is_refused(unreadable, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("text")
    (folder := tmp_path / "folder").mkdir()

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    if unreadable == "file":
        monkeypatch.setattr(Path, "open", refuse)
        assert f"{tmp_path}/a.txt cannot be read (Permission denied)" in refusal_of(tmp_path)
    else:
        monkeypatch.setattr(Path, "iterdir", refuse)
        assert "cannot be read (Permission denied)" in refusal_of(folder)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_that_changes_while_it_is_read_ends_the_run_with_words(name, tmp_path):
    (tmp_path / name).write_text(ROWS if name == "a.jsonl" else "text")
    corpus = local_corpus(str(tmp_path))
    (tmp_path / name).write_text("")
    with pytest.raises(RefusalError, match=r"cut short since the launch, .* to 0"):
        list(map(read_document, corpus.stream("training")))
    (tmp_path / name).unlink()
    with pytest.raises(RefusalError, match="gone since the launch"):
        list(map(read_document, corpus.stream("training")))


def hold_out_from(write, tmp_path):
    write(tmp_path)
    training, held_out = texts(tmp_path), texts(tmp_path, "held-out")
    assert held_out
    assert len(held_out) <= len(training + held_out) / 10
    return sorted(training + held_out)


ROW_TEXTS = sorted(f"row {n}" for n in range(40))


def test_parquet_of_one_row_group_can_hold_something_out(tmp_path):
    def write(path):
        pq.write_table(pa.table({"text": ROW_TEXTS}), path / "a.parquet")

    assert hold_out_from(write, tmp_path) == ROW_TEXTS


def test_a_few_json_lines_can_hold_something_out(tmp_path):
    def write(path):
        lines = (json.dumps({"text": text}) + "\n" for text in ROW_TEXTS)
        (path / "a.jsonl").write_text("".join(lines))

    assert hold_out_from(write, tmp_path) == ROW_TEXTS


def test_a_text_below_a_megabyte_can_hold_something_out(tmp_path):
    lines = [f"line {n}\n" for n in range(20_000)]
    read = hold_out_from(lambda path: (path / "a.txt").write_text("".join(lines)), tmp_path)
    assert sorted("".join(read).splitlines(True)) == sorted(lines)


def test_what_is_too_small_to_hold_out_from_says_how_much_is_needed(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(RefusalError, match=r"1 section\(s\) \(.*16 KiB of text.*and 10 are needed"):
        local_corpus(str(tmp_path)).stream("held-out")


@pytest.mark.parametrize("groups", [1, 4, 40], ids="{} row groups".format)
def test_every_row_of_parquet_is_read_once(groups, tmp_path):
    table = pa.table({"text": [None, *ROW_TEXTS]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=-(-41 // groups))
    assert sorted(texts(tmp_path) + texts(tmp_path, "held-out")) == ROW_TEXTS


def test_the_fingerprint_is_of_the_files_and_not_of_their_place(tmp_path):
    def fingerprint(folder, **files):
        (path := tmp_path / folder).mkdir()
        for name, content in files.items():
            (path / name).write_text(content)
        return local_corpus(str(path)).fingerprint()

    first = fingerprint("1", a="text", b="more")
    assert fingerprint("2", a="text", b="more") == first
    others = {
        "a file added": fingerprint("3", a="text", b="more", c="x"),
        "removed": fingerprint("4", a="text"),
        "longer": fingerprint("5", a="text", b="more and more"),
        "renamed": fingerprint("6", a="text", c="more"),
    }
    assert first not in others.values()
    assert len(set(others.values())) == len(others)
