"""Pooling aligned with RoPE in a model that torchtitan builds on the meta device."""

import pytest
import torch

from tests.support.jobs import parse
from tests.support.models import (
    CHECKPOINTING,
    build_meta_model,
    build_model,
    loss,
    parallel_dims,
    tokens,
)
from torchtitan_lighthouse.attention.module import LighthouseAttention

ALIGNED = {"lighthouse__rope_aligned": True}


def loss_and_gradients(tmp_path, **options):
    model = build_model(parse(tmp_path, **options))
    result = loss(model, tokens())
    result.backward()
    return [result.detach(), *(p.grad for p in model.parameters())]


def test_layers_turn_by_the_models_own_scaled_table(tmp_path):
    model = build_model(parse(tmp_path, **ALIGNED))
    layers = [m for m in model.modules() if isinstance(m, LighthouseAttention)]
    assert layers
    for layer in layers:
        table = torch.view_as_real(model.freqs_cis[: layer.config.coarsest_window])
        assert torch.equal(layer.rotation, table)
        assert layer.rotation.device == model.freqs_cis.device


def test_a_checkpoint_has_the_same_keys(tmp_path):
    aligned, published = (
        build_meta_model(parse(tmp_path, **o), parallel_dims()) for o in (ALIGNED, {})
    )
    assert aligned.state_dict().keys() == published.state_dict().keys()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"compile__enable": True}, id="compiled"),
        pytest.param(CHECKPOINTING["full"], id="full-checkpointing"),
        pytest.param({"compile__enable": True, **CHECKPOINTING["selective"]}, id="compiled-op"),
    ],
)
def test_compiled_and_checkpointed_is_the_same(tmp_path, options):
    torch.compiler.reset()
    eager = loss_and_gradients(tmp_path, **ALIGNED, **CHECKPOINTING["none"])
    other = loss_and_gradients(tmp_path, **ALIGNED, **{**CHECKPOINTING["none"], **options})
    for a, e in zip(other, eager, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-6)


def test_the_loss_is_another(tmp_path):
    aligned, published = (loss_and_gradients(tmp_path, **options)[0] for options in (ALIGNED, {}))
    assert aligned.isfinite()
    assert aligned != published
