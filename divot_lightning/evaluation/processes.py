"""Join the processes of an evaluation, which torchrun or SLURM started; or run in a single one."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from divot_lightning.distributed.environment import local_rank, num_started
from divot_lightning.distributed.ranks import Ranks
from divot_lightning.inference.loaded_run import usable_device

PATIENCE = timedelta(days=7)
"""How long a process waits for the slowest one; they do not communicate until the end."""


@contextmanager
def joined_processes() -> Iterator[Ranks]:
    """Join the processes that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    if num_started() == 1 or distributed.is_initialized():
        yield Ranks.all()
        return
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks.all()
    finally:
        distributed.destroy_process_group()


def local_device(device: str) -> str:
    """Return the device of this process: with several GPUs on a machine, `cuda` becomes a GPU of its own.

    >>> local_device("cpu")
    'cpu'
    """
    if device != "cuda" or not torch.cuda.is_available():
        return str(usable_device(device))
    return f"cuda:{local_rank() % torch.cuda.device_count()}"
