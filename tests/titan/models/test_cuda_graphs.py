"""Blocks replayed as CUDA graphs train as compiled blocks do, validated and switched between."""

import pytest
import torch

from tests.support.jobs import parse
from tests.support.models import build_model, loss, tokens
from torchtitan_lighthouse.titan.models.cuda_graphs import use_cuda_graphs
from torchtitan_lighthouse.titan.stages import AttentionSwitch


def train(model) -> list[float]:
    """Losses, gradient norms and held-out losses of both stages, in steps of two batches each."""
    switch, seen = AttentionSwitch([model]), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for stage in ("lighthouse", "dense"):
        switch.use(stage)
        for step in range(6):
            optimizer.zero_grad()
            for part in range(2):
                part_loss = loss(model, tokens(2 * step + part))
                part_loss.backward()
                seen.append(part_loss.detach())
            seen.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
            optimizer.step()
            if step % 2:
                seen += validate(model, switch)
    return [value.item() for value in seen]


@torch.no_grad()
def validate(model, switch) -> list[torch.Tensor]:
    model.eval()
    held_out = [loss(model, tokens(100 + batch)) for batch in range(3)]
    with switch.dense():
        held_out += [loss(model, tokens(100 + batch)) for batch in range(3)]
    model.train()
    return held_out


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("dense_layers", [[], [0, -1]], ids=["no-dense-layer", "dense-layers"])
def test_steps_are_those_without_graphs(tmp_path, dense_layers, checkpointing):
    fields = {"compile__enable": True, "activation_checkpoint__mode": checkpointing}
    fields["lighthouse__dense_layers"] = dense_layers
    seen = []
    for graphs in (False, True):
        torch._dynamo.reset()
        model = build_model(parse(tmp_path, compile__cuda_graphs=graphs, **fields))
        with torch.autocast("cuda", torch.bfloat16):
            seen.append(train(model))
    assert seen[0] == seen[1]
    assert seen[0][0] > seen[0][-1]


def test_a_step_begins_where_nothing_is_accumulated(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda block, **_: block)
    begun = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(True))
    model = build_model(parse(tmp_path))
    for block in model.layers.values():
        block._orig_mod = block
    use_cuda_graphs(model)

    def begins(run) -> bool:
        begun.clear()
        run()
        return bool(begun)

    def accumulate():
        loss(model, tokens()).backward()

    def validate():
        with torch.no_grad():
            loss(model, tokens())

    assert begins(accumulate)
    assert not begins(accumulate)
    assert begins(validate)
    model.zero_grad()
    assert begins(accumulate)
