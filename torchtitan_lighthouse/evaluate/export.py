"""A checkpoint as a Hugging Face model: torchtitan's Llama-3 is transformers' ``LlamaForCausalLM``.

Weights go through torchtitan's adapter. The rest, which torchtitan keeps in its flavors, is mapped
here: widths, RoPE and its scaling, and the tokenizer.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.models.llama3 import Transformer, TransformerModelArgs
from torchtitan.models.llama3.model.state_dict_adapter import Llama3StateDictAdapter
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from torchtitan_lighthouse.data.bytes import BOS_ID, EOS_ID
from torchtitan_lighthouse.evaluate.checkpoint import job_of, load_trained
from torchtitan_lighthouse.titan.components.tokenizer import ByteTokenizer, build_tokenizer

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
"""What the ids after the bytes are called, as in Llama-3's own tokenizer."""


def export_hf(
    checkpoint: Path, out: Path, dtype: str | None = None, job_file: Path | None = None
) -> None:
    """Write a checkpoint as a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load.

    Attention is dense there. A checkpoint of the Lighthouse stage loses at that, as it does at the
    switch of the stages: export one of the dense stage.

    Args:
        checkpoint: ``<dump folder>/<checkpoint folder>/step-N``, full or weights only.
        out: made if there is none.
        dtype: of the weights; by default ``training.mixed_precision_param``, to which the job's
            forward pass has rounded them.
        job_file: see ``job_of``.

    Raises:
        FileNotFoundError: there is no checkpoint or no tokenizer.
        FileExistsError: ``out`` is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: give a new folder")
    job_config = job_of(checkpoint, job_file)
    training = job_config.training
    tokenizer = build_tokenizer(job_config)
    model = load_trained(
        checkpoint, job_config, seq_len=training.seq_len, device=torch.device("cpu")
    )
    exported = hf_model(model, tokenizer, TORCH_DTYPE_MAP[dtype or training.mixed_precision_param])
    hf_tokenizer(tokenizer, job_config.model.hf_assets_path).save_pretrained(out)
    exported.save_pretrained(out)


def hf_model(model: Transformer, tokenizer: BaseTokenizer, dtype: torch.dtype) -> LlamaForCausalLM:
    """The model with its weights in ``dtype``, its buffers on ``meta``."""
    args = model.model_args
    config = LlamaConfig(
        hidden_size=args.dim,
        intermediate_size=model.layers["0"].feed_forward.w1.out_features,
        num_hidden_layers=args.n_layers,
        num_attention_heads=args.n_heads,
        num_key_value_heads=args.n_kv_heads,
        vocab_size=args.vocab_size,
        rms_norm_eps=args.norm_eps,
        max_position_embeddings=args.max_seq_len,
        rope_parameters=rope_parameters(args),
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    with torch.device("meta"):
        exported = LlamaForCausalLM(config)
    weights = Llama3StateDictAdapter(args, None).to_hf(model.state_dict())
    exported.load_state_dict({k: w.to(dtype) for k, w in weights.items()}, assign=True)
    return exported


def rope_parameters(args: TransformerModelArgs) -> dict[str, str | float]:
    """torchtitan's RoPE in transformers' terms; a factor of 1 scales nothing."""
    scaling = args.rope_scaling_args
    if scaling.scaling_factor == 1:
        return {"rope_type": "default", "rope_theta": args.rope_theta}
    return {
        "rope_type": "llama3",
        "rope_theta": args.rope_theta,
        "factor": scaling.scaling_factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    }


def hf_tokenizer(tokenizer: BaseTokenizer, assets: str) -> PreTrainedTokenizerBase:
    """``ByteTokenizer`` in transformers' terms, or else the one whose files are in ``assets``.

    The ids of a text are those of ``ByteTokenizer.encode(text)``: no bos or eos is added, and their
    names in the text are text (unless a call has ``split_special_tokens=False``). Surrogate escapes
    are refused.
    """
    if not isinstance(tokenizer, ByteTokenizer):
        return AutoTokenizer.from_pretrained(assets)
    # ByteLevel writes each byte as one character of its own.
    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    backend = Tokenizer(models.BPE({**vocabulary, BOS: BOS_ID, EOS: EOS_ID}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, split_special_tokens=True
    )
