"""Train variants of one config for some steps each and compare tokens/s, memory and loss.

    python scripts/bench_train.py train_configs/lighthouse_530m_98k.toml --nproc 8 --steps 12 \
        --run "dense --lighthouse.no-enable" --run "lighthouse" \
        --common "--training.global_batch_size 32"

Each --run is a name and command-line options of its own; --common goes to every run.
Tokens/s is the median over the steps from --skip on; the first steps compile. Prints a table, with
speed-ups over the first run, and writes it to --out beside the runs' dump folders.
"""

import argparse
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

from torchtitan_lighthouse.metrics_log import read_metrics

TOKENS_PER_SECOND = "throughput(tps)"
PEAK_MEMORY = "memory/max_reserved(GiB)"
LOSS = "loss_metrics/global_avg_loss"


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for run in args.run:
        name, *options = shlex.split(run)
        train(args, name, options)
        rows.append(summarise(name, read_metrics(args.out / name), args.skip))
        print(rows[-1], flush=True)
    table = markdown(rows)
    (args.out / "table.md").write_text(table)
    print(table)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--run", action="append", required=True, help='"NAME [OPTIONS]"')
    parser.add_argument("--nproc", type=int, default=1, help="processes, one per GPU")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--skip", type=int, default=4, help="leading steps not timed")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one run")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_train"))
    parser.add_argument("--common", type=shlex.split, default=[], help="options of every run")
    return parser.parse_args()


def train(args: argparse.Namespace, name: str, options: list[str]) -> None:
    """Run the trainer; its output goes to NAME.log. A failure ends the comparison."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(args.nproc), "-m", "torchtitan_lighthouse.train"),
        *("--job.config_file", str(args.config), "--job.dump_folder", str(args.out / name)),
        *("--training.steps", str(args.steps), "--lighthouse.steps", "-1"),
        *("--metrics.log_freq", "1", "--metrics.no-enable_wandb", "--checkpoint.no-enable"),
        *args.common,
        *options,
    ]
    started = time.time()
    with (args.out / f"{name}.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, timeout=args.timeout, check=True)
    print(f"{name}: {time.time() - started:.0f} s in all", flush=True)


def summarise(name: str, records: list[dict], skip: int) -> dict:
    steady = records[skip:]
    return {
        "run": name,
        "tokens/s/GPU": statistics.median(r[TOKENS_PER_SECOND] for r in steady),
        "MFU %": statistics.median(r["mfu(%)"] for r in steady),
        "peak GiB": max(r[PEAK_MEMORY] for r in records),
        "first loss": records[0][LOSS],
        "last loss": records[-1][LOSS],
        "losses": [round(r[LOSS], 4) for r in records],
    }


def markdown(rows: list[dict]) -> str:
    lines = [
        "| run | tokens/s/GPU | speed-up | MFU % | peak GiB | first loss | last loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        speed_up = row["tokens/s/GPU"] / rows[0]["tokens/s/GPU"]
        lines.append(
            f"| {row['run']} | {row['tokens/s/GPU']:,.0f} | {speed_up:.2f}× | {row['MFU %']:.1f} "
            f"| {row['peak GiB']:.1f} | {row['first loss']:.4f} | {row['last loss']:.4f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
