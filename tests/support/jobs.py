"""The job of the plugin's tests: four tiny layers, the middle two of them Lighthouse layers."""

import functools
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

from torchtitan.config import JobConfig

from tests.support.checkpoints import write_index
from tests.support.ranks import run_ranks
from torchtitan_lighthouse.experiments.folder import OUTPUT_FILE
from torchtitan_lighthouse.experiments.run import Run
from torchtitan_lighthouse.runs.metrics import read_metrics
from torchtitan_lighthouse.titan.checks import check_job
from torchtitan_lighthouse.titan.config import LighthouseConfigManager
from torchtitan_lighthouse.train import main

TOML = """
[model]
name = "llama3_lighthouse"
flavor = "tiny_byte"

[lighthouse]
levels = 3
pooling_factor = 2
topk = 16
tile = 8
dense_layers = [0, -1]

[training]
dataset = "local"
seq_len = 256
local_batch_size = 2
steps = 24
mixed_precision_param = "float32"

[optimizer]
lr = 3e-3

[lr_scheduler]
warmup_steps = 4
total_steps = 24

[metrics]
log_freq = 1

[activation_checkpoint]
mode = "none"

[debug]
seed = 0
"""


def options(**fields) -> list[str]:
    """Command-line options from section__field=value."""
    args = []
    for name, value in fields.items():
        option = "--" + name.replace("__", ".")
        if isinstance(value, bool):
            section, field = option.split(".")
            args.append(option if value else f"{section}.no-{field}")
        elif isinstance(value, list):
            args += [option, *map(str, value)]
        else:
            args += [option, str(value)]
    return args


def parse(folder: Path, toml: str = TOML, **fields) -> JobConfig:
    """The job as the real ConfigManager reads it from a file and options."""
    return LighthouseConfigManager().parse_args(_arguments(folder, toml, fields))


def checked_job(run: Run) -> JobConfig:
    """The job of a run of an experiment, with a checkpoint there for it to begin from.

    Raises:
        RefusalError: the trainer would refuse it.
    """
    initial = run.job.checkpoint.initial_load_path
    if initial and not Path(initial).exists():
        write_index(Path(initial), run.job.model.flavor, full=True)
    check_job(run.job)
    return run.job


def launch(
    folder: Path, *, ranks: int = 1, program: str = "torchtitan_lighthouse.train", **fields
) -> subprocess.Popen:
    """Start torchrun on CPU; its output is a text pipe."""
    torchrun = ["torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", "localhost:0", "-m", program]
    return subprocess.Popen(
        [sys.executable, "-m", *torchrun, *_arguments(folder, TOML, fields)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def train_by_torchrun(folder: Path, **settings) -> dict[int, dict]:
    """Train to the end as users do; returns what ``train`` does."""
    process = launch(folder, **settings)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    (folder / OUTPUT_FILE).write_text(output)
    return _metrics(folder)


def train(folder: Path, *, ranks: int = 1, **fields) -> dict[int, dict]:
    """Train to the end in processes that start faster than torchrun's.

    Leaves the output in output.txt, and returns the metrics of each step.
    """
    arguments = _arguments(folder, TOML, fields)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    run_ranks(_train_on_a_rank, ranks, ranks, port, arguments, folder / OUTPUT_FILE)
    return _metrics(folder)


def _train_on_a_rank(rank: int, ranks: int, port: int, arguments: list[str], output: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="localhost")
    sys.argv[1:] = arguments
    with output.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    main()


def _metrics(folder: Path) -> dict[int, dict]:
    return {record["step"]: record for record in read_metrics(folder)}


def losses(metrics: dict[int, dict], *, after: int = 0) -> dict[int, float]:
    """The loss of every step after one."""
    return {n: m["loss_metrics/global_avg_loss"] for n, m in metrics.items() if n > after}


def _arguments(folder: Path, toml: str, fields: dict) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    path, corpus = folder / "job.toml", folder / "corpus.txt"
    path.write_text(toml)
    corpus.write_text(_corpus())
    folders = {"job__dump_folder": folder, "training__dataset_path": corpus}
    return options(job__config_file=path, **{**folders, **fields})


@functools.cache
def _corpus() -> str:
    """1.7 MB of lines that a tiny model learns something of within a few steps."""
    words = ("lighthouse", "harbour", "tide", "keeper", "lantern", "fog", "reef", "gull")
    choose = random.Random(0).choices
    return "".join(" ".join(choose(words, k=8)) + ".\n" for _ in range(30_000))
