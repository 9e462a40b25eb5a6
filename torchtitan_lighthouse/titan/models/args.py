"""The arguments of a job's model: torchtitan's Llama-3, and which layers Lighthouse trains."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn
from torchtitan.config import JobConfig
from torchtitan.models.llama3 import TransformerModelArgs
from torchtitan.models.llama3.model.args import RoPEScalingArgs

from torchtitan_lighthouse.attention.config import LighthouseConfig
from torchtitan_lighthouse.estimate.flops import attention_flops_saved
from torchtitan_lighthouse.hf.config import HFLlama, read_config
from torchtitan_lighthouse.hf.rope import Rope, checked_rope, extended_rope
from torchtitan_lighthouse.refusal import RefusalError, refusal
from torchtitan_lighthouse.titan.config.job_config import HF_FLAVOR


@dataclass
class LighthouseModelArgs(TransformerModelArgs):
    """torchtitan's Llama-3 arguments, and which layers the job trains with Lighthouse attention.

    The two fields come from the job's ``[lighthouse]`` section; they add no parameter.
    """

    lighthouse: LighthouseConfig | None = None
    """The numbers of the method; None trains every layer dense."""

    lighthouse_layers: tuple[int, ...] = ()
    """The numbers, from 0, of the layers that are not dense throughout."""

    @classmethod
    def of_hf(cls, model: HFLlama) -> "LighthouseModelArgs":
        """Make the arguments of a Hugging Face model; ``max_seq_len`` is what it was made for."""
        width = model.intermediate_size
        return cls(
            dim=model.hidden_size,
            n_layers=model.num_hidden_layers,
            n_heads=model.num_attention_heads,
            n_kv_heads=model.num_key_value_heads,
            vocab_size=model.vocab_size,
            # torchtitan multiplies and then rounds up to a multiple of this: to the very width.
            multiple_of=width,
            ffn_dim_multiplier=width / int(8 * model.hidden_size / 3),
            norm_eps=model.rms_norm_eps,
            rope_theta=model.rope["rope_theta"],
            rope_scaling_args=_scaling_args(model.rope),
            max_seq_len=model.max_position_embeddings,
        )

    def to_hf(self, *, tied: bool) -> HFLlama:
        """Return the same sizes in transformers' names.

        Args:
            tied: whether the output is the embedding, which is for the weights to say.
        """
        return HFLlama(
            **self.sizes,
            max_position_embeddings=self.max_seq_len,
            tie_word_embeddings=tied,
            rope=self.rope,
        )

    @property
    def sizes(self) -> dict[str, Any]:
        """What the weights and the norms are, in transformers' names."""
        return {
            "hidden_size": self.dim,
            "intermediate_size": self.ffn_width,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_heads if self.n_kv_heads is None else self.n_kv_heads,
            "vocab_size": self.vocab_size,
            "rms_norm_eps": self.norm_eps,
        }

    def take_model(self, job_config: JobConfig) -> None:
        """Take the sizes of the job's Hugging Face model, if it names one, and the job's RoPE.

        Raises:
            RefusalError: there is no such model, torchtitan cannot train it, or ``[rope]`` makes
                no RoPE of its.
        """
        if job_config.model.flavor == HF_FLAVOR:
            path = job_config.model.hf_assets_path
            if not Path(path).is_dir():
                rule = (
                    f"is no folder, of which model.flavor = {HF_FLAVOR!r} takes the sizes (a run "
                    "whose source is gone has them in its step-N/hf_assets)"
                )
                raise refusal("model.hf_assets_path", path, rule)
            theirs = self.of_hf(read_config(Path(path)))
            for field in fields(TransformerModelArgs):
                setattr(self, field.name, getattr(theirs, field.name))
        self.rope = extended_rope(self.rope, job_config.rope.given())

    def update_from_config(self, job_config: JobConfig, **kwargs) -> None:
        self.take_model(job_config)
        plain = self.rope["rope_type"] == "default" and job_config.model.flavor != HF_FLAVOR
        if plain or job_config.rope.given():
            # torchtitan 0.2.2 warns of more tokens than a default that says nothing of plain RoPE,
            # nor of one that the job extends.
            self.max_seq_len = job_config.training.seq_len
        super().update_from_config(job_config, **kwargs)
        section = job_config.lighthouse
        self.lighthouse = section.attention_config() if section.enable else None
        self.lighthouse_layers = (
            lighthouse_layers(self.n_layers, section.dense_layers) if section.enable else ()
        )

    @property
    def rope(self) -> Rope:
        """The RoPE in transformers' names."""
        scaling = self.rope_scaling_args
        rope = {
            "rope_type": "llama3",
            "rope_theta": self.rope_theta,
            "factor": scaling.scaling_factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        }
        return checked_rope(rope, "")

    @rope.setter
    def rope(self, rope: Rope) -> None:
        self.rope_theta = rope["rope_theta"]
        self.rope_scaling_args = _scaling_args(rope)

    @property
    def ffn_width(self) -> int:
        """What torchtitan's ``FeedForward`` makes of ``multiple_of`` and ``ffn_dim_multiplier``."""
        width = int(8 * self.dim / 3)
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return -(-width // self.multiple_of) * self.multiple_of

    def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
        """Count parameters, and training FLOPs per token in the Lighthouse stage."""
        nparams, dense_flops = super().get_nparams_and_flops(model, seq_len)
        return nparams, dense_flops - self.flops_saved(seq_len)

    def flops_saved(self, seq_len: int) -> int:
        """Count the training FLOPs per token that the Lighthouse stage saves over the dense one."""
        if self.lighthouse is None:
            return 0
        return attention_flops_saved(
            seq_len=seq_len,
            sub_sequence_length=self.lighthouse.sub_sequence_length(seq_len),
            width=self.n_heads * (self.dim // self.n_heads),
            layers=len(self.lighthouse_layers),
        )


def _scaling_args(rope: Rope) -> RoPEScalingArgs:
    if rope["rope_type"] == "default":
        return RoPEScalingArgs(scaling_factor=1.0)
    return RoPEScalingArgs(
        scaling_factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_position_embeddings=rope["original_max_position_embeddings"],
    )


def lighthouse_layers(n_layers: int, dense_layers: list[int]) -> tuple[int, ...]:
    """List the layers not in ``dense_layers``, whose negative entries count from the end.

    Raises:
        RefusalError: an entry out of range, or no layer left for Lighthouse attention.
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
