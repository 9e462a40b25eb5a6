"""Compiled blocks have a graph for each shape, and none of symbolic sizes."""

import pytest
import torch
from torch._dynamo.backends.registry import register_backend

from tests.support.jobs import parse
from tests.support.models import build_model
from torchtitan_lighthouse.titan.stages import AttentionSwitch

graphs = []


@register_backend
def count_graphs(module, inputs):
    graphs.append(
        [node.meta["example_value"] for node in module.graph.find_nodes(op="placeholder")]
    )
    return module.forward


@pytest.mark.parametrize("dense_layers", [[], [0, -1]], ids=["no-dense-layer", "dense-layers"])
def test_validation_leaves_training_its_graphs(tmp_path, dense_layers):
    torch._dynamo.reset()
    graphs.clear()
    fields = {"compile__enable": True, "compile__backend": "count_graphs"}
    model = build_model(parse(tmp_path, lighthouse__dense_layers=dense_layers, **fields))
    switch = AttentionSwitch([model])

    def train():
        model(torch.zeros(2, 256, dtype=torch.int64)).sum().backward()

    @torch.no_grad()
    def validate():
        model.eval()
        held_out = torch.zeros(3, 128, dtype=torch.int64)
        model(held_out)
        with switch.dense():
            model(held_out)
        model.train()

    for stage in ("lighthouse", "dense"):
        switch.use(stage)
        for _ in range(2):
            train()
            validate()
    assert len(graphs) == 4
    assert not any(isinstance(value, torch.SymInt) for inputs in graphs for value in inputs)
    sizes = [size for inputs in graphs for t in inputs if torch.is_tensor(t) for size in t.shape]
    assert not any(isinstance(size, torch.SymInt) for size in sizes)
