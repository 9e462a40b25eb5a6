"""Whatever lies in a folder, it is read whole or refused with words."""

import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtitan_lighthouse.data.corpora import local_corpus, local_text_corpus
from torchtitan_lighthouse.data.documents import read_document
from torchtitan_lighthouse.data.sections import FEWEST_TO_HOLD_OUT
from torchtitan_lighthouse.refusal import RefusalError


def parquet(rows, row_group_size=None):
    file = io.BytesIO()
    table = pa.table({"text": pa.array(rows, pa.string())})
    pq.write_table(table, file, row_group_size=row_group_size)
    return file.getvalue()


NAMES = ["a", "b.txt", "c.json", "d.JSONL", "e.parquet", ".f", "g.csv", "h.bin", "s/i.md", ".s/j"]
NAMES += ["k.jsonl.gz", "\udcff.parquet"]
TEXTS = st.text(max_size=200)
CONTENTS = st.one_of(
    st.binary(max_size=300),
    TEXTS.map(str.encode),
    st.integers(1, 30_000).map(lambda n: b"some words\r\n" * n),
    st.lists(TEXTS, max_size=40).map(
        lambda texts: "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    ),
    st.lists(TEXTS).map(lambda texts: json.dumps([{"text": text} for text in texts]).encode()),
    st.builds(parquet, st.lists(st.none() | TEXTS, max_size=30), st.none() | st.integers(1, 9)),
    st.binary(max_size=50).map(b"PAR1".__add__),
    st.sampled_from([b"null\n", b"[1, 2]\n", b"\n \n", b'{"text": 1}', b"\xef\xbb\xbf{}", b"{bad"]),
)
FOLDERS = st.dictionaries(st.sampled_from(NAMES), CONTENTS, max_size=4)


def read_all(load, path):
    """The texts of a corpus in both its parts; none where it is refused."""
    load.cache_clear()
    try:
        corpus = load(path)
        held_out = ["held-out"] if len(corpus.sections) >= FEWEST_TO_HOLD_OUT else []
        parts = ["training", *held_out]
        return [read_document(sample) for part in parts for sample in corpus.stream(part)]
    except RefusalError:
        return []


@settings(max_examples=100, deadline=None)
@given(FOLDERS)
def test_any_folder_is_read_or_refused(files):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (path := Path(folder, name)).parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        read_all(local_corpus, folder)
        texts = read_all(local_text_corpus, folder)
        as_text = [content for name, content in files.items() if name[0] != "." and content]
        as_text = [content for content in as_text if b"\0" not in content[:8192]]
        size = sum(len(text.encode("utf-8", "surrogateescape")) for text in texts)
        assert size == sum(map(len, as_text))
