#!/usr/bin/env bash
# Train a small Llama-3 on real text in both stages, on a CPU or a GPU, and plot its loss.
# Arguments go to the trainer, e.g. --training.steps 200 --lighthouse.steps 140.
set -euo pipefail
source "$(dirname "$0")/venv.sh" plot
run=outputs/quickstart-$(date +%Y%m%d-%H%M%S)
python -m torch.distributed.run --standalone --nproc-per-node "${NPROC:-1}" \
  -m torchtitan_lighthouse.train --job.config_file train_configs/quickstart.toml \
  --job.dump_folder "$run" "$@"
echo
python -m torchtitan_lighthouse compare "$run"
