"""The model sizes: torchtitan's own Llama-3 flavors, and those of the paper and of this package."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torchtitan.config import JobConfig
from torchtitan.models.llama3 import TransformerModelArgs, llama3_args
from torchtitan.models.llama3.model.args import RoPEScalingArgs

from torchtitan_lighthouse.attention.config import LighthouseConfig
from torchtitan_lighthouse.estimate.flops import attention_flops_saved
from torchtitan_lighthouse.refusal import RefusalError
from torchtitan_lighthouse.titan.components.tokenizer import VOCAB_SIZE

MODEL_NAME = "llama3_lighthouse"


@dataclass
class LighthouseModelArgs(TransformerModelArgs):
    """torchtitan's Llama-3 arguments, and which layers the job trains with Lighthouse attention.

    The two fields come from the job's ``[lighthouse]`` section; they add no parameter.
    """

    lighthouse: LighthouseConfig | None = None
    """The numbers of the method; None trains every layer dense."""

    lighthouse_layers: tuple[int, ...] = ()
    """The numbers, from 0, of the layers that are not dense throughout."""

    def update_from_config(self, job_config: JobConfig, **kwargs) -> None:
        super().update_from_config(job_config, **kwargs)
        section = job_config.lighthouse
        self.lighthouse = section.attention_config() if section.enable else None
        self.lighthouse_layers = (
            lighthouse_layers(self.n_layers, section.dense_layers) if section.enable else ()
        )

    def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
        """Parameters, and training FLOPs per token in the Lighthouse stage (see ``flops``)."""
        nparams, dense_flops = super().get_nparams_and_flops(model, seq_len)
        return nparams, dense_flops - self.flops_saved(seq_len)

    def flops_saved(self, seq_len: int) -> int:
        """Training FLOPs per token that the Lighthouse stage needs fewer than the dense one."""
        if self.lighthouse is None:
            return 0
        return attention_flops_saved(
            seq_len=seq_len,
            sub_sequence_length=self.lighthouse.sub_sequence_length(seq_len),
            width=self.dim,
            layers=len(self.lighthouse_layers),
        )


def lighthouse_layers(n_layers: int, dense_layers: list[int]) -> tuple[int, ...]:
    """The layers that are not in ``dense_layers``, whose negative entries count from the end.

    Raises:
        ValueError: an entry out of range, or no layer left for Lighthouse attention.
    """
    out_of_range = [n for n in dense_layers if not -n_layers <= n < n_layers]
    if out_of_range:
        raise RefusalError(
            f"lighthouse.dense_layers has {out_of_range}, but the model has {n_layers} layers: "
            f"use numbers from {-n_layers} to {n_layers - 1}"
        )
    dense = {n % n_layers for n in dense_layers}
    layers = tuple(n for n in range(n_layers) if n not in dense)
    if not layers:
        raise RefusalError(
            f"lighthouse.dense_layers = {dense_layers} makes all {n_layers} layers dense: list "
            "fewer, or set lighthouse.enable = false for dense training"
        )
    return layers


def _derive(args: TransformerModelArgs, **changes: Any) -> LighthouseModelArgs:
    return LighthouseModelArgs(**{**vars(args), **changes})


# The paper's body: head dim 128, feed-forward width 1536. It is trained at its full length from
# the start, so it has Llama-3's RoPE base without the scaling that stretches an 8K model.
_PAPER = LighthouseModelArgs(
    dim=1024,
    n_layers=30,
    n_heads=8,
    ffn_dim_multiplier=0.5625,
    rope_theta=500_000,
    rope_scaling_args=RoPEScalingArgs(scaling_factor=1.0),
)
_BYTE = _derive(_PAPER, vocab_size=VOCAB_SIZE, ffn_dim_multiplier=None)

FLAVORS = {
    **{name: _derive(args) for name, args in llama3_args.items()},
    "530M": _PAPER,
    "530M_byte": _derive(_PAPER, vocab_size=VOCAB_SIZE),
    "25M_byte": _derive(_BYTE, dim=512, n_layers=8, multiple_of=128),
    "tiny_byte": _derive(_BYTE, dim=128, n_layers=4, n_heads=2),
}
