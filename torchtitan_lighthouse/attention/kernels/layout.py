"""How the kernels address rows of D numbers in strided [B, H, length, D] tensors."""

from torch import Tensor


def with_contiguous_rows(x: Tensor) -> Tensor:
    """x itself if its rows of D are contiguous, as torchtitan's are; a copy otherwise."""
    return x if x.stride(-1) == 1 else x.contiguous()


def log2(power_of_two: int) -> int:
    """The exponent of a power of two: the kernels divide by shifting."""
    return power_of_two.bit_length() - 1
