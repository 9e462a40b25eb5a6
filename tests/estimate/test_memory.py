"""The memory estimate against measured peaks, the compiler's own choices and sums by hand."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torchtitan.models.llama3 import Transformer

from tests.support.jobs import options, parse
from tests.support.models import CHECKPOINTING, build_model, tokens
from torchtitan_lighthouse.estimate import memory
from torchtitan_lighthouse.estimate.activations import Block
from torchtitan_lighthouse.titan.config import LighthouseConfigManager
from torchtitan_lighthouse.titan.layout import layouts_of
from torchtitan_lighthouse.titan.models.of_job import model_args_of
from torchtitan_lighthouse.tools import memory as memory_tool

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "train_configs" / "lighthouse_530m_98k.toml"
GIB = 2**30

FULL = {"activation_checkpoint__mode": "full"}
SELECTIVE = {"activation_checkpoint__mode": "selective"}
OP, ATTENTION = CHECKPOINTING["selective"], CHECKPOINTING["attention"]
DENSE = {"lighthouse__enable": False}
NO_DENSE_LAYER = {"lighthouse__dense_layers": []}
DILATED = {
    "lighthouse__scorer": "dilated",
    "lighthouse__dilation": 5,
    "training__seq_len": 97_920,
}
EIGHT_BATCHES = {"training__global_batch_size": 8}
SHORT = {"training__seq_len": 32_768, "lighthouse__topk": 512}
# 530M_byte without the embedding: 30 blocks, the last norm, the output.
BLOCK = 4 * 1024**2 + 3 * 1024 * 1536 + 2 * 1024
OUTPUT = 320 * 1024
WEIGHTS = 30 * BLOCK + 1024 + 2 * OUTPUT


def paper_job(**fields):
    """The paper's job with the byte vocabulary, one batch a step and one stage."""
    fields = {
        "model__flavor": "530M_byte",
        "training__global_batch_size": 1,
        "lighthouse__steps": -1,
        **fields,
    }
    args = ["--job.config_file", str(PAPER), *options(**fields)]
    return LighthouseConfigManager().parse_args(args)


def peak(job_config, gpus=None):
    *_, last_stage = layouts_of(job_config, gpus).values()
    return memory.peak(last_stage, job_config.training.seq_len)


# memory/max_active(GiB) of one NVIDIA H100 and, for the short sequence, the largest
# memory/max_reserved(GiB) of one H200: torch 2.11, torchtitan 0.2.2, one process, so autocast to
# bfloat16 and no FSDP.
ACTIVE = {
    "lighthouse-full": (FULL, 17.98),
    "dense-full": (FULL | DENSE, 17.96),
    "lighthouse-selective": (SELECTIVE, 45.12),
    "dense-selective": (SELECTIVE | DENSE, 50.61),
    # docs/benchmarks/2026-11-25_H100_step.md
    "lighthouse-attention": (ATTENTION, 19.30),
    "no-dense-layer-attention": (ATTENTION | NO_DENSE_LAYER, 18.29),
    "no-dense-layer-op": (OP | NO_DENSE_LAYER, 29.61),
    "no-dense-layer-full": (FULL | NO_DENSE_LAYER, 17.55),
}
RESERVED = {
    "lighthouse-selective-32k": (SELECTIVE | SHORT, 17.42),
    "lighthouse-selective-32k-eager": (SELECTIVE | SHORT | {"compile__enable": False}, 23.00),
}


@pytest.mark.parametrize(("fields", "active"), ACTIVE.values(), ids=ACTIVE)
def test_measured_peak(fields, active):
    assert peak(paper_job(**fields)).total / GIB == pytest.approx(active, rel=0.01)


def test_measured_peak_of_dense_layers_under_op():
    # Of what the backward of a block recomputes, some is free again before the rest is needed.
    assert 1 < peak(paper_job(**OP, **DENSE)).total / GIB / 42.33 < 1.03


@pytest.mark.parametrize(("fields", "reserved"), RESERVED.values(), ids=RESERVED)
def test_measured_reservation(fields, reserved):
    # The allocator reserves what is live and a few percent more.
    assert 0.95 < peak(paper_job(**fields)).total / GIB / reserved < 1


