"""Between windows of rows and the slots of the entries that summarise them, in both directions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtitan_lighthouse.attention.reference.nodes import entry_slots


def gather(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    nodes: Tensor,
    rotation: Tensor | None,
    slots: int,
    levels: int,
    pooling_factor: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Average q, k and v over the window of each gathered entry.

    Args:
        q: [B, Hq, N, D], k and v: [B, H, N, D], all of one dtype.
        rotation: turns the rows of q and k to the last token of the window before they are added,
            if given: [p^(L-1), D/2, 2] (see ``lighthouse_attention``).

    Returns:
        [B, Hq, S, D] and twice [B, H, S, D] of that dtype; sums are taken in float32, or float64
        for float64 inputs.
    """
    q, k, v = (
        _windows_to_slots(x, nodes, turn, slots, levels, pooling_factor, 1, shifted=False)
        for x, turn in ((q, rotation), (k, rotation), (v, None))
    )
    return q, k, v


def gather_backward(
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    nodes: Tensor,
    rotation: Tensor | None,
    seq_len: int,
    levels: int,
    pooling_factor: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply the transpose of ``gather``; results lie in memory as [B, N, Hx, D]."""
    q, k, v = (
        _slots_to_windows(x, nodes, turn, seq_len, levels, pooling_factor, 1, shifted=False)
        for x, turn in ((grad_q, rotation), (grad_k, rotation), (grad_v, None))
    )
    return q, k, v


def scatter(
    y: Tensor, nodes: Tensor, seq_len: int, levels: int, pooling_factor: int, pieces: int
) -> Tensor:
    """Sum, for each row, the entries in whose shifted window it is.

    The shifted window of entry i is [(i+1)·p^ℓ - 1, (i+2)·p^ℓ - 2], clipped to the entry's piece of
    the sequence.

    Args:
        y: [B, Hx, S, D].

    Returns:
        [B, Hx, N, D] of y's dtype, summed as ``gather`` does, laid out in memory as [B, N, Hx, D].
    """
    return _slots_to_windows(y, nodes, None, seq_len, levels, pooling_factor, pieces, shifted=True)


def scatter_backward(
    grad: Tensor, nodes: Tensor, slots: int, levels: int, pooling_factor: int, pieces: int
) -> Tensor:
    """Apply the transpose of ``scatter``: sum each gathered entry's shifted window."""
    return _windows_to_slots(grad, nodes, None, slots, levels, pooling_factor, pieces, shifted=True)


def _windows_to_slots(
    x: Tensor,
    nodes: Tensor,
    rotation: Tensor | None,
    slots: int,
    levels: int,
    pooling_factor: int,
    pieces: int,
    *,
    shifted: bool,
) -> Tensor:
    """Each gathered entry's mean over its window of rows; its sum over the shifted window."""
    batch, heads, seq_len, dim = x.shape
    nodes = nodes.repeat_interleave(heads // nodes.shape[1], 1)
    rows = _upcast(x).unflatten(2, (pieces, -1))
    out = rows.new_empty(batch, heads, slots + 1, dim)
    for level in range(levels):
        window = pooling_factor**level
        shift = window - 1 if shifted else 0
        windows = F.pad(rows[..., shift:, :], (0, 0, 0, shift)).unflatten(3, (-1, window))
        if rotation is not None:
            windows = _turn(windows, rotation[:window].flip(0))
        sums = windows.sum(4)
        if not shifted:
            sums = sums / window
        slot = entry_slots(nodes, level, seq_len, levels, pooling_factor) % (slots + 1)
        out.scatter_(2, slot.unsqueeze(-1).expand(-1, -1, -1, dim), sums.flatten(2, 3))
    return out[:, :, :slots].to(x.dtype).contiguous()


def _slots_to_windows(
    y: Tensor,
    nodes: Tensor,
    rotation: Tensor | None,
    seq_len: int,
    levels: int,
    pooling_factor: int,
    pieces: int,
    *,
    shifted: bool,
) -> Tensor:
    """The transpose of ``_windows_to_slots``: each row sums the entries whose window holds it."""
    batch, heads, _, dim = y.shape
    nodes = nodes.repeat_interleave(heads // nodes.shape[1], 1)
    entries = _upcast(y)
    out = entries.new_zeros(batch, heads, pieces, seq_len // pieces, dim)
    for level in range(levels):
        window = pooling_factor**level
        shift = window - 1 if shifted else 0
        slot = entry_slots(nodes, level, seq_len, levels, pooling_factor).unsqueeze(-1)
        rows = entries.gather(2, slot.clamp(min=0).expand(-1, -1, -1, dim))
        rows = torch.where(slot >= 0, rows, 0.0).unflatten(2, (pieces, -1))
        if not shifted:
            rows = rows / window
        rows = rows.repeat_interleave(window, 3)
        if rotation is not None:
            back = rotation[:window].flip(0) * rotation.new_tensor([1.0, -1.0])
            rows = _turn(rows.unflatten(3, (-1, window)), back).flatten(3, 4)
        out[..., shift:, :] += rows[..., : rows.shape[3] - shift, :]
    return empty_rows(y, seq_len).copy_(out.flatten(2, 3))


def empty_rows(y: Tensor, seq_len: int, dtype: torch.dtype | None = None) -> Tensor:
    """Allocate the rows that entries y, [B, Hx, S, D], are added to: [B, Hx, N, D], uninitialised.

    They have y's dtype unless another is given, lie in memory as [B, N, Hx, D], and are no view, so
    that they can be added to in place.
    """
    batch, heads, _, dim = y.shape
    shape = (batch, heads, seq_len, dim)
    return torch.empty_permuted(shape, (0, 2, 1, 3), dtype=dtype or y.dtype, device=y.device)


def _turn(rows: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of channels (2i, 2i + 1): rows [..., T, D] by rotation [T, D/2, 2]."""
    cos, sin = rotation.to(rows.dtype).unbind(-1)
    even, odd = rows.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def _upcast(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
