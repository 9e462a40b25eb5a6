"""A process in the trainer's place that starts at once and trains nothing.

``install`` puts it where experiments look for Python, so it stands for the retrieval tool too.
"""

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from torchtitan_lighthouse.experiments import schedule

TRAINS = "train(steps)"
"""A trainer that does what is asked of it."""

_HELPERS = """
import json, os, signal, sys, time
from pathlib import Path

def option(name, otherwise=None):
    return args[len(args) - args[::-1].index(name)] if name in args else otherwise

def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

def log(step, loss=1.0):
    metrics = {"loss_metrics/global_avg_loss": loss, "n_tokens_seen": 100 * step}
    metrics |= {"validation_metrics/loss": loss, "throughput(tps)": speed, "grad_norm": 1.0}
    metrics |= {"memory/max_reserved(GiB)": 1.0, "mfu(%)": 50.0}
    stage = "lighthouse" if step <= int(option("--lighthouse.steps", 0)) else "dense"
    record = {"step": step, "stage": stage, "time": float(step), "started": 0.0, **metrics}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + chr(10))

def save(step):
    path = folder / option("--checkpoint.folder", "checkpoint") / f"step-{step}"
    if not path.exists():
        write(path / ".metadata")

def trained():
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0

def train(last):
    interval = int(option("--checkpoint.interval", last))
    for step in range(trained() + 1, last + 1):
        log(step, 1 + seed + 1 / step)
        if step % interval == 0 or step == last:
            save(step)

def retrieve():
    lengths = [int(n) for n in args[args.index("--lengths") + 1 : args.index("--trials")]]
    rates = [{"length": n, "trials": int(option("--trials")), "mean": 0.5} for n in lengths]
    write(Path(option("--out"), "niah.json"), json.dumps(rates))

args = sys.argv[1:]
folder = Path(option("--job.dump_folder") or Path(option("--out")).parent)
steps = int(option("--training.steps", 0))
name, seed = folder.name, int(option("--debug.seed", 0))
speed = 100.0  # tokens/s
launch = {"name": name, "args": args, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
launch |= {"pid": os.getpid(), "begin": time.time()}
def note():
    with open(LAUNCHES, "a") as file:
        file.write(json.dumps({**launch, "end": time.time()}) + chr(10))
"""


class FakeTrainer:
    """What the next processes do, and those that have ended, in that order."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "fake-trainer"
        self._launches = folder / "launches.jsonl"
        self.does(TRAINS)

    def does(self, body: str) -> None:
        """Lines of Python, which have the names of ``_HELPERS``; retrieval is always done."""
        lines = textwrap.indent(body, "        ")
        self.script.write_text(
            f"#!{PYTHON} -S\nLAUNCHES = {str(self._launches)!r}\n{_HELPERS}\n"
            f"try:\n    if 'niah' in args:\n        retrieve()\n    else:\n{lines}\n"
            "finally:\n    note()\n"
        )
        self.script.chmod(0o755)

    @property
    def launches(self) -> list[dict]:
        if not self._launches.exists():
            return []
        return [json.loads(line) for line in self._launches.read_text().splitlines()]

    @property
    def names(self) -> list[str]:
        return [launch["name"] for launch in self.launches]


PYTHON = sys.executable


def install(folder: Path, set_attribute: Callable[[object, str, object], None]) -> FakeTrainer:
    """Put a fake in the place of Python, by ``monkeypatch.setattr``."""
    trainer = FakeTrainer(folder)
    set_attribute(sys, "executable", str(trainer.script))
    set_attribute(schedule, "_POLL_SECONDS", 0.02)
    return trainer
