#!/usr/bin/env bash
#SBATCH --job-name=lighthouse
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --output=outputs/%x-%j.log
#SBATCH --requeue
#SBATCH --open-mode=append
# Train on several nodes: one torchrun a node, which meet at the first of them.
#   usage: mkdir -p outputs && sbatch [--nodes N] scripts/launch_slurm.sh CONFIG [OPTION...]
# from the repository's root, with the package installed in .venv or in $VENV, which all nodes see;
# OPTIONs go to the trainer. Slurm does not make the log's folder. A requeued job continues from its
# last checkpoint.
set -euo pipefail
: "${1:?usage: mkdir -p outputs && sbatch [--nodes N] scripts/launch_slurm.sh CONFIG [OPTION...]}"
cd "${SLURM_SUBMIT_DIR:?run it with sbatch}"

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
host=${hosts%%$'\n'*}
# A port of the job's own: jobs may share the first node's network.
port=$((20000 + SLURM_JOB_ID % 10000))

# srun does not take over the CPUs that sbatch was asked for.
srun --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  "${VENV:-.venv}/bin/python" -m torch.distributed.run \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc-per-node "${NPROC:-${SLURM_GPUS_ON_NODE:-8}}" \
  --rdzv-backend c10d \
  --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-endpoint "$host:$port" \
  -m torchtitan_lighthouse.train --job.config_file "$@"
