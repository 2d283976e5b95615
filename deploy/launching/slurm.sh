#!/usr/bin/env bash
# One training on several machines of a SLURM cluster:
#
#     sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 deploy/launching/slurm.sh \
#         trainer.accelerator=gpu data.root=/shared/events hydra.run.dir=/shared/runs/first
#
# A task for each GPU. If a task fails, srun ends the others; the same command continues the run.
#SBATCH --job-name=recsys
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
set -euo pipefail
exec srun --kill-on-bad-exit=1 recsys train trainer=multinode "$@"
