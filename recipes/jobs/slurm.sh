#!/bin/bash
# purpose:  a run on several nodes under SLURM that queues itself again until it has finished
# command:  sbatch --nodes 4 slurm.sh RUN --config paper/llm_pretraining
# needs:    RUN, recipe, data and Python environment on a file system that all nodes see
# hardware: nodes with 8 GPUs; change the lines below for others
#SBATCH --job-name=divot
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
# One task per GPU. Five minutes before the time is over SLURM sends SIGUSR1 to all tasks: they finish the step, save
# together, write RUN/stopped.json and leave. A job that lost a node or was preempted SLURM queues again by itself.
set -u
run=${1:?usage: sbatch slurm.sh RUN --config RECIPE [--key value ...]}
shift
rm -f "$run/stopped.json" # of an earlier job, or this one would queue itself again whatever happens

# Where one task fails the others are ended, and none waits for it on its GPU.
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m divot_lightning resume "$run" "$@" \
  --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE"
status=$?

# The record is asked, not the status: that may be the one of a task that was ended while it was leaving.
if grep -qs '"exit_code": 75' "$run/stopped.json"; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
