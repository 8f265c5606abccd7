#!/bin/bash
# purpose:  start one node's processes of a run on several nodes, with torchrun
# command:  NODES=2 NODE=0 FIRST_NODE=host0 bash torchrun.sh RUN --config paper/llm_pretraining    (NODE=1 on the next)
# needs:    RUN, recipe, data and Python environment on a file system that all nodes see
# hardware: nodes with 8 GPUs; set PER_NODE for another number
# Use the same command on all nodes, except for NODE. It continues a stopped run. SIGTERM or SIGUSR1 to a process of any
# node makes all of them save. torchrun then exits with 1; RUN/stopped.json shows that it was a stop, not a failure.
set -u
run=${1:?usage: NODES=2 NODE=0 FIRST_NODE=HOST bash torchrun.sh RUN --config RECIPE [--key value ...]}
shift
# The run folder comes first, without --run: torchrun would read --run as an abbreviation of its own options.
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes "$NODES" --node-rank "$NODE" --master-addr "$FIRST_NODE" --master-port "${PORT:-29500}" \
  --nproc-per-node "${PER_NODE:=8}" --max-restarts 0 \
  -m divot_lightning resume "$run" "$@" --trainer.num_nodes "$NODES" --trainer.devices "$PER_NODE"
