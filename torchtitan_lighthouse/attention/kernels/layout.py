"""How the kernels address rows of D numbers in strided [B, H, length, D] tensors."""

from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """A tensor whose rows are contiguous, and the strides of its other dimensions in elements."""

    data: Tensor
    strides: tuple[int, int, int]


def rows_of(x: Tensor) -> Rows:
    """x itself if its rows of D are contiguous, as torchtitan's are; a copy otherwise."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    batch, heads, length, _ = x.stride()
    return Rows(x, (batch, heads, length))


def log2(power_of_two: int) -> int:
    """The exponent of a power of two: the kernels divide by shifting."""
    return power_of_two.bit_length() - 1
