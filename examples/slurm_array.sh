#!/usr/bin/env bash
# Encodes a task or a folder of music on a Slurm cluster, each array task one share:
#
#     export TUNE_STORE=/net/store
#     sbatch --array=0-15 examples/slurm_array.sh /net/music --encoder muq --seg 10 --layer all
#
# What follows the script's name is what `python -m tune.store encode` takes. A task that is
# preempted, or runs out of time, is queued again or submitted again, and goes on where it stopped:
# what is stored isn't encoded again. To submit some of the tasks once more, say how many shares
# there are: `N_SHARDS=16 sbatch --array=3,7 examples/slurm_array.sh ...` with the same arguments.
# Adapt the resources to your cluster; flags of sbatch beat these lines.
#
#SBATCH --job-name=tune-encode
#SBATCH --array=0-7
#SBATCH --gpus-per-task=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=tune-encode-%A_%a.log
set -euo pipefail

: "${SLURM_ARRAY_TASK_ID:?this is a job array: sbatch --array=0-7 $0 ...}"
shard="$SLURM_ARRAY_TASK_ID/${N_SHARDS:-$SLURM_ARRAY_TASK_COUNT}"
echo "$(date '+%F %T') $(hostname): shard $shard"
# exec: the signal that announces the end reaches Python itself, which finishes its last row.
exec "${PYTHON:-python}" -m tune.store encode "$@" --shard "$shard"
