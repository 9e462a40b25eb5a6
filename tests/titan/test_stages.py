"""Which stage a step is in, and turning a model from one stage to the other."""

import pytest
import torch
from torchtitan.models.llama3 import Transformer

from tests.support.jobs import parse
from tests.support.models import CHECKPOINTING, build_model, loss, tokens
from tests.support.record_ops import RecordOps
from torchtitan_lighthouse import LighthouseAttention
from torchtitan_lighthouse.attention import ops
from torchtitan_lighthouse.titan.config import Lighthouse
from torchtitan_lighthouse.titan.stages import AttentionSwitch, has_switch, stage_at


@pytest.mark.parametrize(
    ("section", "stages"),
    [
        (Lighthouse(steps=2), ["lighthouse", "lighthouse", "dense", "dense"]),
        (Lighthouse(steps=-1), ["lighthouse"] * 4),
        (Lighthouse(steps=4), ["lighthouse"] * 4),
        (Lighthouse(steps=0), ["dense"] * 4),
        (Lighthouse(steps=2, enable=False), ["dense"] * 4),
    ],
    ids=["switch", "always", "exactly", "never", "disabled"],
)
def test_stage_follows_from_the_step(section, stages):
    assert [stage_at(step, section) for step in range(1, 5)] == stages
    assert has_switch(section, 4) == (section.enable and stages[-1] == "dense")


def dense_loss(model):
    """The loss of torchtitan's own Llama-3 with the model's weights."""
    stock = Transformer(model.model_args)
    stock.load_state_dict(model.state_dict())
    return loss(stock, tokens())


def test_wraps_the_listed_layers_only(tmp_path):
    model = build_model(parse(tmp_path))
    wrapped = [
        isinstance(layer.attention.inner_attention, LighthouseAttention)
        for layer in model.layers.values()
    ]
    assert wrapped == [False, True, True, False]


def test_parameters_are_those_of_llama3(tmp_path):
    model = build_model(parse(tmp_path))
    with torch.device("meta"):
        stock = Transformer(model.model_args)
    assert {name: p.shape for name, p in model.state_dict().items()} == {
        name: p.shape for name, p in stock.state_dict().items()
    }


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_dense_use_is_torchtitans_model(tmp_path, checkpointing):
    model = build_model(parse(tmp_path, **CHECKPOINTING[checkpointing]))
    switch = AttentionSwitch([model])
    in_lighthouse_stage = loss(model, tokens())
    with switch.dense():
        torch.testing.assert_close(loss(model, tokens()), dense_loss(build_model(parse(tmp_path))))
    assert switch.stage == "lighthouse"
    assert torch.equal(loss(model, tokens()), in_lighthouse_stage)
    switch.use("dense")
    assert not torch.equal(loss(model, tokens()), in_lighthouse_stage)


def test_dense_use_ends_with_an_error_too(tmp_path):
    switch = AttentionSwitch([build_model(parse(tmp_path))])
    with pytest.raises(RuntimeError, match="out of memory"), switch.dense():
        raise RuntimeError("out of memory")
    assert switch.stage == "lighthouse"


def test_dense_use_in_the_dense_stage_leaves_it_dense(tmp_path):
    switch = AttentionSwitch([build_model(parse(tmp_path))])
    switch.use("dense")
    with switch.dense():
        pass
    assert switch.stage == "dense"


@pytest.mark.parametrize(
    ("dense_layers", "graphs"),
    [([0, -1], [2, 2]), ([], [1, 2])],
    ids=["with-dense-layers", "without"],
)
def test_switch_compiles_at_most_one_graph(tmp_path, dense_layers, graphs):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = {"compile__enable": True, "compile__backend": "eager"}
    model = build_model(parse(tmp_path, lighthouse__dense_layers=dense_layers, **compiled))
    switch, seen = AttentionSwitch([model]), []
    for stage in ("lighthouse", "dense"):
        switch.use(stage)
        for _ in range(2):
            loss(model, tokens()).backward()
        seen.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert seen == graphs


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_a_recompute_neither_scores_nor_selects_anew(tmp_path, checkpointing):
    model = build_model(parse(tmp_path, **CHECKPOINTING[checkpointing]))
    with RecordOps() as record:
        loss(model, tokens()).backward()
    assert record.ops.count(ops.norm_scores) == 2
    assert record.ops.count(ops.select) == 2
