#!/usr/bin/env bash
# Lint, type-check and test in a virtual environment of its own. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/venv.sh" dev,wandb
ruff check .
ruff format --check .
mypy
# The trainer's processes share the cores; one thread each is faster than many. Tests that launch such
# processes wait for them half of the time: three workers keep two cores busy.
# tests/conftest.py puts the longest files first; xdist would put those of the most tests there.
OMP_NUM_THREADS=1 python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
