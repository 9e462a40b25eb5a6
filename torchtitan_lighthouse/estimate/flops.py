"""Training FLOPs per token, for MFU, in torchtitan's way of counting.

torchtitan counts, per token, forward and backward, with N tokens, d = heads · head dim and W the
parameters without the embedding::

    dense = 6·W + Σ over layers 12·d·N

Its 12·d·N is attention over one sequence, 12·d·N² (two matrix products of 2·d·N² forward, twice
that backward, causality not discounted), divided among N tokens. A Lighthouse layer attends over S
gathered entries instead, 12·d·S², so its share per token is 12·d·S²/N::

    lighthouse = 6·W + Σ over dense layers 12·d·N + Σ over Lighthouse layers 12·d·S²/N

Scoring, selecting, gathering, scattering and recomputing are overhead, not the model's work: not
counted. The reported MFU is then a lower bound on what the device does.
"""


def attention_flops_saved(
    *, seq_len: int, sub_sequence_length: int, width: int, layers: int
) -> int:
    """Count the FLOPs per token that ``layers`` layers save by attending over S instead of N.

    Args:
        seq_len: N, tokens.
        sub_sequence_length: S, gathered entries.
        width: heads · head dim.
        layers: the number of Lighthouse layers.
    """
    return 12 * layers * width * (seq_len**2 - sub_sequence_length**2) // seq_len
