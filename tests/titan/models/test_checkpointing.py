"""How often activation checkpointing runs SDPA, and that it changes no gradient."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, distributed
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.fx import GraphModule
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.support.jobs import parse
from tests.support.models import CHECKPOINTING, build_model, loss, parallel_dims, tokens
from tests.support.record_ops import RecordOps
from torchtitan_lighthouse.attention.all_gather import attend_across_ranks
from torchtitan_lighthouse.attention.exchange import exchange_edges
from torchtitan_lighthouse.titan.stages import AttentionSwitch

SDPA = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
STAGES = ("lighthouse", "dense")
LAYERS = 4
LIGHTHOUSE_LAYERS = {"lighthouse": 2, "dense": 0}
RUNS_AGAIN = {"none": 0, "every-2nd-layer": 2, "selective": 0, "attention": 0, "full": 4}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_only_checkpoints_of_whole_blocks_run_sdpa_again(tmp_path, checkpointing, stage):
    model = build_model(parse(tmp_path, **CHECKPOINTING[checkpointing]))
    AttentionSwitch([model]).use(stage)
    with RecordOps() as record:
        loss(model, tokens()).backward()
    assert record.ops.count(SDPA) == LAYERS + RUNS_AGAIN[checkpointing]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("checkpointing", "again"), [("attention", 0), ("full", 1)])
def test_the_backward_graph_has_sdpa_in_it_with_full_only(tmp_path, checkpointing, again, stage):
    counts = []

    def count(graph: GraphModule, inputs: list[Tensor]) -> Callable:
        # An op that may draw random numbers is wrapped in another where it runs again.
        nodes = graph.graph.nodes
        counts.append(sum(SDPA in (node.target, *node.args[:2]) for node in nodes))
        return make_boxed_func(graph)

    fields = {"lighthouse__dense_layers": [], "compile__enable": True}
    job_config = parse(tmp_path, **fields, **CHECKPOINTING[checkpointing])
    job_config.compile.backend = aot_autograd(
        fw_compiler=count, partition_fn=min_cut_rematerialization_partition
    )
    torch._dynamo.reset()
    model = build_model(job_config)
    AttentionSwitch([model]).use(stage)
    loss(model, tokens()).backward()
    assert counts == [1, again]


@pytest.fixture
def ranks_that_send_nothing():
    distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("checkpointing", ["attention", "full"])
def test_among_ranks_that_share_a_sequence_no_edge_is_sent_again(
    tmp_path, ranks_that_send_nothing, checkpointing, stage
):
    job_config = parse(tmp_path, lighthouse__tile=4, **CHECKPOINTING[checkpointing])
    model = build_model(job_config, parallel_dims(cp=2))
    AttentionSwitch([model]).use(stage)
    with RecordOps() as record:
        model(tokens()[:, :128]).sum().backward()
    assert record.ops.count(attend_across_ranks) == LAYERS + RUNS_AGAIN[checkpointing]
    assert record.ops.count(exchange_edges) == LIGHTHOUSE_LAYERS[stage]


@pytest.mark.parametrize("stage", STAGES)
def test_attention_keeps_every_bit_of_the_gradients(tmp_path, stage):
    gradients = []
    for checkpointing in ("none", "attention"):
        model = build_model(parse(tmp_path, **CHECKPOINTING[checkpointing]))
        AttentionSwitch([model]).use(stage)
        loss(model, tokens()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for expected, actual in zip(*gradients, strict=True):
        assert torch.equal(actual, expected)
