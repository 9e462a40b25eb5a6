"""LighthouseAttention, the module, and what both it and the function ask of their inputs."""

import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.cases import SMALL, random_qkv
from torchtitan_lighthouse import LighthouseAttention, LighthouseConfig, lighthouse_attention


class RecordingAttention(nn.Module):
    """Stands where torchtitan's SDPA wrapper stands, and keeps what it was called with."""

    def forward(self, q, k, v, **kwargs):
        self.shapes = [tuple(x.shape) for x in (q, k, v)]
        self.kwargs = kwargs
        return F.scaled_dot_product_attention(q, k, v, **kwargs)


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=["H2:2", "H4:2"])
def test_module_equals_the_function(heads):
    config, length = SMALL
    qkv = random_qkv(length, heads=heads)
    module = LighthouseAttention(RecordingAttention(), config)
    out = module(*qkv, enable_gqa=heads[0] != heads[1])
    assert torch.equal(out, lighthouse_attention(*qkv, config))


def test_inner_attention_is_called_once_on_the_gathered_rows():
    config, length = SMALL
    inner = RecordingAttention()
    q, k, v = random_qkv(length, batch=2, heads=(4, 2))
    LighthouseAttention(inner, config)(q, k, v, scale=0.3, enable_gqa=True)
    sub_length = config.sub_sequence_length(length)
    assert inner.shapes == [(2, 4, sub_length, 8), (2, 2, sub_length, 8), (2, 2, sub_length, 8)]
    assert inner.kwargs == {"scale": 0.3, "enable_gqa": True, "is_causal": True}


def test_module_adds_nothing_to_the_state():
    inner = nn.Linear(2, 2)
    module = LighthouseAttention(inner, LighthouseConfig())
    assert module.attention is inner
    assert module.config == LighthouseConfig()
    assert sum(p.numel() for p in module.parameters()) == 6


def test_more_query_than_kv_heads_without_enable_gqa_is_refused():
    config, length = SMALL
    module = LighthouseAttention(RecordingAttention(), config)
    with pytest.raises(ValueError, match="enable_gqa"):
        module(*random_qkv(length, heads=(4, 2)))


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        pytest.param((1, 3, 56, 8), (1, 2, 56, 8), (1, 2, 56, 8), id="heads-not-a-multiple"),
        pytest.param((1, 2, 56, 8), (1, 2, 32, 8), (1, 2, 32, 8), id="lengths-differ"),
        pytest.param((1, 2, 56, 8), (1, 2, 56, 8), (1, 1, 56, 8), id="k-and-v-differ"),
        pytest.param((1, 2, 56, 8), (1, 0, 56, 8), (1, 0, 56, 8), id="no-key-heads"),
        pytest.param((1, 0, 56, 8), (1, 0, 56, 8), (1, 0, 56, 8), id="no-heads"),
        pytest.param((2, 56, 8), (2, 56, 8), (2, 56, 8), id="no-batch"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(q, k, v):
    rule = f"q {[*q]} must be [B, Hq, N, D], k {[*k]} and v {[*v]} [B, Hkv, N, D], with"
    with pytest.raises(ValueError, match=re.escape(rule)):
        lighthouse_attention(torch.ones(q), torch.ones(k), torch.ones(v), SMALL[0])


def test_dtypes_that_differ_are_refused():
    q, k, v = random_qkv(SMALL[1])
    with pytest.raises(ValueError, match=r"q .*64, k .*32 and v .*64 must be of one dtype"):
        lighthouse_attention(q, k.float(), v, SMALL[0])


def test_a_length_that_the_pyramid_cannot_take_is_refused():
    with pytest.raises(ValueError, match=r"seq_len=57 must be a multiple of .* use 56 or 64$"):
        lighthouse_attention(*torch.ones(3, 1, 2, 57, 8), SMALL[0])


def test_the_package_imports_torch_but_not_torchtitan():
    code = "import sys, torchtitan_lighthouse; assert 'torchtitan' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
