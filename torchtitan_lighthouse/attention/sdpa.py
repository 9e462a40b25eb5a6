"""SDPA over some of a softmax's keys: its log-sum-exp, and its backward within the whole softmax.

PyTorch's kernels know both, but ``F.scaled_dot_product_attention`` returns no log-sum-exp and takes
none in its backward.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention

from torchtitan_lighthouse.refusal import RefusalError

_aten = torch.ops.aten


class Numbers(NamedTuple):
    """The arguments of SDPA that are no tensors; no ``scale`` means 1/√D."""

    is_causal: bool
    scale: float | None


def attend(q: Tensor, k: Tensor, v: Tensor, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """Attend to these keys alone.

    Args:
        q: [B, Hq, n, D].
        k, v: [B, Hkv, m, D], Hq a multiple of Hkv; m = n if it is causal.

    Returns:
        The output, of q's shape and on a GPU of its dtype, and the log-sum-exp [B, Hq, n], float32
        or float64.

    Raises:
        RefusalError: float32 or float64 on a GPU, for which there is no such kernel.
    """
    is_causal, scale = numbers
    if q.device.type == "cpu":
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            *_for_cpu(q, k, v), 0.0, is_causal, scale=scale
        )
        return out, lse
    if _takes_cudnn(q, k, v, is_causal):
        out, lse, *_ = _aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, is_causal, False, scale=scale
        )
        return out, lse.view(q.shape[:-1])
    out, lse, *_ = _aten._scaled_dot_product_flash_attention(
        q, k, v, 0.0, is_causal, False, scale=scale
    )
    return out, lse


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, numbers: Numbers
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute these keys' part in the backward of a softmax over more keys.

    Args:
        grad: [B, Hq, n, D], the gradient of the attention's output.
        q, k, v: as ``attend`` takes them.
        out, lse: of the whole softmax, for the same rows as q.

    Returns:
        The gradients of q, to be summed over all parts, and of k and v.
    """
    is_causal, scale = numbers
    if q.device.type == "cpu":
        wide = lse.dtype
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(grad.to(wide), *_for_cpu(q, k, v), out.to(wide), lse, 0.0, is_causal), scale=scale
        )
        dk, dv = (x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (dk, dv))
        return dq, dk, dv
    # No dropout: no kernel reads the state of the random numbers.
    unused = torch.empty(2, dtype=torch.uint64, device=q.device)
    lse, lengths = lse.contiguous(), (None, None, q.shape[2], k.shape[2])
    if _takes_cudnn(q, k, v, is_causal):
        return _aten._scaled_dot_product_cudnn_attention_backward(
            *(grad, q, k, v, out, lse.unsqueeze(-1), unused[0], unused[1], None),
            *(*lengths, 0.0, is_causal),
            scale=scale,
        )
    return _aten._scaled_dot_product_flash_attention_backward(
        *(grad, q, k, v, out, lse, *lengths, 0.0, is_causal, unused, unused[0]), scale=scale
    )


def _takes_cudnn(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> bool:
    """Whether cuDNN's kernel takes these, which torchtitan prefers to flash attention."""
    if q.dtype not in (torch.bfloat16, torch.float16):
        raise RefusalError(f"attention across ranks takes bfloat16 or float16, not {q.dtype}")
    params = SDPAParams(q, k, v, None, 0.0, is_causal, q.shape[1] != k.shape[1])
    return can_use_cudnn_attention(params)


def _for_cpu(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Widen q, k and v, and repeat k and v for each query head.

    The CPU's kernel knows no groups, and rounds what it returns to the dtype of its inputs.
    """
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.to(wide), k.to(wide), v.to(wide)
