"""Model sizes, their FLOPs by hand, and their parameters' names against torchtitan's own."""

import pytest
import torch
from torchtitan.models.llama3 import Transformer, TransformerModelArgs, llama3_args

from tests.support.jobs import parse
from torchtitan_lighthouse.data.bytes import VOCAB_SIZE
from torchtitan_lighthouse.titan.models.args import LighthouseModelArgs, lighthouse_layers
from torchtitan_lighthouse.titan.models.flavors import FLAVORS


def parameters(flavor):
    with torch.device("meta"):
        return dict(Transformer(FLAVORS[flavor]).named_parameters())


@pytest.mark.parametrize(
    ("flavor", "count"),
    [
        # embedding and output, then per layer attention, feed-forward and norms, then the last norm
        ("530M", 2 * 128_256 * 1024 + 30 * (4 * 1024**2 + 3 * 1024 * 1536 + 2 * 1024) + 1024),
        ("530M_byte", 2 * VOCAB_SIZE * 1024 + 30 * (4 * 1024**2 + 3 * 1024 * 1536 + 2048) + 1024),
        ("25M_byte", 2 * VOCAB_SIZE * 512 + 8 * (4 * 512**2 + 3 * 512 * 1408 + 2 * 512) + 512),
        ("tiny_byte", 2 * VOCAB_SIZE * 128 + 4 * (4 * 128**2 + 3 * 128 * 512 + 2 * 128) + 128),
    ],
)
def test_parameter_count(flavor, count):
    assert sum(p.numel() for p in parameters(flavor).values()) == count


def test_paper_model_is_530_million():
    weights = parameters("530M")
    assert round(sum(p.numel() for p in weights.values()) / 1e6) == 530
    assert weights["layers.0.feed_forward.w1.weight"].shape == (1536, 1024)
    args = FLAVORS["530M"]
    assert (args.n_layers, args.n_heads, args.dim // args.n_heads) == (30, 8, 128)


def test_8b_is_grouped_query():
    weights = parameters("8B")
    assert weights["layers.0.attention.wq.weight"].shape == (4096, 4096)
    assert weights["layers.0.attention.wk.weight"].shape == (1024, 4096)


@pytest.mark.parametrize("flavor", llama3_args)
def test_torchtitan_flavor_is_unchanged(flavor):
    derived, stock = vars(FLAVORS[flavor]), vars(llama3_args[flavor])
    assert {name: derived[name] for name in stock} == stock


@pytest.mark.parametrize(
    ("n_layers", "dense_layers", "expected"),
    [
        (30, [0, 1, 28, 29], tuple(range(2, 28))),
        (30, [0, 1, -2, -1], tuple(range(2, 28))),
        (4, [], (0, 1, 2, 3)),
        (4, [-4, 0, 3], (1, 2)),
    ],
    ids=["paper", "from-the-end", "none", "twice"],
)
def test_lighthouse_layers(n_layers, dense_layers, expected):
    assert lighthouse_layers(n_layers, dense_layers) == expected


def flops_per_token(args: TransformerModelArgs, job_config):
    args.update_from_config(job_config)
    with torch.device("meta"):
        model = Transformer(args)
    return args.get_nparams_and_flops(model, job_config.training.seq_len)[1]


def test_flops_by_hand(tmp_path):
    # S = 256/4 + 2·2·16 = 128. Two layers attend over 256, two over 128:
    # weights but the embedding 1,131,648 - 320·128 = 1,090,688.
    # 6·1,090,688 + 12·128·(2·256 + 2·128²/256) = 6,544,128 + 12·128·640 = 7,527,168
    args = LighthouseModelArgs(**vars(FLAVORS["tiny_byte"]))
    assert flops_per_token(args, parse(tmp_path)) == 7_527_168
    # The dense stage has 12·128·2·(256 - 64) more.
    assert args.flops_saved(256) == 589_824


def test_flops_of_the_paper_by_hand(tmp_path):
    # S = 98,304/16 + 2·4·1,536 = 18,432, so S²/N = 3,456 in 26 layers; 4 stay dense. Weights but
    # the embedding: 530,117,632 - 128,256·1,024 = 398,783,488.
    # 6·398,783,488 + 12·1,024·(4·98,304 + 26·3,456) = 2,392,700,928 + 12,288·483,072
    fields = {"model__flavor": "530M", "training__seq_len": 98_304, "lighthouse__topk": 1536}
    fields |= {"lighthouse__pooling_factor": 4, "lighthouse__tile": 128}
    job_config = parse(tmp_path, **fields, lighthouse__dense_layers=[0, 1, 28, 29])
    args = LighthouseModelArgs(**vars(FLAVORS["530M"]))
    assert flops_per_token(args, job_config) == 8_328_689_664


@pytest.mark.parametrize("flavor", ["tiny_byte", "debugmodel"])
def test_dense_flops_are_torchtitans(tmp_path, flavor):
    stock = TransformerModelArgs(
        **{name: getattr(FLAVORS[flavor], name) for name in vars(llama3_args["8B"])}
    )
    expected = flops_per_token(stock, parse(tmp_path))
    dense = LighthouseModelArgs(**vars(FLAVORS[flavor]))
    assert flops_per_token(dense, parse(tmp_path, lighthouse__enable=False)) == expected
    lighthouse = LighthouseModelArgs(**vars(FLAVORS[flavor]))
    assert flops_per_token(lighthouse, parse(tmp_path)) + lighthouse.flops_saved(256) == expected
