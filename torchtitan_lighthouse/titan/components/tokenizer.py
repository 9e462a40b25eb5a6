"""The tokenizer of bytes in torchtitan's terms, and the choice between it and Hugging Face's."""

from collections.abc import Iterable

from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import JobConfig

from torchtitan_lighthouse.data.bytes import BOS_ID, EOS_ID, VOCAB_SIZE, decode, encode
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.components.hf_tokenizer import DocumentTokenizer


class ByteTokenizer(BaseTokenizer):
    """The tokens of ``data.bytes``, 0 to 255, with ``bos_id`` and ``eos_id`` after them."""

    def __init__(self) -> None:
        super().__init__()
        self.bos_id = BOS_ID
        self.eos_id = EOS_ID

    def encode(self, text: str, add_bos: bool = False, add_eos: bool = False) -> list[int]:
        """Return the ids of ``text``, between bos and eos where those are asked for."""
        return [BOS_ID] * add_bos + encode(text) + [EOS_ID] * add_eos

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of any ids; those above 255 are left out."""
        return decode(tokens)

    def get_vocab_size(self) -> int:
        """Return the rows of an embedding for these ids."""
        return VOCAB_SIZE


def build_tokenizer(job_config: JobConfig) -> BaseTokenizer:
    """Build the tokenizer that ``tokenizer.name`` names.

    ``byte`` needs no files; ``huggingface`` reads those under ``model.hf_assets_path``.

    Raises:
        RefusalError: there is no tokenizer of that name, or none in those files.
    """
    name = job_config.tokenizer.name
    if name == "byte":
        return ByteTokenizer()
    if name == "huggingface":
        return DocumentTokenizer(job_config.model.hf_assets_path)
    raise RefusalError(f"tokenizer.name={name!r} is unknown; use 'byte' or 'huggingface'")
