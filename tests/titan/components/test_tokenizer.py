"""Bytes in, the same bytes out, and nothing read or written on the way."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from torchtitan_lighthouse.data.bytes import BOS_ID, EOS_ID, VOCAB_SIZE
from torchtitan_lighthouse.titan.components.tokenizer import ByteTokenizer, build_tokenizer


def job(name, hf_assets_path=""):
    return SimpleNamespace(
        tokenizer=SimpleNamespace(name=name), model=SimpleNamespace(hf_assets_path=hf_assets_path)
    )


@given(st.binary())
def test_the_tokens_of_a_file_are_its_bytes(raw):
    assert bytes(ByteTokenizer().encode(raw.decode("utf-8", "surrogateescape"))) == raw


@given(st.text())
def test_decode_inverts_encode(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text, add_bos=True, add_eos=True)) == text


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, [104, 105]),
        ({"add_bos": True}, [BOS_ID, 104, 105]),
        ({"add_eos": True}, [104, 105, EOS_ID]),
        ({"add_bos": True, "add_eos": True}, [BOS_ID, 104, 105, EOS_ID]),
    ],
    ids=["neither", "bos", "eos", "both"],
)
def test_bos_and_eos(flags, expected):
    assert ByteTokenizer().encode("hi", **flags) == expected


def test_decoding_what_is_no_text():
    tokens = [-100, 104, BOS_ID, 0xFF, 105, EOS_ID, VOCAB_SIZE - 1, 10**9]
    assert ByteTokenizer().decode(tokens) == "h\ufffdi"


def test_every_id_has_a_row_of_an_evenly_sharded_embedding():
    assert ByteTokenizer().get_vocab_size() == VOCAB_SIZE
    assert max(BOS_ID, EOS_ID) < VOCAB_SIZE
    assert VOCAB_SIZE % 64 == 0


def test_byte_is_built_by_name():
    assert isinstance(build_tokenizer(job("byte")), ByteTokenizer)


def test_huggingface_reads_undecodable_bytes_as_replacement_characters(tmp_path):
    vocabulary = {"[UNK]": 0, "a": 1, "\ufffd": 2}
    Tokenizer(models.BPE(vocabulary, merges=[], unk_token="[UNK]")).save(
        str(tmp_path / "tokenizer.json")
    )
    tokenizer = build_tokenizer(job("huggingface", str(tmp_path)))
    assert tokenizer.encode(b"a\xffa".decode("utf-8", "surrogateescape")) == [1, 2, 1]


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'word' is unknown; use 'byte' or 'huggingface'"):
        build_tokenizer(job("word"))
