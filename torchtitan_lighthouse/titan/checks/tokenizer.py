"""A tokenizer for the model."""

from torchtitan.components.tokenizer import BaseTokenizer

from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.models.flavors import LighthouseModelArgs


def check_vocabulary(tokenizer: BaseTokenizer, model_args: LighthouseModelArgs) -> None:
    """Refuse a tokenizer whose ids the embedding does not have.

    Raises:
        ValueError: the tokenizer's vocabulary is larger than the flavor's.
    """
    size = tokenizer.get_vocab_size()
    if size > model_args.vocab_size:
        raise RefusalError(
            f"the tokenizer has {size} ids, but the flavor's embedding {model_args.vocab_size}: "
            "use a larger model.flavor or another tokenizer.name"
        )
