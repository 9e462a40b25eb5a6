"""Hugging Face's tokenizers, with the tokens between which their files put a document."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from torchtitan_lighthouse.refusal import RefusalError

# The first to name a token decides. The first two name it as text, the others by its id.
_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
)


class DocumentTokenizer(HuggingFaceTokenizer):
    """torchtitan's HuggingFaceTokenizer, for whole documents of any bytes, between bos and eos.

    Surrogate escapes are read as U+FFFD. torchtitan 0.2.2 reads ``tokenizer_config.json`` alone,
    takes a token that is bos and eos for bos, and what the tokenizer adds at one end for both; that
    part can go when it reads them as transformers does. Where no file names an eos, ``eos_id`` is
    None, which a job is refused for.

    Raises:
        RefusalError: the folder holds no tokenizer, or names a bos or eos that is none of its
            tokens.
    """

    def __init__(self, folder: str) -> None:
        if not Path(folder).is_dir():
            raise RefusalError(
                f"model.hf_assets_path = {folder!r} must be a folder with tokenizer.json for "
                'tokenizer.name = "huggingface"; use "byte" to train without a tokenizer\'s files'
            )
        try:
            super().__init__(folder)
        # The tokenizers package raises Exception itself.
        except Exception as error:
            raise RefusalError(
                f"model.hf_assets_path = {folder!r} holds no tokenizer that can be read: {error}"
            ) from error
        # A tokenizer that was saved for batches of short texts would cut documents, or fill them.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.bos_id, self.eos_id = self._named("bos"), self._named("eos")
        before, after = _added_around_text(self.tokenizer)
        self.hf_adds_bos = self.bos_id is not None and before[:1] == [self.bos_id]
        self.hf_adds_eos = self.eos_id is not None and after[-1:] == [self.eos_id]

    def encode(self, text: str, **kwargs: bool) -> list[int]:
        decodable = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return super().encode(decodable, **kwargs)

    def get_vocab_size(self) -> int:
        """Return the rows of an embedding for these ids; not every id needs to have a token."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def special_tokens(self) -> list[str]:
        """Return the tokens that are no text, in the order of their ids."""
        added = sorted(self.tokenizer.get_added_tokens_decoder().items())
        return [token.content for _, token in added if token.special]

    def _named(self, role: str) -> int | None:
        """Return the id of ``bos`` or ``eos``, by the first of the files that says what it is."""
        for name in _FILES:
            content = _read(Path(self.tokenizer_path, name))
            token, token_id = content.get(f"{role}_token"), content.get(f"{role}_token_id")
            if isinstance(token, dict):
                token = token.get("content")
            if isinstance(token, str):
                return self._id_of(token)
            if type(token_id) is int:
                return self._checked(token_id, f"{role}_token_id", name)
            if role == "bos" and f"{role}_token" in content:
                return None  # null: this tokenizer puts nothing before a text
        return None

    def _id_of(self, token: str) -> int:
        # transformers adds a token that the vocabulary lacks, too.
        self.tokenizer.add_special_tokens([token])
        return self.tokenizer.token_to_id(token)

    def _checked(self, token_id: int, field: str, file: str) -> int:
        if self.tokenizer.id_to_token(token_id) is None:
            raise RefusalError(
                f"{field} = {token_id} in {Path(self.tokenizer_path, file)} is no token of the "
                f"tokenizer there, whose ids end at {self.get_vocab_size() - 1}"
            )
        return token_id


def _added_around_text(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids that a tokenizer puts before and after a text of its own accord."""
    mask = (encoding := tokenizer.encode("a")).special_tokens_mask
    first = mask.index(0) if 0 in mask else len(mask)
    last = len(mask) - mask[::-1].index(0) if 0 in mask else len(mask)
    return encoding.ids[:first], encoding.ids[last:]


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RefusalError(f"{file} is no JSON: {error}") from error
    return content if isinstance(content, dict) else {}
