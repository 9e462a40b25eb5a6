"""The spread of the norms that select, as training measures it and warns of it."""

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.support.jobs import parse
from tests.support.models import CHECKPOINTING, build_model, loss, tokens
from tests.support.processors import build, job, log
from torchtitan_lighthouse.attention.reference import norm_scores
from torchtitan_lighthouse.titan.components.norm_spread import ROUNDING, NormSpread

pytestmark = pytest.mark.usefixtures("one_rank")
CPU = torch.device("cpu")
WAYS = {
    "eager": {},
    "checkpointed": CHECKPOINTING["full"],
    "compiled": {"compile__enable": True, "compile__backend": "aot_eager"},
}


def measure(model, batch):
    spread = NormSpread([model])
    with spread.measured(CPU):
        loss(model, batch).backward()
    return spread.least()


def attended(model, batch):
    """q and k of each Lighthouse layer, as Lighthouse attention is given them."""
    given = {}
    hooks = [
        block.attention.inner_attention.register_forward_pre_hook(
            lambda _, args, number=number: given.__setitem__(int(number), args[:2])
        )
        for number, block in model.layers.named_children()
        if number in ("1", "2")
    ]
    with torch.no_grad():
        model(batch[:, :-1])
    for hook in hooks:
        hook.remove()
    return given


@pytest.mark.parametrize("way", WAYS)
def test_spread_is_that_of_the_norms_that_attention_is_given(tmp_path, way):
    plain = build_model(parse(tmp_path))
    expected = {"q": {}, "k": {}}
    for number, (q, k) in attended(plain, tokens()).items():
        for name, scores in zip("qk", norm_scores(q, k), strict=True):
            low, median, high = np.quantile(scores.numpy(), [0.25, 0.5, 0.75], axis=-1)
            expected[name][number] = ((high - low) / median).min()
    least = measure(build_model(parse(tmp_path, **WAYS[way])), tokens())
    for name, spreads in expected.items():
        layer, spread = least[name]
        assert spread == pytest.approx(min(spreads.values()), rel=1e-5)
        assert spreads[layer] == min(spreads.values())
        assert spread > 10 * ROUNDING


class _Normed(nn.Module):
    """A projection whose heads are normalised, in place of one that is not."""

    def __init__(self, projection, head_dim):
        super().__init__()
        self.projection, self.head_dim = projection, head_dim

    def forward(self, x):
        heads = self.projection(x).unflatten(-1, (-1, self.head_dim))
        return nn.functional.rms_norm(heads, heads.shape[-1:]).flatten(-2)


def test_a_model_that_normalises_its_keys_is_seen_by_what_it_does(tmp_path):
    model = build_model(parse(tmp_path))
    attention = model.layers["2"].attention
    attention.wk = _Normed(attention.wk, attention.head_dim)
    least = measure(model, tokens())
    assert least["k"].layer == 2
    assert least["k"].spread < ROUNDING / 10
    assert least["q"].spread > 10 * ROUNDING


def test_training_is_the_same_and_compiles_no_more(tmp_path):
    torch._dynamo.reset()
    model = build_model(parse(tmp_path))
    counter = CompileCounterWithBackend("aot_eager")
    for number, block in model.layers.named_children():
        compiled = torch.compile(block, backend=counter, fullgraph=True)
        model.layers.register_module(number, compiled)
    unmeasured = loss(model, tokens()).item()
    graphs = counter.frame_count
    spread = NormSpread([model])
    for _ in range(2):
        with spread.measured(CPU):
            assert loss(model, tokens()).item() == unmeasured
    assert loss(model, tokens()).item() == unmeasured
    assert counter.frame_count == graphs


@pytest.mark.parametrize(
    "fields", [{"lighthouse__scorer": "gla"}, {"lighthouse__levels": 1}], ids=str
)
def test_where_no_norms_select_nothing_is_measured(tmp_path, fields):
    assert measure(build_model(parse(tmp_path, **fields)), tokens()) == {}


def test_outside_of_a_measured_step_nothing_is_looked_at(tmp_path):
    model = build_model(parse(tmp_path))
    spread = NormSpread([model])
    with spread.measured(CPU):
        pass
    loss(model, tokens())
    assert spread.least() == {}


def test_it_is_logged_and_equal_norms_are_warned_of_once(tmp_path, caplog):
    model = build_model(parse(tmp_path))
    attention = model.layers["2"].attention
    attention.wq = _Normed(attention.wq, attention.head_dim)
    processor = build(job(tmp_path))
    processor.norm_spread = NormSpread([model])
    records = []
    processor.logger.log = lambda metrics, step: records.append(metrics)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            with processor.norm_spread.measured(CPU):
                loss(model, tokens())
            log(processor, step)
    assert len(records) == 2
    for record in records:
        assert record["lighthouse/norm_spread_q/min"] < ROUNDING
        assert record["lighthouse/norm_spread_k/min"] > 10 * ROUNDING
    (warning,) = [r.getMessage() for r in caplog.records if "norms" in r.getMessage()]
    assert "Step 1: in layer 2 the norms of q" in warning
