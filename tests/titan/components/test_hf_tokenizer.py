"""Documents between the tokens that a tokenizer's files name for that, whatever their form."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from tests.support.jobs import parse
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.checks import check_tokenizer
from torchtitan_lighthouse.titan.components.hf_tokenizer import DocumentTokenizer
from torchtitan_lighthouse.titan.components.tokenizer import build_tokenizer
from torchtitan_lighthouse.titan.models.flavors import FLAVORS

END, START = "<|endoftext|>", "<|start|>"
BOTH = {"bos_token": END, "eos_token": END}


def save(folder, post_processor=None, **files):
    """A tokenizer of bytes, whose ids are those of GPT-2's for them, with two special tokens."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = {"a": 64, "b": 65}
    others = iter(n for n in range(256) if n not in letters.values())
    vocabulary = {c: letters[c] if c in letters else next(others) for c in characters}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([END, START])
    if post_processor:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=post_processor, special_tokens=[(END, 256), (START, 257)]
        )
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


def encode(folder, text="ab"):
    return DocumentTokenizer(folder).encode(text, add_bos=True, add_eos=True)


ADDED = {"__type": "AddedToken", "content": END, "special": True}
FORMS = {
    "GPT-2's": ({"tokenizer_config": BOTH}, [256, 64, 65, 256]),
    "as added tokens": (
        {"tokenizer_config": {"bos_token": ADDED, "eos_token": ADDED}},
        [256, 64, 65, 256],
    ),
    "by ids": (
        {
            "tokenizer_config": {
                **BOTH,
                "bos_token": START,
                "added_tokens_decoder": {"256": {"content": END}, "257": {"content": START}},
            }
        },
        [257, 64, 65, 256],
    ),
    "map": ({"special_tokens_map": BOTH}, [256, 64, 65, 256]),
    "map of dicts": (
        {"special_tokens_map": {"eos_token": {"content": END}}, "tokenizer_config": {}},
        [64, 65, 256],
    ),
    "generation config": (
        {"generation_config": {"bos_token_id": 257, "eos_token_id": 256}},
        [257, 64, 65, 256],
    ),
    "model config": ({"config": {"eos_token_id": 256}}, [64, 65, 256]),
    "no bos, by name": (
        {
            "tokenizer_config": {"bos_token": None, "eos_token": END},
            "generation_config": {"bos_token_id": 257},
        },
        [64, 65, 256],
    ),
    "a token that the vocabulary lacks": (
        {"tokenizer_config": {"eos_token": "</s>"}},
        [64, 65, 258],
    ),
}


@pytest.mark.parametrize(("files", "expected"), FORMS.values(), ids=FORMS)
def test_documents_are_marked_by_what_the_files_name(files, expected, tmp_path):
    assert encode(save(tmp_path, **files)) == expected


@pytest.mark.parametrize(
    "post_processor",
    [None, f"{END} $A", f"$A {END}", f"{END} $A {END}"],
    ids=["adds nothing", "adds bos", "adds eos", "adds both"],
)
def test_one_token_for_both_is_at_either_end_once(post_processor, tmp_path):
    folder = save(tmp_path, post_processor, tokenizer_config=BOTH)
    assert encode(folder) == [256, 64, 65, 256]


def test_long_documents_are_neither_cut_nor_filled(tmp_path):
    folder = save(tmp_path, tokenizer_config=BOTH)
    assert encode(folder, "a" * 20) == [256, *[64] * 20, 256]


def test_a_tokenizer_that_names_no_end_is_refused_with_what_to_add(tmp_path):
    tokenizer = DocumentTokenizer(save(tmp_path))
    assert tokenizer.eos_id is None
    with pytest.raises(RefusalError) as raised:
        check_tokenizer(tokenizer, FLAVORS["tiny_byte"])
    message = str(raised.value)
    assert 'add "eos_token" to tokenizer_config.json' in message
    assert f"special tokens are: {END}, {START}" in message


def test_a_job_whose_tokenizer_names_an_end_is_accepted(tmp_path):
    tokenizer = DocumentTokenizer(save(tmp_path, tokenizer_config=BOTH))
    check_tokenizer(tokenizer, FLAVORS["tiny_byte"])


def test_ids_beyond_the_embedding_are_refused_however_few_tokens_there_are(tmp_path):
    vocabulary = {"a": 0, "b": 1, "c": 900}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.add_special_tokens([AddedToken(END)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    with pytest.raises(RefusalError, match=r"ids up to 900, so needs 901 rows.* has 320"):
        check_tokenizer(DocumentTokenizer(str(tmp_path)), FLAVORS["tiny_byte"])


BROKEN = {
    "no folder": (lambda path: None, "'/nowhere' must be a folder with tokenizer.json"),
    "no tokenizer": (lambda path: path.mkdir(), "holds no tokenizer that can be read"),
    "unreadable": (
        lambda path: (save(path), (path / "tokenizer.json").write_text("{}")),
        "holds no tokenizer that can be read",
    ),
    "unreadable config": (
        lambda path: (save(path), (path / "tokenizer_config.json").write_text("{")),
        "holds no tokenizer that can be read",
    ),
    "unreadable map": (
        lambda path: (save(path), (path / "special_tokens_map.json").write_text("{")),
        "special_tokens_map.json is no JSON",
    ),
    "an id of no token": (
        lambda path: save(path, config={"eos_token_id": 400}),
        "eos_token_id = 400 in .*config.json is no token .* end at 257",
    ),
}


@pytest.mark.parametrize(("write", "words"), BROKEN.values(), ids=BROKEN)
def test_files_that_are_no_tokenizer_are_refused(write, words, tmp_path):
    write(folder := tmp_path / "assets")
    path = "/nowhere" if "nowhere" in words else str(folder)
    with pytest.raises(RefusalError, match=words):
        DocumentTokenizer(path)


def test_a_job_without_the_folder_names_its_field(tmp_path):
    job_config = parse(tmp_path, tokenizer__name="huggingface")
    with pytest.raises(RefusalError, match=r"model\.hf_assets_path = '\./tests/assets/tokenizer'"):
        build_tokenizer(job_config)
