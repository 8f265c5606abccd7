"""The processes of a job: how many there are, which one this is, and what all of them hold."""

from typing import Any, NamedTuple, TypeVar

from torch import distributed

Item = TypeVar("Item")


def num_ranks() -> int:
    """Count the processes of the job; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class Ranks(NamedTuple):
    """This process among those that work together.

    Attributes:
        rank: Its number, from 0.
        size: Number of processes; with 1, nothing is sent to other processes of the job.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def all(cls) -> "Ranks":
        """Return all processes of the job."""
        size = num_ranks()
        return cls() if size == 1 else cls(distributed.get_rank(), size)

    def gather(self, item: Any) -> list[Any]:
        """Return the items of all processes, in the order of ranks, on each of them; items can be pickled."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        distributed.all_gather_object(items, item)
        return items

    def wait(self) -> None:
        """Wait until all processes have reached this call."""
        if self.size > 1:
            distributed.barrier()

    def mine(self, items: list[Item]) -> list[Item]:
        """Return the items that this process handles, of a list that is the same on all processes."""
        return items[self.rank :: self.size]
