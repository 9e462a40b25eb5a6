"""Text as bytes: a tokenizer that needs no files, and the choice between it and Hugging Face's."""

from collections.abc import Iterable

from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import JobConfig

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.components.hf_tokenizer import DocumentTokenizer

BOS_ID = 256
EOS_ID = 257
# The 258 ids rounded up to a multiple of 64: tensor cores and tensor parallelism want even shards.
VOCAB_SIZE = 320


class ByteTokenizer(BaseTokenizer):
    """One token per byte of UTF-8, ids 0 to 255, with ``bos_id`` and ``eos_id`` after them.

    Bytes of a file that are no UTF-8 reach it as surrogate escapes (Python's ``surrogateescape``)
    and come out as the very bytes of the file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bos_id = BOS_ID
        self.eos_id = EOS_ID

    def encode(self, text: str, add_bos: bool = False, add_eos: bool = False) -> list[int]:
        """The ids of ``text``, between bos and eos where those are asked for."""
        tokens = list(text.encode("utf-8", "surrogateescape"))
        return [BOS_ID] * add_bos + tokens + [EOS_ID] * add_eos

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of any ids: those above 255 stand for none, and what is no UTF-8 is U+FFFD."""
        return bytes(t for t in tokens if 0 <= t < 256).decode("utf-8", "replace")

    def get_vocab_size(self) -> int:
        """``VOCAB_SIZE``, the rows that an embedding for these ids has."""
        return VOCAB_SIZE


def build_tokenizer(job_config: JobConfig) -> BaseTokenizer:
    """The tokenizer that ``tokenizer.name`` names: ``byte``, or ``huggingface``, which reads the
    files under ``model.hf_assets_path``.

    Raises:
        RefusalError: there is no tokenizer of that name, or none in those files.
    """
    name = job_config.tokenizer.name
    if name == "byte":
        return ByteTokenizer()
    if name == "huggingface":
        return DocumentTokenizer(job_config.model.hf_assets_path)
    raise RefusalError(f"tokenizer.name={name!r} is unknown; use 'byte' or 'huggingface'")