# memory/max_active(GiB) of two ranks that share a sequence and a GPU, an NVIDIA H100 in the dense
# run and an H200 in the others: FSDP, compile, torch's ring attention.
TILES_FOR_TWO = {"lighthouse__steps": -1, "lighthouse__tile": 64}
MEASURED_BY_TWO_RANKS = {
    "1m-full": ("lighthouse_530m_1m_cp8", {"lighthouse__steps": -1}, 54.53),
    "lighthouse-none": ("recoverability_25m_16k", TILES_FOR_TWO, 2.449),
    "dense-none": ("recoverability_25m_16k", DENSE, 3.056),
}


@pytest.mark.parametrize(
    ("name", "fields", "active"), MEASURED_BY_TWO_RANKS.values(), ids=MEASURED_BY_TWO_RANKS
)
def test_measured_peak_of_two_ranks(name, fields, active):
    file = ROOT / "train_configs" / f"{name}.toml"
    fields = fields | {"parallelism__context_parallel_degree": 2}
    job_config = LighthouseConfigManager().parse_args(options(job__config_file=file, **fields))
    assert peak(job_config, 2).total / GIB == pytest.approx(active, rel=0.07)


@pytest.mark.parametrize("precision", ["float32", "autocast"])
@pytest.mark.parametrize("lighthouse", [True, False], ids=["lighthouse", "dense"])
@pytest.mark.parametrize("name", ["none", "every-2nd-layer", "selective", "attention"])
def test_blocks_keep_what_the_compiler_keeps(tmp_path, name, lighthouse, precision):
    job_config = parse(
        tmp_path,
        **CHECKPOINTING[name],
        compile__enable=True,
        compile__backend="aot_eager_decomp_partition",
        lighthouse__enable=lighthouse,
    )
    torch.compiler.reset()
    model = build_model(job_config)
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    saved = {}

    def save(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return x

    casts = precision == "autocast"
    batch = tokens()[:, :-1]
    hidden = model.tok_embeddings(batch)
    autocast = torch.autocast(hidden.device.type, torch.bfloat16) if casts else nullcontext()
    with autocast, torch.autograd.graph.saved_tensors_hooks(save, lambda x: x):
        for layer in model.layers.values():
            hidden = layer(hidden, model.freqs_cis, attention_masks=None)

    block = Block(
        dim=128,
        query=128,
        key=128,
        ffn=512,
        element=2 if casts else 4,
        residual_element=4,
        casts=casts,
        compiled=True,
    )
    modes = {
        "none": ["none"] * 4,
        "every-2nd-layer": ["none", "full"] * 2,
        "selective": ["op"] * 4,
        "attention": ["attention"] * 4,
    }
    # S = 256/4 + 2·2·16 in the two middle layers.
    rows = [512, 256, 256, 512] if lighthouse else [512] * 4
    expected = sum(sum(block.kept(512, *layer)) for layer in zip(rows, modes[name], strict=True))
    if casts:
        expected += modes[name].count("none") * 2 * (4 * 128**2 + 3 * 128 * 512)
    # Beside them there are the tables that the estimate leaves out.
    assert expected < sum(saved.values()) < 1.02 * expected


def test_a_lighthouse_block_keeps_s_rows_of_attention():
    # By hand, in units of c·T·d = 200 MB: of 13.5, q, k, v and the output take 4, and at
    # S = 0.1875·T they take 0.75 beside the scattered output's 1. The input is float32.
    block = Block(
        dim=1024,
        query=1024,
        key=1024,
        ffn=1536,
        element=2,
        residual_element=4,
        casts=True,
        compiled=True,
    )
    unit = 98_304 * 1024 * 2
    dense = block.kept(98_304, 98_304, "none")
    lighthouse = block.kept(98_304, 18_432, "none")
    assert dense == (2 * unit, 6 * unit, 5.5 * unit)
    assert lighthouse == (2 * unit, 3.75 * unit, 5.5 * unit)
    assert block.kept(98_304, 18_432, "full") == (2 * unit, 0, 0)
    assert block.kept(98_304, 98_304, "attention") == (2 * unit, unit, 0)
    assert block.kept(98_304, 18_432, "attention") == (2 * unit, 0.1875 * unit, 0)


@pytest.mark.parametrize("flavor", ["530M", "25M_byte", "8B"])
def test_weights_are_those_of_the_model(flavor):
    job_config = paper_job(model__flavor=flavor, lighthouse__dense_layers=[0])
    with torch.device("meta"):
        model = Transformer(model_args_of(job_config))
    layout = layouts_of(job_config)["lighthouse"]
    assert layout.weights == sum(p.numel() for p in model.parameters())
    assert layout.block_weights == sum(p.numel() for p in model.layers["0"].parameters())
    assert layout.output_weights == model.output.weight.numel()
    assert layout.rope_row == model.freqs_cis[0].nbytes


def test_parameters_and_optimizer_are_those_of_the_model():
    parts = peak(paper_job(**FULL)).parts
    assert parts["optimizer"] == 2 * 4 * WEIGHTS
    # RoPE's table has 64 complex numbers a token.
    assert parts["parameters and RoPE"] == 4 * WEIGHTS + 98_304 * 64 * 8
    assert parts["gradients"] == 4 * OUTPUT


def test_fsdp_shards_them_and_its_residual_stream_is_bfloat16():
    one, eight = peak(paper_job(**FULL)).parts, peak(paper_job(**FULL, **EIGHT_BATCHES), 8).parts
    assert eight["optimizer"] == one["optimizer"] // 8
    assert eight["kept by blocks: input"] == one["kept by blocks: input"] / 2 == 30 * 98_304 * 2048
    # Two gathered blocks, and one's gradients in bfloat16 and float32.
    assert eight["copies of weights"] == BLOCK * (2 + 2 + 2 + 4)


def test_gradient_accumulation_keeps_all_gradients():
    parts = peak(paper_job(**FULL, training__global_batch_size=2)).parts
    assert parts["gradients"] == 4 * WEIGHTS


def test_context_parallel_divides_the_tokens():
    whole = peak(paper_job(**FULL, **EIGHT_BATCHES), 8).parts
    halves = peak(paper_job(**FULL, parallelism__context_parallel_degree=2), 2).parts
    assert halves["kept by blocks: input"] == whole["kept by blocks: input"] / 2
    assert halves["optimizer"] == 4 * whole["optimizer"]


@pytest.mark.parametrize(
    ("way", "tensors"),
    [("ring", 1 + 2 + 2 * 2), ("allgather", 1)],
    ids=["ring", "one-gather"],
)
def test_only_a_compiled_ring_keeps_keys_and_values_of_all_ranks(way, tensors):
    # SDPA's output; the ring's own k and v as it sends them, and those of two ranks.
    fields = {"selective_ac_option": "attention", "mode": "selective"}
    fields = {f"activation_checkpoint__{name}": value for name, value in fields.items()}
    job_config = paper_job(**fields, **DENSE, parallelism__context_parallel_degree=2)
    job_config.parallelism.context_parallel_attention = way
    parts = peak(job_config, 2).parts
    assert parts["kept by blocks: attention"] == 30 * tensors * 98_304 // 2 * 1024 * 2


def test_the_paper_s_vocabulary_peaks_at_the_loss():
    found = peak(paper_job(**FULL, model__flavor="530M"))
    assert found.moment == "the loss"
    # bfloat16 logits and their gradient, the last norm's input (float32) and output (bfloat16).
    assert found.parts["logits and loss"] == 98_304 * (128_256 * (2 + 2) + 1024 * (4 + 2))


def test_the_uncompiled_loss_has_three_float32_tensors():
    found = peak(paper_job(**FULL, model__flavor="530M", compile__components=["model"]))
    assert found.parts["logits and loss"] == 98_304 * (128_256 * 12 + 1024 * (4 + 2))


@pytest.mark.parametrize(
    ("fields", "gib", "unit"),
    [
        (FULL, 80, 16 * 12),
        (SELECTIVE, 80, 16 * 12),
        (FULL | {"parallelism__context_parallel_degree": 2}, 139, 16 * 12),
        (FULL | DILATED, 80, 16 * 12 * 5),
    ],
    ids=["full", "selective", "cp2", "dilated"],
)
def test_largest_seq_len_fits_and_the_next_does_not(fields, gib, unit):
    layouts = layouts_of(paper_job(**fields))
    seq_len = memory.largest_seq_len(layouts.values(), gib * GIB)
    assert seq_len % unit == 0
    assert memory.peak(layouts["lighthouse"], seq_len).total <= gib * GIB
    assert memory.peak(layouts["lighthouse"], seq_len + unit).total > gib * GIB


def test_largest_seq_len_fits_both_stages():
    stages = layouts_of(paper_job(**SELECTIVE, lighthouse__steps=10_000))
    assert list(stages) == ["lighthouse", "dense"]
    seq_len = memory.largest_seq_len(stages.values(), 80 * GIB)
    assert memory.peak(stages["dense"], seq_len + 16 * 12).total > 80 * GIB
    assert memory.peak(stages["lighthouse"], seq_len + 16 * 12).total <= 80 * GIB


def test_nothing_fits_where_not_even_the_weights_do():
    assert memory.largest_seq_len(layouts_of(paper_job()).values(), GIB) == 0


@pytest.mark.parametrize(
    ("fields", "gpus", "message"),
    [
        ({"parallelism__pipeline_parallel_degree": 2}, None, "pipeline_parallel_degree"),
        ({"training__enable_cpu_offload": True}, None, "enable_cpu_offload"),
        ({"activation_checkpoint__mode": "memory_budget"}, None, "activation_checkpoint.mode"),
        ({"model__flavor": "530B"}, None, "530M_byte"),
        ({"parallelism__context_parallel_degree": 2}, 3, "multiply to 2, which is not 3"),
        ({"parallelism__tensor_parallel_degree": 3}, None, "tensor_parallel_degree=3 must divide"),
        (
            {**SELECTIVE, "activation_checkpoint__selective_ac_option": "all"},
            None,
            "ac_option='all'",
        ),
        ({"training__local_batch_size": 0}, None, "training.local_batch_size=0"),
        ({"training__seq_len": 1000}, None, "seq_len=1000 must be a multiple"),
        ({"lighthouse__steps": 10**6}, None, "lighthouse.steps = 1000000 must be from 0"),
        ({"model__name": "llama3"}, None, "model.name = 'llama3' must be"),
        ({}, 0, "multiply to 1, which is not 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_not_modelled_or_trained_is_refused(fields, gpus, message):
    with pytest.raises(ValueError, match=message):
        layouts_of(paper_job(**fields), gpus)


@pytest.mark.parametrize("gib", ["0", "-8", "nan", "inf"])
def test_a_gpu_has_some_memory(capsys, gib):
    with pytest.raises(SystemExit) as end:
        memory_tool.main([str(PAPER), "--gpu-gib", gib])
    assert end.value.code == 2
    assert f"{gib} must be a positive number" in capsys.readouterr().err


def test_the_script_prints_every_stage_and_the_largest_seq_len(capsys):
    memory_tool.main([str(PAPER), "--gpus", "8", "--gpu-gib", "80", "--training.seq_len", "49152"])
    lines = capsys.readouterr().out.splitlines()
    assert any("the fastest that fits is" in line for line in lines)
    assert [line.split(":")[0] for line in lines if "stage" in line] == [
        "lighthouse stage, 49,152 tokens, 8 GPUs",
        "dense stage, 49,152 tokens, 8 GPUs",
    ]
    stages = layouts_of(
        paper_job(model__flavor="530M", lighthouse__steps=10_000, training__global_batch_size=32), 8
    )
    longest = memory.largest_seq_len(stages.values(), 80 * GIB * 8 // 9)
    assert lines[-1].endswith(f"largest seq_len is {longest:,}")
