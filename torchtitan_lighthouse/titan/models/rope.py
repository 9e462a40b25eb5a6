"""Rotary position embedding in real numbers, which ``torch.compile`` fuses; complex ones it cannot.

torchtitan 0.2.2 multiplies complex numbers: a kernel of its own for each product, in float32, with
copies around it. Its table stays the complex one, of which a real view costs nothing, so that the
model's buffers and what shards them know nothing of this.
"""

import torch
from torch import Tensor
from torchtitan.models.llama3 import TransformerModelArgs
from torchtitan.models.llama3.model import model as titan


def rotate(
    xq: Tensor, xk: Tensor, freqs_cis: Tensor, positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Turn each pair of channels (2i, 2i + 1) by the angle of its position.

    Equals torchtitan's ``apply_rotary_emb`` within rounding in float32.

    Args:
        xq, xk: [B, N, H, D] and [B, N, Hkv, D], of any floating dtype.
        freqs_cis: complex64 [at least N, D/2], a unit number for each position and pair.
        positions: [1, N] or [B, N], the rows of ``freqs_cis`` to take; by default the first N.

    Returns:
        ``xq`` and ``xk`` turned, in their own shapes and dtypes.
    """
    table = torch.view_as_real(freqs_cis).flatten(1)
    # torchtitan's function picks rows of any table whose rows have x's width.
    table = titan.reshape_for_broadcast(table, xq, positions)
    cos, sin = table.unflatten(-1, (-1, 2)).split(1, -1)
    signed_sin = sin * torch.arange(-1, 2, 2, device=sin.device)
    return _rotate(xq, cos, signed_sin), _rotate(xk, cos, signed_sin)


def _rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    # Swapping needs no concatenation of halves and, in the backward, no slices filled with zeros.
    pairs = x.float().unflatten(-1, (-1, 2))
    turned = pairs * cos + pairs.flip(-1) * signed_sin
    return turned.flatten(-2).type_as(x)


def rotation_of(args: TransformerModelArgs, tokens: int) -> Tensor:
    """Return a model's RoPE as the ``rotation`` that ``lighthouse_attention`` takes.

    Returns:
        float32 [tokens, D/2, 2] on the CPU, whatever device the model is on.
    """
    dim = args.dim // args.n_heads
    with torch.device("cpu"):
        table = titan.precompute_freqs_cis(dim, tokens, args.rope_theta, args.rope_scaling_args)
    return torch.view_as_real(table)


def use_real_rotation() -> None:
    """Have torchtitan's Llama-3 call ``rotate``, in this process, from now on.

    Its attention names the function as a global of its module and takes no other. This can go when
    torchtitan's own is in real numbers, or an argument.
    """
    titan.apply_rotary_emb = rotate
