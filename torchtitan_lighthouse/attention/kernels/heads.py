"""Which tensor, q, k or v, a program works on: heads are counted over q's, then k's, then v's."""

import triton
import triton.language as tl


@triton.jit
def of_head(head, of_q, of_k, of_v, HEADS: tl.constexpr, KV_HEADS: tl.constexpr):
    """Pick the pointer or stride of the tensor that a head belongs to; q's where q is alone."""
    if of_k is None:
        value = of_q
    else:
        value = tl.where(head < HEADS, of_q, tl.where(head < HEADS + KV_HEADS, of_k, of_v))
    return value


@triton.jit
def place_of_head(head, HEADS: tl.constexpr, KV_HEADS: tl.constexpr):
    """Return the number of heads in a head's tensor, its own among them, and its selection head."""
    in_q = head < HEADS
    kv_head = (head - HEADS) % KV_HEADS
    heads = tl.where(in_q, HEADS, KV_HEADS)
    selection_head = tl.where(in_q, head // (HEADS // KV_HEADS), kv_head)
    return heads, tl.where(in_q, head, kv_head), selection_head
