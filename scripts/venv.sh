# Sourced by the other scripts: a virtual environment in .venv with the package and the named extras.
#   usage: source scripts/venv.sh EXTRA[,EXTRA...]
# PYTHON chooses the interpreter, VENV the folder.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}
[ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
source "$VENV/bin/activate"
# A torch that is there stays. Else, without a GPU, the release whose CPU build is small, and with one
# whatever pip finds right.
python -c "import torch" 2>/dev/null || command -v nvidia-smi >/dev/null ||
  python -m pip install --quiet "torch==2.13.0"
python -m pip install --quiet --editable ".[$1]"
