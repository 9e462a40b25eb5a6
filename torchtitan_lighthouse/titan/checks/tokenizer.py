"""Checks that a tokenizer fits the model and can separate documents."""

from torchtitan.components.tokenizer import BaseTokenizer

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.components.hf_tokenizer import DocumentTokenizer
from torchtitan_lighthouse.titan.models.args import LighthouseModelArgs


def check_tokenizer(tokenizer: BaseTokenizer, model_args: LighthouseModelArgs) -> None:
    """Refuse a tokenizer whose ids the embedding does not have, or which cannot end a document.

    Raises:
        RefusalError: says what would work.
    """
    size = tokenizer.get_vocab_size()
    if size > model_args.vocab_size:
        raise RefusalError(
            f"the tokenizer has ids up to {size - 1}, so needs {size} rows of the embedding, and "
            f"the flavor's has {model_args.vocab_size}: use a larger model.flavor or another "
            "tokenizer.name"
        )
    if tokenizer.eos_id is None and isinstance(tokenizer, DocumentTokenizer):
        special = ", ".join(tokenizer.special_tokens()) or "none"
        raise RefusalError(
            f"the tokenizer in model.hf_assets_path = {tokenizer.tokenizer_path!r} names no token "
            'that ends a document: add "eos_token" to tokenizer_config.json there; its special '
            f"tokens are: {special}"
        )
