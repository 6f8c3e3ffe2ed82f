#!/usr/bin/env bash
#SBATCH --job-name=attn_jax
#SBATCH --array=0-7
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
# One part of a study for each task of a Slurm array, all into one directory that every node reaches:
#
#     sbatch scripts/slurm_array.sh experiments/compare_scores.py --dataset=scan/simple --seeds=10 --out=/shared/out/scan
#
# Then, anywhere, the same command without --shard: it trains what is missing, which is nothing, and prints the table.
# With --tune submit it twice, the second time with --dependency=afterok:JOB: it tries values, then trains what is chosen.
# The parts are numbered from 0 without gaps; a task that is stopped (exit code 75) is queued again, and goes on.
set -euo pipefail
: "${SLURM_ARRAY_TASK_ID:?is set by Slurm: sbatch $0 experiments/... --out=...}"
[[ $# -gt 0 ]] || { echo "usage: sbatch $0 experiments/NAME.py --out=DIR ..." >&2; exit 2; }

"${PYTHON:-.venv/bin/python}" "$@" --shard="$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" &
child=$! stopped="" code=0
# The shell passes on the signal that comes before the time is over, and waits for the checkpoint.
trap 'stopped=yes; kill -TERM "$child"' TERM
wait "$child" || code=$?
if [[ -n $stopped ]]; then
    code=0
    wait "$child" || code=$?
fi
if [[ $code -eq 75 ]]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
