"""The processes that write and read a checkpoint together."""

from typing import Any, NamedTuple

from torch import distributed


class Ranks(NamedTuple):
    """This process among those that work together.

    Attributes:
        rank: Its number.
        size: How many there are; 1 stands alone whatever else runs.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def all(cls) -> "Ranks":
        """Return all processes of the job."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def gather(self, item: Any) -> list[Any]:
        """Return everyone the items of all, in the order of ranks; what can be pickled."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        distributed.all_gather_object(items, item)
        return items

    def mine(self, items: list[Any]) -> list[Any]:
        """Return this process's share of items that all know in the same order."""
        return items[self.rank :: self.size]
