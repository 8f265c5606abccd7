"""Join the processes of an evaluation, which torchrun or SLURM started; or run in a single one."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

Item = TypeVar("Item")

PATIENCE = timedelta(days=7)
"""How long a process waits for the slowest one; they do not communicate until the end."""


@dataclass(frozen=True)
class Processes:
    """The processes of an evaluation, seen from this one.

    Attributes:
        rank: Number of this process.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    def own_part(self, items: Sequence[Item]) -> list[Item]:
        """Return the items that this process handles, out of a list that is the same on all processes."""
        return list(items[self.rank :: self.count])

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or distributed.is_initialized():
        started = distributed.is_initialized()
        yield Processes(distributed.get_rank(), distributed.get_world_size()) if started else Processes()
        return
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()


def local_device(device: str) -> str:
    """Return the device of this process: with several GPUs on a machine, `cuda` becomes a GPU of its own.

    >>> local_device("cpu")
    'cpu'
    """
    if device != "cuda" or not torch.cuda.is_available():
        return device
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
