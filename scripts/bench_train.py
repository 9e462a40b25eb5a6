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
import time
from pathlib import Path

from torchtitan_lighthouse.runs.launch import train
from torchtitan_lighthouse.runs.metrics_log import LOSS, PEAK_MEMORY, TOKENS_PER_SECOND
from torchtitan_lighthouse.runs.table import markdown

OUT = "outputs/bench_train-%Y%m%d-%H%M%S"
BENCHMARK = [
    *("--lighthouse.steps", "-1", "--checkpoint.no-enable"),
    *("--metrics.log_freq", "1", "--metrics.no-enable_wandb"),
]


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for run in args.run:
        name, *options = shlex.split(run)
        records = train(
            args.config,
            args.out / name,
            steps=args.steps,
            options=[*BENCHMARK, *args.common, *options],
            processes=args.nproc,
            timeout=args.timeout,
        )
        rows.append(summarise(name, records, args.skip))
        print(rows[-1], flush=True)
    table = markdown(cells(rows))
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
    parser.add_argument("--out", type=Path, default=Path(time.strftime(OUT)), help="a new folder")
    parser.add_argument("--common", type=shlex.split, default=[], help="options of every run")
    args = parser.parse_args()
    if args.steps <= args.skip:
        parser.error(f"--steps {args.steps} must be more than --skip {args.skip}, to time any")
    return args


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


def cells(rows: list[dict]) -> list[tuple[str, ...]]:
    table = [("run", "tokens/s/GPU", "speed-up", "MFU %", "peak GiB", "first loss", "last loss")]
    for row in rows:
        table.append(
            (
                row["run"],
                f"{row['tokens/s/GPU']:,.0f}",
                f"{row['tokens/s/GPU'] / rows[0]['tokens/s/GPU']:.2f}×",
                f"{row['MFU %']:.1f}",
                f"{row['peak GiB']:.1f}",
                f"{row['first loss']:.4f}",
                f"{row['last loss']:.4f}",
            )
        )
    return table


if __name__ == "__main__":
    main()
