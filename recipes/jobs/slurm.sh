#!/bin/bash
# purpose:  train on several nodes under SLURM; the job queues itself again until the run is finished
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
# together, write RUN/stopped.json and end. SLURM itself queues a job again that lost a node or was preempted.
set -u
run=${1:?usage: sbatch slurm.sh RUN --config RECIPE [--key value ...]}
shift
rm -f "$run/stopped.json" # left by an earlier job; with it, this job would queue itself again in any case

# If one task fails, the others are ended, so that none waits on its GPU.
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m divot_lightning resume "$run" "$@" \
  --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE"
status=$?

# Read the record, not the status: the status may come from a task that was killed while it was ending.
if grep -qs '"exit_code": 75' "$run/stopped.json"; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
