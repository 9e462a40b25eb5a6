"""The ``[lighthouse]``, ``[tokenizer]`` and ``[rope]`` sections."""

# torchtitan merges sections by their types: annotations here must stay types, not strings.

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from torchtitan_lighthouse.attention.config import LighthouseConfig

HF_FLAVOR = "hf"
"""The ``model.flavor`` whose sizes are those of config.json in ``model.hf_assets_path``."""


@dataclass
class Lighthouse:
    """Lighthouse attention in training."""

    enable: bool = True
    """Train with Lighthouse attention; false trains dense SDPA from the first step."""

    steps: int = -1
    """Lighthouse attention for steps 1 to this one, dense SDPA after it; -1: always Lighthouse."""

    levels: int = LighthouseConfig.levels
    """L, the levels of the pyramid, the tokens being the finest; 1 is dense attention."""

    pooling_factor: int = LighthouseConfig.pooling_factor
    """p, how many entries of one level are pooled into one of the next; a power of two."""

    topk: int = LighthouseConfig.topk
    """k, how many entries each level above the tokens expands, per sequence and head."""

    tile: int = LighthouseConfig.tile
    """m, how many of them each tile of the stratified selection expands; even, divides topk."""

    scorer: str = LighthouseConfig.scorer
    """What ranks the entries: "norm", "dilated" or "gla"."""

    dilation: int = LighthouseConfig.dilation
    """δ of the dilated scorer: positions congruent modulo this attend among themselves."""

    dense_layers: list[int] = field(default_factory=lambda: [0, 1, -2, -1])
    """Layers that stay dense throughout; negative numbers count from the last layer."""

    pin_first: bool = LighthouseConfig.pin_first
    """Always expand the first entry of every level, so that every position has an output."""

    rope_aligned: bool = LighthouseConfig.rope_aligned
    """Turn the rows of q and k, after RoPE, to the last token of their window before pooling."""

    def attention_config(self) -> LighthouseConfig:
        """Return the options of the method.

        Raises:
            RefusalError: a number breaks its rule (see ``LighthouseConfig``).
        """
        return LighthouseConfig(**{f.name: getattr(self, f.name) for f in fields(LighthouseConfig)})


@dataclass
class Tokenizer:
    """How text becomes tokens."""

    name: Literal["byte", "huggingface"] = "byte"
    """"byte" needs no files; "huggingface" reads ``model.hf_assets_path``."""


@dataclass
class Rope:
    """What the job changes of its model's RoPE, in transformers' names; what is absent stays.

    To extend a model's context is to change this.
    """

    rope_type: str | None = None
    """"default", plain RoPE, or "llama3", which divides the frequencies of long wavelengths."""

    rope_theta: float | None = None
    """The base of the wavelengths."""

    factor: float | None = None
    """llama3: what the frequencies are divided by."""

    low_freq_factor: float | None = None
    """llama3: wavelengths above the original length over this are divided in full."""

    high_freq_factor: float | None = None
    """llama3: wavelengths below the original length over this are left alone."""

    original_max_position_embeddings: int | None = None
    """llama3: the original length, in tokens."""

    def given(self) -> dict[str, Any]:
        """Return the fields that the job sets."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}


@dataclass
class Parallelism:
    """What this package adds to torchtitan's section."""

    context_parallel_attention: Literal["ring", "allgather"] = "ring"
    """How the ranks that share a sequence attend: "ring" is torch's own; "allgather" sends all keys
    and values once, while each rank attends to its own, and needs bfloat16 or float16 on GPUs."""


@dataclass
class Compile:
    """What this package adds to torchtitan's section."""

    cuda_graphs: bool = False
    """Replay each compiled block as one CUDA graph, on one GPU: for a model so small that the host
    cannot launch its kernels as fast as the GPU runs them. CPUs have no such graphs."""


@dataclass
class JobConfig:
    """What this package adds to torchtitan's ``JobConfig``."""

    lighthouse: Lighthouse = field(default_factory=Lighthouse)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    rope: Rope = field(default_factory=Rope)
    parallelism: Parallelism = field(default_factory=Parallelism)
    compile: Compile = field(default_factory=Compile)
