"""Where samples come from: any sample of any shard or jsonl can be read by its place, so that an order can be planned.

A unit is a shard or a jsonl file. Sources are made in the training process and used in forked workers: they hold no
open file over a fork, and what they know of the samples lies in few arrays.
"""

from typing import Protocol

from divot_datamodules.ledger import Defect
from divot_datamodules.shard_reading import RawSample


class SampleSource(Protocol):
    """Samples that can be read in any order.

    Ranks index by themselves; they agree on the order only if their fingerprints are equal, so compare these. With a
    shared `index_folder`, let one rank open the source first: the others then find the index there.

    Attributes:
        counts: Usable samples per unit; 0 for a unit that cannot be read.
        defects: What indexing found: shards that are missing or cut, members that lie apart, and so on. Samples named
            here are not among the usable ones.
        fingerprint: Hash of the units' names (without folders), sizes, keys and places; equal for equal data.
    """

    counts: tuple[int, ...]
    defects: list[Defect]
    fingerprint: str

    def unit_name(self, unit: int) -> str:
        """Returns path or URL of a unit, as ledger entries name it."""
        ...

    def key(self, unit: int, sample: int) -> str:
        """Returns a sample's key without reading the sample."""
        ...

    def read(self, unit: int, sample: int) -> RawSample:
        """Reads exactly one sample's bytes.

        Args:
            unit: Number of the unit.
            sample: Place among the unit's usable samples, from 0 to `counts[unit] - 1`.

        Raises:
            divot_datamodules.samples.SampleError: It cannot be read, such as "missing_shard", "shard_changed".
        """
        ...
