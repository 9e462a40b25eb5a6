"""The launchers' arithmetic, in plain integers: Triton's own helpers take microseconds a call."""

from torch import Tensor


def with_contiguous_rows(x: Tensor) -> Tensor:
    """x itself if its rows of D are contiguous, as torchtitan's are; a copy otherwise."""
    return x if x.stride(-1) == 1 else x.contiguous()


def log2(power_of_two: int) -> int:
    """The exponent of a power of two: the kernels divide by shifting."""
    return power_of_two.bit_length() - 1


def cdiv(numerator: int, denominator: int) -> int:
    """The quotient, rounded up."""
    return -(-numerator // denominator)


def next_power_of_2(number: int) -> int:
    """The least power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()
