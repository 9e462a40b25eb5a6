"""The tokens of ``data.bytes`` as a tokenizer that transformers loads."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from torchtitan_lighthouse.data.bytes import BOS_ID, EOS_ID
from torchtitan_lighthouse.hf.files import read_object

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
"""What the ids after the bytes are called, as in Llama-3's own tokenizer."""

_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": BOS,
    "eos_token": EOS,
    "split_special_tokens": True,
    "clean_up_tokenization_spaces": False,
}


def write_byte_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json.

    The ids of a text are those of a document's start in training, ``encode(text, add_bos=True)``;
    without bos where a call has ``add_special_tokens=False``. The names of bos and eos in a text
    are text (unless a call has ``split_special_tokens=False``). Surrogate escapes are refused.
    """
    backend = Tokenizer(models.BPE(_vocabulary(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(f"{BOS} $A", None, [(BOS, BOS_ID)])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(_CONFIG, indent=2) + "\n")


def is_byte_tokenizer(file: Path) -> bool:
    """Whether a tokenizer.json has the ids that ``write_byte_tokenizer`` gives.

    Raises:
        RefusalError: it is no JSON object.
    """
    model = read_object(file).get("model")
    return isinstance(model, dict) and model.get("vocab") == _vocabulary()


def _vocabulary() -> dict[str, int]:
    """The ids of the characters that stand for bytes, and of bos and eos."""
    characters = {character: byte for byte, character in enumerate(_characters())}
    return {**characters, BOS: BOS_ID, EOS: EOS_ID}


def _characters() -> list[str]:
    """The character that ``ByteLevel`` writes for each byte: its own in Latin-1 if that is visible,
    else the next from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return [chr(b) if b in visible else chr(0x100 + others.index(b)) for b in range(256)]
