"""Time one Lighthouse layer against dense SDPA and against its floor, SDPA on S tokens alone.

    python scripts/bench_attention.py --out outputs/bench            # the default lengths
    python scripts/bench_attention.py --shapes 98304:1536 --peers    # N:topk pairs
    python scripts/bench_attention.py --shapes 98304:1536 --rope-aligned

Needs a CUDA device. Medians by CUDA events over warm runs that rotate among input sets. Writes
bench.jsonl, bench.md and bench.png to --out and prints the table.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from torchtitan_lighthouse import SCORERS, LighthouseConfig, lighthouse_attention, score, select
from torchtitan_lighthouse.attention import ops
from torchtitan_lighthouse.attention.scorers import gla_log_decay
from torchtitan_lighthouse.runs.markdown import markdown

SHAPES = "8192:128,16384:256,32768:512,65536:1024,98304:1536,131072:2048,262144:2048,524288:4096"
INPUT_SETS = 3
HEAD_START = 50_000_000  # clock cycles
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}

dense = partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    rows = []
    with (args.out / "bench.jsonl").open("w") as log, sdpa_kernel(BACKENDS[args.backend]):
        for shape in args.shapes.split(","):
            seq_len, topk = map(int, shape.split(":"))
            row = bench_shape(args, seq_len, topk)
            rows.append(row)
            log.write(json.dumps(row) + "\n")
            log.flush()
            print(json.dumps(row), flush=True)
    text = tables(rows)
    (args.out / "bench.md").write_text(text)
    plot(rows, args.out / "bench.png")
    print(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=SHAPES, help="N:topk, comma-separated")
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--pooling-factor", type=int, default=4)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--scorer", choices=sorted(SCORERS), default="norm")
    parser.add_argument("--dilation", type=int, default=4)
    parser.add_argument("--rope-aligned", action="store_true", help="pool aligned with RoPE")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--backend", choices=BACKENDS, default="cudnn", help="of every SDPA")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--peers", action="store_true", help="also flash-linear-attention's layers")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    return parser.parse_args()


def bench_shape(args: argparse.Namespace, seq_len: int, topk: int) -> dict:
    config = LighthouseConfig(
        args.levels,
        args.pooling_factor,
        topk,
        args.tile,
        args.scorer,
        args.dilation,
        rope_aligned=args.rope_aligned,
    )
    rotation = rotation_over(config.coarsest_window, args.head_dim) if args.rope_aligned else None
    slots = config.sub_sequence_length(seq_len)
    time = partial(median_ms, repeats=args.repeats)
    full = [random_qkv(args, seq_len) for _ in range(INPUT_SETS)]
    short = [random_qkv(args, slots) for _ in range(INPUT_SETS)]
    row = {
        "device": torch.cuda.get_device_name(),
        "backend": args.backend,
        "N": seq_len,
        "k": topk,
        "S": slots,
        "scorer": args.scorer,
        "rope_aligned": args.rope_aligned,
    }
    layer = partial(lighthouse_attention, config=config, rotation=rotation)
    for name, function, sets in (
        ("dense", dense, full),
        ("lighthouse", layer, full),
        ("floor", dense, short),
    ):
        row[f"{name}_fwd"] = time(forward(function), sets)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        row[f"{name}_fwd_bwd"] = time(forward_backward(function), sets)
        row[f"{name}_peak_gib"] = (torch.cuda.max_memory_allocated() - before) / 2**30
    row["stages"] = bench_stages(config, rotation, full, time)
    if args.peers:
        row["peers"] = bench_peers(args, seq_len, time)
    return row


def bench_stages(
    config: LighthouseConfig,
    rotation: Tensor | None,
    sets: list[tuple[Tensor, ...]],
    time: Callable[..., float],
) -> dict[str, float]:
    """The five stages forward, and the backward of each that has one."""
    seq_len = sets[0][0].shape[2]
    slots = config.sub_sequence_length(seq_len)
    pyramid = (config.levels, config.pooling_factor)
    with torch.no_grad():
        scores = [score(*qkv, config) for qkv in sets]
        nodes = select(*scores[0], config).nodes
        gathered = [ops.gather(*qkv, nodes, rotation, slots, *pyramid) for qkv in sets]
        stages = {
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
    stages["sdpa_bwd"] = time(forward_backward(dense), leaves) - stages["sdpa"]
    return stages


def bench_peers(
    args: argparse.Namespace, seq_len: int, time: Callable[..., float]
) -> dict[str, list[float]]:
    """Forward and forward+backward ms of the layers a user might pick instead.

    Native sparse attention has 16 query heads on one key head, blocks of 64 and 16 of them.
    """
    from fla.ops.gla import chunk_gla
    from fla.ops.nsa import parallel_nsa
    from fla.ops.simple_gla import chunk_simple_gla

    def by_time(heads: int, kv_heads: int) -> list[tuple[Tensor, ...]]:
        shape = argparse.Namespace(**{**vars(args), "heads": heads, "kv_heads": kv_heads})
        sets = [random_qkv(shape, seq_len) for _ in range(INPUT_SETS)]
        return [tuple(x.transpose(1, 2).detach().requires_grad_() for x in s) for s in sets]

    decay = gla_log_decay(args.heads, torch.device("cuda"))
    gates = F.logsigmoid(torch.randn(1, seq_len, args.heads, args.head_dim, device="cuda"))
    nsa_gates = torch.rand(1, seq_len, 16, device="cuda", dtype=getattr(torch, args.dtype))

    def simple_gla(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return chunk_simple_gla(q, k, v, g_gamma=decay)[0]

    def gla(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return chunk_gla(q, k, v, gates.to(q.dtype))[0]

    def nsa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return parallel_nsa(
            q, k, v, nsa_gates, nsa_gates, nsa_gates, block_counts=16, block_size=64
        )

    times = {}
    for function, sets in (
        (simple_gla, by_time(args.heads, args.heads)),
        (gla, by_time(args.heads, args.heads)),
        (nsa, by_time(16, 1)),
    ):
        name = function.__name__
        try:
            times[name] = [time(forward(function), sets), time(forward_backward(function), sets)]
            print(f"{name}: {times[name]} ms", flush=True)
        except Exception as error:  # one peer that fails should not cost the others' figures
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
    return times


def rotation_over(tokens: int, head_dim: int) -> Tensor:
    """What RoPE does over 0 to ``tokens`` - 1 tokens (see ``lighthouse_attention``)."""
    frequencies = 500_000.0 ** -(torch.arange(0, head_dim, 2, device="cuda") / head_dim)
    angles = torch.outer(torch.arange(tokens, device="cuda"), frequencies)
    return torch.stack([angles.cos(), angles.sin()], -1)


def random_qkv(args: argparse.Namespace, length: int) -> tuple[Tensor, ...]:
    """[1, H, length, D] in the memory layout that torchtitan passes, [1, length, H, D]."""
    return tuple(
        torch.randn(
            1, length, heads, args.head_dim, device="cuda", dtype=getattr(torch, args.dtype)
        )
        .transpose(1, 2)
        .requires_grad_()
        for heads in (args.heads, args.kv_heads, args.kv_heads)
    )


def forward(function: Callable[..., Tensor]) -> Callable[..., object]:
    return torch.no_grad()(function)


def forward_backward(function: Callable[..., Tensor]) -> Callable[..., object]:
    def run(*inputs: Tensor) -> object:
        out = function(*inputs)
        # A gradient like the output, not ones: real data, without a pass to make it.
        return torch.autograd.grad(out, inputs, out.detach())

    return run


def median_ms(function: Callable[..., object], sets: list, repeats: int) -> float:
    for inputs in sets:
        function(*inputs)
    # The GPU waits while the host queues, so that short stages are not timed by their launches.
    torch.cuda._sleep(HEAD_START)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for i, (start, end) in enumerate(events):
        start.record()
        function(*sets[i % len(sets)])
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def tables(rows: list[dict]) -> str:
    """Times and speed-ups; the stages' times; memory, and the peers' times."""
    stages = list(rows[0]["stages"])
    heading = ("N", "k", "S", "dense fwd", "LH fwd", "×", "floor")
    times = [(*heading, "dense fwd+bwd", "LH fwd+bwd", "×", "floor")]
    by_stage = [("N", *stages)]
    memory = [("N", "GiB dense", "lighthouse", "floor", "peers: fwd / fwd+bwd")]
    for r in rows:
        cells = [f"{r['N']:,}", f"{r['k']:,}", f"{r['S']:,}"]
        for kind in ("fwd", "fwd_bwd"):
            dense_ms, ours, floor = (r[f"{n}_{kind}"] for n in ("dense", "lighthouse", "floor"))
            ratios = f"{dense_ms / ours:.1f}", f"{floor:.2f} ({dense_ms / floor:.1f}×)"
            cells += [f"{dense_ms:.2f}", f"{ours:.2f}", *ratios]
        times.append(cells)
        by_stage.append((cells[0], *(f"{r['stages'][stage]:.3f}" for stage in stages)))
        peaks = (f"{r[f'{n}_peak_gib']:.2f}" for n in ("dense", "lighthouse", "floor"))
        peers = ", ".join(f"{n} {f:.2f} / {b:.2f}" for n, (f, b) in r.get("peers", {}).items())
        memory.append((cells[0], *peaks, peers or "-"))
    return "\n".join(markdown(table) for table in (times, by_stage, memory))


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    lengths = [r["N"] for r in rows]
    names = {"dense": "dense SDPA", "lighthouse": "Lighthouse", "floor": "SDPA on S tokens"}
    panels = {"fwd": "forward", "fwd_bwd": "forward + backward"}
    for axis, (kind, title) in zip(axes, panels.items(), strict=True):
        for name, label in names.items():
            style = "--" if name == "floor" else "o-"
            axis.plot(lengths, [r[f"{name}_{kind}"] for r in rows], style, label=label)
        axis.set(xscale="log", yscale="log", xlabel="N (tokens)", title=title)
        axis.set_xticks(lengths, [f"{n // 1024}K" for n in lengths], rotation=45)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ms per layer")
    axes[0].legend()
    figure.suptitle(rows[0]["device"])
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
