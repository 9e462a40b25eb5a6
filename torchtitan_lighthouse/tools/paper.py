"""The paper's configurations side by side on one node: tokens/s, memory, loss, and resuming.

    python -m torchtitan_lighthouse paper --out outputs/bench_paper

Trains, from the shipped configs and on 8 GPUs:

- dense SDPA and Lighthouse attention, with norm and p=4 and with dilated and p=2, at 98,304 tokens
  and a global batch of 32, as in the paper's section 4;
- both with context parallel: W=2 at 98,304 tokens, W=8 at 262,144 and at 1,048,576;
- Lighthouse attention with W=2 up to a checkpoint, and from it the dense stage with W=2 and W=1.

Prints a table of all runs that --out has so far. Finished runs are kept, and one that is not when
--minutes are over starts anew: repeat the command until all are there. Other options go to the
trainer, in every run; fewer GPUs need smaller runs, whose names then tell no length:

    python -m torchtitan_lighthouse paper --gpus 2 --model.flavor 530M_byte \
        --training.seq_len 32768 --lighthouse.topk 512 --lighthouse.tile 64 \
        --training.global_batch_size 2
"""

import argparse
from pathlib import Path


def main(args: list[str] | None = None) -> None:
    """Parse the command line, train, and print the table."""
    parser = build_parser()
    options, overrides = parser.parse_known_args(args)

    from torchtitan_lighthouse.experiments.benchmark import write_table
    from torchtitan_lighthouse.experiments.devices import find_devices
    from torchtitan_lighthouse.experiments.paper import paper_benchmarks
    from torchtitan_lighthouse.experiments.schedule import train_all

    out = options.out / f"{options.gpus}-gpus"
    benchmarks = list(paper_benchmarks(options.gpus, out, overrides))
    runs = [benchmark.run for benchmark in benchmarks]
    outcome = train_all(runs, find_devices(str(options.gpus)), options.minutes, options.only)
    print(write_table(benchmarks, out))
    if outcome.unfinished:
        parser.exit(outcome.status, outcome.summary())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--gpus", type=int, choices=(2, 4, 8), default=8)
    parser.add_argument(
        "--minutes",
        type=float,
        default=60,
        help="after which the run in progress is stopped [60]",
    )
    parser.add_argument("--only", nargs="+", metavar="RUN", help="of the table's names [all]")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_paper"))
    return parser


if __name__ == "__main__":
    main()
