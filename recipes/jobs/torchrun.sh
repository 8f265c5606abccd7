#!/bin/bash
# purpose:  one node's part of a run on several nodes that torchrun starts
# command:  NODES=2 NODE=0 FIRST_NODE=host0 bash torchrun.sh RUN --config paper/llm_pretraining    (NODE=1 on the next)
# needs:    RUN, recipe, data and Python environment on a file system that all nodes see
# hardware: nodes with 8 GPUs; PER_NODE says how many others have
# The same command on all nodes, but for NODE. It continues where the run stopped; SIGTERM or SIGUSR1 to a process of any
# node makes all of them save. torchrun's own status then is 1: RUN/stopped.json tells a stop from a failure.
set -u
run=${1:?usage: NODES=2 NODE=0 FIRST_NODE=HOST bash torchrun.sh RUN --config RECIPE [--key value ...]}
shift
# The run folder stands alone in front: torchrun would take --run for an abbreviation of an option of its own.
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes "$NODES" --node-rank "$NODE" --master-addr "$FIRST_NODE" --master-port "${PORT:-29500}" \
  --nproc-per-node "${PER_NODE:=8}" --max-restarts 0 \
  -m divot_lightning resume "$run" "$@" --trainer.num_nodes "$NODES" --trainer.devices "$PER_NODE"
