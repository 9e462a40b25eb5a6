"""Lighthouse attention as a function: score, select, gather, attend, scatter."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtitan_lighthouse.attention import ops
from torchtitan_lighthouse.attention.config import LighthouseConfig
from torchtitan_lighthouse.attention.context_parallel import (
    ContextParallel,
    add_spill_,
    exchange_spill,
    local_config,
)
from torchtitan_lighthouse.attention.pyramid import table_lengths
from torchtitan_lighthouse.attention.scorers import SCORERS
from torchtitan_lighthouse.attention.selection import Selection, select
from torchtitan_lighthouse.refusal import RefusalError


def lighthouse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    config: LighthouseConfig,
    *,
    attention: Callable[..., Tensor] | None = None,
    selection: Selection | None = None,
    context_parallel: ContextParallel | None = None,
    rotation: Tensor | None = None,
) -> Tensor:
    """Compute Lighthouse attention (arXiv 2605.06554, section 3).

    Causal attention over the S entries that a selection gathers from the pyramid of q, k and v:
    score, select, gather, attend, scatter back.

    Not causal in one respect, by the paper's design: which entries are gathered depends on the
    whole sequence. Given the selection, output t depends on inputs up to t alone.

    Args:
        q: [B, Hq, N, D], of any floating dtype that ``attention`` takes.
        k, v: [B, Hkv, N, D], Hq a multiple of Hkv. The heads of a group share one selection.
        config: the pyramid, the budget and the scorer. With one level this is ``attention`` itself.
        attention: what attends, with the signature of ``F.scaled_dot_product_attention``, which is
            the default; called with ``is_causal=True``, and with ``enable_gqa=True`` for groups.
        selection: the entries to use; by default those that the scorer's scores select.
        context_parallel: the ranks that share the sequence. N is then the tokens of this rank's
            two pieces, ``config`` that of the whole sequence, and ``attention`` attends to the
            pieces of all ranks.
        rotation: what RoPE does over 0, 1, …, p^(L-1) - 1 tokens: the cosine and the sine by which
            it turns each pair of channels (2i, 2i + 1), float32 or float64 [p^(L-1), D/2, 2].
            ``config.rope_aligned`` asks for it; positions it does not depend on.

    Returns:
        [B, Hq, N, D] of the dtype that ``attention`` returns, in memory as [B, N, Hq, D]; with one
        level as ``attention`` lays it out.

    Raises:
        RefusalError: shapes that do not belong together, or an N that the pyramid cannot take.
    """
    _validate_shapes(q, k, v)
    seq_len = q.shape[2]
    if context_parallel is not None:
        config = local_config(config, context_parallel, seq_len)
    config.validate_seq_len(seq_len)
    attend = F.scaled_dot_product_attention if attention is None else attention
    attend = partial(attend, is_causal=True)
    if q.shape[1] != k.shape[1]:
        attend = partial(attend, enable_gqa=True)
    if config.levels == 1:
        return attend(q, k, v)

    if selection is None:
        selection = select(*score(q, k, v, config), config)
    _validate_selection(selection, k, config)
    if config.rope_aligned:
        _validate_rotation(rotation, q, config)
    q, k, v = gather(q, k, v, selection, config, rotation if config.rope_aligned else None)
    y = attend(q, k, v)
    if context_parallel is None:
        return scatter(y, selection, config, seq_len)
    rows = exchange_spill(y, selection, config, context_parallel, seq_len)
    out = scatter(y, selection, config, seq_len, pieces=2)
    return add_spill_(out, rows, config, context_parallel)


def score(q: Tensor, k: Tensor, v: Tensor, config: LighthouseConfig) -> tuple[Tensor, Tensor]:
    """Score every position as a query and as a key, without gradient.

    Args:
        q: [B, Hq, N, D].
        k, v: [B, Hkv, N, D].
        config: names the scorer and has its options.

    Returns:
        The query and the key scores, float32 [B, Hkv, N] each.
    """
    scorer = SCORERS[config.scorer]
    options = {name: getattr(config, name) for name in scorer.options}
    with torch.no_grad():
        return scorer.function(q, k, v, **options)


def gather(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selection: Selection,
    config: LighthouseConfig,
    rotation: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pool q, k and v to the entries of a selection: [B, Hx, N, D] to [B, Hx, S, D] each.

    Row s is the mean over the window of the entry in slot s, in the dtype that q, k and v share;
    sums are taken in float32, or float64 for float64. k and v have the selection's heads and q a
    multiple of them; all have one D. With a ``rotation`` (see ``lighthouse_attention``) the rows of
    q and k are first turned to the last token of the window.
    """
    q, k, v = ops.gather(
        q, k, v, selection.nodes, rotation, selection.slots, config.levels, config.pooling_factor
    )
    return q, k, v


def scatter(
    y: Tensor, selection: Selection, config: LighthouseConfig, seq_len: int, pieces: int = 1
) -> Tensor:
    """Sum, for each position, the entries that it may see: [B, Hx, S, D] to [B, Hx, N, D].

    Entry (ℓ, i) is added to the p^ℓ positions from the last token of its window onwards, so that
    nothing sees its future. The sequence is cut into ``pieces`` equal ones that are contiguous each
    but not with each other; what would spill out of a piece is dropped. Dtypes as in ``gather``; in
    memory the result is [B, N, Hx, D].
    """
    rows: Tensor = ops.scatter(
        y, selection.nodes, seq_len, config.levels, config.pooling_factor, pieces
    )
    return rows


def _validate_selection(selection: Selection, k: Tensor, config: LighthouseConfig) -> None:
    batch, kv_heads, seq_len, _ = k.shape
    entries = sum(table_lengths(seq_len, config.levels, config.pooling_factor))
    slots = config.sub_sequence_length(seq_len)
    if selection.nodes.shape != (batch, kv_heads, entries) or selection.slots != slots:
        raise RefusalError(
            f"a selection of {selection.slots} entries by nodes {list(selection.nodes.shape)} must "
            f"be of {slots} by [B, Hkv, {entries}] = {[batch, kv_heads, entries]}: it was made for "
            "another sequence or config"
        )


def _validate_rotation(rotation: Tensor | None, q: Tensor, config: LighthouseConfig) -> None:
    pairs, odd = divmod(q.shape[-1], 2)
    expected = (config.coarsest_window, pairs, 2)
    if odd or rotation is None or rotation.shape != expected or rotation.device != q.device:
        given = "none" if rotation is None else f"{list(rotation.shape)} on {rotation.device}"
        raise RefusalError(
            "rope_aligned needs an even head dim and a rotation [p^(L-1), D/2, 2] = "
            f"{list(expected)} on {q.device}, where q is {list(q.shape)}; given: {given}"
        )


def _validate_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    fit = q.ndim == k.ndim == 4 and k.shape == v.shape
    fit = fit and (q.shape[0], *q.shape[2:]) == (k.shape[0], *k.shape[2:])
    if not fit or not q.shape[1] or not k.shape[1] or q.shape[1] % k.shape[1]:
        raise RefusalError(
            f"q {list(q.shape)} must be [B, Hq, N, D], k {list(k.shape)} and v {list(v.shape)} "
            "[B, Hkv, N, D], with Hq a multiple of Hkv and at least 1"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise RefusalError(f"q {q.dtype}, k {k.dtype} and v {v.dtype} must be of one dtype")
