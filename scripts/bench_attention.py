"""Time one Lighthouse layer against dense SDPA and against its floor, SDPA on S tokens alone.

    python scripts/bench_attention.py --out outputs/bench            # the default lengths
    python scripts/bench_attention.py --shapes 98304:1536 --peers    # N:topk pairs
    python scripts/bench_attention.py --shapes 98304:1536 --rope-aligned
    python scripts/bench_attention.py --shapes 98304:1536 --base main    # against another commit

Needs a CUDA device, and runs the kernels' tests first. Medians by CUDA events over warm runs that
rotate among input sets. Writes bench.jsonl, bench.md and bench.png to --out and prints the tables.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel

# This checkout's package, whichever is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench_tables import plot, tables
from commit_times import ROOT, commit_of, compare
from layer_times import (
    BACKENDS,
    Inputs,
    Layer,
    Shape,
    Timer,
    forward,
    forward_backward,
    input_sets,
    layer_of,
    median_ms,
    rotation_over,
)
from peer_times import bench_peers

from torchtitan_lighthouse import SCORERS, LighthouseConfig, score, select
from torchtitan_lighthouse.attention import ops
from torchtitan_lighthouse.refusal import RefusalError, refusal

SHAPES = "8192:128,16384:256,32768:512,65536:1024,98304:1536,131072:2048,262144:2048,524288:4096"
TESTS = ("tests/attention/test_kernels.py", "tests/attention/test_kernels_on_gpu.py")
FIELDS = ("levels", "pooling_factor", "tile", "scorer", "dilation")  # of every commit's config

dense = partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)


def main(args: list[str] | None = None) -> None:
    """Parse the command line and run; what is refused ends with one line and status 2."""
    parser = parser_of_options()
    try:
        run(parser.parse_args(args))
    except RefusalError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def run(options: argparse.Namespace) -> None:
    """Test, time and write.

    Raises:
        RefusalError: an option or the machine will not do, or the tests do not pass.
    """
    layers = layers_of(options)
    commit = commit_of(options.base) if options.base else None
    require_packages(options.peers)
    if not torch.cuda.is_available():
        raise RefusalError(f"needs a CUDA device; torch {torch.__version__} finds none")
    if options.tests:
        run_tests()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    how = (options.backend, options.repeats)
    # First, while this process holds no memory of the GPU.
    commits = compare(commit, layers, *how) if commit else []
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with (options.out / "bench.jsonl").open("w") as log:
        for i, layer in enumerate(layers):
            row = bench_layer(layer, *how, peers=options.peers)
            if commits:
                row["commits"] = commits[i]
            rows.append(row)
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(json.dumps(row), flush=True)
    text = tables(rows)
    (options.out / "bench.md").write_text(text)
    plot(rows, options.out / "bench.png")
    print(text)


def parser_of_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("bench_attention.py", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=lengths, default=SHAPES, help="N:topk, comma-separated")
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--pooling-factor", type=int, default=4)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--scorer", choices=sorted(SCORERS), default="norm")
    parser.add_argument("--dilation", type=int, default=4)
    parser.add_argument("--rope-aligned", action="store_true", help="pool aligned with RoPE")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--backend", choices=BACKENDS, default="cudnn", help="of every SDPA")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--peers", action="store_true", help="also flash-linear-attention's layers")
    parser.add_argument("--base", metavar="REF", help="also the layer of another git commit")
    parser.add_argument("--no-tests", action="store_false", dest="tests", help="[kernels' first]")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    return parser


def lengths(text: str) -> list[tuple[int, int]]:
    """The pairs (N, topk) of ``--shapes``."""
    try:
        return [(int(n), int(topk)) for n, topk in (pair.split(":") for pair in text.split(","))]
    except ValueError:
        message = f"{text!r} must be pairs N:topk, comma-separated, such as 8192:128,16384:256"
        raise argparse.ArgumentTypeError(message) from None


def layers_of(options: argparse.Namespace) -> list[Layer]:
    """The layers to time.

    Raises:
        RefusalError: an option breaks a rule, or a length is none that the pyramid takes.
    """
    if options.levels < 2:
        raise refusal("--levels", options.levels, "is dense attention", 2)
    if min(options.heads, options.kv_heads) < 1 or options.heads % options.kv_heads:
        raise refusal("--heads", options.heads, f"must be a multiple of {options.kv_heads}")
    fields = {name: getattr(options, name) for name in FIELDS}
    if options.rope_aligned:
        fields["rope_aligned"] = True
    layers = []
    for length, topk in options.shapes:
        LighthouseConfig(**fields, topk=topk).validate_seq_len(length)
        heads = (options.heads, options.kv_heads, options.head_dim)
        layers.append(Layer(Shape(*heads, options.dtype, length), {**fields, "topk": topk}))
    return layers


def require_packages(peers: bool) -> None:
    """Before minutes of timing, not after them."""
    for package, extra in {"matplotlib": "plot", **({"fla": "gla"} if peers else {})}.items():
        if find_spec(package) is None:
            raise RefusalError(f"{package} is not installed: pip install -e '.[{extra}]'")


def run_tests() -> None:
    """Hold the kernels to the plain ops: times of wrong results are none.

    Raises:
        RefusalError: the tests did not pass.
    """
    for tests in TESTS:
        command = [sys.executable, "-m", "pytest", "-q", "-x", tests]
        if subprocess.run(command, cwd=ROOT).returncode:
            raise RefusalError(f"{tests} did not pass: nothing is timed (--no-tests leaves it out)")


def bench_layer(layer: Layer, backend: str, repeats: int, peers: bool) -> dict:
    """Times in ms and memory in GiB of dense SDPA, the layer, its floor, its parts and peers."""
    shape, fields = layer
    config = LighthouseConfig(**fields)
    slots = config.sub_sequence_length(shape.length)
    full, short = input_sets(shape), input_sets(replace(shape, length=slots))
    row = {
        "device": torch.cuda.get_device_name(),
        "backend": backend,
        "N": shape.length,
        "k": config.topk,
        "S": slots,
        "scorer": config.scorer,
        "rope_aligned": config.rope_aligned,
    }
    time = partial(median_ms, repeats=repeats)
    with sdpa_kernel(BACKENDS[backend]):
        for name, function, sets in (
            ("dense", dense, full),
            ("lighthouse", layer_of(config, shape.head_dim), full),
            ("floor", dense, short),
        ):
            row[f"{name}_fwd"] = time(forward(function), sets)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            row[f"{name}_fwd_bwd"] = time(forward_backward(function), sets)
            row[f"{name}_peak_gib"] = (torch.cuda.max_memory_allocated() - before) / 2**30
        row["parts"] = bench_parts(config, full, time)
        if peers:
            row["peers"] = bench_peers(shape, time)
    return row


def bench_parts(config: LighthouseConfig, sets: Sequence[Inputs], time: Timer) -> dict[str, float]:
    """The five parts of a layer forward, and the backward of each that has one."""
    seq_len, head_dim = sets[0][0].shape[2:]
    slots = config.sub_sequence_length(seq_len)
    pyramid = (config.levels, config.pooling_factor)
    aligned = config.rope_aligned
    rotation = rotation_over(config.coarsest_window, head_dim) if aligned else None
    with torch.no_grad():
        scores = [score(*qkv, config) for qkv in sets]
        nodes = select(*scores[0], config).nodes
        gathered = [ops.gather(*qkv, nodes, rotation, slots, *pyramid) for qkv in sets]
        parts = {
            "scores": time(lambda q, k, v: score(q, k, v, config), sets),
            "select": time(lambda q, k: select(q, k, config), scores),
            "gather": time(lambda *qkv: ops.gather(*qkv, nodes, rotation, slots, *pyramid), sets),
            "sdpa": time(dense, gathered),
            "scatter": time(lambda q, k, v: ops.scatter(q, nodes, seq_len, *pyramid, 1), gathered),
            "scatter_bwd": time(
                lambda q, k, v: ops.scatter_backward(q, nodes, slots, *pyramid, 1), sets
            ),
            "gather_bwd": time(
                lambda *qkv: ops.gather_backward(*qkv, nodes, rotation, seq_len, *pyramid), gathered
            ),
        }
    leaves = [tuple(x.requires_grad_() for x in qkv) for qkv in gathered]
    parts["sdpa_bwd"] = time(forward_backward(dense), leaves) - parts["sdpa"]
    return parts


if __name__ == "__main__":
    main()
