"""Lengths that follow from N tokens and the numbers of a pyramid of at least two levels."""


def sub_sequence_length(seq_len: int, levels: int, pooling_factor: int, topk: int) -> int:
    """S = N/p^(L-1) + (L-1)·p·k, the gathered entries; the same for every head and input."""
    return seq_len // pooling_factor ** (levels - 1) + (levels - 1) * pooling_factor * topk


def table_lengths(seq_len: int, levels: int, pooling_factor: int) -> list[int]:
    """N/p^ℓ for ℓ = 1..L-1, the entries of each level in the nodes table."""
    return [seq_len // pooling_factor**level for level in range(1, levels)]
