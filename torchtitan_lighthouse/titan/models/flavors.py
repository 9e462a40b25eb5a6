"""The model sizes: torchtitan's own Llama-3 flavors, and those of the paper and of this package."""

from typing import Any

from torchtitan.models.llama3 import TransformerModelArgs, llama3_args
from torchtitan.models.llama3.model.args import RoPEScalingArgs

from torchtitan_lighthouse.data.bytes import VOCAB_SIZE
from torchtitan_lighthouse.titan.config.job_config import HF_FLAVOR
from torchtitan_lighthouse.titan.models.args import LighthouseModelArgs

MODEL_NAME = "llama3_lighthouse"


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
    # Its sizes come from the job's config.json (see LighthouseModelArgs.update_from_config).
    HF_FLAVOR: LighthouseModelArgs(),
}
