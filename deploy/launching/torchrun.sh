#!/usr/bin/env bash
# One training on several machines. Run on each machine with the same arguments:
#
#     NODES=2 MAIN=10.0.0.1 deploy/launching/torchrun.sh data.root=/shared/events hydra.run.dir=/shared/runs/first
#
# NODES: number of machines. MAIN: a machine that all others reach. PROCESSES: processes on each machine, one for each
# GPU (trainer.accelerator=gpu). If a process fails, torchrun ends the others; the same command continues the run.
set -euo pipefail
exec torchrun \
    --nnodes "${NODES:?number of machines}" \
    --nproc-per-node "${PROCESSES:-1}" \
    --rdzv-backend c10d \
    --rdzv-endpoint "${MAIN:?name or address of a machine}:${PORT:-29500}" \
    --rdzv-id "${JOB:-recsys}" \
    --max-restarts 0 \
    -m recsys.cli train trainer=multinode "$@"
