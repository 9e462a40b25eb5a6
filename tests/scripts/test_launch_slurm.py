"""The Slurm script, with stubs of Slurm's commands."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "launch_slurm.sh"
# Writes line by line, as scontrol does, so a reader that goes early would end it by SIGPIPE.
SCONTROL = """#!/usr/bin/env bash
[ "$*" = "show hostnames n[1-200]" ] || exit 3
for i in {1..200}; do echo "n$i"; done
"""
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" > srun.txt
"""


@pytest.fixture
def launch(tmp_path):
    """Run the script as a job of 200 nodes; returns srun's arguments."""
    for name, text in {"scontrol": SCONTROL, "srun": SRUN}.items():
        stub = tmp_path / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(text)
        stub.chmod(0o755)
    slurm = {"SUBMIT_DIR": tmp_path, "JOB_NODELIST": "n[1-200]", "JOB_ID": 12_345}
    slurm |= {"JOB_NUM_NODES": 200, "GPUS_ON_NODE": 4}

    def run(*options, **more):
        job = {f"SLURM_{name}": str(value) for name, value in {**slurm, **more}.items()}
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        environment = {"PATH": path, "VENV": "/venv", **job}
        subprocess.run(["bash", SCRIPT, *options], env=environment, check=True, timeout=30)
        return (tmp_path / "srun.txt").read_text().splitlines()

    return run


def test_ranks_meet_at_the_first_node(launch):
    arguments = launch("my job.toml", "--training.steps", "3")
    assert arguments[arguments.index("--rdzv-endpoint") + 1] == "n1:22345"
    assert arguments[arguments.index("--nnodes") + 1] == "200"
    assert arguments[arguments.index("--nproc-per-node") + 1] == "4"
    assert arguments[-4:] == ["--job.config_file", "my job.toml", "--training.steps", "3"]


def test_every_launch_gets_to_srun(launch):
    for _ in range(40):
        launch("job.toml")


@pytest.mark.parametrize(
    ("asked", "handed_on"), [({}, []), ({"CPUS_PER_TASK": 24}, ["--cpus-per-task=24"])]
)
def test_cpus_are_handed_on(launch, asked, handed_on):
    assert launch("job.toml", **asked)[1:3] == [*handed_on, "/venv/bin/python", "-m"][:2]
